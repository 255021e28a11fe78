"""Networks with and without batch normalisation and residual connections, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean
from typing import Any

Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]  # configuration -> run seed -> results

VARIANTS = {
    "bn": "batch normalisation",
    "residual": "residual connections",
    "both": "both",
}


def log_ratios(runs: Runs, measure: str) -> dict[str, dict[tuple[int, int], float]]:
    """How much flatter than the plain network each variant is, for every pair of runs.

    Only runs that came to the common training loss take part, and only pairs of one depth and one
    run seed.

    Args:
        runs: Results of ``lab.experiments.architecture``; a configuration is named
            ``<variant>_<convolutions>``.
        measure: Name of an eigenvalue of a checkpoint, for instance ``"row_lambda_max"``.

    Returns:
        Per variant, by convolutions and run seed, ln(plain / variant); each logarithm is the mean
        over the checkpoints. Positive says that the variant is flatter.
    """
    logs: dict[str, dict[tuple[int, int], float]] = {}
    for name, of_seed in runs.items():
        variant, _, convolutions = name.partition("_")
        for seed, run in of_seed.items():
            if run["reached"]:
                logs.setdefault(variant, {})[int(convolutions), seed] = mean(
                    math.log(checkpoint[measure]["value"]) for checkpoint in run["level"]
                )
    plain = logs.get("plain", {})
    return {
        variant: {
            pair: plain[pair] - found
            for pair, found in sorted(logs.get(variant, {}).items())
            if pair in plain
        }
        for variant in VARIANTS
    }
