"""The directive ``{claim} C1``: a claim of the paper, its test fixed in advance, what was found.

The test is read from ``book/claims.yml``, so a page cannot show another threshold than the one
that was registered. The body of the directive is the finding of the chapter.
"""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

CLAIMS = Path("book", "claims.yml")  # below the folder of the sources
PARTS = {"statistic": "Statistic", "threshold": "Threshold", "verdict": "Verdict rule"}
SUMMARY = "Fixed in advance: statistic, threshold, verdict rule"


class Claim(SphinxDirective):
    """One claim in a box."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the box: statement, registered test (folded), body."""
        claim = self._registered(self.arguments[0])
        box = nodes.admonition(classes=["claim"])
        box += nodes.title("", f"Claim {claim['id']} - {claim['place']}")
        box += nodes.paragraph(text=claim["statement"].strip(), classes=["claim-statement"])
        box += _folded(SUMMARY, _test(claim))
        self.state.nested_parse(self.content, self.content_offset, box)
        self._make_target(box, claim["id"])
        self.set_source_info(box)
        return [box]

    def _registered(self, name: str) -> dict[str, Any]:
        path = Path(self.env.srcdir) / CLAIMS
        self.env.note_dependency(str(path))
        try:
            known = _claims(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise self.error(f"{CLAIMS.as_posix()} is missing: the claim box reads it") from None
        if name not in known:
            raise self.error(f"unknown claim {name!r}: {CLAIMS.as_posix()} does not have it")
        return known[name]

    def _make_target(self, box: nodes.admonition, name: str) -> None:
        """Let ``{ref}`` find the first box of this claim on this page: claim-c1-page."""
        label = f"claim-{name}-{PurePosixPath(self.env.docname).name}".lower()
        if label not in self.state.document.nameids:
            box["names"].append(label)
            self.state.document.note_explicit_target(box, box)


@functools.cache
def _claims(text: str) -> dict[str, dict[str, Any]]:
    return {claim["id"]: claim for claim in yaml.safe_load(text)["claims"]}


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
    paragraph += nodes.Text(f" {text.strip()}")
    return paragraph


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
    """Register the directive."""
    app.add_directive("claim", Claim)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
