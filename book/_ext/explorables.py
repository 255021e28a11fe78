"""Load ``explore.js`` and ``explore.css`` on the pages that hold an explorable figure."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

MARK = 'class="explorable"'


def load_where_needed(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add the two files to this page only."""
    if MARK in context.get("body", ""):
        app.add_css_file("explore.css", priority=901)  # after book.css
        app.add_js_file("explore.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the job, before others replace the page's list of scripts (priority 900)."""
    app.connect("html-page-context", load_where_needed, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
