"""The claims ledger: all claims of the paper judged by their registered rules.

``python -m losslandscape.report.ledger`` measures what has changed, applies every rule and writes
``book/verdicts.json`` and ``book/figures/verdicts.png``, from which the pages are made.
The file keeps the numbers of the live measurements, so that a rule can be applied to them again
when only records have changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click
from PIL import Image

from losslandscape.lab import records
from losslandscape.lab.studies import STUDIES
from losslandscape.report import claims, registration
from losslandscape.report.falsifiers import F4, Outcome, f4, falsify
from losslandscape.report.figures import ledger as drawing
from losslandscape.report.live_claims import LIVE, Numbers, Statistic, c38, judge_live, leaves
from losslandscape.report.rules import WORDS, Evidence, Run, Verdict
from losslandscape.report.statistics import Interval
from losslandscape.report.sweep import Power

VERDICTS, PICTURE = Path("verdicts.json"), Path("figures", "verdicts.png")  # below book/
# Data of the registration that are no studies.
SOURCES = {
    "syn": "synthetic problems",
    "dig": "digits",
    "T1": "Table 1",
    "paper": "the paper's text",
    "verdicts": "the other verdicts",
}
RELATIVE = 0.02  # what a live number may move from one machine to another, beside its slack
_KEY = "Description"  # the PNG text field that holds the fingerprint

MEASURED: Mapping[str, Statistic] = {**LIVE, "F4": F4}
Measured = Mapping[str, Mapping[str, Any]]  # claim -> numbers, and the fingerprint of their code


@dataclass(frozen=True)
class Row:
    """A claim as the page shows it.

    Attributes:
        claim: Its entry in ``book/claims.yml``.
        verdict: What its rule says.
        data: What the verdict was read from, a phrase for each source.
    """

    claim: Mapping[str, Any]
    verdict: Verdict
    data: tuple[str, ...]


class _Watched(Evidence):
    """Evidence that remembers which studies were asked for."""

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        self.asked: dict[str, None] = {}

    def runs(self, study: str) -> dict[str, dict[int, Run]]:
        self.asked[study] = None
        return super().runs(study)


def evaluate(book: Path, measured: Measured) -> list[Row]:
    """Every claim by its rule, in the order of the registration."""
    evidence, rows = _Watched(book / "records"), list[Row]()
    for entry in registration.load(book)["claims"]:
        name = entry["id"]
        evidence.asked.clear()
        if name in LIVE:
            verdict = judge_live(name, measured[name]["numbers"], evidence)
        elif name == "C38":  # the last one: it scores the others
            verdict = c38({row.verdict.claim: row.verdict for row in rows})
        else:
            verdict = claims.judge(name, evidence)
        rows.append(Row(entry, verdict, _sources(entry, evidence)))
    return rows


def outcomes(book: Path, measured: Measured) -> dict[str, list[dict[str, Any]]]:
    """What each falsifier says, by arm or by measure."""
    found: dict[str, list[dict[str, Any]]] = {}
    for outcome in (*falsify(Evidence(book / "records")), *f4(measured["F4"]["numbers"])):
        found.setdefault(outcome.falsifier, []).append(asdict(outcome))
    return found


def _runs_of(study: str, evidence: Evidence) -> int:
    return sum(map(len, evidence.runs(study).values()))


def _sources(entry: Mapping[str, Any], evidence: _Watched) -> tuple[str, ...]:
    """What a claim is read from: data that need no study, and how much there is of each study."""
    phrases = [SOURCES[name] for name in entry["data"] if name in SOURCES]
    for study in evidence.asked or (name for name in entry["data"] if name not in SOURCES):
        runs = f"{_runs_of(study, evidence)} of {len(STUDIES[study].runs())}" * (study in STUDIES)
        phrases.append(f"{study}, {runs or 'no'} runs")
    return tuple(phrases)


def measure(stored: Measured, *, everything: bool = False) -> dict[str, dict[str, Any]]:
    """The live statistics: quick ones anew, slow ones if their code has changed.

    A number that has not moved beyond its tolerance keeps its stored digits.
    """
    found = {}
    for name, live in MEASURED.items():
        old, code = stored.get(name), code_of(live)
        if live.slow and not everything and old is not None and old["code"] == code:
            found[name] = dict(old)
            continue
        click.echo(f"{name}: measuring")
        numbers = live.measure()
        if old is not None and agrees(numbers, old["numbers"], live.slack):
            numbers = old["numbers"]
        found[name] = {"code": code, "numbers": numbers}
    return found


def code_of(live: Statistic) -> str:
    """Hash of the code that measures, as far as it can be followed by name."""
    parts = records.shaping_code(live.measure, "losslandscape")
    return hashlib.sha256("\n".join(parts[name] for name in sorted(parts)).encode()).hexdigest()


def agrees(fresh: Numbers, stored: Numbers, slack: float = 0.0) -> bool:
    """Whether no number has moved by more than 2 % and ``slack``."""
    pairs = list(zip(leaves(fresh), leaves(stored), strict=False))
    same_shape = _shape(fresh) == _shape(stored)
    return same_shape and all(abs(a - b) <= RELATIVE * abs(b) + slack for a, b in pairs)


def _shape(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {name: _shape(part) for name, part in found.items()}
    return [_shape(part) for part in found] if isinstance(found, list) else None


def update(book: Path, *, everything: bool = False) -> list[Row]:
    """Measure, judge, write the file and draw the picture.

    Raises:
        RecordError: A record is damaged, or the file cannot be written.
    """
    path = book / VERDICTS
    stored = records.read(path)["measured"] if path.is_file() else {}
    measured = measure(stored, everything=everything)
    rows = evaluate(book, measured)
    verdicts = {row.verdict.claim: {**_plain(row.verdict), "data": row.data} for row in rows}
    content = {"verdicts": verdicts, "falsifiers": outcomes(book, measured), "measured": measured}
    records.write(content, path)
    draw(book)
    return rows


def _plain(verdict: Verdict) -> dict[str, Any]:
    content = asdict(verdict)
    del content["claim"]
    return content


def load(book: Path) -> list[Row]:
    """The committed verdicts, in the order of the registration.

    Raises:
        RecordError: The file is missing or damaged.
        ValueError: It lacks a claim.
    """
    stored = records.read(book / VERDICTS)["verdicts"]
    entries = registration.load(book)["claims"]
    missing = [entry["id"] for entry in entries if entry["id"] not in stored]
    if missing:
        raise ValueError(
            f"{VERDICTS} has no verdict on {', '.join(missing)}: run python -m {__name__}"
        )
    return [_row(entry, stored[entry["id"]]) for entry in entries]


def _row(entry: Mapping[str, Any], stored: Mapping[str, Any]) -> Row:
    effects = _effects(stored["effects"])
    verdict = Verdict(entry["id"], stored["word"], stored["condition"], effects)
    return Row(entry, verdict, tuple(stored["data"]))


def _effects(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _effect(value) for name, value in stored.items()}


def _effect(value: Any) -> Any:
    """A number, an interval or a power, told by the names of its parts."""
    for kind in (Interval, Power):
        if isinstance(value, dict) and value.keys() == {part.name for part in fields(kind)}:
            return kind(**value)
    return value


def load_falsifiers(book: Path) -> list[tuple[Mapping[str, Any], list[Outcome]]]:
    """Each registered falsifier with its committed outcomes, none if it waits.

    Raises:
        RecordError: The file is missing or damaged.
    """
    stored = records.read(book / VERDICTS)["falsifiers"]
    return [
        (
            entry,
            [
                Outcome(**{**found, "effects": _effects(found["effects"])})
                for found in stored.get(entry["id"], [])
            ],
        )
        for entry in registration.load(book)["falsifiers"]
    ]


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many claims have each word, in the order of :data:`~.rules.WORDS`."""
    found = Counter(row.verdict.word for row in rows)
    return {word: found[word] for word in WORDS if found[word]}


def section(place: str) -> str:
    """The part of the paper that a claim stands in; where it stands in several, the last one.

    >>> section("abstract; section 3.2, case 2"), section("Table 2, row 1"), section("abstract")
    ('3.2', '3.3', 'abstract')
    """
    found = re.findall(r"section ([\d.]+)", place)
    if found:
        return str(found[-1])
    return "3.3" if "Table 2" in place else "abstract"


def show(effect: Any) -> str:
    """An effect in words: an interval, the range of several values, a power, or one number.

    >>> show(Interval(-0.134, -0.161, -0.107, 5)), show([1.5, 2.25, 1.75]), show(3), show(1e-16)
    ('-0.134 [-0.161, -0.107], n = 5', '1.50 to 2.25 (3 values)', '3', '1e-16')
    """
    if isinstance(effect, Interval):
        middle, low, high = map(_three_digits, (effect.mean, effect.low, effect.high))
        return f"{middle} [{low}, {high}], n = {effect.count}"
    if isinstance(effect, list):
        low, high = _three_digits(min(effect)), _three_digits(max(effect))
        return f"{low} to {high} ({len(effect)} values)" if len(effect) > 1 else low
    return str(effect) if isinstance(effect, int | Power) else f"{effect:.3g}"


def _three_digits(number: float) -> str:
    """With zeros at the end, and without a point that ends it.

    >>> _three_digits(103.2), _three_digits(1.5)
    ('103', '1.50')
    """
    return f"{number:#.3g}".removesuffix(".")


def describe(rows: Sequence[Row]) -> str:
    """The picture in words: how many claims have each verdict, and which."""
    named = {
        word: [row.verdict.claim for row in rows if row.verdict.word == word]
        for word in counts(rows)
    }
    parts = [f"{len(names)} {word}: {', '.join(names)}" for word, names in named.items()]
    return f"Grid of the verdicts on {len(rows)} claims. {'; '.join(parts)}."


def draw(book: Path) -> None:
    """Draw the picture of all verdicts, if it is not that of today's file."""
    path = book / PICTURE
    if is_drawn(book):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = drawing.verdicts(_tiles(load(book)))
    figure.savefig(path, dpi=180, metadata={_KEY: _picture_code(book)})


def is_drawn(book: Path) -> bool:
    """Whether the picture shows today's verdicts, drawn by today's code."""
    path = book / PICTURE
    if not path.is_file():
        return False
    with Image.open(path) as image:
        return bool(image.info.get(_KEY) == _picture_code(book))


def _tiles(rows: Sequence[Row]) -> list[drawing.Tile]:
    return [(row.verdict.claim, section(row.claim["place"]), row.verdict.word) for row in rows]


def _picture_code(book: Path) -> str:
    parts = records.shaping_code(drawing.verdicts, "losslandscape.report.figures")
    content = [_tiles(load(book)), sorted(parts.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@click.command()
@click.option("--all", "everything", is_flag=True, help="Measure again what has not changed, too.")
def main(everything: bool) -> None:
    """Judge every claim and write book/verdicts.json and book/figures/verdicts.png."""
    rows = update(records.records_root().parent, everything=everything)
    for row in rows:
        click.echo(f"{row.verdict.claim:4s} {row.verdict}")
    click.echo(", ".join(f"{word}: {count}" for word, count in counts(rows).items()))


if __name__ == "__main__":
    main()
