"""nbval with a declared tolerance: the tag ``rtol-1e-3`` lets a cell's numbers differ that much.

Without the tag, nbval compares text as it always does; see ``losslandscape.report.outputs``.
"""

from __future__ import annotations

from typing import Any

import pytest

from losslandscape.report.outputs import snap, tolerance


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
