"""Citations and citation files: every key exists, no entry stands twice, versions agree."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

pybtex = pytest.importorskip("pybtex.database")

ROOT = Path(__file__).parents[1]
BIB = ROOT / "book" / "references.bib"
PAGES = sorted([*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("[0-9]*.md")])
ROLE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
ENTRY = re.compile(r"^@(\w+)\s*\{\s*([^,\s]+)\s*,", re.MULTILINE)


@pytest.fixture(scope="module")
def bibliography():
    return pybtex.parse_file(str(BIB))


def cited(text):
    """Return the keys of a page: a role may hold several, and {key}`text <key>` is not used."""
    return {key.strip() for keys in ROLE.findall(text) for key in keys.split(",")}


def title(entry):
    return re.sub(r"\W+", " ", entry.fields["title"]).strip().lower()


def test_the_pattern_finds_keys():
    assert cited("{cite:p}`a2020b, c2021d` and {cite:t}`e2022f` and {cite}`g2023h`") == {
        "a2020b",
        "c2021d",
        "e2022f",
        "g2023h",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_citation_has_its_entry(page, bibliography):
    missing = cited(page.read_text(encoding="utf-8")) - set(bibliography.entries)
    assert not missing, f"{page.name} cites what references.bib does not have: {sorted(missing)}"


def test_no_key_stands_twice():
    keys = [key.lower() for _, key in ENTRY.findall(BIB.read_text(encoding="utf-8"))]
    assert [key for key, count in Counter(keys).items() if count > 1] == []


def test_no_work_stands_twice(bibliography):
    titles = Counter(map(title, bibliography.entries.values()))
    assert [name for name, count in titles.items() if count > 1] == []


def test_every_entry_names_authors_title_and_year(bibliography):
    for key, entry in bibliography.entries.items():
        assert entry.persons.get("author"), key
        assert entry.fields.get("title"), key
        assert re.fullmatch(r"\d{4}", entry.fields.get("year", "")), key


def test_the_citation_file_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
