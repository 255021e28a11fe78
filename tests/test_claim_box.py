"""The claim box: what a page shows of a claim, and how it fails."""

import io
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytest.importorskip("sphinx")

from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

ROOT = Path(__file__).parents[1]
BOX = "# Page\n\n```{claim} C1\nThe slope *is* as predicted.\n```\n"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return a function that builds {page: text} with the real claims: warnings, {page: HTML}."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    claims = tmp_path / "book" / "claims.yml"
    claims.parent.mkdir()
    shutil.copy(ROOT / "book" / "claims.yml", claims)

    def run(pages=None):
        for name, text in (pages or {}).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        names = [path.stem for path in tmp_path.iterdir() if path.suffix in (".md", ".ipynb")]
        warnings = io.StringIO()
        with docutils_namespace():  # the next build registers its nodes again
            Sphinx(
                srcdir=tmp_path,
                confdir=None,
                outdir=tmp_path / "_out",
                doctreedir=tmp_path / "_trees",
                buildername="html",
                confoverrides={
                    "extensions": ["myst_nb", "claim_box"],
                    "nb_execution_mode": "off",
                    "root_doc": sorted(names)[0],
                    "exclude_patterns": ["_out", "_trees"],
                    "suppress_warnings": ["toc.not_included"],
                    "nitpicky": True,
                    "nitpick_ignore_regex": [("std:ref", "how-claims-are-judged|test-.*")],
                },
                status=None,
                warning=warnings,
            ).build()
        html = {name: (tmp_path / "_out" / f"{name}.html").read_text("utf-8") for name in names}
        return warnings.getvalue(), html

    run.claims = claims
    return run


def test_box_shows_statement_test_and_body(build):
    warnings, html = build({"page.md": BOX})
    assert warnings == ""
    page = html["page"]
    assert "Claim C1 - paper, section 1.1, eq. 1" in page
    assert "second-order Taylor polynomial" in page
    assert "abs(slope - k - 1) &lt;= .1 for every k" in page
    assert "The slope <em>is</em> as predicted." in page
    assert page.count("<details") == page.count("</details>") == 1
    assert "<details open" not in page


def test_every_registered_claim_has_a_box(build):
    page = "# Page\n" + "".join(f"\n```{{claim}} C{n}\n```\n" for n in range(1, 39))
    warnings, html = build({"page.md": page})
    assert warnings == ""
    assert html["page"].count('class="claim admonition"') == 38


def test_rules_are_listed_and_the_box_leads_to_them(build):
    rules = "\n(how-claims-are-judged)=\n## Rules\n\n```{registered} rules\n```\n"
    warnings, html = build({"page.md": BOX + rules})
    assert warnings == ""
    assert "<strong>by_interval:</strong>" in html["page"]
    assert "one certified violation, refuted" in html["page"]
    assert 'href="#how-claims-are-judged"' in html["page"]


def test_unknown_claim_is_an_error_that_names_it_and_the_line(build):
    warnings, _ = build({"page.md": "# Page\n\n```{claim} C99\n```\n"})
    assert "page.md:3: ERROR: unknown claim 'C99'" in warnings


def test_missing_file_is_an_error_that_names_it(build):
    build.claims.unlink()
    warnings, _ = build({"page.md": BOX})
    assert "book/claims.yml is missing" in warnings


def test_reference_reaches_the_box_and_a_second_box_does_no_harm(build):
    other = "# Other\n\n```{toctree}\npage\n```\n\nSee {ref}`the test <claim-c1-page>`.\n"
    warnings, html = build({"page.md": BOX + "\n" + BOX[8:], "other.md": other})
    assert warnings == ""
    assert 'href="page.html#claim-c1-page"' in html["other"]
    assert html["page"].count('id="claim-c1-page"') == 1


def test_page_is_built_again_when_the_claims_change(build):
    build({"page.md": BOX})
    text = build.claims.read_text(encoding="utf-8")
    build.claims.write_text(text.replace("<= .1 for every k", "<= .2 for every k"), "utf-8")
    _, html = build()
    assert "&lt;= .2 for every k" in html["page"]


def test_a_changed_threshold_shows_the_old_value_and_the_reason(build):
    text = build.claims.read_text(encoding="utf-8")
    changed = "    changed:\n      - {date: 2026-12-01, from: .1, to: .2, why: a typing error}\n"
    place = "    place: section 1.1, eq. 1\n"
    build.claims.write_text(text.replace(place, place + changed), "utf-8")
    warnings, html = build({"page.md": BOX})
    assert warnings == ""
    assert "Changed on 2026-12-01:" in html["page"]
    assert "0.1 → 0.2: a typing error" in html["page"]


def test_glued_numbers_work_inside_the_box(build, tmp_path):
    mime = "application/papermill.record/text/plain"
    glued = new_output("display_data", {mime: "'2.97'"}, metadata={"scrapbook": {"name": "slope"}})
    glued.metadata["scrapbook"]["mime_prefix"] = "application/papermill.record/"
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# Page\n\n```{claim} C1\nSlope {glue:text}`slope`.\n```"),
            new_code_cell("glue()", outputs=[glued], execution_count=1),
        ],
        metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}},
    )
    nbformat.write(notebook, tmp_path / "page.ipynb")
    warnings, html = build()
    assert warnings == ""
    assert "2.97" in html["page"]
