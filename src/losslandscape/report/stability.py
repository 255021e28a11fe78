"""Measured curvature against the stability limit, from runs of ``edge_of_stability``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

Path = Sequence[tuple[int, float]]  # (step, measured / limit)


def against_limit(
    run: Mapping[str, Any], quantity: str, average: str = "mean_of_ratios"
) -> list[tuple[int, float]]:
    """``(step, measured / limit)`` along a run.

    Args:
        run: Results of ``experiments.edge_of_stability.measure``.
        quantity: ``"lambda_max"``, ``"preconditioned"`` or ``"batch_sharpness"``; rows without it
            are left out.
        average: Of the batch sharpness over batches, or ``"ratio_of_means"``.
    """
    entry = average if quantity == "batch_sharpness" else "value"
    return [
        (row["step"], row[quantity][entry] / run["limit"]) for row in run["path"] if quantity in row
    ]


def late(path: Path) -> float:
    """Mean ratio in the second half of a run.

    >>> late([(0, 9.0), (1, 1.0), (2, 3.0)])
    2.0
    """
    return mean(ratio for _, ratio in path[len(path) // 2 :])
