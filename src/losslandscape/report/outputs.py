"""Outputs of two executions of one chapter: the same, within tolerance, or different.

Floating point is not the same on every processor. In a cell tagged ``rtol-1e-3`` the text around
the numbers must still match to the letter, and each number may differ from the stored one by that
relative tolerance. A cell tagged ``nbval-ignore-output`` shows what no two executions share, such
as times. Pictures are drawn anew and not compared. Cells are numbered as nbval numbers them: those
with code, from 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from losslandscape.report.execute import KEY

ATOL = 1e-12  # rounding noise about an exact zero
FREE = "nbval-ignore-output"
TAG = re.compile(r"rtol-(.+)")
NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)|\b(?:nan|inf)\b"
)
PADDING = re.compile(r" +")  # columns are as wide as their numbers
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")  # of an object in memory
HEADING = re.compile(r"^##+ +(.+)$", re.MULTILINE)
TEX = re.compile(r"[$\\{}]")  # signs of a formula in a heading
COMPARED = ("same", "within tolerance", "differs")
WORDS = (*COMPARED, "not compared", "as stored")
SHOWN = 60  # characters of an output in a message
MOST_CELLS = 5  # in a message


@dataclass(frozen=True)
class Finding:
    """How one chapter came out.

    Attributes:
        chapter: Its name.
        word: One of :data:`WORDS`.
        text: What differs, or how far numbers moved, and what is not compared.
    """

    chapter: str
    word: str
    text: str = ""


@dataclass(frozen=True)
class Change:
    """One line of a cell's outputs that is not the stored one.

    Attributes:
        key: Under which the value is glued, for the text of the chapter; else empty.
        stored: The line as stored; empty where there is none.
        fresh: The line as it is now; empty where there is none.
    """

    key: str = ""
    stored: str = ""
    fresh: str = ""


NO_LINE = Change()  # where all lines agree, and outputs are of another kind


def compare_folders(stored: Path, fresh: Path) -> list[Finding]:
    """Compare each notebook of ``fresh`` with the stored one of the same name."""
    return [compare_files(stored / path.name, path) for path in sorted(fresh.glob("[0-9]*.ipynb"))]


def summary(findings: list[Finding]) -> str:
    """How many chapters came out how.

    >>> summary([Finding("a", "same"), Finding("b", "differs", "1"), Finding("c", "as stored")])
    '2 chapters compared: 1 same, 1 differs; 1 as stored'
    """
    counts = Counter(finding.word for finding in findings)
    words = [f"{counts[word]} {word}" for word in COMPARED if counts[word]]
    if counts["differs"] > 1:
        words[-1] = words[-1].removesuffix("s")
    text = counted(sum(counts[word] for word in COMPARED), "chapter") + " compared"
    parts = [f"{text}: {', '.join(words)}" if words else text]
    parts += [f"{counts[word]} {word}" for word in WORDS if word not in COMPARED and counts[word]]
    return "; ".join(parts)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 cell``, ``2 cells``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def compare_files(stored: Path, fresh: Path) -> Finding:
    """Compare two executions of one chapter, as files."""
    if not stored.is_file():
        return Finding(fresh.stem, "not compared", "there is no stored notebook of this name")
    if stored.read_bytes() == fresh.read_bytes():  # an execution has its own time in its stamp
        return Finding(fresh.stem, "as stored", "not executed for this copy")
    a, b = (nbformat.read(path, as_version=4) for path in (stored, fresh))
    return Finding(fresh.stem, *compare(a, b))


def compare(stored: NotebookNode, fresh: NotebookNode) -> tuple[str, str]:
    """Compare two executions of one chapter: the word and the text of a :class:`Finding`."""
    stamp = fresh.metadata.get(KEY, {})
    if not stamp.get("defaults", True):
        values = ", ".join(f"{k} = {v}" for k, v in stamp.get("parameters", {}).items())
        return "not compared", f"executed with {values}"
    pair = [[c for c in book.cells if c.cell_type == "code"] for book in (stored, fresh)]
    if [cell.source for cell in pair[0]] != [cell.source for cell in pair[1]]:
        return "not compared", "its code is not that of the stored notebook"
    differing, moved = [], []
    for place, (old, new, heading) in enumerate(zip(*pair, headings(fresh), strict=True)):
        a, b = comparable(old), comparable(new)
        if a == b or is_free(new):
            continue
        rtol, found = tolerance(new.metadata.get("tags", [])), changes(old, new)
        if rtol is None or snap(b, a, rtol) != a:
            first = _first_outside(found, rtol)
            differing.append(f"{_where(place, first, heading)}: {_difference(first, rtol)}")
        else:
            most = max(found, key=_largest, default=NO_LINE)
            moved.append((_largest(most), rtol, _where(place, most, heading)))
    word, texts = "same", []
    if differing:
        word, texts = "differs", differing[:MOST_CELLS]
        if more := len(differing) - len(texts):
            texts.append(f"and {counted(more, 'more cell')}")
    elif moved:
        share, limit, where = max(moved)
        text = f"at most {percent(share)} where {percent(limit)} is allowed, in {where}"
        word, texts = "within tolerance", [f"{counted(len(moved), 'cell')}, {text}"]
    return word, "; ".join([*texts, *_left_out(pair[1])])


def headings(book: NotebookNode) -> list[str]:
    """Return for each cell with code the heading under which a reader finds it."""
    found, heading = [], ""
    for cell in book.cells:
        if cell.cell_type == "code":
            found.append(heading)
        elif cell.cell_type == "markdown":
            heading = [heading, *HEADING.findall(cell.source)][-1]
    return [TEX.sub("", heading) for heading in found]


def is_free(cell: NotebookNode) -> bool:
    """Say whether this cell may show anything."""
    return FREE in cell.metadata.get("tags", [])


def is_picture(mime: str) -> bool:
    """Say whether this part of an output is a picture."""
    return mime.startswith("image/")


def _left_out(cells: list[NotebookNode]) -> list[str]:
    """How many outputs are not compared, in words; nothing if all are."""
    free = sum(is_free(cell) and bool(cell.outputs) for cell in cells)
    pictures = sum(
        any(map(is_picture, output.get("data", {})))
        for cell in cells
        if not is_free(cell)
        for output in cell.outputs
    )
    found = [counted(n, noun) for n, noun in ((free, "cell"), (pictures, "picture")) if n]
    return [f"not compared: {', '.join(found)}"] if found else []


def _where(place: int, change: Change, heading: str) -> str:
    name = change.key or (f'under "{heading}"' if heading else "")
    return f"cell {place} ({name})" if name else f"cell {place}"


def comparable(cell: NotebookNode) -> list[Any]:
    """Those parts of a cell's outputs that are compared: no pictures, no addresses."""
    found: list[Any] = []
    for output in cell.outputs:
        data = output.get("data") or {output.get("name", output.output_type): output.get("text")}
        plain = {mime: _plain(text) for mime, text in data.items() if not is_picture(mime)}
        # How a figure calls itself says how large it is on this computer's backend.
        if len(plain) < len(data):
            plain.pop("text/plain", None)
        found.append(plain)
    return found


def _plain(text: Any) -> Any:
    return ADDRESS.sub("ADDRESS", text) if isinstance(text, str) else text


def changes(stored: NotebookNode, fresh: NotebookNode) -> list[Change]:
    """Return the lines of a cell's outputs that are not the stored ones."""
    pairs = zip_longest(_lines(stored), _lines(fresh), fillvalue=("", ""))
    return [Change(new[0] or old[0], old[1], new[1]) for old, new in pairs if old != new]


def _lines(cell: NotebookNode) -> Iterator[tuple[str, str]]:
    """Each line of what is compared, after the key under which it is glued."""
    for output, parts in zip(cell.outputs, comparable(cell), strict=True):
        key = output.get("metadata", {}).get("scrapbook", {}).get("name", "")
        # In plain text the row of a table is one line.
        for mime in sorted(parts, key=lambda mime: (mime != "text/plain", mime)):
            for line in str(parts[mime]).splitlines():
                if line.strip():
                    yield key, line.strip().strip("'" if key else None)


def _first_outside(found: list[Change], rtol: float | None) -> Change:
    """The first line that no tolerance covers."""
    outside = [c for c in found if snap(c.fresh, c.stored, rtol or 0.0) != c.stored]
    return next(iter([*outside, *found]), NO_LINE)


def _difference(change: Change, rtol: float | None) -> str:
    """What a line says and what it should: the first number outside its limit, or its words."""
    if change == NO_LINE:
        return "outputs of another kind"
    fresh, stored = PADDING.sub(" ", change.fresh), PADDING.sub(" ", change.stored)
    if blanked(fresh) == blanked(stored):
        for new, old in zip(NUMBER.finditer(fresh), NUMBER.finditer(stored), strict=True):
            if not close(new[0], old[0], rtol or 0.0):
                share = relative_change(new[0], old[0])
                text = f"{new[0]} instead of {old[0]}, "
                text += f"a change of {percent(share)} " if math.isfinite(share) else ""
                text += f"where {percent(rtol) if rtol else 'none'} is allowed"
                return text if fresh == new[0] else f"{text}, in {_cut(fresh, new.start())}"
    if fresh == stored:
        fresh, stored = change.fresh, change.stored
    letters = enumerate(zip_longest(fresh, stored))
    at = next((place for place, (new, old) in letters if new != old), 0)
    return f"{_cut(fresh, at)} instead of {_cut(stored, at)}"


def _cut(line: str, at: int) -> str:
    """A line in quotes; of a long one the part around a place."""
    if not line:
        return "nothing"
    start = max(0, at - SHOWN // 2) if len(line) > SHOWN else 0
    after = "..." if len(line) > start + SHOWN else ""
    return repr(("..." if start else "") + line[start : start + SHOWN] + after)


def _largest(change: Change) -> float:
    """The largest relative change of a number in a line."""
    pairs = zip(NUMBER.findall(change.fresh), NUMBER.findall(change.stored), strict=False)
    return max((relative_change(new, old) for new, old in pairs), default=0.0)


def relative_change(new: str, stored: str) -> float:
    """Return by what share of the stored number the new one differs; infinity if that is 0.

    >>> relative_change("1.1", "1.0"), relative_change("1", "0"), relative_change("nan", "nan")
    (0.10000000000000009, inf, 0.0)
    """
    if close(new, stored, 0.0):
        return 0.0
    a, b = number(new), number(stored)
    return abs(a - b) / abs(b) if b else math.inf


def percent(share: float) -> str:
    """Return a share in per cent, with three digits.

    >>> percent(0.28947), percent(1e-6), percent(20)
    ('28.9 %', '0.0001 %', '2000 %')
    """
    return f"{float(f'{100 * share:.3g}'):g} %"


def tolerance(tags: list[str]) -> float | None:
    """Return the relative tolerance that the tags declare, None without one.

    >>> tolerance(["remove-input", "rtol-1e-3"]), tolerance([])
    (0.001, None)
    """
    for tag in tags:
        match = TAG.fullmatch(tag)
        if match:
            return float(match[1])
    return None


def number(text: str) -> float:
    """Read a number, also one with a typographic minus sign."""
    return float(text.replace("\N{MINUS SIGN}", "-"))


def close(new: str, stored: str, rtol: float) -> bool:
    """Compare two numbers; nan equals nan, and infinity itself only.

    >>> close("1.001", "1.0", 1e-2), close("1.1", "1.0", 1e-2), close("nan", "nan", 0)
    (True, False, True)
    """
    a, b = number(new), number(stored)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or (math.isfinite(b) and abs(a - b) <= rtol * abs(b) + ATOL)


def snap(new: Any, stored: Any, rtol: float) -> Any:
    """Return ``stored`` where ``new`` agrees with it within ``rtol``, else ``new``.

    >>> snap("loss 1.0001 (3 runs)", "loss 1.0002 (3 runs)", 1e-3)
    'loss 1.0002 (3 runs)'
    >>> snap("loss 1.1", "loss 1.0", 1e-3), snap("Loss 1.0", "loss 1.0", 1e-3)
    ('loss 1.1', 'Loss 1.0')
    """
    if isinstance(new, dict) and isinstance(stored, dict):
        return {key: snap(value, stored.get(key), rtol) for key, value in new.items()}
    if isinstance(new, list) and isinstance(stored, list) and len(new) == len(stored):
        return [snap(a, b, rtol) for a, b in zip(new, stored, strict=True)]
    if isinstance(new, float) and isinstance(stored, float):
        return stored if close(str(new), str(stored), rtol) else new
    if isinstance(new, str) and isinstance(stored, str):
        ours, theirs = NUMBER.findall(new), NUMBER.findall(stored)
        if blanked(new) != blanked(stored) or len(ours) != len(theirs):
            return new
        return stored if all(close(a, b, rtol) for a, b in zip(ours, theirs, strict=True)) else new
    return new


def blanked(text: str) -> str:
    """Return the text with every number, and the padding around it, made the same."""
    return PADDING.sub(" ", NUMBER.sub(" # ", text))
