"""Letters and glossary terms, taken from the page *Notation and glossary* to the chapters."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book/notation.md").read_text(encoding="utf-8")
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.md"))


@pytest.fixture(scope="module")
def notes():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "book/_ext")
        yield importlib.import_module("notation_notes")


def test_a_row_for_several_chapters_is_divided(notes):
    table = "| $a$, $b$ | 3 | one; two |\n| $c$ | 1; 3 | first; third |\n| $d$ | 13 | other |\n"
    assert notes.letters(table, 3) == [("$a$, $b$", "one; two"), ("$c$", "third")]
    assert notes.letters(table, 1) == [("$c$", "first")]
    assert notes.letters(table, 2) == []


def test_every_row_of_the_table_is_read(notes):
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \$.* \| \d+", line)]
    found = sum(len(notes.letters(PAGE, int(chapter.stem[:2]))) for chapter in CHAPTERS)
    assert found == len(rows) + sum("; " in line.split(" | ")[1] for line in rows)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[chapter.stem for chapter in CHAPTERS])
def test_a_chapter_with_letters_of_its_own_shows_them(notes, chapter):
    text = chapter.read_text(encoding="utf-8")
    assert bool(notes.letters(PAGE, int(chapter.stem[:2]))) == ("\n```{letters}\n```\n" in text)


def test_everyday_words_are_terms_of_the_glossary(notes):
    glossary = PAGE.partition("```{glossary}")[2]
    terms = set(re.findall(r"^(\S.*)$", glossary, re.MULTILINE))
    assert terms >= notes.EVERYDAY


def test_a_definition_keeps_formulas_and_leaves_out_citations(notes):
    paragraph = nodes.paragraph("", "", nodes.Text("see "), nodes.math("", "x"))
    paragraph += addnodes.pending_xref("", nodes.Text("other"), refdomain="std")
    paragraph += addnodes.pending_xref("", nodes.Text("paper"), refdomain="cite")
    item = nodes.definition_list_item("", nodes.term("", "a term", ids=["term-a"]))
    item += nodes.definition("", paragraph)
    (entry,) = notes.entries([item])
    assert (entry.term, entry.place) == ("a term", "term-a")
    assert "".join(part.astext() for part in entry.said).strip() == "see xother"
    assert any(isinstance(part, nodes.math) for part in entry.said)
