"""The book on paper, from a small site."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from losslandscape.doctor import find_browser
from losslandscape.report import paper

STYLE = Path(__file__).parents[1] / "book/_static/book.css"
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
PAGE = """<html><head><title>{title} \N{EM DASH} A book</title>
<link rel="stylesheet" href="../_static/book.css?v=1"><link rel="next" href="other.html">
<script src="../_static/theme.js"></script>
</head><body><nav class="bd-links">
<a href="../book/intro.html">Start</a><p class="caption">Part one</p>
<a href="../notebooks/one.html">1. One</a></nav>
<article class="bd-article">{body}</article></body></html>"""
INTRO = """<section id="start"><h1>Start<a class="headerlink" href="#start">#</a></h1>
<p>See <a href="../notebooks/one.html#second">the second section</a>,
<a href="../_downloads/records.zip">the records</a>,
<a href="https://example.org">a site</a> and <a href="#start">above</a>.</p></section>"""
ONE = """<section id="one"><h1>One</h1><div style="height: 40cm"></div>
<section id="second"><h2>Second</h2><details><summary>more</summary>folded</details>
<img alt="a dot" src="{src}"></section></section>"""


@pytest.fixture
def site(tmp_path):
    html = tmp_path / "html"
    for path, title, body in (
        ("book/intro.html", "Start", INTRO),
        ("notebooks/one.html", "One", ONE.format(src=DOT)),
    ):
        (html / path).parent.mkdir(parents=True)
        (html / path).write_text(PAGE.format(title=title, body=body), encoding="utf-8")
    (html / "_static").mkdir()
    shutil.copy(STYLE, html / "_static")
    # The page itself is linked with "#" in the theme's own navigation.
    intro = html / "book/intro.html"
    intro.write_text(intro.read_text().replace('href="../book/intro.html"', 'href="#"'))
    return html


def test_pages_are_those_of_the_contents_in_order(site):
    assert paper.pages(site) == [
        paper.Page("book/intro.html", "Start"),
        paper.Page("notebooks/one.html", "1. One", "Part one"),
    ]


def test_a_site_that_is_not_built_is_refused(tmp_path):
    with pytest.raises(paper.PaperError, match="run `make book` first"):
        paper.pages(tmp_path)


def test_links_and_names_hold_in_the_whole_document(site):
    document = paper.in_one(site, paper.pages(site))
    article = document.select("article")[0]
    assert [link.get("href") for link in article.select("a")] == [
        "#notebooks-one--second",
        None,  # a file that is not printed
        "https://example.org",
        "#book-intro--start",
    ]
    names = [part["id"] for part in document.select("[id]")]
    assert len(names) == len(set(names))
    links = [a["href"][1:] for a in document.select("a[href^='#']")]
    assert links
    assert set(links) <= set(names)


def test_the_document_keeps_styles_and_opens_what_is_folded(site):
    document = paper.in_one(site, paper.pages(site))
    assert [part["href"] for part in document.head.select("link")] == ["html/_static/book.css"]
    assert document.select("script") == []
    assert document.select(".headerlink") == []
    assert all(part.has_attr("open") for part in document.select("details"))
    assert document.title.get_text() == "A book"


def test_pictures_are_found_from_beside_the_site(site):
    page = site / "notebooks/one.html"
    page.write_text(page.read_text().replace(DOT, "../_images/dot.png"))
    picture = paper.in_one(site, paper.pages(site)).select_one("img")
    assert picture["src"] == "html/_images/dot.png"


def test_without_a_browser_the_message_is_one_line(site, tmp_path):
    with pytest.raises(paper.PaperError, match="no Chromium or Chrome found"):
        paper.print_book(site, tmp_path / "book.pdf", None)


@pytest.mark.skipif(
    find_browser() is None or importlib.util.find_spec("playwright") is None,
    reason="needs playwright and a Chromium",
)
class TestPrinted:
    def test_the_contents_name_the_pages(self, site, tmp_path):
        import pypdf

        out = tmp_path / "book.pdf"
        count = paper.print_book(site, out, find_browser())
        reader = pypdf.PdfReader(out)
        assert count == len(reader.pages)
        places = paper.page_numbers(out.read_bytes())
        start, one = places["book-intro"], places["notebooks-one"]
        second = places["notebooks-one--second"]
        assert 1 < start < one < second <= count
        contents = reader.pages[0].extract_text().split("\n")
        assert any("Start" in line for line in contents)
        for title, number in (("1. One", one), ("Second", second)):
            at = next(i for i, line in enumerate(contents) if title in line)
            assert str(number) in "".join(contents[at : at + 2]), contents
        assert "folded" in reader.pages[second - 1].extract_text()
        assert [mark.title for mark in reader.outline if not isinstance(mark, list)]

    def test_a_missing_picture_is_named(self, site, tmp_path):
        page = site / "notebooks/one.html"
        page.write_text(page.read_text().replace(DOT, "../_images/gone.png"))
        with pytest.raises(paper.PaperError, match=r"1 pictures? .*gone\.png"):
            paper.print_book(site, tmp_path / "book.pdf", find_browser())
        assert not (tmp_path / "book.pdf").exists()
