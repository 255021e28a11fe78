"""Where versions, hardware and numbers come from, made when the page is built.

``{provenance-table} KIND`` is a table, ``{provenance-sentence} KIND`` a paragraph, and
``{took}`on one core` `` says in how many seconds this copy of a chapter was executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from losslandscape.report import benchmarks, diffs, provenance
from losslandscape.report.execute import KEY

TABLES = {**provenance.TABLES, **benchmarks.TABLES}
SENTENCES = {**benchmarks.SENTENCES, **diffs.SENTENCES}
NOTHING = "Nothing recorded yet."


class ProvenanceTable(SphinxDirective):
    """One table, made when the page is built."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table, or a sentence when there is nothing to show yet."""
        kind = self.arguments[0]
        if kind not in TABLES:
            raise self.error(f"unknown table {kind!r}: one of {', '.join(TABLES)}")
        self.env.note_reread()  # its sources are no source files of Sphinx
        headings, rows = TABLES[kind](Path(self.env.srcdir))
        if not rows:
            return [nodes.paragraph(text=NOTHING)]
        return [_table(headings, rows)]


class ProvenanceSentence(SphinxDirective):
    """One paragraph, made when the page is built."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the paragraph."""
        kind = self.arguments[0]
        if kind not in SENTENCES:
            raise self.error(f"unknown sentence {kind!r}: one of {', '.join(SENTENCES)}")
        self.env.note_reread()
        return [nodes.paragraph(text=SENTENCES[kind](Path(self.env.srcdir)) or NOTHING)]


def took(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, *_: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Say how long the execution of this chapter took, from its stamp."""
    env = inliner.document.settings.env
    stamp = nbformat.read(env.doc2path(env.docname), as_version=4).metadata.get(KEY, {})
    if "seconds" not in stamp:
        return [nodes.Text("not executed")], []
    return [nodes.Text(f"{stamp['seconds']:.0f} s {text}")], []


def _table(headings: list[str], rows: Sequence[Sequence[str | nodes.Node]]) -> nodes.table:
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    group += nodes.thead("", _row(headings))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group, classes=["provenance"])


def _row(cells: Sequence[str | nodes.Node]) -> nodes.row:
    filled = (nodes.paragraph(text=cell) if isinstance(cell, str) else cell for cell in cells)
    return nodes.row("", *(nodes.entry("", cell) for cell in filled))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and the role."""
    app.add_directive("provenance-table", ProvenanceTable)
    app.add_directive("provenance-sentence", ProvenanceSentence)
    app.add_role("took", took)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
