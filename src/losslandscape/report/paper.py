"""The whole book on paper: the built pages as one HTML document, and that document as a PDF.

Chromium prints it. The pages are taken as they were built, so that numbers of sections, equations
and figures, and the static pictures behind the figures one can move, are those of the site.
"""

from __future__ import annotations

import io
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

import pypdf
from bs4 import BeautifulSoup, Tag

from losslandscape.lab import records

START = "book/intro.html"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
PATIENCE = 600_000  # milliseconds: thousands of formulas, on machines that do other things
# What a page has for the screen only.
SCREEN = ".headerlink, .toctree-wrapper, script, style, .copybtn, .hint-text"
SCALE = 0.75  # the letters of the screen are large on paper
FOOTER = (
    '<div style="width: 100%; text-align: center; font: 8px sans-serif">'
    '<span class="pageNumber"></span></div>'
)


class PaperError(RuntimeError):
    """The book cannot be printed; the message is one line."""


@dataclass(frozen=True)
class Page:
    """One page of the site.

    Attributes:
        path: Of its file, relative to the site.
        title: As the contents list it.
        part: Caption of the part that begins with it, else "".
    """

    path: str
    title: str
    part: str = ""


def pages(html: Path) -> list[Page]:
    """All pages in the order of the table of contents.

    Raises:
        PaperError: The site is not built.
    """
    start = html / START
    if not start.is_file():
        raise PaperError(f"no page {start}: run `make book` first")
    links = BeautifulSoup(start.read_text(encoding="utf-8"), "html.parser").select_one(".bd-links")
    if links is None:
        raise PaperError(f"{start} has no table of contents")
    found: list[Page] = []
    part = ""
    for item in links.select(".caption, a"):
        text = item.get_text(" ", strip=True)
        if item.name != "a":
            part = text
        elif not found or item.get("href") != "#":
            found.append(Page(_joined(START, str(item["href"])) or START, text, part))
            part = ""
    return found


def _joined(page: str, link: str) -> str:
    """The file, relative to the site, that ``link`` names on ``page``; "" for the page itself."""
    file = link.partition("#")[0].partition("?")[0]
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), file)) if file else ""


def anchor(path: str, fragment: str = "") -> str:
    """The name of a place on a page, unique in the whole document."""
    page = re.sub(r"\W+", "-", path.removesuffix(".html"))
    return f"{page}--{fragment}" if fragment else page


def in_one(html: Path, found: list[Page]) -> BeautifulSoup:
    """All pages as one document, with a title page and contents, to be saved beside ``html``."""
    document = BeautifulSoup((html / START).read_text(encoding="utf-8"), "html.parser")
    head, body = document.head, document.body
    if head is None or body is None:
        raise PaperError(f"{html / START} is no HTML page")
    _reduce_head(head, html.name)
    if document.title is not None:
        document.title.string = document.title.get_text().rpartition("\N{EM DASH}")[2].strip()
    paths = {page.path for page in found}
    articles = [_article(html, page, paths) for page in found]
    body.clear()
    body["class"] = "paper"
    body.append(_front(document, found, articles))
    for article in articles:
        body.append(article)
    return document


def _reduce_head(head: Tag, site: str) -> None:
    """Keep what paper needs: the style sheets and the program that sets formulas."""
    for script in head.find_all("script"):
        text = f"{script.get('src', '')} {script.get_text()}"
        if "mathjax" not in text.lower():
            script.decompose()
    for link in head.find_all("link"):
        if "stylesheet" not in (link.get("rel") or []):
            link.decompose()
    for part in head.find_all(["script", "link"]):
        for name in ("src", "href"):
            if part.get(name):
                part[name] = f"{site}/{_joined(START, str(part[name]))}"


def _article(html: Path, page: Page, paths: set[str]) -> Tag:
    """What a page says, with every name and link valid in the whole document."""
    text = (html / page.path).read_text(encoding="utf-8")
    article = BeautifulSoup(text, "html.parser").select_one("article.bd-article")
    if article is None:
        raise PaperError(f"{page.path} has no article")
    for part in article.select(SCREEN):
        part.decompose()
    for part in article.select("[id]"):
        part["id"] = anchor(page.path, str(part["id"]))
    for part in article.select("img[src]"):
        if not str(part["src"]).startswith("data:"):
            part["src"] = f"{html.name}/{_joined(page.path, str(part['src']))}"
    for part in article.select("details"):
        part["open"] = ""
    for link in article.select("a[href]"):
        _redirect(link, page.path, paths)
    article["id"] = anchor(page.path)
    return article


def _redirect(link: Tag, page: str, paths: set[str]) -> None:
    """Point a link at its place in the document; what is not printed becomes plain text."""
    target = str(link["href"])
    if re.match(r"[a-z]+:", target):
        return
    file = _joined(page, target) or page
    if file in paths:
        link["href"] = "#" + anchor(file, target.partition("#")[2])
    else:
        del link["href"]


def _front(document: BeautifulSoup, found: list[Page], articles: list[Tag]) -> Tag:
    """Title page and contents; the page numbers are filled in once they are known."""
    front = document.new_tag("nav", attrs={"class": "paper-front"})
    for name, text in (
        ("h1", document.title.get_text() if document.title else ""),
        ("p", "A report on the curvature of neural-network losses, printed from its pages."),
        ("p", f"Version of the text: {records.environment()['commit']}"),
        ("h2", "Contents"),
    ):
        line = document.new_tag(name)
        line.string = text
        front.append(line)
    listing = document.new_tag("ul")
    front.append(listing)
    for page, article in zip(found, articles, strict=True):
        if page.part:
            listing.append(_line(document, "part", page.part))
        listing.append(_line(document, "page", page.title, anchor(page.path)))
        for section in article.select("section > h2"):
            place = section.parent
            if place is not None and place.get("id"):
                name = section.get_text("", strip=False).strip()
                listing.append(_line(document, "section", name, str(place["id"])))
    return front


def _line(document: BeautifulSoup, kind: str, text: str, place: str = "") -> Tag:
    line = document.new_tag("li", attrs={"class": f"contents-{kind}"})
    if not place:
        line.string = text
        return line
    link = document.new_tag("a", href=f"#{place}")
    for words in (text, ""):
        span = document.new_tag("span")
        span.string = words
        link.append(span)
    line.append(link)
    return line


def page_numbers(pdf: bytes) -> dict[str, int]:
    """Page, from 1, of each named place of a PDF."""
    reader = pypdf.PdfReader(io.BytesIO(pdf))
    places = reader.named_destinations.items()
    numbers = {name.removeprefix("/"): reader.get_destination_page_number(x) for name, x in places}
    return {name: number + 1 for name, number in numbers.items() if number is not None}


FILL = """numbers => {
  for (const line of document.querySelectorAll(".paper-front a"))
    line.lastElementChild.textContent = numbers[line.hash.slice(1)] ?? "";
}"""
READY = """() => Promise.all([
  window.MathJax?.startup?.promise, document.fonts.ready,
  ...[...document.images].map((image) => image.decode().catch(() => null)),
]).then(() => [...document.images].filter((i) => !i.naturalWidth).map((i) => i.src))"""


def print_book(html: Path, out: Path, browser: str | None) -> int:
    """Print the site below ``html`` to ``out``; the number of pages.

    Printed twice: the first time tells on which page each line of the contents stands.

    Raises:
        PaperError: There is no browser, the site is not built, or a picture is missing.
    """
    if browser is None:
        raise PaperError("no Chromium or Chrome found: install one, or set CHROMIUM to its path")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise PaperError("playwright is not installed: run `make setup` first") from error
    source = html.parent / f"{out.stem}.html"  # beside the site, whose files it names
    source.write_text(str(in_one(html, pages(html))), encoding="utf-8")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(QUIET))
        tab = chromium.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto(source.resolve().as_uri(), wait_until="load")
        missing = tab.evaluate(READY)
        if missing:
            raise PaperError(f"{len(missing)} pictures are missing, the first is {missing[0]}")
        tab.emulate_media(media="print", color_scheme="light")

        def printed() -> bytes:
            return tab.pdf(
                format="A4",
                scale=SCALE,
                margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                outline=True,
                tagged=True,
            )

        tab.evaluate(FILL, page_numbers(printed()))
        pdf = printed()
        chromium.close()
    part = out.with_name(f".{out.name}.part")
    part.write_bytes(pdf)
    part.replace(out)
    return len(pypdf.PdfReader(io.BytesIO(pdf)).pages)
