"""Rank correlations over the runs of a sweep, with intervals, nulls and power.

The registered statistics of ``validation_sweep``: see the definitions in ``book/claims.yml``.
Two runs that differ only in their run seed are one cell; cells, not runs, are resampled.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from losslandscape.lab.experiments.validation import SweepRecipe
from losslandscape.lab.studies import find_study
from losslandscape.report.rules import Evidence
from losslandscape.report.statistics import Interval

Array = NDArray[Any]

STUDY = "validation_sweep"
AXIS_NAMES = {
    "lr": "learning rate",
    "batch_size": "batch size",
    "weight_decay": "weight decay",
    "width": "width",
}
AXES = tuple(AXIS_NAMES)
RECIPE = ("lr", "batch_size", "weight_decay")  # all axes but the width
RESAMPLES = 2000
MEASURES = {
    "lambda": "lambda_max",
    "trace": "trace",
    "B5-lambda": "adaptive_lambda_max",
    "B5-trace": "adaptive_trace",
    "B4-lambda": "row_lambda_max",
    "B4-trace": "row_trace",
    "B7": "fisher_rao",
    "B8": "relative_flatness",
    "B8, unit features": "relative_flatness_normalised",
    "w'Hw": "radial_curvature",
    "isotropy of H": "participation_ratio",
    "E2": "adaptive_participation_ratio",
    "input Jacobian": "input_jacobian",
}
BASELINES = {
    "L_S": "train_loss",
    "norm(w)": "weight_norm",
    "steps": "steps",
    "width": "width",
    "random": "random",
}


@dataclass(frozen=True)
class Sweep:
    """One arm as a table: its runs that ended in the stop band.

    Attributes:
        columns: Factors, measures and targets by name, each ``(N,)``. NaN where a run lacks it.
        left_out: The recorded runs that diverged or missed the stop band, and why.
        asked: Number of runs that the study asks for.
        missing: Of these, not yet recorded.
        draws: Seed of the bootstraps over these runs.
    """

    columns: Mapping[str, Array]
    left_out: tuple[str, ...] = ()
    asked: int = 0
    missing: int = 0
    draws: int = 0

    def __len__(self) -> int:
        return len(self.columns["seed"])

    def __getitem__(self, name: str) -> Array:
        """A column.

        Raises:
            ValueError: It is unknown, or some runs lack it.
        """
        if name not in self.columns:
            raise ValueError(f"no run has {name!r}: choose one of {', '.join(self.columns)}")
        column = self.columns[name]
        if column.dtype.kind == "f" and np.isnan(column).any():
            raise ValueError(f"{np.isnan(column).sum()} of {len(column)} runs lack {name!r}")
        return column

    @property
    def cell(self) -> Array:
        """``(N,)`` number of the cell of each run: all factors but the run seed."""
        return _codes(self["optimizer"], *(self[axis] for axis in AXES))

    def only(self, kept: Array) -> Sweep:
        """The runs for which ``kept``, ``(N,)`` bool, is true."""
        return replace(self, columns={name: column[kept] for name, column in self.columns.items()})

    def uncertified(self, name: str, tol: float = 1e-3) -> int:
        """How many runs have an eigenvalue whose residual is above ``tol`` times its size."""
        return int((self[f"{name}_residual"] > tol * np.abs(self[name])).sum())


def load_sweep(evidence: Evidence, arm: str, optimizers: Sequence[str] = ("sgd",)) -> Sweep:
    """The recorded runs of one arm of ``validation_sweep``.

    Columns beside the recorded ones: the factors, ``gap`` and ``gap_error`` (held-out minus
    training), and ``random``, a baseline of its own for each run.
    """
    study, recorded = find_study(STUDY), evidence.runs(STUDY)
    asked = [
        (recipe, seed)
        for recipe in study.recipes
        if recipe.arm == arm and recipe.optimizer in optimizers
        for seed in study.seeds
    ]
    runs = [
        (recipe, seed, recorded[recipe.name][seed])
        for recipe, seed in asked
        if seed in recorded.get(recipe.name, {})
    ]
    return sweep_of(runs, asked=len(asked))


def sweep_of(
    runs: Iterable[tuple[SweepRecipe, int, Mapping[str, Any]]], *, asked: int | None = None
) -> Sweep:
    """The runs of one arm as a table, with the columns that :func:`load_sweep` names.

    Args:
        runs: Of each run its recipe, its run seed, and its results as
            :func:`~losslandscape.lab.experiments.validation.measure` gives them.
        asked: Number of runs asked for; by default those given.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for recipe, seed, results in runs:
        if not results["reached"]:
            left_out.append(f"{recipe.name} seed {seed}: {results['reason']}")
            continue
        factors = {axis: getattr(recipe, axis) for axis in RECIPE}
        factors |= {"optimizer": recipe.optimizer, "width": recipe.channels[0], "seed": seed}
        factors["random"] = _random(f"{recipe.name} seed {seed}")
        rows.append({**factors, **dict(_flat(results))})
    names = dict.fromkeys(chain(("optimizer", *AXES, "seed"), *rows))
    columns = {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
    for part, gap in (("loss", "gap"), ("error", "gap_error")):
        if f"heldout_{part}" in columns:
            columns[gap] = columns[f"heldout_{part}"] - columns[f"train_{part}"]
    given = len(rows) + len(left_out)
    asked = given if asked is None else asked
    return Sweep(columns, tuple(left_out), asked, asked - given)


def _flat(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested numbers by joined names; a ``value`` goes by the name of what it is the value of."""
    for name, found in results.items():
        path = prefix.removesuffix("_") if name == "value" else prefix + name
        if isinstance(found, Mapping):
            yield from _flat(found, f"{path}_")
        elif isinstance(found, int | float):
            yield path, found


def _random(run: str) -> float:
    """A normal number that only the name of a run decides, so another one in the other arm."""
    return float(np.random.default_rng(zlib.crc32(run.encode())).normal())


def _codes(*columns: Array) -> Array:
    """``(N,)`` integers, equal where all columns are."""
    keys = list(zip(*(column.tolist() for column in columns), strict=True))
    order = {key: place for place, key in enumerate(sorted(set(keys)))}
    return np.array([order[key] for key in keys], dtype=int)


# Kendall's tau, plain and partial


def kendall_tau(m: Array, t: Array) -> float:
    r"""Kendall's :math:`\tau_b` of two columns; 0 where one of them is constant.

    Kendall, The treatment of ties in ranking problems, *Biometrika* 33, 1945.

    >>> round(kendall_tau(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])), 3)
    0.913
    """
    return float(_tau(np.ones(len(m)), m, t))


def _tau(weights: Array, m: Array, t: Array) -> float:
    """tau-b of a sample in which run i stands ``weights[i]`` times (copies are tied)."""
    there = weights > 0
    w = weights[there].astype(np.float32)  # whole numbers of pairs: exact
    signs_m, signs_t = (_signs(x[there]) for x in (m, t))
    return float(
        _ratio(w @ (signs_m * signs_t) @ w, w @ signs_m**2 @ w, w @ signs_t**2 @ w),
    )


def _signs(x: Array) -> Array:
    """``(N, N)`` which of each two values is larger."""
    return np.greater.outer(x, x).astype(np.float32) - np.less.outer(x, x)


def _ratio(concordance: Array, untied_m: Array, untied_t: Array) -> Array:
    size = np.sqrt(untied_m * untied_t)
    ratio: Array = np.divide(concordance, size, out=np.zeros_like(size), where=size > 0)
    return ratio


def rank_residuals(x: Array, given: Array) -> Array:
    """Ranks of ``x``, less their linear regression on the ranks of ``given``: ``(N,)``.

    >>> rank_residuals(np.array([3.0, 9.0, 27.0]), np.array([1.0, 2.0, 3.0]))
    array([0., 0., 0.])
    """
    residuals: Array = _rank_residuals(np.ones((1, len(x))), x, given)[0]
    return residuals


def _rank_residuals(weights: Array, x: Array, given: Array) -> Array:
    """:func:`rank_residuals` in each of the samples ``weights`` (B, N)."""
    ranks, ranks_given = (_centred_ranks(weights, column) for column in (x, given))
    slope = np.divide(
        (weights * ranks_given * ranks).sum(1),
        square := (weights * ranks_given**2).sum(1),
        out=np.zeros(len(weights)),
        where=square > 0,
    )
    # Rounding keeps ties: ranks are multiples of 1/2, and equal ones must leave equal residuals.
    residuals: Array = np.round(ranks - slope[:, None] * ranks_given, 9) + 0.0
    return residuals


def _centred_ranks(weights: Array, x: Array) -> Array:
    below = np.less.outer(x, x) + np.equal.outer(x, x) / 2
    ranks: Array = weights @ below
    ranks -= (weights * ranks).sum(1, keepdims=True) / weights.sum(1, keepdims=True)
    return ranks


def partial_tau(m: Array, t: Array, given: Array) -> float:
    """Kendall's tau of the rank residuals of ``m`` and ``t`` on ``given``.

    >>> common = np.arange(8.0)
    >>> partial_tau(common, common, common)
    0.0
    """
    return kendall_tau(rank_residuals(m, given), rank_residuals(t, given))


def _draw(clusters: Array, resamples: int, generator: np.random.Generator) -> Array:
    """``(resamples, N)`` how often each run is in a sample of whole clusters."""
    count = int(clusters.max()) + 1
    drawn: Array = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, clusters].astype(float)


def _tau_in(weights: Array, m: Array, t: Array, given: Array | None) -> Array:
    """tau, or partial tau, in each of the samples ``weights`` (B, N)."""
    if given is None:  # the sign products are those of the whole sample: three quadratic forms
        signs_m, signs_t = _signs(m), _signs(t)
        forms = (signs_m * signs_t, signs_m**2, signs_t**2)
        return _ratio(*(((weights @ form) * weights).sum(1) for form in forms))
    residuals = (_rank_residuals(weights, x, given) for x in (m, t))
    return np.array([_tau(*sample) for sample in zip(weights, *residuals, strict=True)])


def tau_interval(
    sweep: Sweep,
    m: Array,
    t: Array,
    given: Array | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Kendall's tau, or the partial tau, with its bootstrap interval over cells.

    Ranks and regression of a partial tau are made anew in each sample. Percentile interval: Efron
    and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13.
    """
    weights = _draw(sweep.cell, resamples, np.random.default_rng(sweep.draws))
    observed = partial_tau(m, t, given) if given is not None else kendall_tau(m, t)
    return _interval(observed, _tau_in(weights, m, t, given), level, int(sweep.cell.max()) + 1)


def tau_change(
    sweep: Sweep,
    kept: Array,
    m: Array,
    t: Array,
    given: Array,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Partial tau over all runs minus that over the ``kept`` ones, with its interval over cells."""
    weights = _draw(sweep.cell, resamples, np.random.default_rng(sweep.draws))
    weights = np.vstack([np.ones(len(m)), weights])
    reduced = weights * kept
    some = reduced.any(1)  # a sample that keeps no run has an undefined tau, which counts as 0
    without = np.zeros(len(weights))
    without[some] = _tau_in(reduced[some], m, t, given)
    change = _tau_in(weights, m, t, given) - without
    return _interval(float(change[0]), change[1:], level, int(sweep.cell.max()) + 1)


def _interval(observed: float, draws: Array, level: float, count: int) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    # Rounding must not carry an end of nought to one side of it: rules compare ends with 0.
    mean, low, high = (round(float(end), 12) + 0.0 for end in (observed, low, high))
    return Interval(mean, low, high, count)


# The granulated coefficient


@dataclass(frozen=True)
class AxisPairs:
    """The pairs of runs that differ in one axis only.

    Attributes:
        first, second: ``(P,)`` the runs of each pair.
        group: ``(P,)`` the group of each pair: all other axes and the run seed.
        cluster: ``(G,)`` the cluster of each group: all other axes.
    """

    first: Array
    second: Array
    group: Array
    cluster: Array

    def signs(self, x: Array) -> Array:
        """``(P,)`` which run of each pair has the larger value."""
        signs: Array = np.sign(x[self.first] - x[self.second])
        return signs

    def taus(self, m: Array, t: Array) -> Array:
        """``(G,)`` Kendall's tau-b of each group."""
        signs_m, signs_t = self.signs(m), self.signs(t)
        sums = (
            np.bincount(self.group, product)
            for product in (signs_m * signs_t, signs_m**2, signs_t**2)
        )
        return _ratio(*sums)

    def psi_in(self, weights: Array, m: Array, t: Array) -> Array:
        """``(B,)`` mean tau of the groups with two runs or more, in the samples ``weights``."""
        signs_m, signs_t = self.signs(m), self.signs(t)
        of_group = (self.group[:, None] == np.arange(len(self.cluster))).astype(float)
        drawn = weights[:, self.first] * weights[:, self.second]
        products = (signs_m * signs_t, signs_m**2, signs_t**2)
        taus = _ratio(*((drawn * product) @ of_group for product in products))
        there = (drawn @ of_group > 0).sum(1)
        mean: Array = taus.sum(1) / np.maximum(there, 1)
        return mean


def axis_pairs(sweep: Sweep, axis: str) -> AxisPairs:
    """The pairs of runs that differ in ``axis`` only; a group of one run has none.

    Raises:
        ValueError: There are no such pairs.
    """
    others = [sweep["optimizer"], *(sweep[name] for name in AXES if name != axis)]
    groups, clusters = _codes(*others, sweep["seed"]), _codes(*others)
    first, second = np.nonzero(np.triu(groups[:, None] == groups, 1))
    if not len(first):
        raise ValueError(f"no two runs differ in {axis} only: Psi is undefined")
    _, start, group = np.unique(groups[first], return_index=True, return_inverse=True)
    return AxisPairs(first, second, group, _codes(clusters[first][start]))


@dataclass(frozen=True)
class Granulated:
    r"""Granulated Kendall coefficient :math:`\Psi` and its parts :math:`\psi_i`, by axis.

    Attributes:
        psi: Psi with its registered interval, which draws cells, as for tau.
        over_groups: Psi with the interval registered first, which draws groups within each axis. It
            takes the axes for independent, though every run is in a group of each: in simulations
            its nominal 95 % cover about 80 %, those of the cells 93 to 97 %.
        axes: psi_i with intervals that draw groups.
    """

    psi: Interval
    over_groups: Interval
    axes: Mapping[str, Interval]


def granulated(
    sweep: Sweep,
    m: Array,
    t: Array,
    *,
    minus: Array | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Granulated:
    r"""Mean over the axes of :math:`\psi_i`, the mean tau of the groups in which only i varies.

    Jiang, Neyshabur, Mobahi, Krishnan and Bengio, Fantastic generalization measures and where to
    find them, ICLR 2020, section 2.2.2. The bootstrap draws cells; the one for psi_i draws, within
    the axis, the groups that differ only in their run seed together.

    Args:
        sweep: The runs.
        m, t: Measure and target, ``(N,)``.
        minus: A second measure, whose coefficient is subtracted group by group.
        level, resamples: Of the intervals.
    """
    cells = _draw(sweep.cell, resamples, np.random.default_rng(sweep.draws))
    observed, draws, counts = {}, {}, {}
    over_cells = np.zeros(resamples)
    for axis, (pairs, drawn) in _drawn_groups(sweep, resamples).items():
        over_cells += pairs.psi_in(cells, m, t) / len(AXES)
        taus = pairs.taus(m, t)
        if minus is not None:
            over_cells -= pairs.psi_in(cells, minus, t) / len(AXES)
            taus -= pairs.taus(minus, t)
        observed[axis], draws[axis] = float(taus.mean()), drawn @ taus / drawn.sum(1)
        counts[axis] = int(pairs.cluster.max()) + 1
    mean = sum(observed.values()) / len(AXES)
    together = np.mean(list(draws.values()), axis=0)
    return Granulated(
        _interval(mean, over_cells, level, int(sweep.cell.max()) + 1),
        _interval(mean, together, level, sum(counts.values())),
        {axis: _interval(observed[axis], draws[axis], level, counts[axis]) for axis in AXES},
    )


def _drawn_groups(sweep: Sweep, resamples: int) -> dict[str, tuple[AxisPairs, Array]]:
    """Per axis its pairs, and how often ``(resamples, G)`` each group is in each sample."""
    generator = np.random.default_rng(sweep.draws)
    found = {}
    for axis in AXES:
        pairs = axis_pairs(sweep, axis)
        found[axis] = pairs, _draw(pairs.cluster, resamples, generator)
    return found


def psi_interval_of(
    sweep: Sweep,
    t: Array,
    *,
    axes: Sequence[str] = AXES,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Callable[[Array], Interval]:
    """The function that gives Psi(m, t) with its registered interval, for many measures m.

    Args:
        sweep: The runs.
        t: Target, ``(N,)``.
        axes: Those whose psi_i are averaged, all of them in the registered Psi.
        level, resamples: Of the intervals.
    """
    found = [axis_pairs(sweep, axis) for axis in axes]
    cells = _draw(sweep.cell, resamples, np.random.default_rng(sweep.draws))
    count = int(sweep.cell.max()) + 1

    def interval(m: Array) -> Interval:
        draws = np.mean([pairs.psi_in(cells, m, t) for pairs in found], axis=0)
        mean = float(np.mean([pairs.taus(m, t).mean() for pairs in found]))
        return _interval(mean, draws, level, count)

    return interval


def psi_of(sweep: Sweep, t: Array) -> Callable[[Array], float]:
    """The function that gives Psi(m, t) of a measure m, without interval, for many measures."""
    axes = [axis_pairs(sweep, axis) for axis in AXES]
    return lambda m: float(np.mean([pairs.taus(m, t).mean() for pairs in axes]))


def given_sharpness(sweep: Sweep) -> tuple[Array, Array]:
    """E2 and gap, each as the residuals of its ranks on those of B5-lambda over all these runs.

    Psi(E2, gap given B5-lambda) is that of these two; its bootstrap keeps the residuals.
    """
    given = sweep["adaptive_lambda_max"]
    m, t = (rank_residuals(sweep[name], given) for name in ("adaptive_participation_ratio", "gap"))
    return m, t


def worst_sign_error(sweep: Sweep, m: Array, t: Array) -> tuple[str, float]:
    r"""The axis on which a measure orders most pairs wrongly, and the share of them.

    :math:`\tfrac12 E[1 - \mathrm{sgn}(\Delta m)\,\mathrm{sgn}(\Delta t)]` over the pairs that
    differ in this axis only; a tie counts half, a coin has 1/2. After Dziugaite, Drouin, Neal et
    al., In search of robust measures of generalization, NeurIPS 2020.
    """
    errors = {}
    for axis in AXES:
        pairs = axis_pairs(sweep, axis)
        errors[axis] = float((1 - pairs.signs(m) * pairs.signs(t)).mean() / 2)
    worst = max(errors, key=lambda axis: errors[axis])
    return worst, errors[worst]


def conditional_information(
    m: Array, t: Array, factors: Mapping[str, Array], *, at_most: int = 2
) -> float:
    r"""What the order of a measure tells about the order of the target beyond the factors.

    :math:`\min_S I(V_m; V_t \mid U_S) / H(V_t \mid U_S)` over all ordered pairs of runs, with the
    signs :math:`V` of the differences of measure and target, and :math:`U_S` the values of the
    factors S at both runs, for every S of at most two factors. It is 0 for a measure that adds
    nothing to some S and 1 for one that settles the order. Tied pairs are left out; an S that
    alone settles the order leaves nothing to tell, 0. Jiang et al., ICLR 2020, section 2.2.3.

    >>> x = np.arange(6.0)
    >>> conditional_information(x, -x, {}), conditional_information(x, x, {"x": x})
    (1.0, 0.0)
    """
    up_m, up_t = (np.subtract.outer(x, x) for x in (m, t))
    first, second = np.nonzero((up_m != 0) & (up_t != 0))
    if not len(first):
        return 0.0
    joint = 2 * (up_t[first, second] > 0) + (up_m[first, second] > 0)
    found = []
    for names in chain.from_iterable(combinations(factors, size) for size in range(at_most + 1)):
        if names:
            own = _codes(*(factors[name] for name in names))
            pair = own[first] * (own.max() + 1) + own[second]
        else:
            pair = np.zeros(len(first), dtype=int)
        counts = np.bincount(4 * pair + joint, minlength=4 * (pair.max() + 1)).reshape(-1, 2, 2)
        given = _entropy(counts.sum((1, 2)))  # H(U), later taken off the joint entropies
        target = _entropy(counts.sum(2)) - given
        both = _entropy(counts) - given
        information = target + _entropy(counts.sum(1)) - given - both
        found.append(max(information / target, 0.0) if target > 1e-12 else 0.0)
    return min(found)


def _entropy(counts: Array) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


# Nulls, power, and how many runs would do


def permutation_p(
    statistic: Callable[[Array], float],
    m: Array,
    cell: Array,
    *,
    permutations: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p of ``statistic(m)`` when the measure is dealt anew to the cells, whole cells.

    A cell trades places with cells of as many runs. The observed order counts as one of the
    permutations, so that p is at least ``1 / (permutations + 1)``.
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(cell, kind="stable")
    places = np.split(order, np.cumsum(np.bincount(cell))[:-1])
    sizes = {len(place) for place in places}
    blocks = [np.array([place for place in places if len(place) == size]) for size in sizes]
    observed, as_large, dealt = abs(statistic(m)), 1, m.copy()
    for _ in range(permutations):
        for block in blocks:
            dealt[block] = m[generator.permutation(block)]
        as_large += abs(statistic(dealt)) >= observed - 1e-12
    return as_large / (permutations + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values of several tests (Holm, *Scand. J. Statist.* 6, 1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted, largest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def runs_to_settle(effect: Interval, threshold: float, runs: int) -> float:
    """About how many runs rule I would need, if the effect is as found: width ~ runs**-1/2.

    >>> runs_to_settle(Interval(0.3, 0.1, 0.5, 72), 0.2, 144)
    576.0
    """
    distance = effect.mean - threshold
    width = effect.mean - effect.low if distance > 0 else effect.high - effect.mean
    return round(runs * (width / distance) ** 2, 6) if distance else math.inf


@dataclass(frozen=True)
class Power:
    """How often a true effect would have been seen.

    Attributes:
        truth: Mean effect in the simulated sweeps.
        seen: Share of them whose interval lies wholly above the threshold.
        simulations: Number of sweeps simulated.

    >>> print(Power(0.4, 0.925, 200))
    a true effect of 0.40 is seen in 92 % of 200 simulated sweeps
    """

    truth: float
    seen: float
    simulations: int

    def __str__(self) -> str:
        return (
            f"a true effect of {self.truth:.2f} is seen in {100 * self.seen:.0f} % "
            f"of {self.simulations} simulated sweeps"
        )


def power(
    effect: Callable[[Array], float],
    interval: Callable[[Array], Interval],
    m: Array,
    t: Array,
    cell: Array,
    *,
    truth: float = 0.4,
    threshold: float = 0.2,
    simulations: int = 200,
    seed: int = 0,
) -> Power:
    """Power of rule I, simulated with the design and the target as recorded.

    The simulated measure is the target in normal scores plus normal noise; noise that two runs of
    a cell share has the same part as in the recorded measure. The mixture is set by bisection so
    that the mean effect is ``truth``.

    Args:
        effect: The effect of a measure ``(N,)``.
        interval: The same with its interval.
        m, t: The recorded measure and the target, ``(N,)``.
        cell: ``(N,)`` number of the cell.
        truth: The effect that is asked about.
        threshold: Of rule I.
        simulations, seed: Of the simulation.
    """
    generator = np.random.default_rng(seed)
    shared = intraclass(_scores(m), cell)
    noise = math.sqrt(shared) * generator.normal(size=(simulations, int(cell.max()) + 1))[:, cell]
    noise += math.sqrt(1 - shared) * generator.normal(size=(simulations, len(t)))
    signal = _scores(t)

    def measures(share: float, count: int) -> Array:
        mixed: Array = share * signal + math.sqrt(1 - share**2) * noise[:count]
        return mixed

    low, high = 0.0, 1.0
    for _ in range(8):
        share = (low + high) / 2
        below = np.mean([effect(row) for row in measures(share, 40)]) < truth
        low, high = (share, high) if below else (low, share)
    found = [interval(row) for row in measures(share, simulations)]
    return Power(
        float(np.mean([one.mean for one in found])),
        float(np.mean([one.low > threshold for one in found])),
        simulations,
    )


def _scores(x: Array) -> Array:
    scores: Array = norm.ppf(rankdata(x) / (len(x) + 1))
    return scores / (scores.std() or 1.0)


def intraclass(x: Array, cell: Array) -> float:
    """Share of the variance that the runs of a cell have in common, in [0, 1].

    The one-way random-effects estimate (Fisher 1925): (MS between - MS within) / (MS between +
    (k - 1) MS within), k the mean number of runs per cell.
    """
    sizes = np.bincount(cell)
    means = np.bincount(cell, x) / sizes
    within = ((x - means[cell]) ** 2).sum() / max(len(x) - len(sizes), 1)
    between = (sizes * (means - x.mean()) ** 2).sum() / max(len(sizes) - 1, 1)
    whole = between + (sizes.mean() - 1) * within
    return float(np.clip((between - within) / whole, 0, 1)) if whole > 0 else 0.0


# Shares of variance


def omega_squared(
    y: Array,
    factors: Mapping[str, Array],
    block: Sequence[str],
    minus: Sequence[str] = (),
    *,
    cell: Array | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    r"""Share of variance of a block of factors, :math:`\omega^2`, with its bootstrap interval.

    :math:`\omega^2 = (SS_b - df_b\,MSE) / (SS_{total} + MSE)` in the main-effects model of all
    factors, each categorical; :math:`SS_b` is what the block explains after all other factors
    (Hays, *Statistics*, 1963). The registered bootstrap draws the residuals of whole cells. Drawing
    them one by one is right where the runs of a cell are independent given the factors; where they
    share 80 % of the noise, its nominal 95 % cover about 85 % in simulations, those of whole cells
    90 to 95 %. For a difference of two blocks with unlike degrees of freedom, drawing whole cells
    leans to the larger block where the runs of a cell are alike.

    Args:
        y: ``(N,)`` response.
        factors: All factors of the model, ``(N,)`` each.
        block: Names of the factors of the block.
        minus: A second block whose share is subtracted.
        cell: ``(N,)`` number of the cell, to draw the residuals of whole cells instead.
        level, resamples, seed: Of the interval.

    Raises:
        ValueError: The model leaves no residuals.
    """
    full = _basis(list(factors.values()), len(y))
    if full.shape[1] >= len(y):
        raise ValueError(f"{len(y)} runs are too few for {full.shape[1]} effects")
    fitted = full @ (full.T @ y)
    residuals = y - fitted
    generator = np.random.default_rng(seed)
    if cell is None:
        drawn = generator.integers(len(y), size=(len(y), resamples))
    else:
        drawn = _deal_cells(cell, resamples, generator)
    samples = np.column_stack([y, fitted[:, None] + residuals[drawn]])
    samples = samples - samples.mean(0)
    left = (samples**2).sum(0) - ((full.T @ samples) ** 2).sum(0)
    error = left / (len(y) - full.shape[1])

    def share(names: Sequence[str]) -> Array:
        rest = _basis([factors[name] for name in factors if name not in names], len(y))
        explained = (samples**2).sum(0) - ((rest.T @ samples) ** 2).sum(0) - left
        degrees = full.shape[1] - rest.shape[1]
        found: Array = (explained - degrees * error) / ((samples**2).sum(0) + error)
        return found

    shares = share(block) - (share(minus) if minus else 0)
    return _interval(float(shares[0]), shares[1:], level, len(y))


def share_power(
    y: Array,
    factors: Mapping[str, Array],
    name: str,
    *,
    cell: Array,
    truth: float = 0.1,
    threshold: float = 0.05,
    simulations: int = 200,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Power:
    r"""Power of rule I for a factor's share of variance, simulated with the design as recorded.

    A simulated response is what the other factors explain of ``y``, residuals drawn by whole cells,
    and an effect of the factor that is linear in the number of its level; its size gives a share of
    ``truth`` of the variance.

    Args:
        y, factors: As for :func:`omega_squared`.
        name: The factor.
        cell: ``(N,)`` number of the cell.
        truth: The share that is asked about.
        threshold: Of rule I.
        simulations, resamples, seed: Of the simulation, and the bootstrap inside each.
    """
    full, rest = (
        _basis([factor for key, factor in factors.items() if key not in left_out], len(y))
        for left_out in ((), (name,))
    )
    residuals = y - full @ (full.T @ y)
    drawn = _deal_cells(cell, simulations, np.random.default_rng(seed))
    plain = (rest @ (rest.T @ y))[:, None] + residuals[drawn]
    pattern = rankdata(factors[name], method="dense")
    pattern = (pattern - pattern.mean()) / pattern.std()
    size = math.sqrt(truth / (1 - truth) * plain.var(axis=0).mean())
    found = [
        omega_squared(
            *(column + size * pattern, factors, (name,)),
            cell=cell,
            resamples=resamples,
            seed=seed,
        )
        for column in plain.T
    ]
    return Power(
        float(np.mean([one.mean for one in found])),
        float(np.mean([one.low > threshold for one in found])),
        simulations,
    )


def _deal_cells(cell: Array, resamples: int, generator: np.random.Generator) -> Array:
    """``(N, resamples)`` from which run each run gets its residual: all of a cell from one cell.

    A cell with fewer runs than the one that draws it gives some of them twice.
    """
    sizes = np.bincount(cell)
    order = np.argsort(cell, kind="stable")
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(cell), dtype=int)
    place[order] = np.arange(len(cell)) - np.repeat(starts, sizes)
    source = generator.integers(len(sizes), size=(len(sizes), resamples))[cell]
    found: Array = order[starts[source] + place[:, None] % sizes[source]]
    return found


def _basis(factors: Sequence[Array], runs: int) -> Array:
    """Orthonormal columns ``(N, rank)`` that span a constant and the levels of all factors."""
    levels = [(factor[:, None] == np.unique(factor)).astype(float) for factor in factors]
    left, values, _ = np.linalg.svd(np.hstack([np.ones((runs, 1)), *levels]), full_matrices=False)
    basis: Array = left[:, values > 1e-9 * values[0]]
    return basis


# All measures of one arm side by side


@dataclass(frozen=True)
class Summary:
    """How one measure goes with the target in one arm.

    Attributes:
        measure: Its name.
        tau: Kendall's tau over all runs.
        partial: The same given L_S.
        granulated: Psi and psi_i.
        information: :func:`conditional_information` given at most two of the axes.
        worst_axis, sign_error: :func:`worst_sign_error`.
        p_partial, p_psi, p_information: Permutation p of partial tau, Psi and information.
        adjusted: The p of Psi adjusted for the number of measures (Holm).
    """

    measure: str
    tau: Interval
    partial: Interval
    granulated: Granulated
    information: float
    worst_axis: str
    sign_error: float
    p_partial: float
    p_psi: float
    p_information: float
    adjusted: float


def summarise(
    sweep: Sweep,
    measures: Mapping[str, str],
    target: str = "gap",
    *,
    resamples: int = RESAMPLES,
    permutations: int = RESAMPLES,
    nulls: Sequence[str] = ("psi", "partial", "information"),
) -> list[Summary]:
    """One :class:`Summary` for each measure, a column by its name.

    A second or so for each measure and 144 runs at the registered 2 000 draws, some ten times as
    long with the null of the information.

    Args:
        sweep: The runs.
        measures: What is said of the measure -> its column.
        target: Column of the target.
        resamples: Draws of each bootstrap.
        permutations: Draws of each null.
        nulls: Whose permutation p is computed; ``"psi"`` always is, the others are NaN if not.
    """
    t, loss, cell = sweep[target], sweep["train_loss"], sweep.cell
    factors = {axis: sweep[axis] for axis in AXES}
    left = rank_residuals(t, loss)
    statistics: dict[str, Callable[[Array], float]] = {
        "psi": psi_of(sweep, t),
        "information": lambda m: conditional_information(m, t, factors),
        "partial": lambda m: kendall_tau(m, left),
    }
    p = {
        name: {"partial": math.nan, "information": math.nan}
        | {
            key: permutation_p(
                statistic,
                rank_residuals(sweep[column], loss) if key == "partial" else sweep[column],
                cell,
                permutations=permutations,
            )
            for key, statistic in statistics.items()
            if key == "psi" or key in nulls
        }
        for name, column in measures.items()
    }
    adjusted = holm({name: of["psi"] for name, of in p.items()})
    return [
        Summary(
            name,
            tau_interval(sweep, sweep[column], t, resamples=resamples),
            tau_interval(sweep, sweep[column], t, loss, resamples=resamples),
            granulated(sweep, sweep[column], t, resamples=resamples),
            conditional_information(sweep[column], t, factors),
            *worst_sign_error(sweep, sweep[column], t),
            p[name]["partial"],
            p[name]["psi"],
            p[name]["information"],
            adjusted[name],
        )
        for name, column in measures.items()
    ]
