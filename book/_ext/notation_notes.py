"""The page *Notation and glossary*, brought to where it is needed.

``{letters}`` puts the letters with a meaning of their own in this chapter into the margin. The
first mention of a glossary term in each chapter, and every ``{term}``, shows its definition to the
mouse and to the keyboard.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PAGE = "book/notation"
ROW = re.compile(r"^\| (\$.*?) \| ([\d; ]+) \| (.*?) \|$", re.MULTILINE)
# Everyday words, which mostly do not mean the term: linked only where the text asks for it.
EVERYDAY = {
    *("barrier", "cell", "certificate", "claim", "configuration", "folding", "gap", "interval"),
    *("lambda_max", "live", "power", "record", "recorded", "reported", "residual", "run", "slice"),
    *("stale", "study", "uncertainty"),
}


def letters(text: str, chapter: int) -> list[tuple[str, str]]:
    """(symbols, meaning) of each row of the table that is about this chapter."""
    found = []
    for symbols, chapters, meaning in ROW.findall(text):
        numbers = [int(number) for number in chapters.split(";")]
        if chapter in numbers:
            # A row for several chapters has their meanings in the same order.
            parts = meaning.split("; ") if len(numbers) > 1 else [meaning]
            found.append((symbols, parts[numbers.index(chapter)]))
    return found


class Letters(SphinxDirective):
    """A note in the margin; nothing in a chapter without letters of its own."""

    def run(self) -> list[nodes.Node]:
        """Return the note."""
        page = Path(self.env.srcdir, f"{PAGE}.md")
        self.env.note_dependency(str(page))
        chapter = re.search(r"/(\d+)_", self.env.docname)
        if chapter is None:
            raise self.error("only a chapter has letters of its own")
        rows = letters(page.read_text(encoding="utf-8"), int(chapter[1]))
        if not rows:
            return []
        lines = [f"- {symbols}: {meaning}" for symbols, meaning in rows]
        more = "\nThe others are on the page {doc}`Notation and glossary </book/notation>`."
        text = "\n".join([":::{margin} Letters of this chapter", *lines, more, ":::"])
        return self.parse_text_to_nodes(text)


@dataclass(frozen=True)
class Entry:
    """A glossary term, where it stands, and what its definition says, without citations."""

    term: str
    place: str
    said: list[nodes.Node]


def entries(glossary: Iterable[nodes.Element]) -> list[Entry]:
    """The entries of a glossary."""
    return [
        Entry(
            term.astext(),
            term["ids"][0],
            [x for p in item.findall(nodes.paragraph) for x in _said(p)],
        )
        for item in glossary
        for term in item.findall(nodes.term)
    ]


def _said(paragraph: nodes.paragraph) -> Iterator[nodes.Node]:
    for part in paragraph.children:
        if isinstance(part, nodes.math | nodes.Text):
            yield part.deepcopy()
        elif not (isinstance(part, addnodes.pending_xref) and part.get("refdomain") == "cite"):
            yield nodes.Text(part.astext())
    yield nodes.Text(" ")


def pattern(terms: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the terms, the longest first, also at the start of a sentence or in the plural.

    >>> pattern(["run", "run seed"]).findall("Run seeds, and reruns, and run-time")
    ['Run seeds']
    """
    words = "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True))
    return re.compile(rf"\b(?:{words})s?\b(?!-)", re.IGNORECASE)


def show_definitions(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Attach their definitions to glossary terms on a page."""
    if app.builder.format != "html" or page == PAGE or PAGE not in app.env.found_docs:
        return
    found = entries(app.env.get_doctree(PAGE).findall(nodes.definition_list_item))
    address = app.builder.get_relative_uri(page, PAGE)
    numbers = count(1)

    def hint(text: str, entry: Entry) -> list[nodes.Node]:
        name = f"hint-{next(numbers)}"
        return [
            _raw(f'<span class="hint"><a class="reference internal" aria-describedby="{name}" '),
            _raw(f'href="{address}#{entry.place}">{html.escape(text)}</a>'),
            _raw(f'<span class="hint-text" role="tooltip" id="{name}">'),
            *(part.deepcopy() for part in entry.said),
            _raw("</span></span>"),
        ]

    asked = {f"{address}#{entry.place}": entry for entry in found}
    for link in list(doctree.findall(nodes.reference)):
        if link.get("refuri") in asked:
            link.parent.replace(link, hint(link.astext(), asked[link["refuri"]]))
    if not page.startswith("notebooks/"):
        return
    left = {entry.term.casefold(): entry for entry in found if entry.term not in EVERYDAY}
    for text in list(doctree.findall(nodes.Text)):
        place = pattern(left).search(text) if left and _is_prose(text) else None
        if place:
            key = place[0].casefold()
            entry = left.pop(key if key in left else key.removesuffix("s"))
            before, after = text[: place.start()], text[place.end() :]
            parts = [nodes.Text(before), *hint(place[0], entry), nodes.Text(after)]
            text.parent.replace(text, parts)


def _raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def _is_prose(text: nodes.Text) -> bool:
    """Whether a text stands in a sentence of the chapter itself, outside links, boxes and code."""
    parent = text.parent
    if not isinstance(parent, nodes.paragraph) or not isinstance(
        parent.parent, nodes.section | nodes.list_item
    ):
        return False
    return not any(
        isinstance(box, nodes.Admonition | nodes.table | nodes.figure | nodes.block_quote)
        for box in _above(parent)
    )


def _above(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive; the hints come after the references are resolved."""
    app.add_directive("letters", Letters)
    app.connect("doctree-resolved", show_definitions, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
