"""The page *What moved*: saved comparisons of recorded runs with repeated ones, in words.

``losslandscape study diff NAME --save`` writes one JSON file; nothing else is needed here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from losslandscape.report.provenance import SHORT, UNKNOWN, Table

FOLDER = Path("book", "records", "diffs")
MOST_MOVERS = 10
PARTS = {
    "Processor": "processor",
    "Instructions": "instructions",
    "Threads": "threads",
    "Python": "python",
    "PyTorch": "torch",
    "NumPy": "numpy",
    "Commit": "commit",
}


@dataclass(frozen=True)
class Comparison:
    """One saved comparison, as a page shows it.

    Attributes:
        title: The study, and the label if there is one.
        label: In whose name the comparison was saved; empty for the plain one.
        outcomes: How many numbers came out the same, within or outside their tolerance.
        sentences: What was repeated, how much of it moved, and where the tolerances come from.
        machines: Machine and versions of the record and of the repeated run.
        movers: The numbers that moved most, beside their tolerance; empty when nothing did.
        command: What to type to repeat it.
    """

    title: str
    label: str
    outcomes: Counter[str]
    sentences: list[str]
    machines: Table
    movers: Table
    command: str


def load(root: Path) -> list[Comparison]:
    """All saved comparisons below the folder that holds ``book/``, by name.

    Raises:
        ValueError: A file is damaged; the message names it.
    """
    paths = sorted((root / FOLDER).glob("*.json"), key=lambda path: path.stem)
    return [_comparison(path) for path in paths]


def finding(root: Path) -> str:
    """The saved comparisons in a sentence for each label."""
    totals: dict[str, Counter[str]] = {}
    for comparison in load(root):
        totals.setdefault(comparison.label, Counter()).update(comparison.outcomes)
    return " ".join(
        f"{f'Labelled {label}' if label else 'Repeated as they were recorded'}, of "
        f"{counts.total()} numbers {counts['same']} are the same to the last bit, "
        f"{counts['within']} moved within their tolerance, and {counts['outside']} outside."
        for label, counts in sorted(totals.items())
    )


def _outcomes(runs: Iterable[Mapping[str, Any]]) -> Counter[str]:
    return Counter(row["outcome"] for run in runs for row in run["differences"])


def _comparison(path: Path) -> Comparison:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        label = f" ({content['label']})" if content["label"] else ""
        return Comparison(
            title=f"{content['study']}{label}",
            label=content["label"],
            outcomes=_outcomes(content["runs"]),
            sentences=list(_sentences(content)),
            machines=_machines(content),
            movers=_movers(content),
            command=_broken(content["command"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        name = FOLDER / path.name
        raise ValueError(f"{name}: not a whole comparison, save it again ({error})") from error


def _sentences(content: Mapping[str, Any]) -> Iterable[str]:
    runs = content["runs"]
    rows = [row for run in runs for row in run["differences"]]
    yield (
        f"{_part(runs)} was repeated on {content['finished'][:10]}, in "
        f"{content['cpu_seconds'] / 60:.1f} minutes of processor time."
    )
    counts = _outcomes(runs)
    same, within, outside = (counts[outcome] for outcome in ("same", "within", "outside"))
    yield (
        f"Of {len(rows)} numbers, {same} {_are(same)} the same to the last bit, {within} moved "
        f"within the tolerance and {outside} {_are(outside)} outside."
    )
    moved = [
        abs(row["fresh"] - row["recorded"]) / row["deviation"]
        for row in rows
        if row["outcome"] != "same" and row["fresh"] is not None and row["deviation"]
    ]
    if moved:
        yield (
            f"Those that moved did so by {median(moved):.2g} standard deviations of the recorded "
            f"seeds in the median, by {max(moved):.2g} at most."
        )
    seeds = sorted({row["seeds"] for row in rows if row["seeds"]})
    declared = sum(not row["seeds"] for row in rows)
    if seeds:
        yield (
            f"The tolerances come from the spread over {_range(seeds)} recorded seeds."
            if not declared
            else f"Where there are {_range(seeds)} recorded seeds, the tolerance comes from their "
            f"spread; {declared} of the numbers have fewer than three, and the study's own limit."
        )
    elif rows:
        yield (
            "There are fewer than three recorded seeds, so the limits are those that the study "
            "declares."
        )
    stale = sum(run["stale"] for run in runs)
    if stale:
        yield (
            f"{stale} of the records {_are(stale)} stale: the code that shapes the numbers has "
            "changed since."
        )


def _broken(command: str) -> str:
    """A command over several lines, so that none is cut off on the page."""
    lines = re.split(r" (?=losslandscape study|--)", command)
    return " \\\n    ".join(lines)


def _part(runs: Iterable[Mapping[str, Any]]) -> str:
    """What was repeated: "The first epoch of 2 runs (a, seeds 0 and 1; b, seed 0)"."""
    runs = list(runs)
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run["configuration"], []).append(str(run["seed"]))
    names = "; ".join(
        f"{name}, seed{'s' * (len(found) > 1)} {_listed(found)}" for name, found in seeds.items()
    )
    parts = {_how_much(run["part"]) for run in runs}
    what = _listed(sorted(parts))
    what = what[0].upper() + what[1:]
    return f"{what} of {len(runs)} run{'s' * (len(runs) > 1)} ({names})"


def _how_much(part: Mapping[str, int]) -> str:
    words = [
        f"the first {number} {name}" if number > 1 else f"the first {name.rstrip('s')}"
        for name, number in part.items()
    ]
    return _listed(words) or "the whole"


def _machines(content: Mapping[str, Any]) -> Table:
    """The record's side holds every value that occurs among its runs."""
    runs, here = content["runs"], content["environment"]
    lines = []
    for heading, key in PARTS.items():
        recorded = {_short(key, run["environment"].get(key)) for run in runs}
        lines.append([heading, ", ".join(sorted(recorded)), _short(key, here.get(key))])
    dates = sorted({run["recorded"][:10] for run in runs})
    span = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else UNKNOWN
    lines.append(["Date", span, content["finished"][:10]])
    return ["", "record", "repeated"], lines


def _short(key: str, value: Any) -> str:
    if value is None:
        return UNKNOWN
    text = str(value)
    return text[:SHORT] + "+" * text.endswith("+") if key == "commit" else text


def _movers(content: Mapping[str, Any]) -> Table:
    moved = [
        (run, row)
        for run in content["runs"]
        for row in run["differences"]
        if row["outcome"] != "same"
    ]
    moved.sort(key=lambda pair: -_share(pair[1]))
    lines = [
        [
            f"{run['configuration']}, seed {run['seed']}",
            ", ".join(filter(None, (row["quantity"], row["place"]))),
            f"{row['recorded']:.6g}",
            UNKNOWN if row["fresh"] is None else f"{row['fresh']:.6g}",
            _with_deviations(row, None if row["fresh"] is None else row["fresh"] - row["recorded"]),
            _with_deviations(row, row["tolerance"]),
            row["outcome"],
        ]
        for run, row in moved[:MOST_MOVERS]
    ]
    headings = ["run", "number", "recorded", "repeated", "moved by", "may move by", "outcome"]
    return (headings, lines) if lines else ([], [])


def _with_deviations(row: Mapping[str, Any], size: float | None) -> str:
    """A difference, and how many standard deviations of the recorded seeds it is."""
    if size is None:
        return UNKNOWN
    spread = f" ({abs(size) / row['deviation']:.2g} SD)" if row["deviation"] else ""
    return f"{size:.1e}{spread}"


def _share(row: Mapping[str, Any]) -> float:
    """How much of its tolerance a number has moved."""
    if row["fresh"] is None or row["tolerance"] == 0:
        return float("inf")
    return float(abs(row["fresh"] - row["recorded"]) / row["tolerance"])


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _range(numbers: list[int]) -> str:
    return " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


SENTENCES = {"diff-finding": finding}
