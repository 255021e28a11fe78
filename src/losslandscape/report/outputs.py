"""Outputs of two executions of one chapter: the same, within tolerance, or different.

Floating point is not the same on every processor. In a cell tagged ``rtol-1e-3`` the text around
the numbers must still match to the letter, and each number may differ from the stored one by that
relative tolerance. A cell tagged ``nbval-ignore-output`` shows what no two executions share, such
as times. Pictures are drawn anew and not compared.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
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
WORDS = ("same", "within tolerance", "differs", "not compared", "as stored")
SHOWN = 60  # characters of an output in a message


@dataclass(frozen=True)
class Finding:
    """How one chapter came out.

    Attributes:
        chapter: Its name.
        word: One of :data:`WORDS`.
        text: The first difference, or why nothing was compared; else empty.
    """

    chapter: str
    word: str
    text: str = ""


def compare_folders(stored: Path, fresh: Path) -> list[Finding]:
    """Compare each notebook of ``fresh`` with the stored one of the same name."""
    return [compare_files(stored / path.name, path) for path in sorted(fresh.glob("[0-9]*.ipynb"))]


def summary(findings: list[Finding]) -> str:
    """How many chapters came out how.

    >>> summary([Finding("a", "same"), Finding("b", "differs", "1"), Finding("c", "as stored")])
    '2 chapters executed: 1 same, 1 differs; 1 as stored'
    """
    counts = Counter(finding.word for finding in findings)
    stored = counts.pop("as stored", 0)
    words = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
    text = f"{counts.total()} chapters executed" + (f": {words}" if words else "")
    return f"{text}; {stored} as stored" if stored else text


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
    word = "same"
    for place, (old, new) in enumerate(zip(*pair, strict=True), start=1):
        tags = list(new.metadata.get("tags", []))
        a, b = comparable(old), comparable(new)
        if a == b or FREE in tags:
            continue
        rtol = tolerance(tags)
        if rtol is None or snap(b, a, rtol) != a:
            return "differs", f"cell {place}: {_first_difference(a, b)}"
        word = "within tolerance"
    return word, ""


def comparable(cell: NotebookNode) -> list[Any]:
    """Those parts of a cell's outputs that are compared: no pictures, no addresses."""
    found: list[Any] = []
    for output in cell.outputs:
        data = output.get("data") or {output.get("name", output.output_type): output.get("text")}
        plain = {mime: _plain(text) for mime, text in data.items() if not mime.startswith("image/")}
        # How a figure calls itself says how large it is on this computer's backend.
        if len(plain) < len(data):
            plain.pop("text/plain", None)
        found.append(plain)
    return found


def _plain(text: Any) -> Any:
    return ADDRESS.sub("ADDRESS", text) if isinstance(text, str) else text


def _first_difference(stored: Any, fresh: Any) -> str:
    """The first lines that do not agree, in words."""
    for old, new in zip_longest(_lines(stored), _lines(fresh), fillvalue="nothing"):
        if old != new:
            return f"{new[:SHOWN]!r} instead of {old[:SHOWN]!r}"
    return "outputs of another kind"


def _lines(part: Any) -> list[str]:
    if isinstance(part, Mapping):
        part = list(part.values())
    if isinstance(part, list):
        return [line for item in part for line in _lines(item)]
    return [line.strip() for line in str(part).splitlines() if line.strip()]


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
    """Compare two numbers; nan equals nan.

    >>> close("1.001", "1.0", 1e-2), close("1.1", "1.0", 1e-2), close("nan", "nan", 0)
    (True, False, True)
    """
    a, b = number(new), number(stored)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or abs(a - b) <= rtol * abs(b) + ATOL


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
        same_text = blanked(new) == blanked(stored)
        pairs = zip(NUMBER.findall(new), NUMBER.findall(stored), strict=same_text)
        return stored if same_text and all(close(a, b, rtol) for a, b in pairs) else new
    return new


def blanked(text: str) -> str:
    """Return the text with every number, and the padding around it, made the same."""
    return PADDING.sub(" ", NUMBER.sub(" # ", text))
