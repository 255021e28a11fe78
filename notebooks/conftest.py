"""nbval with a declared tolerance: the tag ``rtol-1e-3`` lets a cell's numbers differ that much.

Floating point is not the same on every processor. In a tagged cell the text around the numbers
must still match to the letter; each number may differ from the stored one by the tag's relative
tolerance. Without the tag, nbval compares text as it always does.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

ATOL = 1e-12  # rounding noise about an exact zero
TAG = re.compile(r"rtol-(.+)")
NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)|\b(?:nan|inf)\b"
)
PADDING = re.compile(r" +")  # columns are as wide as their numbers


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


def pytest_itemcollected(item: pytest.Item) -> None:
    """Teach tagged notebook cells to compare within their tolerance."""
    cell = getattr(item, "cell", None)
    rtol = tolerance(cell.metadata.get("tags", [])) if cell is not None else None
    if rtol is None:
        return
    strict = item.compare_outputs  # type: ignore[attr-defined]

    def compare_outputs(new: list[Any], stored: list[Any], *rest: Any) -> bool:
        compared: bool = strict(snap_outputs(new, stored, rtol), stored, *rest)
        return compared

    item.compare_outputs = compare_outputs  # type: ignore[attr-defined]


def snap_outputs(new: list[Any], stored: list[Any], rtol: float) -> list[Any]:
    """Snap what outputs say; their order and kinds are left to nbval."""
    if len(new) != len(stored):
        return new
    for output, reference in zip(new, stored, strict=True):
        for part in ("text", "data"):
            if part in output and part in reference:
                output[part] = snap(output[part], reference[part], rtol)
    return new
