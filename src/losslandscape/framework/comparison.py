"""Two networks, or two sets of runs, against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from losslandscape.framework.bootstrap import RESAMPLES, percentiles, resample, resampled_means
from losslandscape.framework.findings import (
    MEASURES,
    VOTING,
    Assessment,
    Comparison,
    Contrast,
    Thresholds,
)


def compare(
    a: Assessment | Sequence[Assessment],
    b: Assessment | Sequence[Assessment],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Which of two networks is flatter relative to its weights, or that this is undecided.

    Both must be ``comparable`` at matched training loss, measured on the same Hessian set.
    Then the invariant measures vote for the side where they are smaller, if the 95 % interval of
    their ratio leaves out 1 and what a rescaling may move (``thresholds.moved``).
    The intervals are bootstraps over blocks of examples, the same for both sides, over probes, and
    over runs where several are given.
    ``thresholds.votes`` votes for one side and none for the other decide.

    Args:
        a, b: Assessments, or several of each: runs of one recipe from different seeds.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: Assessments of different Hessian sets or probes, or an empty sequence.
    """
    sides = [_runs(a, "a"), _runs(b, "b")]
    everyone = sides[0] + sides[1]
    if len({run.data_digest for run in everyone}) > 1:
        raise ValueError(
            "the networks were measured on different data: assess both with the same train_data, "
            "hessian_examples and seed (a loader that shuffles gives another order each time)"
        )
    if len({_shape(run) for run in everyone}) > 1:
        raise ValueError("the networks were measured with different probes: assess both with one")
    limits = everyone[0].thresholds
    if any(run.thresholds != limits for run in everyone):
        raise ValueError("the networks were judged by different thresholds: assess both with one")
    obstacles = _obstacles(sides, limits)
    generator = torch.Generator().manual_seed(seed)
    least = math.log1p(limits.moved)  # what rescaling may move is no difference
    contrasts = {}
    for name in VOTING:
        found = _contrast(name, *sides, least=least, resamples=resamples, generator=generator)
        if found is not None:
            contrasts[name] = found
    if len(contrasts) < limits.votes:
        obstacles.append(
            f"only {len(contrasts)} of {len(VOTING)} measures can vote, {limits.votes} must agree "
            "(the Fisher-Rao norm and the relative flatness need one output tensor)"
        )
    moved = {
        name
        for run in everyone
        for name, change in run.orbit.changes.items()
        if not change <= limits.moved
    }
    votes = {
        side: [n for n, c in contrasts.items() if c.vote == side and n not in moved]
        for side in "ab"
    }
    verdict = "undecided"
    for side, other in ("ab", "ba"):
        if not obstacles and len(votes[side]) >= limits.votes and not votes[other]:
            verdict = f"{side}-flatter"
    reasons = list(obstacles)
    if verdict == "undecided" and not obstacles:
        reasons.append(
            f"{len(votes['a'])} of {len(contrasts)} measures say a, {len(votes['b'])} say b; "
            f"{limits.votes} for one side and none for the other would decide"
        )
    for side, names in votes.items():
        if names:
            reasons.append(f"{side} is lower in {_shown(names)}")
    if moved:
        reasons.append(f"no vote for {_shown(sorted(moved))}: a rescaling moved it")
    return Comparison(verdict, tuple(reasons), contrasts)


def _shape(run: Assessment) -> tuple[int, ...]:
    """Blocks and probes of the traces."""
    found = run.measures.get("adaptive_trace")
    return () if found is None or found.samples is None else tuple(found.samples.shape)


def _obstacles(sides: Sequence[Sequence[Assessment]], limits: Thresholds) -> list[str]:
    """Why the two sides cannot be compared at all."""
    found = []
    for name, runs in zip("ab", sides, strict=True):
        words = sorted({run.verdict for run in runs} - {"comparable"})
        if words:
            found.append(f"{name} is {' and '.join(words)}, so it cannot be compared")
    if not all(run.train_loss > 0 for runs in sides for run in runs):
        return [*found, "a training loss is not positive, and losses are matched by their ratio"]
    losses = [_geometric([run.train_loss for run in runs]) for runs in sides]
    common = _geometric(losses)
    if not all(abs(loss - common) <= limits.matched * common for loss in losses):
        found.append(
            f"the training losses {losses[0]:.3g} and {losses[1]:.3g} are not within "
            f"{limits.matched:.0%} of a common one"
        )
    return found


def _shown(names: Sequence[str]) -> str:
    return ", ".join(MEASURES[name][0] for name in names)


def _runs(side: Assessment | Sequence[Assessment], name: str) -> list[Assessment]:
    try:
        runs = [side] if isinstance(side, Assessment) else list(side)
    except TypeError:
        runs = []
    if not runs or not all(isinstance(run, Assessment) for run in runs):
        raise ValueError(f"{name} must be an Assessment or a sequence of them: call assess first")
    return runs


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _contrast(
    name: str,
    first: list[Assessment],
    second: list[Assessment],
    *,
    least: float,
    resamples: int,
    generator: torch.Generator,
) -> Contrast | None:
    """``ln`` ratio of a measure; None where one side lacks it or it is not positive."""
    groups = []
    for runs in (first, second):
        if any(name not in run.measures or not run.measures[name].value > 0 for run in runs):
            return None
        groups.append([run.measures[name].samples for run in runs])
    blocks, probes = groups[0][0].shape  # type: ignore[union-attr]
    draws = [resample(blocks, resamples, generator), resample(probes, resamples, generator)]
    logs = []
    for samples in groups:
        each = torch.stack(
            [resampled_means(s, *draws) for s in samples if s is not None]
        )  # (runs, R)
        if not (each > 0).all():
            return None
        chosen = resample(len(each), resamples, generator)  # (R, runs)
        logs.append((chosen * each.log().T).sum(dim=1))
    low, high = percentiles(logs[0] - logs[1])
    value = sum(math.log(run.measures[name].value) for run in first) / len(first) - sum(
        math.log(run.measures[name].value) for run in second
    ) / len(second)
    vote = "a" if high < -least else "b" if low > least else ""
    return Contrast(value, low, high, vote)
