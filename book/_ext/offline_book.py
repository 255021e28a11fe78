"""Make the book complete in itself: no request to another host, accessible, traceable.

Six small jobs: numbers of the records become substitutions for prose (``{{ ll_name }}``),
MathJax comes from its pip package, sphinx-thebe's remote scripts go, the theme's accessibility
slips are mended, no line begins with the punctuation after a formula, and the edit button of a
chapter opens its text.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

HEADLINE = "losslandscape.report.headline"  # headline() -> {"ll_name": "text"}

# (pattern, replacement) on the HTML of each page's body
ACCESSIBILITY = [
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
    (
        re.compile(r"(<input(?=[^>]*task-list-item-checkbox)(?=[^>]*checked)[^>]*?)(\s*/?>)"),
        r'\1 aria-label="done"\2',
    ),
    (
        re.compile(r"(<input(?=[^>]*task-list-item-checkbox)(?![^>]*checked)[^>]*?)(\s*/?>)"),
        r'\1 aria-label="open"\2',
    ),
    (
        re.compile(r'<aside (?![^>]*role=)(?=class="[^"]*(?:margin|sidebar|footnote-list))'),
        '<aside role="note" ',
    ),
    (re.compile(r"<th>\s*</th>"), "<td></td>"),
]

FORMULA_AND_MARK = re.compile(
    r'(<span class="math notranslate nohighlight">[^<]*</span>)([.,;:!?)\]\u2019\u201d]+)'
)


def add_headline_numbers(app: Sphinx, config: Config) -> None:
    """Offer every headline result of the records as a substitution on every page."""
    if importlib.util.find_spec(HEADLINE):
        numbers = importlib.import_module(HEADLINE).headline()
        config.myst_substitutions = {**config.myst_substitutions, **numbers}


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy the one file of MathJax that the pages use."""
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if error or app.builder.format != "html" or package is None:
        return
    for folder in package.submodule_search_locations or []:
        source = Path(folder) / "static" / app.config.mathjax_path
        target = Path(app.outdir) / "_static" / app.config.mathjax_path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def drop_thebe(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Leave out sphinx-thebe: it is always loaded, names a remote script and fails offline."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script} {getattr(script, 'attributes', '')}".lower()
    ]


def mend_accessibility(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Correct roles and labels that theme and extensions get wrong."""
    if "body" in context:
        for pattern, replacement in ACCESSIBILITY:
            context["body"] = pattern.sub(replacement, context["body"])


def keep_punctuation(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Keep a formula and the mark after it on one line: browsers break between the two."""
    if "body" in context:
        unbroken = r'<span class="unbroken">\1\2</span>'
        context["body"] = FORMULA_AND_MARK.sub(unbroken, context["body"])


def edit_the_text(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Point the edit button of a chapter at its MyST text, not at the executed notebook."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", [group]):
            if button.get("label") == "source-edit-button":
                button["url"] = re.sub(r"\.ipynb$", ".md", button["url"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the jobs; the last two run after the theme (priorities 500 and 501)."""
    app.add_css_file("book.css", priority=900)
    app.add_js_file("book.js", priority=100)  # its listeners come before the theme's
    app.connect("config-inited", add_headline_numbers)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", mend_accessibility, priority=900)
    app.connect("html-page-context", keep_punctuation, priority=900)
    app.connect("html-page-context", edit_the_text, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
