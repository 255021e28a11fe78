"""Looks at the recorded sweep that were taken once its verdicts were known.

They ask where the registered numbers come from, and they decide nothing: no threshold was fixed for
them, and what to look at was chosen because of what the registered tests had shown.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from losslandscape.report.falsifiers import gate
from losslandscape.report.statistics import Interval
from losslandscape.report.sweep import (
    AXES,
    RECIPE,
    Array,
    Sweep,
    granulated,
    omega_squared,
    psi_interval_of,
    rank_residuals,
)

SHARPNESS, TRACE, JACOBIAN = "adaptive_lambda_max", "adaptive_trace", "input_jacobian"


def settings_score(sweep: Sweep, other: Sweep) -> Array:
    r"""``(N,)`` the ln gap that the four settings of a run predict, without its measurements.

    Main effects of learning rate, batch size, weight decay and width, each categorical, are fitted
    to the ln gap of the runs of another arm by least squares.

    Raises:
        ValueError: A gap of the other arm is not positive, or it lacks a level of this one.
    """
    if not (other["gap"] > 0).all():
        raise ValueError(f"ln gap needs positive gaps, got {other['gap'].min():.3g}")
    for axis in AXES:
        if lacking := set(sweep[axis]) - set(other[axis]):
            raise ValueError(f"no run of the other arm has {axis} {min(lacking):g}")
    levels = {axis: np.unique(other[axis]) for axis in AXES}

    def indicators(runs: Sweep) -> Array:
        found: Array = np.hstack([(runs[axis][:, None] == levels[axis]) + 0.0 for axis in AXES])
        return found

    effects = np.linalg.lstsq(indicators(other), np.log(other["gap"]), rcond=None)[0]
    # Runs of the same settings must tie, whatever the order of their sum.
    score: Array = np.round(indicators(sweep) @ effects, 9)
    return score


def looks(sweep: Sweep, other: Sweep) -> dict[str, Interval]:
    """Psi of one arm in other words, each with its 95 % interval over cells.

    Args:
        sweep: The arm.
        other: The other arm, from which the score of the settings is fitted.
    """
    gap, error = sweep["gap"], sweep["gap_error"]
    sharpness, jacobian = sweep[SHARPNESS], sweep[JACOBIAN]
    score = settings_score(sweep, other)

    def psi(m: Array, t: Array = gap, *, minus: Array | None = None) -> Interval:
        return granulated(sweep, m, t, minus=minus).psi

    def given(m: Array, known: Array) -> Interval:
        return psi(rank_residuals(m, known), rank_residuals(gap, known))

    def within(runs: Sweep, column: str) -> Interval:
        return psi_interval_of(runs, runs["gap"])(runs[column])

    slow = sweep.only(sweep["lr"] < sweep["lr"].max())
    settled = sweep.only(np.logical_and.reduce(list(gate(sweep).values())))
    return {
        "the four settings": psi(score),
        "B5-lambda less the four settings": psi(sharpness, minus=score),
        "B5-lambda less input Jacobian": psi(sharpness, minus=jacobian),
        "the same, gap in error": psi(sharpness, error, minus=jacobian),
        "B5-lambda given input Jacobian": given(sharpness, jacobian),
        "input Jacobian given B5-lambda": given(jacobian, sharpness),
        "B5-trace less B5-lambda": psi(sweep[TRACE], minus=sharpness),
        "B5-lambda, runs that pass the gate": within(settled, SHARPNESS),
        "lambda, gap in error": psi(sweep["lambda_max"], error),
        "lambda, without the largest learning rate": within(slow, "lambda_max"),
    }


def same_settings(sweep: Sweep, m: Array, t: Array) -> tuple[int, int]:
    """Cells in which the run with the larger ``m`` has the larger ``t``, and how many cells count.

    Those of two runs count, unless they tie in ``m`` or ``t``: nothing but the run seed differs.
    """
    order = np.argsort(sweep.cell, kind="stable")
    both = np.split(order, np.cumsum(np.bincount(sweep.cell))[:-1])
    signs = [np.sign((m[a] - m[b]) * (t[a] - t[b])) for a, b in (c for c in both if len(c) == 2)]
    return signs.count(1), len(signs) - signs.count(0)


def combined_shares(sweep: Sweep, y: Array) -> dict[str, Interval]:
    """Shares of variance when each combination of a recipe's settings is a level of its own.

    C36 is judged by main effects, which leave what the settings do in combination to the rest.
    """
    recipe = ("optimizer", *RECIPE)
    names = zip(*(sweep[name].tolist() for name in recipe), strict=True)
    factors = {
        "recipe": np.array([str(name) for name in names]),
        "width": sweep["width"],
        "seed": sweep["seed"],
    }
    blocks = {"recipe": ("recipe",), "width and run seed": ("width", "seed")}
    return {
        words: omega_squared(y, factors, block, cell=sweep.cell, seed=sweep.draws)
        for words, block in blocks.items()
    }


def arms_looked_at(arms: Mapping[str, Sweep]) -> dict[str, dict[str, Interval]]:
    """:func:`looks` of each of two arms."""
    (first, one), (second, two) = arms.items()
    return {first: looks(one, two), second: looks(two, one)}
