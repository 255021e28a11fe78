"""The registered tests that rest on the sweep and on the architecture study.

Importing this module adds its judges to :data:`losslandscape.report.rules.JUDGES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from losslandscape.report.rules import (
    JUDGES,
    Evidence,
    Finding,
    Seeds,
    Verdict,
    common,
    interval_rule,
    judges,
    mean_log,
)
from losslandscape.report.statistics import Interval, t_interval
from losslandscape.report.sweep import (
    AXES,
    AXIS_NAMES,
    RECIPE,
    STUDY,
    Array,
    Power,
    Sweep,
    given_sharpness,
    granulated,
    kendall_tau,
    load_sweep,
    omega_squared,
    power,
    psi_interval_of,
    psi_of,
    rank_residuals,
    runs_to_settle,
    share_power,
    tau_interval,
)

Arms = Mapping[str, Sweep]
# Effects of a rule: a callable stands for a simulated power, which the verdict does not need.
SweepRule = Callable[[Arms], Finding]
# What a power is simulated from, made only if it is asked for.
Test = Callable[
    [], tuple[Callable[[Array], float], Callable[[Array], Interval], Array, Array, Array]
]
NAMES = {"lambda_max": "lambda", "adaptive_lambda_max": "B5-lambda"}
IN_WORDS = {"lambda": "lambda", "B5-lambda": "normalised sharpness"}
# Relative residuals: registered for lambda at end points; that of B5-lambda is ours.
RESIDUALS = {"lambda_max": 1e-3, "rescaled_lambda_max": 1e-3, "adaptive_lambda_max": 1e-2}
SIMULATIONS, POWER_RESAMPLES = 200, 400  # simulated sweeps, and the bootstrap inside each
C5_LEVEL = 1 - 0.05 / 4  # Bonferroni, for its four effects
OPEN = "untestable here"
OTHER_DRAWS = 4  # an end of an interval has a Monte Carlo error, which these show


def decide(
    claim: str,
    evidence: Evidence,
    rule: SweepRule,
    arms: Sequence[str],
    *,
    optimizers: Sequence[str] = ("sgd",),
    certified: Sequence[str] = ("lambda_max",),
) -> Verdict:
    """Apply a rule to whole arms of ``validation_sweep``.

    No number is computed before all runs are recorded. Runs that diverged or missed the stop band
    are counted in the effects and take no part. So is how often other draws of the bootstrap give
    the same word, and the same condition where the word is "holds if".

    Args:
        claim: Its identifier.
        evidence: The records.
        rule: From the arms to word, condition and effects.
        arms: The arms it needs.
        optimizers: The cells it needs.
        certified: Eigenvalues whose residual bound, :data:`RESIDUALS`, is an instrument check.
    """
    sweeps = {arm: load_sweep(evidence, arm, optimizers) for arm in arms}
    missing = sum(sweep.missing for sweep in sweeps.values())
    if missing:
        asked = sum(sweep.asked for sweep in sweeps.values())
        return Verdict(claim, "waits", f"for {missing} of {asked} runs of {STUDY}")
    loose = {
        name: sum(sweep.uncertified(name, RESIDUALS[name]) for sweep in sweeps.values())
        for name in certified
    }
    if any(loose.values()):
        runs = " and ".join(f"{name} of {count} runs" for name, count in loose.items() if count)
        return Verdict(claim, OPEN, f"(the residual of {runs} is too large)")
    word, condition, effects = rule(sweeps)
    effects = {name: effect() if callable(effect) else effect for name, effect in effects.items()}
    again = [
        rule({arm: replace(sweep, draws=draws) for arm, sweep in sweeps.items()})
        for draws in range(1, 1 + OTHER_DRAWS)
    ]
    same = sum(_decided(*found[:2]) == _decided(word, condition) for found in again)
    left_out = {f"runs left out, {arm} arm": len(sweep.left_out) for arm, sweep in sweeps.items()}
    same_verdict = {f"same verdict by {OTHER_DRAWS} other bootstraps": same}
    return Verdict(claim, word, condition, {**effects, **left_out, **same_verdict})


def _decided(word: str, condition: str) -> tuple[str, str]:
    """A verdict without the number of runs that would settle an open one."""
    return word, condition if word == "holds if" else ""


def _on_sweep(claim: str, *arms: str, **options: Any) -> Callable[[SweepRule], SweepRule]:
    """Register the rule of a claim that needs whole arms of ``validation_sweep``."""

    def register(rule: SweepRule) -> SweepRule:
        JUDGES[claim] = lambda evidence: decide(claim, evidence, rule, arms, **options)
        return rule

    return register


def one_or_all(
    effects: Mapping[str, Interval],
    threshold: float,
    conditions: Mapping[str, str],
    runs: Mapping[str, int],
    unit: str = "runs in an arm",
) -> tuple[str, str]:
    """All hold: holds. Those of one condition hold: holds if that. Else by the interval rule.

    Args:
        effects: The effects.
        threshold: Of rule I.
        conditions: Effect -> the condition under which it, and all others of the condition, holds.
        runs: The number of runs behind each effect.
        unit: What is counted there.
    """
    words = {name: interval_rule(effect, threshold) for name, effect in effects.items()}
    groups: dict[str, list[str]] = {}
    for name, condition in conditions.items():
        groups.setdefault(condition, []).append(words[name])
    holding = [condition for condition, found in groups.items() if set(found) == {"holds"}]
    if set(words.values()) == {"holds"}:
        return "holds", ""
    if holding:
        return "holds if", " or ".join(holding)
    word = common(list(words.values()))
    return word, _settled_by(effects, threshold, runs, unit) if word == OPEN else ""


def _settled_by(
    effects: Mapping[str, Interval],
    threshold: float,
    runs: Mapping[str, int],
    unit: str = "runs in an arm",
) -> str:
    """What would decide the effects that rule I left open, in brackets."""
    needed = {
        name: runs_to_settle(effect, threshold, runs[name])
        for name, effect in effects.items()
        if interval_rule(effect, threshold) == OPEN
    }
    if not needed:
        return "(the effects differ)"
    decided = {interval_rule(effect, threshold) for effect in effects.values()} - {OPEN}
    told = _needs(needed, runs, unit, "what is open" if decided else "it")
    return f"(the effects differ; {told})" if len(decided) > 1 else f"({told})"


def _needs(needed: Mapping[str, float], runs: Mapping[str, int], unit: str, what: str) -> str:
    """By the effect that needs most."""
    name = max(needed, key=lambda name: needed[name])
    if needed[name] > 1e5:
        return f"no feasible number of runs would settle {what}"
    return f"about {math.ceil(needed[name])} instead of {runs[name]} {unit} would settle {what}"


def _powers(
    effects: Mapping[str, Interval],
    threshold: float,
    tests: Mapping[str, Test],
) -> dict[str, Any]:
    """The simulated power beside every effect that rule I does not support."""
    return {
        f"power, {name}": partial(_power, tests[name], threshold)
        for name, effect in effects.items()
        if interval_rule(effect, threshold) in ("not supported", "refuted")
    }


def _power(test: Test, threshold: float) -> Power:
    return power(*test(), threshold=threshold, simulations=SIMULATIONS)


def _psi_test(sweep: Sweep, m: Array, t: Array, level: float) -> Test:
    """What :func:`~losslandscape.report.sweep.power` needs for Psi(m, t)."""

    def test() -> Any:
        interval = psi_interval_of(sweep, t, level=level, resamples=POWER_RESAMPLES)
        return psi_of(sweep, t), interval, m, t, sweep.cell

    return test


def _tau_test(sweep: Sweep, m: Array, t: Array, level: float) -> Test:
    """The same for tau(m, t given ln L_S), from the residuals on ln L_S."""

    def test() -> Any:
        m_left, t_left = (rank_residuals(x, sweep["train_loss"]) for x in (m, t))
        options: Any = {"level": level, "resamples": POWER_RESAMPLES}
        return (
            lambda m: kendall_tau(m, t_left),
            lambda m: tau_interval(sweep, m, t_left, **options),
            *(m_left, t_left, sweep.cell),
        )

    return test


def _psi_effects(
    arms: Arms, measures: Sequence[str], level: float
) -> tuple[dict[str, Interval], dict[str, Test], dict[str, Interval]]:
    """Psi(measure, gap) of each measure in each arm.

    Returns:
        The effects, what their power is simulated from, and what stands beside and decides
        nothing: the intervals registered first, and Psi without the axis width, along which a
        measure per weight rises and falls by how the function is written down.
    """
    effects: dict[str, Interval] = {}
    tests: dict[str, Test] = {}
    beside: dict[str, Interval] = {}
    for column in measures:
        for arm, sweep in arms.items():
            name = f"Psi({NAMES[column]}, gap), {arm} arm"
            found = granulated(sweep, sweep[column], sweep["gap"], level=level)
            effects[name], beside[f"{name}, over groups"] = found.psi, found.over_groups
            within = psi_interval_of(sweep, sweep["gap"], axes=RECIPE, level=level)
            beside[f"{name}, width left out"] = within(sweep[column])
            tests[name] = _psi_test(sweep, sweep[column], sweep["gap"], level)
    return effects, tests, beside


def _tau_effects(
    arms: Arms, columns: Mapping[str, str], target: str, level: float
) -> tuple[dict[str, Interval], dict[str, Test]]:
    """tau(measure, target given ln L_S) in each arm, and what its power is simulated from.

    Args:
        arms: The arms.
        columns: What is said of the effect -> column of the measure.
        target: Column of the target.
        level: Of the intervals.
    """
    effects: dict[str, Interval] = {}
    tests: dict[str, Test] = {}
    for words, column in columns.items():
        for arm, sweep in arms.items():
            name = f"tau({words}, {target.replace('_', ' ')} given ln L_S), {arm} arm"
            loss = sweep["train_loss"]
            effects[name] = tau_interval(sweep, sweep[column], sweep[target], loss, level=level)
            tests[name] = _tau_test(sweep, sweep[column], sweep[target], level)
    return effects, tests


def _axes_beside(arms: Arms, columns: Mapping[str, str], target: str) -> dict[str, Interval]:
    """psi_i of each measure with the target: the factors that a partial tau does not hold fixed.

    Source: registered for F1; beside the claims they decide nothing.
    """
    found: dict[str, Interval] = {}
    for words, column in columns.items():
        for arm, sweep in arms.items():
            for axis, effect in granulated(sweep, sweep[column], sweep[target]).axes.items():
                along = f"along {AXIS_NAMES[axis]}, {arm} arm"
                found[f"psi({words}, {target.replace('_', ' ')}) {along}"] = effect
    return found


@_on_sweep("C5", "clean", "noisy", certified=("lambda_max", "adaptive_lambda_max"))
def c5(arms: Arms) -> Finding:
    """Flat minima generalise better."""
    measures = ("lambda_max", "adaptive_lambda_max")
    effects, tests, beside = _psi_effects(arms, measures, C5_LEVEL)
    conditions = {
        name: f"flatness is measured by {IN_WORDS[name[4:].split(',')[0]]}" for name in effects
    }
    found = one_or_all(effects, 0.2, conditions, _runs(arms, effects))
    return *found, {**effects, **beside, **_powers(effects, 0.2, tests)}


def _runs(arms: Arms, effects: Iterable[str]) -> dict[str, int]:
    """Runs behind each effect, whose name ends with its arm."""
    return {
        name: len(sweep)
        for name in effects
        for arm, sweep in arms.items()
        if name.endswith(f", {arm} arm")
    }


def c28_given_loss(evidence: Evidence, effects: Mapping[str, Any]) -> Verdict:
    """The second half of C28: what lambda says about the gap at equal training loss.

    Args:
        evidence: The records.
        effects: Those of the first half, which stand beside.
    """

    def rule(arms: Arms) -> Finding:
        columns = {"lambda": "lambda_max"}
        found, tests = _tau_effects(arms, columns, "gap", 0.95)
        word, condition = one_or_all(found, 0.2, dict.fromkeys(found, ""), _runs(arms, found))
        beside = _axes_beside(arms, columns, "gap")
        return word, condition, {**effects, **found, **beside, **_powers(found, 0.2, tests)}

    verdict = decide("C28", evidence, rule, ("clean",))
    return Verdict(verdict.claim, verdict.word, verdict.condition, verdict.effects or effects)


@_on_sweep("C29", "clean")
def c29(arms: Arms) -> Finding:
    """Learning rate and weight decay decide how flat the minimum is."""
    sweep = arms["clean"]
    factors = {axis: sweep[axis] for axis in AXES}
    log_lambda = _log_lambda(sweep)
    words = {"lr": "learning rate", "weight_decay": "weight decay"}
    effects, beside = _shares(
        sweep,
        log_lambda,
        factors,
        {f"omega squared of {words[axis]}": ((axis,), ()) for axis in words},
    )
    conditions = {
        name: f"only the {word} is meant"
        for name, word in zip(effects, words.values(), strict=True)
    }
    runs = dict.fromkeys(effects, len(sweep))
    powers = {
        f"power, {name}": partial(
            share_power,
            log_lambda,
            factors,
            axis,
            cell=sweep.cell,
            threshold=0.05,
            simulations=SIMULATIONS,
            resamples=POWER_RESAMPLES,
        )
        for axis, name in zip(words, effects, strict=True)
        if interval_rule(effects[name], 0.05) in ("not supported", "refuted")
    }
    return *one_or_all(effects, 0.05, conditions, runs), {**effects, **beside, **powers}


def _shares(
    sweep: Sweep,
    y: Array,
    factors: Mapping[str, Array],
    blocks: Mapping[str, tuple[Sequence[str], Sequence[str]]],
) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """omega squared of each block, less that of a second; and what stands beside.

    That is the intervals registered first, and the basic intervals, whose bias is the other way.
    """
    effects = {
        name: omega_squared(y, factors, *block, cell=sweep.cell, seed=sweep.draws)
        for name, block in blocks.items()
    }
    one_by_one = {
        f"{name}, runs drawn": omega_squared(y, factors, *block, seed=sweep.draws)
        for name, block in blocks.items()
    }
    mirrored = {
        f"{name}, basic interval": replace(e, low=2 * e.mean - e.high, high=2 * e.mean - e.low)
        for name, e in effects.items()
    }
    return effects, {**one_by_one, **mirrored}


def _log_lambda(sweep: Sweep) -> Array:
    """ln lambda_max, which is positive at any point where the network is not perfectly flat."""
    values = sweep["lambda_max"]
    if (values <= 0).any():
        raise ValueError(f"ln lambda needs positive values, got {values.min():.3g}")
    return np.log(values)


@judges("C31", "three_configurations")
def c31(evidence: Evidence, seeds: Seeds) -> Finding:
    """The quality of a minimum may be read off its test loss."""
    from sklearn.metrics import cohen_kappa_score

    epochs = [epoch for row in seeds for run in row for epoch in run["history"]]
    fitted = np.array([epoch["train_loss"] <= 0.05 for epoch in epochs])
    good = np.array([epoch["test_loss"] <= 0.06 for epoch in epochs])
    effects: dict[str, Any] = {
        "run-epochs": len(epochs),
        "L_S <= .05": int(fitted.sum()),
        "test loss <= .06": int(good.sum()),
        "both": int((fitted & good).sum()),
    }
    if len(set(fitted)) == len(set(good)) == 1:
        return "untestable here", "(both labels are constant)", effects
    kappa = float(cohen_kappa_score(fitted, good))
    effects = {"kappa": kappa, **effects}
    if kappa >= 0.8:
        return "holds if", "L_S replaces the leaked target", effects
    return "untestable here", "", effects


@_on_sweep("C32", "clean", certified=("lambda_max", "rescaled_lambda_max"))
def c32(arms: Arms) -> Finding:
    """High absolute sharpness indicates a poor minimum."""
    columns = {"lambda": "lambda_max", "rescaled lambda": "rescaled_lambda_max"}
    effects, tests = _tau_effects(arms, columns, "heldout_error", 0.95)
    before = next(iter(effects))
    words = {name: interval_rule(effect, 0.2) for name, effect in effects.items()}
    beside = _axes_beside(arms, columns, "heldout_error")
    effects_and_power = {**effects, **beside, **_powers(effects, 0.2, tests)}
    if set(words.values()) == {"holds"}:
        return "holds", "", effects_and_power
    if words[before] == "holds":
        return "holds if", "the parametrisation is fixed", effects_and_power
    first = {before: effects[before]}
    open_word = words[before] == "untestable here"
    condition = _settled_by(first, 0.2, _runs(arms, first)) if open_word else ""
    return words[before], condition, effects_and_power


@_on_sweep("C33", "clean", certified=("adaptive_lambda_max",))
def c33(arms: Arms) -> Finding:
    """Normalised sharpness and basin isotropy separate good from better minima."""
    sweep, level = arms["clean"], 1 - 0.05 / 2
    effects, tests, beside = _psi_effects(arms, ("adaptive_lambda_max",), level)
    sharpness, isotropy = next(iter(effects)), "Psi(E2, gap given B5-lambda), clean arm"
    m, t = given_sharpness(sweep)
    found = granulated(sweep, m, t, level=level)
    effects[isotropy], beside[f"{isotropy}, over groups"] = found.psi, found.over_groups
    within = psi_interval_of(sweep, t, axes=RECIPE, level=level)
    beside[f"{isotropy}, width left out"] = within(m)
    outside = {name: e.low > 0.2 or e.high < -0.2 for name, e in effects.items()}
    inside = {name: e.low > -0.2 and e.high < 0.2 for name, e in effects.items()}
    everything: dict[str, Any] = {**effects, **beside}
    if all(outside.values()):
        return "holds", "", everything
    if any(outside.values()):
        held = "normalised sharpness" if outside[sharpness] else "basin isotropy"
        return "holds if", f"only {held} is meant", everything
    if all(inside.values()):
        tests[isotropy] = _psi_test(sweep, m, t, level)
        powers = {f"power, {name}": partial(_power, tests[name], 0.2) for name in effects}
        return "not supported", "", {**everything, **powers}
    needed = {
        name: runs_to_settle(effect, math.copysign(0.2, effect.mean), len(sweep))
        for name, effect in effects.items()
        if not inside[name]
    }
    runs = dict.fromkeys(needed, len(sweep))
    what = "what is open" if any(inside.values()) else "it"
    return OPEN, f"({_needs(needed, runs, 'runs in an arm', what)})", everything


VARIANTS = ("plain", "bn", "residual")
DEPTHS = (2, 8)
ARCHITECTURES = tuple(f"{variant}_{depth}" for variant in VARIANTS for depth in DEPTHS)


@judges("C35", "architecture", ARCHITECTURES, certified={"row_lambda_max": 1e-2})
def c35(evidence: Evidence, seeds: Seeds) -> Finding:
    """Batch normalisation and residual connections lead to flatter minima."""
    logs = np.array(
        [
            [mean_log(run["level"], "row_lambda_max") if run["reached"] else np.nan for run in row]
            for row in seeds
        ]
    )
    plain, normalised, residual = (
        logs[:, place : place + len(DEPTHS)].ravel() for place in (0, 2, 4)
    )
    variants = {"batch normalisation is": normalised, "residual connections are": residual}
    ratios = {
        f"ln B4-lambda of plain / {words.rsplit(' ', 1)[0]}": plain - variant
        for words, variant in variants.items()
    }
    # Each depth by itself stands beside: their difference widens the registered intervals.
    of_depth = {
        f"{name}, {depth} convolutions": ratio[place :: len(DEPTHS)]
        for name, ratio in ratios.items()
        for place, depth in enumerate(DEPTHS)
    }
    effects = {
        name: t_interval(ratio[np.isfinite(ratio)])
        for name, ratio in {**ratios, **of_depth}.items()
        if np.isfinite(ratio).sum() > 1
    }
    never = int(np.isnan(logs).sum())
    if never:  # an instrument check; the pairs of the other runs stand beside
        short = f"{never} of {logs.size} runs"
        return "untestable here", f"({short} never came to the common training loss)", effects
    deciding = {name: effects[name] for name in ratios}
    conditions = {name: f"only {words} meant" for name, words in zip(ratios, variants, strict=True)}
    runs = dict.fromkeys(deciding, len(plain))
    word, condition = one_or_all(deciding, math.log(1.5), conditions, runs, "pairs of runs")
    return word, condition, effects


def strategy_of(sweep: Sweep) -> tuple[dict[str, Array], tuple[str, ...]]:
    """All factors, those of the recipe nested in the optimiser, and the names of the latter."""
    nested = {
        axis: np.array(
            [
                f"{optimizer} {level}"
                for optimizer, level in zip(sweep["optimizer"], sweep[axis], strict=True)
            ]
        )
        for axis in RECIPE
    }
    recipe = {"optimizer": sweep["optimizer"], **nested}
    return {**recipe, "width": sweep["width"], "seed": sweep["seed"]}, tuple(recipe)


@_on_sweep("C36", "clean", optimizers=("sgd", "adam"))
def c36(arms: Arms) -> Finding:
    """The optimisation strategy is the dominant factor for the minimum that is reached."""
    sweep = arms["clean"]
    factors, strategy = strategy_of(sweep)
    rest = ("width", "seed")
    effects: dict[str, Interval] = {}
    beside: dict[str, Interval] = {}
    for name, y in (("ln lambda", _log_lambda(sweep)), ("gap", sweep["gap"])):
        for words, block in {
            f"omega squared, strategy minus width and run seed, of {name}": (strategy, rest),
            f"omega squared, strategy, of {name}": (strategy, ()),
            f"omega squared, width and run seed, of {name}": (rest, ()),
        }.items():
            found, one_by_one = _shares(sweep, y, factors, {words: block})
            (effects if block[1] else beside).update(found)
            beside.update(one_by_one)
    conditions = {name: f"only {name.rsplit(' of ', 1)[1]} is meant" for name in effects}
    runs = dict.fromkeys(effects, len(sweep))
    return *one_or_all(effects, 0.0, conditions, runs), {**effects, **beside}


@_on_sweep("C37", "clean", "noisy")
def c37(arms: Arms) -> Finding:
    """lambda_max diagnoses the quality of a minimum and generalisation."""
    columns = {"lambda": "lambda_max"}
    effects, tests = _tau_effects(arms, columns, "gap", 1 - 0.05 / 2)
    conditions = {name: f"the labels are {arm}" for name, arm in zip(effects, arms, strict=True)}
    found = one_or_all(effects, 0.2, conditions, _runs(arms, effects))
    beside = _axes_beside(arms, columns, "gap")
    return *found, {**effects, **beside, **_powers(effects, 0.2, tests)}
