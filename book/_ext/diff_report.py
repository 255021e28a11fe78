"""Two directives: ``{build-diff}``, the chapters executed for this copy against the stored ones,
and ``{diff-report}``, recorded runs against repeated ones, from the saved files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from provenance_table import _table
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from losslandscape.report import diffs, outputs

STORED = "This copy of the book was built from the stored notebooks. `make book` executes them."


class BuildDiff(SphinxDirective):
    """One row for each chapter, made when the page is built."""

    def run(self) -> list[nodes.Node]:
        """Return a sentence and a table, or a sentence where no chapter was executed."""
        self.env.note_reread()  # its sources are no source files of Sphinx
        source = Path(self.env.srcdir)
        clone = next((f for f in (source, *source.parents) if (f / "dodo.py").exists()), source)
        if clone == source:
            return self.parse_text_to_nodes(STORED)
        found = outputs.compare_folders(clone / "notebooks", source / "notebooks")
        rows = [
            [*self.parse_text_to_nodes(f"{{doc}}`/notebooks/{each.chapter}`"), each.word, each.text]
            for each in found
        ]
        text = f"{outputs.summary(found)}."
        return [nodes.paragraph(text=text), _table(["Chapter", "Outputs", "Details"], rows)]


class DiffReport(SphinxDirective):
    """One section for each saved comparison, made when the page is built."""

    def run(self) -> list[nodes.Node]:
        """Return the sections, or a sentence when nothing is saved yet."""
        self.env.note_reread()  # its sources are no source files of Sphinx
        try:
            saved = diffs.load(Path(self.env.srcdir))
        except ValueError as error:
            raise self.error(str(error)) from None
        return [self._section(item) for item in saved] or [
            nodes.paragraph(text="Nothing saved yet.")
        ]

    def _section(self, item: diffs.Comparison) -> nodes.section:
        section = nodes.section("", nodes.title(text=item.title), names=[f"diff {item.title}"])
        self.state.document.note_implicit_target(section, section)
        section += nodes.paragraph(text=" ".join(item.sentences))
        section += _table(*item.machines)
        if item.movers[1]:
            section += nodes.paragraph(text="The numbers that used most of their tolerance:")
            section += _table(*item.movers)
        section += nodes.paragraph(text="To repeat it:")
        section += nodes.literal_block(item.command, item.command, language="bash")
        return section


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.setup_extension("provenance_table")
    app.add_directive("build-diff", BuildDiff)
    app.add_directive("diff-report", DiffReport)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
