"""The registered falsifiers F1 to F6 of the refined framework.

F4 is evaluated on two networks trained here, the others on ``validation_sweep``.

Statement, test and threshold of each stand in ``book/claims.yml``; here they are code.
Their intervals are 95 % cluster bootstraps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from losslandscape.framework import Assessment, Thresholds, assess, compare
from losslandscape.lab.experiments.validation import Settings, SweepRecipe, train_to_band
from losslandscape.lab.models import mlp
from losslandscape.report.live_claims import NARROW, Numbers, Statistic, digits
from losslandscape.report.rules import Evidence
from losslandscape.report.statistics import Interval
from losslandscape.report.sweep import (
    AXIS_NAMES,
    BASELINES,
    MEASURES,
    STUDY,
    Array,
    Granulated,
    Sweep,
    given_sharpness,
    granulated,
    load_sweep,
    psi_of,
    tau_change,
    tau_interval,
)
from losslandscape.rescaling import rescale_relu

ARMS = ("clean", "noisy")
RELATIVE = ("B5-lambda", "B7", "B8")  # the measures of relative flatness that F2 names


@dataclass(frozen=True)
class Outcome:
    """What a falsifier says.

    Attributes:
        falsifier: Its identifier.
        subject: The arm or the measure it was evaluated for.
        word: The registered outcome, or ``waits``.
        threshold: The registered threshold in short.
        effects: The numbers it was applied to, by name, the deciding one first.
        reason: Why, where the numbers alone do not say it.
    """

    falsifier: str
    subject: str
    word: str
    threshold: str = ""
    effects: Mapping[str, Interval] = field(default_factory=dict)
    reason: str = ""

    @property
    def effect(self) -> Interval | None:
        """The deciding number with its interval, if there is one."""
        return next(iter(self.effects.values()), None)

    def __str__(self) -> str:
        found = "" if self.effect is None else f" {next(iter(self.effects))} = {self.effect}"
        return f"{self.falsifier}, {self.subject}: {self.word}{found} {self.reason}".strip()


def falsify(evidence: Evidence | None = None) -> list[Outcome]:
    """F1, F2, F3, F5 in each arm and F6 for each measure; all wait until both arms are recorded.

    F4 needs networks to rescale, not records: see :func:`f4` and :data:`F4`.
    """
    evidence = evidence or Evidence()
    arms = {arm: load_sweep(evidence, arm) for arm in ARMS}
    missing = sum(sweep.missing for sweep in arms.values())
    if missing:
        asked = sum(sweep.asked for sweep in arms.values())
        reason = f"for {missing} of {asked} runs of {STUDY}"
        return [
            Outcome(name, "both arms", "waits", reason=reason)
            for name in ("F1", "F2", "F3", "F5", "F6")
        ]
    by_arm: tuple[Callable[[str, Mapping[str, Sweep]], Outcome], ...] = (f1, f2, f3, f5)
    return [
        *(falsifier(arm, arms) for falsifier in by_arm for arm in ARMS),
        *(f6(name, arms) for name in MEASURES),
    ]


def together(outcomes: Sequence[Outcome]) -> str:
    """What the outcomes of one falsifier say of the whole: a part goes only if all arms say so.

    >>> both = [Outcome("F3", "clean arm", "drop"), Outcome("F3", "noisy arm", "undecided")]
    >>> together(both), together(both[:1])
    ('the arms differ: drop (clean arm), undecided (noisy arm)', 'drop')
    """
    words = {one.word for one in outcomes}
    if len(words) == 1:
        return words.pop()
    each = ", ".join(f"{one.word} ({one.subject})" for one in outcomes)
    return f"the arms differ: {each}"


def f1(arm: str, arms: Mapping[str, Sweep]) -> Outcome:
    """High absolute sharpness reliably predicts poor generalisation."""
    sweep = arms[arm]
    partial = tau_interval(sweep, sweep["lambda_max"], sweep["gap"], sweep["train_loss"])
    axes = granulated(sweep, sweep["lambda_max"], sweep["gap"]).axes
    against = [axis for axis, effect in axes.items() if effect.high < 0]
    weak = partial.high < 0.2
    reasons = (["the partial tau is below 0.2"] if weak else []) + [
        f"psi is negative along {AXIS_NAMES[axis]}" for axis in against
    ]
    return Outcome(
        "F1",
        f"{arm} arm",
        "rejected" if weak or against else "not rejected",
        "partial tau wholly below 0.2, or a psi_i wholly below 0",
        {
            "tau(lambda, gap given ln L_S)": partial,
            **{f"psi along {AXIS_NAMES[axis]}": effect for axis, effect in axes.items()},
        },
        " and ".join(reasons),
    )


def f2(arm: str, arms: Mapping[str, Sweep]) -> Outcome:
    """Relative flatness adds information beyond simple baselines.

    "Best" is the largest Psi on the other arm, as it stands. The same with the sign of each
    baseline also taken from the other arm (a wide network may have a *small* gap) is harder; it
    is reported beside it and decides nothing.
    """
    sweep, other = arms[arm], next(arms[name] for name in ARMS if name != arm)
    psi_elsewhere = psi_of(other, other["gap"])
    elsewhere = {
        name: psi_elsewhere(other[column])
        for name, column in (*((name, MEASURES[name]) for name in RELATIVE), *BASELINES.items())
    }
    best = max(RELATIVE, key=lambda name: elsewhere[name])
    plain = max(BASELINES, key=lambda name: elsewhere[name])
    signed = max(BASELINES, key=lambda name: abs(elsewhere[name]))
    sign = math.copysign(1, elsewhere[signed])

    def difference(baseline: Array) -> Granulated:
        return granulated(sweep, sweep[MEASURES[best]], sweep["gap"], minus=baseline)

    found = difference(sweep[BASELINES[plain]])
    effect = found.psi
    return Outcome(
        "F2",
        f"{arm} arm",
        "adds information"
        if effect.low > 0
        else "adds nothing here"
        if effect.high < 0.1
        else "undecided",
        "difference wholly above 0: adds; else wholly below 0.1: adds nothing here",
        {
            f"Psi({best}) - Psi({plain})": effect,
            f"Psi({best}) - Psi({plain}), over groups": found.over_groups,
            f"Psi({best}) - Psi({'-' if sign < 0 else ''}{signed}), signed": difference(
                sign * sweep[BASELINES[signed]]
            ).psi,
        },
        f"{best} and {plain} are the best on the other arm",
    )


def f3(arm: str, arms: Mapping[str, Sweep]) -> Outcome:
    """Basin isotropy matters once normalised sharpness is known."""
    sweep = arms[arm]
    m, t = given_sharpness(sweep)
    found = granulated(sweep, m, t)
    effect = found.psi
    inside = effect.low > -0.2 and effect.high < 0.2
    outside = effect.low > 0.2 or effect.high < -0.2
    return Outcome(
        "F3",
        f"{arm} arm",
        "drop" if inside else "keep" if outside else "undecided",
        "inside [-0.2, 0.2]: drop basin isotropy; wholly outside: keep",
        {
            "Psi(E2, gap given B5-lambda)": effect,
            "Psi(E2, gap given B5-lambda), over groups": found.over_groups,
            **{f"psi along {AXIS_NAMES[axis]}": effect for axis, effect in found.axes.items()},
        },
    )


def f4(verdicts: Mapping[str, Sequence[float]]) -> list[Outcome]:
    """Verdicts of the framework do not depend on the parametrisation.

    Args:
        verdicts: For each measure the verdict on two models before, and after each of 5 random
            function-preserving rescalings: 1 for the first one, -1 for the second one, 0 for none.

    Raises:
        ValueError: A measure has not six verdicts.

    >>> [outcome.word for outcome in f4({"lambda": [1, -1, 1, 1, 1, 1]})]
    ['unsound']
    """
    for name, words in verdicts.items():
        if len(words) != 6:
            raise ValueError(f"{name} has {len(words)} verdicts: give one, and five rescaled ones")
    return [
        Outcome(
            "F4",
            name,
            "sound" if changed == 0 else "unsound",
            "any verdict that changes",
            reason=f"{changed} of 5 rescalings change its verdict",
        )
        for name, (before, *after) in verdicts.items()
        for changed in [sum(word != before for word in after)]
    ]


def rescaled_verdicts(rescalings: int = 5) -> Numbers:
    """What F4 needs: the verdicts on SGD and Adam, of equal training loss, before and after.

    Both networks are small, with two hidden layers, trained on digits until their training loss is
    in the stop band of the sweep, and all their layers are rescaled at random. ``lambda_max``,
    which the framework gives no vote, stands beside the measures that have one.

    Returns:
        Per measure, and for the comparison as a whole, 1 + ``rescalings`` verdicts as for
        :func:`f4`.
    """
    data = digits()
    batch = (data.x_train, data.y_train)
    networks = []
    for optimizer, lr in (("sgd", 0.1), ("adam", 1e-3)):
        model = mlp(NARROW, activation=nn.ReLU, seed=0)
        recipe = SweepRecipe(optimizer, "clean", optimizer, lr, 16, 0.0, (1, 1), 1)
        stop = train_to_band(model, recipe, data, 0, Settings())
        if not stop.reached:
            raise RuntimeError(f"{optimizer} did not come to the training loss: {stop.reason}")
        networks.append(model)

    def judge(model: nn.Module) -> Assessment:
        limits = Thresholds(loss=0.05, fall=0.02)
        return assess(model, cross_entropy, batch, thresholds=limits, rescalings=0, progress=False)

    def verdicts(models: Sequence[nn.Module]) -> dict[str, int]:
        first, second = map(judge, models)
        found = compare(first, second)
        tops = [one.measures["lambda_max"].value for one in (first, second)]
        side = {"a": 1, "b": -1, "": 0, "a-flatter": 1, "b-flatter": -1, "undecided": 0}
        return {
            "the comparison": side[found.verdict],
            **{name: side[contrast.vote] for name, contrast in found.contrasts.items()},
            "lambda_max": 1 if tops[0] < tops[1] else -1,
        }

    generator = torch.Generator().manual_seed(0)

    def factors() -> list[float]:
        return (10 ** (2 * torch.rand(len(NARROW) - 2, generator=generator) - 1)).tolist()

    rows = [verdicts(networks)]
    for _ in range(rescalings):
        rows.append(verdicts([rescale_relu(model, factors()) for model in networks]))
    return {name: [row[name] for row in rows] for name in rows[0]}


F4 = Statistic(measure=rescaled_verdicts, slow=True)


def gate(sweep: Sweep) -> dict[str, Array]:
    """``(N,)`` each: which runs pass Q1, Q2 and Q3 of the quality gate.

    Raises:
        ValueError: Some runs have no polish test (Q2).
    """
    return {
        "Q1": sweep["train_loss"] <= 0.05,
        "Q2": (sweep["polish_fall"] < 0.02) & (np.abs(sweep["polish_log_ratio"]) <= math.log(2)),
        "Q3": sweep["lambda_min"] >= -0.1 * sweep["lambda_max"],
    }


def f5(arm: str, arms: Mapping[str, Sweep]) -> Outcome:
    """The quality gate is needed before flatness is read."""
    sweep = arms[arm]
    threshold = "difference inside [-0.1, 0.1]: unnecessary; wholly outside: needed"
    try:
        legs = gate(sweep)
    except ValueError as error:
        return Outcome("F5", f"{arm} arm", "undecided", threshold, reason=f"({error})")
    kept = np.logical_and.reduce(list(legs.values()))
    effect = tau_change(sweep, kept, sweep["lambda_max"], sweep["gap"], sweep["train_loss"])
    each = ", ".join(f"{name} {(~passed).sum()}" for name, passed in legs.items())
    failing = f"{(~kept).sum()} of {len(kept)} runs fail the gate ({each})"
    if kept.sum() < 2:  # no tau is left to compare with
        return Outcome("F5", f"{arm} arm", "undecided", threshold, reason=failing)
    inside = effect.low > -0.1 and effect.high < 0.1
    outside = effect.low > 0.1 or effect.high < -0.1
    word = "unnecessary" if inside else "needed" if outside else "undecided"
    return Outcome(
        "F5",
        f"{arm} arm",
        word if not kept.all() else "undecided",
        threshold,
        {"change of tau(lambda, gap given ln L_S)": effect},
        failing,
    )


def f6(measure: str, arms: Mapping[str, Sweep]) -> Outcome:
    """The relation between flatness and the gap is general."""
    effects = {
        f"Psi({measure}, gap), {arm} arm": granulated(
            sweep, sweep[MEASURES[measure]], sweep["gap"]
        ).psi
        for arm, sweep in arms.items()
    }
    signs = {1 if e.low > 0 else -1 if e.high < 0 else 0 for e in effects.values()}
    return Outcome(
        "F6",
        measure,
        "no general claim" if signs == {1, -1} else "not contradicted",
        "opposite signs, both intervals without 0",
        effects,
    )
