"""The directive ``{provenance-table} KIND``: where versions, hardware and numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from losslandscape.report import benchmarks, provenance

TABLES = {**provenance.TABLES, **benchmarks.TABLES}


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
            return [nodes.paragraph(text="Nothing recorded yet.")]
        return [_table(headings, rows)]


def _table(headings: list[str], rows: list[list[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    group += nodes.thead("", _row(headings))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group, classes=["provenance"])


def _row(texts: list[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph(text=text)) for text in texts))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("provenance-table", ProvenanceTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
