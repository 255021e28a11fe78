"""Directives of the claims ledger, made from ``book/claims.yml`` and ``book/verdicts.json``.

``{claims-ledger}`` is the table of all claims, ``{falsifiers}`` that of the falsifiers,
``{verdict-counts}`` says how many claims have each verdict, and ``{verdict-figure}`` shows the
picture with alternative text made from the data; its body is the caption.
The role ``{verdict}`` shows the verdict of one claim.
``ledger.js`` adds a filter to the table; without it, and on paper, the table is complete.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from claim_box import _link
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from losslandscape.lab.records import RecordError
from losslandscape.report import falsifiers, ledger, registration

COLUMNS = ("Claim", "In short", "Verdict", "Measured", "Threshold and evidence")
MARK = "claims-ledger"


class _Ledger(SphinxDirective):
    """Reads the verdicts, and has the page built again when they change."""

    def rows(self) -> list[ledger.Row]:
        """All claims.

        Raises:
            DirectiveError: The file of the verdicts is missing, damaged or incomplete.
        """
        for name in ("claims.yml", ledger.VERDICTS):
            self.env.note_dependency(str(self.book / name))
        try:
            return ledger.load(self.book)
        except (RecordError, ValueError) as error:
            raise self.error(str(error)) from None

    @property
    def book(self) -> Path:
        """The folder of the claims."""
        return Path(self.env.srcdir) / "book"


class ClaimsLedger(_Ledger):
    """The table: one row for each claim, which can be linked to as ``#c12``."""

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [_claim_row(row, self.env.docname) for row in self.rows()]
        return [_table(COLUMNS, rows, MARK)]


class Falsifiers(_Ledger):
    """What would speak against the refined framework, and whether it has been looked at."""

    def run(self) -> list[nodes.Node]:
        """Return the table: identifier, statement, test, threshold."""
        columns = ("Falsifier", "Result", "Measured", "Test, threshold")
        self.rows()  # fails with a reason if the file cannot be read
        rows = []
        for entry, outcomes in ledger.load_falsifiers(self.book):
            name = nodes.paragraph("", "", nodes.strong(text=entry["id"]))
            said = [
                _said(
                    o.word,
                    o.reason
                    if o.word == "waits"
                    else ": ".join(filter(None, (o.subject, o.reason))),
                )
                for o in outcomes
            ]
            if len(outcomes) > 1 and all(o.subject.endswith(" arm") for o in outcomes):
                whole = nodes.strong(text=falsifiers.together(outcomes))
                said.insert(0, nodes.paragraph("", "Both arms: ", whole))
            effects = _lines(
                f"{o.subject}: {effect}, {ledger.show(value)}"
                for o in outcomes
                for effect, value in o.effects.items()
            )
            rule = [entry["test"], entry["threshold"], *registration.amendments(entry)]
            test = [nodes.paragraph(text=text) for text in rule]
            waits = [_said("waits", "for networks to rescale")]
            cells = [[name, nodes.paragraph(text=entry["statement"])], said or waits, effects, test]
            rows.append(_row(cells, entry["id"].lower()))
        return [_table(columns, rows, "falsifiers")]


class VerdictCounts(_Ledger):
    """How many claims have each verdict, in one line."""

    def run(self) -> list[nodes.Node]:
        """Return a list of words and numbers."""
        shown = nodes.bullet_list(classes=["verdict-counts"])
        for word, count in ledger.counts(self.rows()).items():
            line = nodes.paragraph("", "", nodes.strong(text=str(count)), nodes.Text(" "))
            line += _badge(word)
            shown += nodes.list_item("", line)
        return [shown]


class VerdictFigure(_Ledger):
    """The picture of all verdicts; the body of the directive is the caption."""

    has_content = True
    optional_arguments = 1  # its label

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        rows = self.rows()
        here = PurePosixPath(self.env.docname).parent
        path = PurePosixPath("book", *ledger.PICTURE.parts)
        up = "../" * len(here.parts) if here.parts else ""
        picture = nodes.image(uri=f"{up}{path}", alt=ledger.describe(rows), width="480px")
        figure = nodes.figure("", picture, align="center")
        self.set_source_info(figure)
        caption = nodes.caption()
        texts, _ = self.state.inline_text(" ".join(self.content), self.lineno)
        caption += texts
        figure += caption
        if self.arguments:
            figure["names"].append(self.arguments[0])
            self.state.document.note_explicit_target(figure, figure)
        return [figure]


class VerdictRole(SphinxRole):
    """``{verdict}`C12```: the word and the condition of a claim, linked to its row."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return a link and the verdict."""
        book = Path(self.env.srcdir) / "book"
        for name in ("claims.yml", ledger.VERDICTS):
            self.env.note_dependency(str(book / name))
        rows = {row.claim["id"]: row for row in ledger.load(book)}
        if self.text not in rows:
            message = self.inliner.reporter.error(f"no claim {self.text!r}: C1 to C38")
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        verdict = rows[self.text].verdict
        page = posixpath.relpath("book/claims.html", posixpath.dirname(self.env.docname) or ".")
        link = nodes.reference("", self.text, refuri=f"{page}#{self.text.lower()}")
        after = f" {verdict.condition}" if verdict.condition else ""
        return [link, nodes.Text(" "), _badge(verdict.word), nodes.Text(after)], []


def _claim_row(row: ledger.Row, page: str) -> nodes.row:
    claim = row.claim
    name = [
        nodes.paragraph("", "", nodes.strong(text=claim["id"])),
        nodes.paragraph(text=claim["place"], classes=["ledger-note"]),
    ]
    threshold = [nodes.paragraph(text=claim["threshold"]), *_evidence(claim, page)]
    said = [_said(row.verdict.word, row.verdict.condition)]
    cells = [name, [nodes.paragraph(text=claim["statement"])], said, _measured(row), threshold]
    return _row(cells, claim["id"].lower())


def _said(word: str, condition: str) -> nodes.paragraph:
    """A verdict with what stands beside it."""
    said = nodes.paragraph("", "", _badge(word))
    if condition:
        said += nodes.Text(f" {condition}")
    return said


def _measured(row: ledger.Row) -> list[nodes.Node]:
    """The effects, one on a line, and what they were read from."""
    found = _lines(f"{name}: {ledger.show(v)}" for name, v in row.verdict.effects.items())
    if row.verdict.word == "waits" and found:
        found.insert(0, nodes.paragraph(text="So far:", classes=["ledger-note"]))
    source = f"Data: {'; '.join(row.data)}."
    return [*found, nodes.paragraph(text=source, classes=["ledger-note"])]


def _lines(texts: Iterable[str]) -> list[nodes.Node]:
    """A list with one text on each line, nothing if there is none."""
    items = [nodes.list_item("", nodes.paragraph(text=text)) for text in texts]
    return [nodes.bullet_list("", *items, classes=["ledger-effects"])] if items else []


def _evidence(claim: Mapping[str, Any], page: str) -> list[nodes.Node]:
    """Links to the cells that carry the test out, named by their chapter."""
    entries = claim.get("evidence", [])
    if not entries:
        return []
    line = nodes.paragraph(text="Cells: ", classes=["ledger-note"])
    for number, entry in enumerate(entries):
        chapter, cell = int(entry["chapter"][:2]), entry["cell"].removeprefix("test-")
        line += [nodes.Text(", " if number else ""), _link(entry["cell"], cell, page)]
        line += nodes.Text(f" (chapter {chapter})")
    return [line]


def _badge(word: str) -> nodes.inline:
    return nodes.inline(text=word, classes=["verdict", f"verdict-{_slug(word)}"])


def _slug(word: str) -> str:
    return word.replace(" ", "-")


def _table(columns: tuple[str, ...], rows: list[nodes.row], name: str) -> nodes.table:
    group = nodes.tgroup(cols=len(columns))
    group += [nodes.colspec(colwidth=1) for _ in columns]
    group[0]["stub"] = 1  # the first cell of a row is its heading
    group += nodes.thead("", _row([[nodes.paragraph(text=title)] for title in columns]))
    group += nodes.tbody("", *rows)
    return nodes.table("", group, classes=[name, "ledger"])


def _row(cells: list[list[nodes.Node]], anchor: str = "") -> nodes.row:
    row = nodes.row("", *(nodes.entry("", *cell) for cell in cells))
    if anchor:
        row["ids"].append(anchor)
    return row


def load_where_needed(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add style and filter to the pages that show verdicts."""
    body = context.get("body", "")
    if 'class="verdict' in body or MARK in body:
        app.add_css_file("ledger.css", priority=901)  # after book.css
    if MARK in body:
        app.add_js_file("ledger.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives, and connect the job before others replace the page's scripts."""
    app.add_directive("claims-ledger", ClaimsLedger)
    app.add_directive("falsifiers", Falsifiers)
    app.add_directive("verdict-counts", VerdictCounts)
    app.add_directive("verdict-figure", VerdictFigure)
    app.add_role("verdict", VerdictRole())
    app.connect("html-page-context", load_where_needed, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
