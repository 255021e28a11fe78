"""Two directives that show ``book/claims.yml``, so no page can differ from what was registered.

``{claim} C1`` is a claim of the paper and its test fixed in advance; the body of the directive is
the finding of the chapter. ``{registered} rules`` lists a part of the file: its rules, verdicts or
definitions.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from losslandscape.report import registration

CLAIMS = Path("book", "claims.yml")  # below the folder of the sources
PARTS = {"statistic": "Statistic", "threshold": "Threshold", "verdict": "Verdict rule"}
SUMMARY = "Fixed in advance: statistic, threshold, verdict rule"
RULES = "how-claims-are-judged"  # label of the section that explains the words of the tests


class Claim(SphinxDirective):
    """One claim in a box."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the box: statement, registered test (folded), body."""
        claim = self._registered(self.arguments[0])
        box = nodes.admonition(classes=["claim"])
        box += nodes.title("", f"Claim {claim['id']} - paper, {claim['place']}")
        box += nodes.paragraph(text=claim["statement"].strip(), classes=["claim-statement"])
        box += _folded(SUMMARY, [*_test(claim), *_links(claim, self.env.docname)])
        self.state.nested_parse(self.content, self.content_offset, box)
        self._make_target(box, claim["id"])
        self.set_source_info(box)
        return [box]

    def _registered(self, name: str) -> dict[str, Any]:
        known = {claim["id"]: claim for claim in _read(self)["claims"]}
        if name not in known:
            raise self.error(f"unknown claim {name!r}: {CLAIMS.as_posix()} does not have it")
        claim: dict[str, Any] = known[name]
        return claim

    def _make_target(self, box: nodes.admonition, name: str) -> None:
        """Let ``{ref}`` find the first box of this claim on this page: claim-c1-page."""
        label = f"claim-{name}-{PurePosixPath(self.env.docname).name}".lower()
        if label not in self.state.document.nameids:
            box["names"].append(label)
            self.state.document.note_explicit_target(box, box)


class Registered(SphinxDirective):
    """One part of the file, ``rules``, ``verdicts`` or ``definitions``, as a list."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the list: each name with its text."""
        entries = _read(self)[self.arguments[0]]
        return [_labelled(name, text) for name, text in entries.items()]


def _read(directive: SphinxDirective) -> dict[str, Any]:
    """Return the content of the file, and build the page again when it changes."""
    path = Path(directive.env.srcdir) / CLAIMS
    directive.env.note_dependency(str(path))
    try:
        return registration.load(path.parent)
    except registration.RegistrationError as error:
        raise directive.error(f"{error} ({directive.name} reads it)") from None


def _test(claim: dict[str, Any]) -> list[nodes.Node]:
    """Return the registered test, and each later change with its reason."""
    data = ", ".join(claim["data"])
    if "data_details" in claim:
        data = f"{data} ({claim['data_details'].strip()})"
    parts = [(heading, claim[key]) for key, heading in PARTS.items()] + [("Data", data)]
    parts += [
        (f"Changed on {change['date']}", f"{change['from']} → {change['to']}: {change['why']}")
        for change in claim.get("changed", [])
    ]
    return [_labelled(heading, text) for heading, text in parts]


def _labelled(heading: str, text: str) -> nodes.paragraph:
    paragraph = nodes.paragraph()
    paragraph += nodes.strong(text=f"{heading}:")
    plain = re.sub(r"(?<!\w)\*(\w+)\*(?!\w)", r"\1", text.strip())  # a word set in italics
    paragraph += nodes.Text(f" {plain}")
    return paragraph


def _links(claim: dict[str, Any], page: str) -> list[nodes.Node]:
    """Return links to what explains the words of a test and to the cells that carry it out."""
    explained = nodes.paragraph(text="Rules, data and symbols: ")
    explained += [_link(RULES, "How the claims are judged", page), nodes.Text(".")]
    cells = [entry["cell"] for entry in claim.get("evidence", [])]
    if not cells:
        return [explained]
    tested = nodes.paragraph(text="Carried out in: ")
    for number, cell in enumerate(cells):
        tested += [nodes.Text("; " if number else ""), _link(cell, None, page)]
    tested += nodes.Text(".")
    return [explained, tested]


def _link(label: str, text: str | None, page: str) -> addnodes.pending_xref:
    """Return a link to ``label``, by default with the heading found there."""
    target = {"refdomain": "std", "reftype": "ref", "reftarget": label, "refdoc": page}
    link = addnodes.pending_xref("", nodes.inline(text=text or label), **target)
    link["refexplicit"] = text is not None
    return link


def _folded(summary: str, content: list[nodes.Node]) -> list[nodes.Node]:
    """Fold ``content`` in HTML; other formats show it as it is."""
    style = "margin-bottom: 1rem"  # as after a paragraph
    opening = f'<details class="claim-test" style="{style}"><summary>{summary}</summary>'
    return [
        nodes.raw("", opening, format="html"),
        *content,
        nodes.raw("", "</details>", format="html"),
    ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("claim", Claim)
    app.add_directive("registered", Registered)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
