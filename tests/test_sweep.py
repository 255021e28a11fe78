"""Rank statistics of the sweep: definitions, references, intervals, and what they find in data."""

import json
import math
import re
from collections import defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from losslandscape.lab import studies
from losslandscape.report import afterwards, claims, falsifiers, ledger, rules, sweep, sweep_claims
from losslandscape.report.falsifiers import f1, f2, f3, f4, f5, f6, falsify
from losslandscape.report.rules import Evidence
from losslandscape.report.statistics import Interval
from losslandscape.report.sweep import (
    AXES,
    Sweep,
    axis_pairs,
    conditional_information,
    granulated,
    holm,
    intraclass,
    kendall_tau,
    load_sweep,
    omega_squared,
    partial_tau,
    permutation_p,
    power,
    psi_interval_of,
    psi_of,
    rank_residuals,
    share_power,
    summarise,
    tau_change,
    tau_interval,
    worst_sign_error,
)

LEVELS = {"lr": (0.03, 0.06, 0.12, 0.24), "batch_size": (16, 48, 128)}
LEVELS |= {"weight_decay": (0.0, 1e-3), "width": (8, 12, 16)}
SMALL = {axis: values[:2] for axis, values in LEVELS.items()}


def design(levels=LEVELS, **columns):
    """All cells of a design with two run seeds each, and further columns."""
    cells = np.array([*product(*(levels[axis] for axis in AXES), (0, 1))])
    factors = dict(zip((*AXES, "seed"), cells.T, strict=True))
    optimizer = np.full(len(cells), "sgd")
    return Sweep({"optimizer": optimizer, **factors, **columns}, asked=len(cells))


RUNS, SMALL_RUNS = len(design()), len(design(SMALL))
few = arrays(float, st.integers(3, 12), elements=st.integers(0, 6))
pairs_of_columns = few.flatmap(
    lambda x: st.tuples(st.just(x), arrays(float, len(x), elements=st.integers(0, 6)))
)
small_columns = arrays(float, SMALL_RUNS, elements=st.integers(0, 9))


class TestTau:
    @given(pairs_of_columns)
    @settings(deadline=None)
    def test_it_is_scipys(self, columns):
        expected = stats.kendalltau(*columns).statistic
        assert kendall_tau(*columns) == pytest.approx(0 if np.isnan(expected) else expected)

    @given(pairs_of_columns)
    @settings(deadline=None)
    def test_antisymmetric_and_unchanged_by_monotone_maps(self, columns):
        m, t = columns
        assert kendall_tau(-m, t) == pytest.approx(-kendall_tau(m, t))
        assert kendall_tau(np.exp(m), t**3) == pytest.approx(kendall_tau(m, t))

    @given(pairs_of_columns, st.integers(0, 99))
    @settings(deadline=None)
    def test_a_resampled_tau_is_that_of_the_resampled_runs(self, columns, seed):
        m, t = columns
        c = np.random.default_rng(seed).permutation(len(m)).astype(float)
        weights = np.random.default_rng(seed).multinomial(len(m), np.full(len(m), 1 / len(m)), 3)
        samples = [np.repeat(np.arange(len(m)), row) for row in weights]
        plain = sweep._tau_in(weights.astype(float), m, t, None)
        partial = sweep._tau_in(weights.astype(float), m, t, c)
        assert plain == pytest.approx([kendall_tau(m[rows], t[rows]) for rows in samples])
        assert partial == pytest.approx(
            [partial_tau(m[rows], t[rows], c[rows]) for rows in samples], abs=1e-12
        )

    def test_a_bootstrap_of_144_runs_is_that_of_scipy(self):
        generator = np.random.default_rng(0)
        table, m = design(), generator.normal(size=RUNS)
        t = m + 2 * generator.normal(size=RUNS)
        found = tau_interval(table, m, t, resamples=60)
        drawn = np.random.default_rng(0).multinomial(72, np.full(72, 1 / 72), 60)
        rows = [np.concatenate([np.flatnonzero(table.cell == c) for c in _spelt(d)]) for d in drawn]
        taus = [stats.kendalltau(m[r], t[r]).statistic for r in rows]
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(taus, [0.025, 0.975])))
        assert found.mean == pytest.approx(stats.kendalltau(m, t).statistic)
        assert found.count == 72

    def test_a_bootstrap_of_a_constant_measure_is_nothing(self):
        table = design(SMALL)
        flat, other = np.ones(SMALL_RUNS), np.arange(SMALL_RUNS)
        assert tau_interval(table, flat, other, resamples=9) == Interval(0, 0, 0, 16)


def _spelt(counts):
    return np.repeat(np.arange(len(counts)), counts)


class TestPartialTau:
    @given(small_columns, small_columns)
    @settings(deadline=None)
    def test_residuals_are_those_of_a_regression_of_ranks(self, x, c):
        ranks, given_ranks = stats.rankdata(x), stats.rankdata(c)
        model = np.column_stack([np.ones(len(x)), given_ranks])
        expected = ranks - model @ np.linalg.lstsq(model, ranks)[0]
        assert rank_residuals(x, c) == pytest.approx(expected, abs=1e-6)

    @given(small_columns)
    @settings(deadline=None)
    def test_a_constant_condition_changes_nothing(self, m):
        t, c = np.sin(np.arange(SMALL_RUNS)), np.ones(SMALL_RUNS)
        assert partial_tau(m, t, c) == pytest.approx(kendall_tau(m, t))

    def test_a_shared_cause_is_taken_away_and_a_direct_one_is_not(self):
        generator = np.random.default_rng(1)
        c, noise = generator.normal(size=500), generator.normal(size=(3, 500))
        m = c + 0.5 * noise[0]
        only_shared, direct = c + 0.5 * noise[1], c + noise[0] + 0.5 * noise[2]
        assert kendall_tau(m, only_shared) > 0.5
        assert abs(partial_tau(m, only_shared, c)) < 0.1
        assert partial_tau(m, direct, c) > 0.4

    def test_the_whole_gate_changes_nothing_and_the_bad_runs_do(self):
        generator = np.random.default_rng(2)
        table, m, c = design(), generator.normal(size=RUNS), generator.normal(size=RUNS)
        bad = np.arange(RUNS) % 12 < 6
        t = np.where(bad, -m, m)
        everything = tau_change(table, np.ones(RUNS, bool), m, t, c, resamples=20)
        assert (everything.mean, everything.low, everything.high) == (0, 0, 0)
        change = tau_change(table, ~bad, m, t, c, resamples=50)
        assert change.mean == pytest.approx(
            partial_tau(m, t, c) - partial_tau(m[~bad], t[~bad], c[~bad])
        )
        assert change.high < -0.5
        none = tau_change(table, np.zeros(RUNS, bool), m, t, c, resamples=20)
        assert none.mean == pytest.approx(partial_tau(m, t, c))


def slow_psi(table, axis, m, t):
    """The definition, word for word: group -> tau, and the cluster of each group."""
    groups = defaultdict(list)
    for run in range(len(table)):
        others = tuple(table[name][run] for name in AXES if name != axis)
        groups[others, table["seed"][run]].append(run)
    taus = {
        key: np.nan_to_num(stats.kendalltau(m[runs], t[runs]).statistic)
        for key, runs in groups.items()
        if len(runs) > 1
    }
    return taus


class TestPsi:
    def test_a_table_by_hand(self):
        # Learning rates 1, 2, 3 at two batch sizes, one seed: taus 1, 1/3 along the rate; along
        # the batch size (1, 1, -1) at the three rates.
        lr, batch = np.array([1, 2, 3, 1, 2, 3.0]), np.array([1, 1, 1, 2, 2, 2.0])
        constant = np.zeros(6)
        factors = {"lr": lr, "batch_size": batch, "weight_decay": constant, "width": constant}
        table = Sweep({"optimizer": np.full(6, "sgd"), "seed": constant, **factors})
        m, t = np.array([1, 2, 3, 4, 5, 6.0]), np.array([1, 2, 5, 6, 7, 4.0])
        assert axis_pairs(table, "lr").taus(m, t) == pytest.approx([1, -1 / 3])
        assert axis_pairs(table, "batch_size").taus(m, t) == pytest.approx([1, 1, -1])
        with pytest.raises(ValueError, match="no two runs differ in width only"):
            axis_pairs(table, "width")

    @given(small_columns, small_columns, arrays(bool, SMALL_RUNS, elements=st.booleans()))
    @settings(max_examples=40, deadline=None)
    def test_it_is_the_definition_with_runs_missing(self, m, t, keep):
        keep[[0, 2, 4, 8, 16]] = True  # one pair at least for each axis
        table = design(SMALL).only(keep)
        for axis in AXES:
            taus = slow_psi(table, axis, m[keep], t[keep])
            found = axis_pairs(table, axis)
            assert np.sort(found.taus(m[keep], t[keep])) == pytest.approx(sorted(taus.values()))
            assert len(set(found.cluster)) == len({key[0] for key in taus})

    @given(small_columns, small_columns)
    @settings(max_examples=30, deadline=None)
    def test_antisymmetric_unchanged_by_monotone_maps_and_1_for_the_target(self, m, t):
        psi = psi_of(design(SMALL), t)
        assert psi(-m) == pytest.approx(-psi(m))
        assert psi(np.exp(m)) == pytest.approx(psi(m))
        assert psi_of(design(SMALL), np.arange(SMALL_RUNS))(np.arange(SMALL_RUNS)) == 1

    @pytest.mark.parametrize("axis", AXES)
    def test_a_monotone_factor_has_psi_1_on_its_own_axis(self, axis):
        table = design()
        found = granulated(table, table[axis], np.exp(table[axis]), resamples=20)
        assert found.axes[axis] == Interval(1, 1, 1, found.axes[axis].count)
        assert found.psi.mean == pytest.approx(0.25)
        assert {name: e.count for name, e in found.axes.items()} == dict(
            zip(AXES, (18, 24, 36, 24), strict=True)
        )

    def test_the_run_seed_is_not_an_axis(self):
        table = design()
        assert psi_of(table, table["seed"])(table["seed"]) == 0

    def test_the_bootstrap_draws_both_seeds_of_a_group_together(self):
        # Seed 0 is right everywhere and seed 1 wrong: no cluster has any tau left to vary.
        table = design()
        t = np.arange(RUNS, dtype=float)
        m = np.where(table["seed"] == 0, t, -t)
        found = granulated(table, m, t, resamples=50)
        assert found.psi == Interval(0, 0, 0, 72)

    def test_the_short_way_to_psi_is_the_same(self):
        table, m, t = design(), *np.random.default_rng(17).normal(size=(2, RUNS))
        short = psi_interval_of(table, t, resamples=50, level=0.9)
        assert short(m) == granulated(table, m, t, resamples=50, level=0.9).psi

    def test_the_bootstrap_by_hand(self):
        generator = np.random.default_rng(3)
        table, m, t = design(), *generator.normal(size=(2, RUNS))
        found = granulated(table, m, t, resamples=40, level=0.9)
        draw, whole = np.random.default_rng(0), 0
        for axis in AXES:
            clusters = defaultdict(list)
            for (others, _), tau in slow_psi(table, axis, m, t).items():
                clusters[others].append(tau)
            values = [clusters[key] for key in sorted(clusters)]
            count = len(values)
            drawn = draw.multinomial(count, np.full(count, 1 / count), 40)
            draws = np.array([np.concatenate([values[c] for c in _spelt(d)]).mean() for d in drawn])
            expected = tuple(np.quantile(draws, [0.05, 0.95]))
            assert (found.axes[axis].low, found.axes[axis].high) == pytest.approx(expected)
            whole = whole + draws / 4
        assert (found.over_groups.low, found.over_groups.high) == pytest.approx(
            tuple(np.quantile(whole, [0.05, 0.95]))
        )

    @given(small_columns, small_columns, st.integers(0, 99))
    @settings(max_examples=20, deadline=None)
    def test_over_cells_it_is_psi_of_the_drawn_cells(self, m, t, seed):
        table = design(SMALL)
        weights = sweep._draw(table.cell, 3, np.random.default_rng(seed))
        for axis in AXES:
            found = axis_pairs(table, axis).psi_in(weights, m, t)
            for sample, value in zip(weights, found, strict=True):
                taus = slow_psi(table.only(sample > 0), axis, m[sample > 0], t[sample > 0])
                # In a group of two, copies of a run change nothing.
                assert value == pytest.approx(np.mean([*taus.values()]) if taus else 0)

    def test_a_difference_of_two_measures_is_taken_group_by_group(self):
        generator = np.random.default_rng(4)
        table, m, t = design(), *generator.normal(size=(2, RUNS))
        same = granulated(table, m, t, minus=np.exp(m), resamples=50)
        assert same.psi == Interval(0, 0, 0, 72)
        assert same.over_groups == Interval(0, 0, 0, 102)
        other = granulated(table, m, t, minus=-m, resamples=50)
        assert other.psi.mean == pytest.approx(2 * psi_of(table, t)(m))


class TestSignError:
    def test_right_wrong_and_silent_measures(self):
        table = design()
        t = np.random.default_rng(0).permutation(RUNS).astype(float)
        assert worst_sign_error(table, t, t)[1] == 0
        assert worst_sign_error(table, -t, t)[1] == 1
        assert worst_sign_error(table, np.zeros(RUNS), t)[1] == 0.5

    def test_the_worst_axis_is_named(self):
        table = design()
        t = np.arange(RUNS, dtype=float)
        m = t - 1000 * np.searchsorted(LEVELS["width"], table["width"])
        assert worst_sign_error(table, m, t) == ("width", 1.0)


class TestConditionalInformation:
    @pytest.mark.parametrize("swaps", [0, 1, 3])
    def test_without_factors_it_is_the_entropy_of_the_concordant_share(self, swaps):
        t = np.arange(10.0)
        m = t.copy()
        for place in range(swaps):
            m[[2 * place, 2 * place + 1]] = m[[2 * place + 1, 2 * place]]
        share = 1 - swaps / 45
        entropy = stats.entropy([share, 1 - share], base=2)
        assert conditional_information(m, t, {}) == pytest.approx(1 - entropy)

    def test_what_a_factor_tells_already_is_worth_nothing(self):
        table = design(SMALL)
        factors = {axis: table[axis] for axis in AXES}
        generator = np.random.default_rng(0)
        t = table["lr"] * 100 + table["width"] + 0.1 * generator.normal(size=SMALL_RUNS)
        shared = table["lr"] * 100 + table["width"] + 0.1 * generator.normal(size=SMALL_RUNS)
        assert conditional_information(shared, t, {}) > 0.4
        assert conditional_information(shared, t, factors) < 0.1
        assert conditional_information(t, t, factors) == pytest.approx(1)

    def test_the_definition_by_counting(self):
        generator = np.random.default_rng(5)
        a, m, t = generator.integers(0, 2, 12), *generator.normal(size=(2, 12))
        table = defaultdict(lambda: np.zeros((2, 2)))
        for i, j in product(range(12), repeat=2):
            if i != j:
                table[a[i], a[j]][int(m[i] > m[j]), int(t[i] > t[j])] += 1
        information = entropy = 0.0
        for counts in table.values():
            p = counts / counts.sum()
            expected = np.outer(p.sum(1), p.sum(0))
            there = p > 0
            part = (p[there] * np.log(p[there] / expected[there])).sum()
            information += counts.sum() / 132 * part
            entropy += counts.sum() / 132 * stats.entropy(p.sum(0))
        alone = conditional_information(m, t, {})
        assert conditional_information(m, t, {"a": a}) == pytest.approx(
            min(alone, information / entropy)
        )

    def test_nothing_to_order(self):
        assert conditional_information(np.ones(4), np.arange(4.0), {}) == 0


class TestNulls:
    def test_dealing_cells_has_the_known_spread(self):
        """SD of tau under independence, N = 24: sqrt(2(2N+5)/(9N(N-1)))."""
        t = np.arange(24.0)
        seen = []
        permutation_p(lambda m: seen.append(kendall_tau(m, t)) or 0.0, t, np.arange(24))
        assert np.std(seen[1:]) == pytest.approx(0.146, abs=0.01)

    def test_cells_stay_whole_and_keep_to_their_size(self):
        cell, m = np.array([0, 0, 1, 1, 2, 3, 3, 4]), np.arange(8.0)
        dealt = []
        permutation_p(lambda x: dealt.append(x.copy()) or 0.0, m, cell, permutations=50)
        for x in dealt:
            assert sorted(x) == list(m)
            assert all(x[i + 1] == x[i] + 1 for i in (0, 2, 5))
            assert {x[4], x[7]} == {4, 7}
        assert len({tuple(x) for x in dealt}) > 8

    def test_p_is_small_for_a_true_effect_and_even_without_one(self):
        table = design(SMALL)
        noise = np.random.default_rng(6).normal(size=(61, SMALL_RUNS))
        t = noise[0]
        tau = lambda m: kendall_tau(m, t)  # noqa: E731
        assert permutation_p(tau, t, table.cell, permutations=99) == 0.01
        found = [permutation_p(tau, m, table.cell, permutations=99) for m in noise[1:]]
        assert stats.kstest(found, "uniform").pvalue > 0.01

    @given(st.lists(st.floats(0, 0.1), min_size=1, max_size=6))
    @settings(deadline=None)
    def test_holm_rejects_what_its_steps_reject(self, values):
        p = {str(place): value for place, value in enumerate(values)}
        adjusted = holm(p)
        order = sorted(p, key=lambda name: p[name])
        rejected = set()
        for step, name in enumerate(order):
            if p[name] * (len(p) - step) > 0.05:
                break
            rejected.add(name)
        assert {name for name, value in adjusted.items() if value <= 0.05} == rejected
        assert max(adjusted.values()) <= 1


class TestVarianceShares:
    def test_a_balanced_table_by_sums_of_squares(self):
        table = design(SMALL)
        factors = {axis: table[axis] for axis in AXES}
        y = np.random.default_rng(7).normal(size=SMALL_RUNS) + 30 * table["lr"]
        squares = {
            axis: sum(16 * (y[table[axis] == level].mean() - y.mean()) ** 2 for level in levels)
            for axis, levels in SMALL.items()
        }
        total = ((y - y.mean()) ** 2).sum()
        error = (total - sum(squares.values())) / (SMALL_RUNS - 5)
        for axis in AXES:
            found = omega_squared(y, factors, (axis,), resamples=20)
            assert found.mean == pytest.approx((squares[axis] - error) / (total + error))
        block = omega_squared(y, factors, ("lr", "width"), ("batch_size",), resamples=20)
        assert block.mean == pytest.approx(
            (squares["lr"] + squares["width"] - 2 * error - squares["batch_size"] + error)
            / (total + error)
        )

    def test_an_unbalanced_block_comes_after_the_others(self):
        generator = np.random.default_rng(8)
        a, b = generator.integers(0, 3, 40), generator.integers(0, 2, 40)
        b[a == 0] = 0
        y = a + 0.3 * generator.normal(size=40)
        dummies = [np.ones(40), a == 1, a == 2, b == 1]
        left = {
            count: np.linalg.lstsq(np.column_stack(use).astype(float), y)[1][0]
            for count, use in ((4, dummies), (2, [dummies[0], dummies[3]]))
        }
        error, total = left[4] / 36, ((y - y.mean()) ** 2).sum()
        found = omega_squared(y, {"a": a, "b": b}, ("a",), resamples=20)
        assert found.mean == pytest.approx((left[2] - left[4] - 2 * error) / (total + error))

    def test_nothing_and_nearly_everything(self):
        table = design()
        factors = {axis: table[axis] for axis in AXES}
        noise = np.random.default_rng(9).normal(size=RUNS)
        nothing = omega_squared(noise, factors, ("lr",))
        assert nothing.low < 0 < nothing.high < 0.15
        everything = omega_squared(table["lr"] + 1e-4 * noise, factors, ("lr",))
        assert 0.999 < everything.low <= everything.high <= 1
        shifted = omega_squared(5 - 3 * noise, factors, ("lr",))
        assert shifted.mean == pytest.approx(nothing.mean)

    def test_power_for_a_share_of_variance(self):
        """A share at the threshold is seen as rarely as the level says, a large one always."""
        table = design()
        factors = {axis: table[axis] for axis in AXES}
        y = 3.0 * table["lr"] + np.random.default_rng(10).normal(size=RUNS)
        cell = np.arange(RUNS)  # no two runs alike
        few = {"cell": cell, "simulations": 60, "resamples": 200}
        for truth, least, most in ((0.05, 0.0, 0.15), (0.3, 0.95, 1.0)):
            found = share_power(y, factors, "width", truth=truth, **few)
            assert found.truth == pytest.approx(truth, rel=0.25)
            assert least <= found.seen <= most
            assert found.simulations == 60
        blind = share_power(y, factors, "width", truth=0.1, threshold=0.5, **few)
        assert blind.seen == 0

    def test_too_few_runs(self):
        with pytest.raises(ValueError, match="2 runs are too few for 2 effects"):
            omega_squared(np.arange(2.0), {"a": np.arange(2)}, ("a",))


def draw_cells(generator, table, truth, shared=0.85):
    """A measure and a target with tau ``truth`` (Greiner: tau = 2/pi asin(rho)), cells alike."""
    rho = np.sin(np.pi * truth / 2)
    cell, count = table.cell, table.cell.max() + 1

    def noise():
        whole = np.sqrt(shared) * generator.normal(size=count)[cell]
        return whole + np.sqrt(1 - shared) * generator.normal(size=len(cell))

    m = noise()
    return m, rho * m + np.sqrt(1 - rho**2) * noise()


class TestIntervals:
    def test_the_interval_of_tau_covers_the_truth(self):
        generator, table = np.random.default_rng(10), design({**LEVELS, "weight_decay": (0.0,)})
        found = [
            tau_interval(table, *draw_cells(generator, table, 0.3), resamples=200)
            for _ in range(150)
        ]
        covered = np.mean([one.low <= 0.3 <= one.high for one in found])
        assert 0.89 <= covered <= 0.99
        assert np.mean([one.mean for one in found]) == pytest.approx(0.3, abs=0.02)

    def test_the_interval_of_psi_over_groups_is_narrow_and_that_over_cells_is_not(self):
        """Every run is in a group of each axis, so the parts of Psi are not independent."""
        generator, table = np.random.default_rng(11), design()
        found = [
            granulated(table, *draw_cells(generator, table, 0.0), resamples=200) for _ in range(80)
        ]
        groups = np.mean([one.over_groups.low <= 0 <= one.over_groups.high for one in found])
        cells = np.mean([one.psi.low <= 0 <= one.psi.high for one in found])
        assert 0.6 <= groups <= 0.9 < cells

    @pytest.mark.parametrize(("whole", "least"), [(False, 0.7), (True, 0.85)])
    def test_residuals_that_the_runs_of_a_cell_share_need_whole_cells(self, whole, least):
        generator, table = np.random.default_rng(16), design()
        factors = {axis: table[axis] for axis in AXES}
        step = np.searchsorted(LEVELS["lr"], table["lr"]) - 1.5
        covered = []
        for _ in range(100):
            y = 0.6 / step.std() * step + draw_cells(generator, table, 0.0)[0]
            found = omega_squared(
                y, factors, ("lr",), cell=table.cell if whole else None, resamples=200
            )
            covered.append(found.low <= 0.36 / 1.36 <= found.high)
        assert least <= np.mean(covered) <= least + 0.15

    def test_cells_of_residuals_stay_whole(self):
        cell = np.array([0, 1, 0, 1, 2, 3, 3])
        drawn = sweep._deal_cells(cell, 60, np.random.default_rng(0))
        for column in drawn.T:
            assert [len(set(cell[column[cell == c]])) for c in range(4)] == [1] * 4
            for c in (0, 1, 3):
                whole = cell[column[cell == c][0]] != 2
                assert len(set(column[cell == c])) == (2 if whole else 1)
        assert set(drawn.ravel()) == set(range(7))

    def test_runs_of_a_cell_do_not_count_twice(self):
        table = design()
        m, t = draw_cells(np.random.default_rng(12), table, 0.3, shared=1.0)
        found = tau_interval(table, m, t, resamples=400)
        alone = replace(table, columns={**table.columns, "width": np.arange(RUNS)})
        narrow = tau_interval(alone, m, t, resamples=400)
        assert found.high - found.low > 1.2 * (narrow.high - narrow.low)

    def test_power_rises_with_the_effect_and_is_the_level_at_the_threshold(self):
        table = design()
        m, t = draw_cells(np.random.default_rng(13), table, 0.0)

        def of(truth, threshold=0.2):
            return power(
                lambda x: kendall_tau(x, t),
                lambda x: tau_interval(table, x, t, resamples=150),
                m,
                t,
                table.cell,
                truth=truth,
                threshold=threshold,
                simulations=60,
            )

        strong, weak = of(0.4), of(0.2)
        assert strong.truth == pytest.approx(0.4, abs=0.03)
        assert strong.seen > 0.7
        assert weak.seen < 0.15
        assert of(0.4) == strong

    def test_the_share_of_a_cell(self):
        generator, cell = np.random.default_rng(14), np.repeat(np.arange(400), 2)
        x = np.sqrt(0.7) * generator.normal(size=400)[cell] + np.sqrt(0.3) * generator.normal(
            size=800
        )
        assert intraclass(x, cell) == pytest.approx(0.7, abs=0.06)
        assert intraclass(np.ones(800), cell) == 0


class TestKnownTruth:
    """Twenty sweeps of 144 runs for each truth, judged by rule I on Psi and on tau."""

    def words(self, make):
        table = design()
        found = defaultdict(list)
        for seed in range(20):
            generator = np.random.default_rng(seed)
            m, t = make(table, lambda generator=generator: generator.normal(size=RUNS))
            psi = granulated(table, m, t, resamples=300).psi
            tau = tau_interval(table, m, t, resamples=300)
            found["psi"].append(rules.interval_rule(psi, 0.2))
            found["tau"].append(rules.interval_rule(tau, 0.2))
        return found

    def test_a_cause_is_found(self):
        def make(table, noise):
            m = np.log(table["lr"]) + np.log(table["width"]) + noise()
            return m, m + noise()

        words = self.words(make)
        assert words["psi"].count("holds") >= 18
        assert words["tau"].count("holds") >= 18

    def test_a_confounder_fools_tau_and_not_psi(self):
        def make(table, noise):
            common = np.searchsorted(LEVELS["lr"], table["lr"])
            return common + 0.8 * noise(), common + 0.8 * noise()

        words = self.words(make)
        assert words["tau"].count("holds") >= 18
        assert words["psi"].count("holds") <= 1

    def test_noise_is_not_supported(self):
        words = self.words(lambda table, noise: (noise(), noise()))
        for found in words.values():
            assert found.count("holds") == 0
            assert found.count("not supported") >= 15

    def test_the_opposite_is_refuted(self):
        def make(table, noise):
            m = noise()
            return m, noise() - m

        words = self.words(make)
        assert words["psi"].count("refuted") >= 18


# Records made up so that the answer is known


CELLS = studies.find_study("validation_sweep").recipes


@pytest.fixture
def few_draws(monkeypatch):
    """Words do not need 2 000 draws."""
    for function in (granulated, psi_interval_of, tau_interval, tau_change, omega_squared):
        monkeypatch.setitem(function.__kwdefaults__, "resamples", 400)
    monkeypatch.setattr(sweep_claims, "SIMULATIONS", 10)
    monkeypatch.setattr(sweep_claims, "POWER_RESAMPLES", 50)
    monkeypatch.setattr(sweep_claims, "OTHER_DRAWS", 1)


def eigenvalue(value, residual=0.0):
    return {"value": float(value), "residual": residual, "products": 20, "images": 2000}


class Truth:
    """Draws the results of a run from what each quantity follows, in this order.

    ``lam``, ``b5``, ``e2``, ``gap``, ``error`` and ``rescaled`` map (cell, draws so far, noise) to
    a number.
    """

    def __init__(self, **quantities):
        self.quantities = {
            "lam": lambda cell, drawn, noise: noise,
            "b5": lambda cell, drawn, noise: noise,
            "e2": lambda cell, drawn, noise: noise,
            "gap": lambda cell, drawn, noise: noise,
            "error": lambda cell, drawn, noise: noise,
            "rescaled": lambda cell, drawn, noise: drawn["lam"] + 0.1 * noise,
            **quantities,
        }

    def results(self, cell, generator):
        drawn = {}
        for name, follows in self.quantities.items():
            drawn[name] = float(follows(cell, drawn, generator.normal()))
        loss = generator.uniform(0.009, 0.011)
        return {
            "reached": True,
            "train_loss": loss,
            "train_error": 0.0,
            "steps": int(generator.integers(100, 1000)),
            "epochs": 8.0,
            "weight_norm": generator.uniform(5, 6),
            "parameters": 10 * cell.hidden,
            "heldout_loss": loss + 0.2 + 0.01 * drawn["gap"],
            "heldout_error": 0.05 + 0.001 * drawn["error"],
            "lambda_max": eigenvalue(np.exp(drawn["lam"])),
            "lambda_min": eigenvalue(-0.01 * np.exp(drawn["lam"])),
            "adaptive_lambda_max": eigenvalue(np.exp(drawn["b5"])),
            "row_lambda_max": eigenvalue(np.exp(drawn["b5"])),
            **{
                name: {"value": float(generator.uniform(1, 2)), "stderr": 0.1}
                for name in (
                    "trace",
                    "adaptive_trace",
                    "row_trace",
                    "participation_ratio",
                    "fisher_rao",
                    "relative_flatness",
                    "relative_flatness_normalised",
                    "input_jacobian",
                )
            },
            "adaptive_participation_ratio": {"value": 5 + np.exp(drawn["e2"]), "stderr": 0.1},
            "radial_curvature": 1.0,
            "polish": {"train_loss": [loss, 0.0], "fall": 0.009, "log_ratio": -0.5},
            "rescaled": {
                "log10_alpha": 0.3,
                "layer": "fc1",
                "lambda_max": eigenvalue(np.exp(drawn["rescaled"])),
            },
        }


class MadeUp(Evidence):
    """A whole sweep, with a truth for each arm."""

    def __init__(self, clean=None, noisy=None, seed=0):
        truths = {"clean": clean or Truth(), "noisy": noisy or clean or Truth()}
        generator = np.random.default_rng(seed)
        self._studies = {
            "validation_sweep": {
                cell.name: {seed: truths[cell.arm].results(cell, generator) for seed in (0, 1)}
                for cell in CELLS
            }
        }

    def change(self, name, seed, **results):
        """Results of one run replaced; without any the run is taken away."""
        runs = self._studies["validation_sweep"][name]
        if results:
            runs[seed] = {**runs[seed], **results}
        else:
            del runs[seed]
        return self


FIRST = CELLS[0].name


def follows(name, sign=1.0, noise_size=0.3):
    """A quantity that follows another up to noise."""
    return lambda cell, drawn, noise: sign * drawn[name] + noise_size * noise


@pytest.mark.usefixtures("few_draws")
class TestTable:
    def test_columns(self):
        table = load_sweep(MadeUp(), "clean")
        assert len(table) == table.asked == 144
        assert table.missing == 0
        assert set(np.bincount(table.cell)) == {2}
        assert np.all(table["gap"] == table["heldout_loss"] - table["train_loss"])
        assert np.all(table["gap_error"] == table["heldout_error"] - table["train_error"])
        assert set(table["width"]) == {8, 12, 16}
        assert table["rescaled_lambda_max"].min() > 0
        assert np.all(table["polish_fall"] == 0.009)
        for column in (*sweep.MEASURES.values(), *sweep.BASELINES.values()):
            assert table[column].shape == (144,)
        assert len(load_sweep(MadeUp(), "clean", ("sgd", "adam"))) == 168
        assert len(load_sweep(MadeUp(), "noisy", ("adam",))) == 24

    def test_runs_that_missed_the_band_are_listed_and_left_out(self):
        evidence = MadeUp()
        evidence._studies["validation_sweep"][FIRST][1] = {
            "reached": False,
            "train_loss": None,
            "steps": 7,
            "reason": "diverged",
        }
        table = load_sweep(evidence, "clean")
        assert table.left_out == (f"{FIRST} seed 1: diverged",)
        assert (len(table), table.missing) == (143, 0)
        verdict = claims.judge("C5", evidence)
        assert verdict.effects["runs left out, clean arm"] == 1
        assert verdict.effects["runs left out, noisy arm"] == 0

    def test_the_random_baseline_belongs_to_the_run(self):
        clean, noisy = (load_sweep(MadeUp(), arm)["random"] for arm in ("clean", "noisy"))
        assert len({*clean, *noisy}) == 288
        assert abs(kendall_tau(clean, noisy)) < 0.2
        fewer = load_sweep(MadeUp().change(FIRST, 0), "clean")["random"]
        assert set(fewer) < set(clean)

    def test_what_some_runs_lack_is_no_column(self):
        evidence = MadeUp()
        del evidence._studies["validation_sweep"][FIRST][0]["trace"]
        with pytest.raises(ValueError, match="1 of 144 runs lack 'trace'"):
            load_sweep(evidence, "clean")["trace"]
        with pytest.raises(ValueError, match="no run has 'flatness': choose one of"):
            load_sweep(evidence, "clean")["flatness"]

    def test_nothing_recorded(self):
        evidence = MadeUp()
        evidence._studies["validation_sweep"] = {}
        table = load_sweep(evidence, "clean")
        assert (len(table), table.asked, table.missing) == (0, 144, 144)
        assert str(claims.judge("C5", evidence)) == "waits for 288 of 288 runs of validation_sweep"

    def test_one_missing_run_is_waited_for(self):
        evidence = MadeUp().change(FIRST, 0)
        for claim, asked in (("C5", 288), ("C29", 144), ("C36", 168)):
            verdict = claims.judge(claim, evidence)
            assert str(verdict) == f"waits for 1 of {asked} runs of validation_sweep"
            assert verdict.effects == {}
        assert {str(outcome) for outcome in falsify(evidence)} == {
            f"F{number}, both arms: waits for 1 of 288 runs of validation_sweep"
            for number in (1, 2, 3, 5, 6)
        }

    def test_a_large_residual_leaves_the_row_untestable(self):
        evidence = MadeUp().change(FIRST, 0, lambda_max=eigenvalue(1.0, residual=2e-3))
        verdict = claims.judge("C29", evidence)
        assert str(verdict) == "untestable here (the residual of lambda_max of 1 runs is too large)"
        assert "residual" not in str(claims.judge("C33", evidence))
        evidence = MadeUp().change(FIRST, 0, adaptive_lambda_max=eigenvalue(1.0, residual=2e-2))
        words = "untestable here (the residual of adaptive_lambda_max of 1 runs is too large)"
        assert str(claims.judge("C33", evidence)) == words
        assert "residual" not in str(claims.judge("C29", evidence))

    def test_a_summary_of_all_measures(self):
        table = load_sweep(MadeUp(Truth(gap=follows("lam"))), "clean")
        measures = {"lambda": "lambda_max", "B7": "fisher_rao", "random": "random"}
        found = {s.measure: s for s in summarise(table, measures, resamples=50, permutations=59)}
        sharp, noise = found["lambda"], found["B7"]
        assert sharp.granulated.psi.low > 0.2
        assert sharp.partial.low > 0.2
        assert (sharp.p_psi, sharp.p_partial, sharp.p_information) == (1 / 60,) * 3
        assert sharp.adjusted == pytest.approx(3 / 60)
        assert sharp.sign_error < 0.35 < noise.sign_error
        assert sharp.information > 10 * noise.information
        assert noise.tau.low < 0 < noise.tau.high


def evidence_for(claim):
    """Made-up sweeps by the verdict that they must get."""
    both = {"b5": follows("lam"), "gap": follows("lam")}
    weak = {"gap": follows("lam", noise_size=3.2)}
    learning = {"lam": lambda cell, drawn, noise: -np.log(cell.lr) + 0.3 * noise}
    decay = {"lam": lambda cell, drawn, noise: 2 * (cell.weight_decay > 0) + noise}
    share = {"lam": lambda cell, drawn, noise: 0.5 * (cell.weight_decay > 0) + noise}
    both_factors = {"lam": lambda c, d, n: -np.log(c.lr) + 2 * (c.weight_decay > 0) + 0.3 * n}
    width = {"lam": lambda cell, drawn, noise: cell.channels[0] + noise}
    slightly = {"gap": lambda cell, drawn, noise: noise - 0.15 * (drawn["lam"] + drawn["b5"])}
    opposite = {"gap": follows("lam", -1), "b5": follows("lam")}
    return {
        "C5": [
            (MadeUp(Truth(**both)), "holds"),
            (MadeUp(Truth(gap=follows("b5"))), "holds if flatness is measured by normalised"),
            (MadeUp(Truth(gap=follows("lam"))), "holds if flatness is measured by lambda"),
            (MadeUp(Truth(**slightly)), "not supported"),
            (MadeUp(Truth(**opposite)), "refuted"),
            (MadeUp(Truth(**both), Truth(**slightly)), "untestable here (the effects differ)"),
            (MadeUp(Truth(**weak)), "untestable here (about"),
        ],
        "C28": [
            (MadeUp(Truth(gap=follows("lam"))), "holds"),
            (MadeUp(), "not supported"),
            (MadeUp(Truth(gap=follows("lam", -1))), "refuted"),
            (MadeUp(Truth(gap=follows("lam", noise_size=3.2))), "untestable here (about"),
        ],
        "C29": [
            (MadeUp(Truth(**both_factors)), "holds"),
            (MadeUp(Truth(**learning)), "holds if only the learning rate is meant"),
            (MadeUp(Truth(**decay)), "holds if only the weight decay is meant"),
            (MadeUp(Truth(**width)), "not supported"),
            (MadeUp(Truth(**share)), "untestable here ("),
        ],
        "C32": [
            (MadeUp(Truth(error=follows("lam"))), "holds"),
            (
                MadeUp(Truth(error=follows("lam"), rescaled=lambda c, d, n: n)),
                "holds if the parametrisation is fixed",
            ),
            (MadeUp(), "not supported"),
            (MadeUp(Truth(rescaled=follows("error"))), "not supported"),
            (MadeUp(Truth(error=follows("lam", -1))), "refuted"),
            (MadeUp(Truth(error=follows("lam", noise_size=2.2))), "untestable here (about"),
        ],
        "C33": [
            (MadeUp(Truth(gap=lambda c, d, n: d["b5"] - d["e2"] + 0.2 * n)), "holds"),
            (MadeUp(Truth(gap=follows("b5", -1))), "holds if only normalised sharpness is meant"),
            (MadeUp(Truth(gap=follows("e2"))), "holds if only basin isotropy is meant"),
            (MadeUp(seed=3), "not supported"),
            (MadeUp(Truth(gap=follows("b5", noise_size=2.5))), "untestable here"),
        ],
        "C36": [
            (MadeUp(Truth(**learning, gap=follows("lam"))), "holds"),
            (
                MadeUp(Truth(**learning, gap=lambda c, d, n: c.hidden + n)),
                "holds if only ln la",
            ),
            (MadeUp(Truth(lam=width["lam"], gap=follows("lam"))), "refuted"),
            (MadeUp(), "untestable here (about"),
        ],
        "C37": [
            (MadeUp(Truth(gap=follows("lam"))), "holds"),
            (MadeUp(Truth(gap=follows("lam")), Truth()), "holds if the labels are clean"),
            (MadeUp(Truth(), Truth(gap=follows("lam"))), "holds if the labels are noisy"),
            (MadeUp(), "not supported"),
            (MadeUp(Truth(gap=follows("lam", -1))), "refuted"),
            (
                MadeUp(Truth(), Truth(gap=follows("lam", -1))),
                "untestable here (the effects differ)",
            ),
        ],
    }[claim]


@pytest.mark.usefixtures("few_draws")
class TestJudges:
    @pytest.mark.parametrize("claim", ["C5", "C28", "C29", "C32", "C33", "C36", "C37"])
    def test_every_branch(self, claim):
        for evidence, words in evidence_for(claim):
            evidence._studies["unfinished_training"] = LONG_RUNS
            verdict = claims.judge(claim, evidence)
            assert str(verdict).startswith(words), (words, str(verdict), verdict.effects)
            if verdict.word == "not supported":
                assert any(name.startswith("power") for name in verdict.effects)
            beside = [name for name in verdict.effects if name.startswith("psi(")]
            measures = {"C28": 1, "C32": 2, "C37": 2}  # measures, or arms: four axes each
            assert len(beside) == 4 * measures.get(claim, 0)
            written = json.dumps(ledger._plain(verdict)["effects"], allow_nan=False)
            assert ledger._effects(json.loads(written)) == verdict.effects

    @pytest.mark.parametrize(
        ("claim", "effects"), [("C5", 4), ("C28", 1), ("C32", 1), ("C33", 2), ("C37", 2)]
    )
    def test_intervals_are_as_wide_as_the_number_of_effects_asks(self, claim, effects):
        evidence = MadeUp(Truth(gap=follows("lam")))
        evidence._studies["unfinished_training"] = LONG_RUNS
        found = claims.judge(claim, evidence).effects
        table, level = load_sweep(evidence, "clean"), 1 - 0.05 / effects
        name = next(name for name in found if name.startswith(("Psi(", "tau(")))
        m = table["adaptive_lambda_max" if claim == "C33" else "lambda_max"]
        t = table["heldout_error" if claim == "C32" else "gap"]
        if name.startswith("Psi"):
            expected = granulated(table, m, t, level=level).psi
        else:
            expected = tau_interval(table, m, t, table["train_loss"], level=level)
        assert found[name] == expected
        if name.startswith("tau("):
            label = name.removeprefix("tau").replace(" given ln L_S)", ") along batch size")
            assert found[f"psi{label}"] == granulated(table, m, t).axes["batch_size"]

    @pytest.mark.parametrize("claim", ["C5", "C33"])
    def test_psi_without_the_width_stands_beside(self, claim):
        """A measure that follows the width alone has Psi = 1/4, and nothing without that axis."""
        by_width = {
            name: lambda c, d, n: -c.channels[0] + 1e-3 * n for name in ("lam", "b5", "gap")
        }
        found = claims.judge(claim, MadeUp(Truth(**by_width))).effects
        whole = found["Psi(B5-lambda, gap), clean arm"]
        within = found["Psi(B5-lambda, gap), clean arm, width left out"]
        table = load_sweep(MadeUp(Truth(**by_width)), "clean")
        axes = granulated(table, table["adaptive_lambda_max"], table["gap"]).axes
        assert axes["width"].mean == 1
        three = [effect.mean for axis, effect in axes.items() if axis != "width"]
        assert within.mean == pytest.approx(np.mean(three))
        assert whole.mean == pytest.approx((1 + sum(three)) / 4)

    def test_isotropy_without_the_width_and_basic_intervals_stand_beside(self):
        evidence = MadeUp(Truth(gap=follows("e2")))
        table = load_sweep(evidence, "clean")
        m, t = sweep.given_sharpness(table)
        axes = granulated(table, m, t).axes
        found = claims.judge("C33", evidence).effects
        within = found["Psi(E2, gap given B5-lambda), clean arm, width left out"]
        assert within.mean == pytest.approx(np.mean([axes[a].mean for a in sweep.RECIPE]))
        found = claims.judge("C29", evidence).effects
        name = "omega squared of learning rate"
        share, mirrored = found[name], found[f"{name}, basic interval"]
        assert (mirrored.low + share.high) / 2 == pytest.approx(share.mean)
        assert (mirrored.high + share.low) / 2 == pytest.approx(share.mean)

    def test_other_bootstraps_stand_beside(self, monkeypatch):
        """At an end of an interval that lies on the threshold, other draws give another word."""
        monkeypatch.setattr(sweep_claims, "OTHER_DRAWS", 3)
        seen, said = [], {0: "holds", 1: "holds"}

        def rule(arms):
            draws = arms["clean"].draws
            seen.append(draws)
            return said.get(draws, "untestable here"), f"({draws})", {"power": lambda: 0.5 + draws}

        name = "same verdict by 3 other bootstraps"
        verdict = sweep_claims.decide("C5", MadeUp(), rule, ("clean",))
        assert seen == [0, 1, 2, 3]
        assert str(verdict) == "holds (0)"
        assert verdict.effects["power"] == 0.5, "simulated once, for the verdict itself"
        assert verdict.effects[name] == 1, "what would settle an open question may differ"
        said |= dict.fromkeys(range(4), "holds if")
        verdict = sweep_claims.decide("C5", MadeUp(), rule, ("clean",))
        assert verdict.effects[name] == 0, "under another condition it is another verdict"

    def test_draws_move_the_ends_and_not_the_middle(self):
        table = load_sweep(MadeUp(Truth(gap=follows("lam"))), "clean")
        m, t, loss = table["lambda_max"], table["gap"], table["train_loss"]
        for function in (
            lambda s: tau_interval(s, m, t, loss),
            lambda s: granulated(s, m, t).psi,
            lambda s: granulated(s, m, t).axes["lr"],
            lambda s: sweep.psi_interval_of(s, t)(m),
        ):
            one, other = function(table), function(replace(table, draws=1))
            assert one.mean == other.mean
            assert one.low != other.low

    def test_c28_waits_for_the_sweep_with_its_first_half(self):
        evidence = MadeUp().change(FIRST, 0)
        evidence._studies["unfinished_training"] = LONG_RUNS
        verdict = claims.judge("C28", evidence)
        assert str(verdict) == "waits for 1 of 144 runs of validation_sweep"
        assert verdict.effects["long runs"] == 5

    @pytest.mark.parametrize(
        ("fitted", "good", "words"),
        [
            (lambda run: run % 2, lambda run: run % 2, "holds if L_S replaces the leaked target"),
            (lambda run: run % 2, lambda run: run % 3, "untestable here"),
            (lambda run: 0, lambda run: 1, "untestable here (both labels are constant)"),
        ],
    )
    def test_c31(self, fitted, good, words):
        runs = {
            name: {
                seed: {
                    "history": [
                        {
                            "train_loss": 0.05 if fitted(run) else 0.051,
                            "test_loss": 0.06 if good(run) else 0.061,
                        }
                        for run in range(3 * seed + place, 3 * seed + place + 5)
                    ]
                }
                for seed in range(10)
            }
            for place, name in enumerate(rules.ROWS)
        }
        verdict = claims.judge("C31", recorded(three_configurations=runs))
        assert str(verdict) == words
        assert verdict.effects["run-epochs"] == 150

    def test_c31_counts_agreement_beyond_chance(self):
        # 30 runs x 5 epochs: both 60, only fitted 15, only good 5, neither 70.
        kinds = [(1, 1)] * 60 + [(1, 0)] * 15 + [(0, 1)] * 5 + [(0, 0)] * 70
        epochs = iter(
            {"train_loss": 0.01 if a else 1.0, "test_loss": 0.01 if b else 1.0} for a, b in kinds
        )
        runs = {
            name: {seed: {"history": [next(epochs) for _ in range(5)]} for seed in range(10)}
            for name in rules.ROWS
        }
        chance = (75 * 65 + 75 * 85) / 150**2
        kappa = claims.judge("C31", recorded(three_configurations=runs)).effects["kappa"]
        assert kappa == pytest.approx((130 / 150 - chance) / (1 - chance))

    @pytest.mark.parametrize(
        ("normalised", "residual", "words"),
        [
            (2.0, 1.8, "holds"),
            (2.0, 1.0, "holds if only batch normalisation is meant"),
            (0.5, 2.0, "holds if only residual connections are meant"),
            (0.5, 0.4, "refuted"),
            (1.1, 1.1, "not supported"),
            (0.5, 1.1, "untestable here (the effects differ)"),
            (
                1.5,
                1.5,
                "untestable here (about [0-9]+ instead of 10 pairs of runs would settle it)",
            ),
        ],
    )
    def test_c35(self, normalised, residual, words):
        runs = self.variants({"plain": 1.0, "bn": 1 / normalised, "residual": 1 / residual})
        verdict = claims.judge("C35", recorded(architecture=runs))
        pattern = words.replace("(", r"\(").replace(")", r"\)")
        assert re.fullmatch(pattern, str(verdict)), verdict.effects

    def test_c35_needs_every_run_at_the_common_loss(self):
        runs = self.variants({"plain": 1.0, "bn": 0.5, "residual": 0.5})
        runs["bn_8"][3] = {"reached": False, "level": runs["bn_8"][3]["level"][:4]}
        verdict = claims.judge("C35", recorded(architecture=runs))
        words = "untestable here (1 of 30 runs never came to the common training loss)"
        assert str(verdict) == words
        assert [effect.count for effect in verdict.effects.values()] == [9, 10, 5, 4, 5, 5]
        for effect in verdict.effects.values():  # of the pairs that are left
            assert effect.mean == pytest.approx(math.log(2), abs=0.2)
        runs = self.variants({"plain": 1.0, "bn": 0.5, "residual": 0.5})
        runs["bn_8"][3]["level"][2]["row_lambda_max"]["residual"] = 1.0
        verdict = claims.judge("C35", recorded(architecture=runs))
        assert str(verdict) == "untestable here (the residual of 1 eigenvalue is too large)"
        del runs["plain_2"][0]
        verdict = claims.judge("C35", recorded(architecture=runs))
        assert str(verdict) == "waits for 1 of 5 run seeds of architecture"

    def test_c35_gives_no_interval_where_a_single_pair_is_left(self):
        runs = self.variants({"plain": 1.0, "bn": 0.5, "residual": 0.5})
        for seed in range(4):
            runs["bn_8"][seed] = {"reached": False, "level": []}
        for seed in range(5):
            runs["residual_2"][seed] = runs["residual_8"][seed] = {"reached": False, "level": []}
        verdict = claims.judge("C35", recorded(architecture=runs))
        assert str(verdict).startswith("untestable here (14 of 30 runs never came")
        counts = {name: effect.count for name, effect in verdict.effects.items()}
        bn = "ln B4-lambda of plain / batch normalisation"
        assert counts == {bn: 6, f"{bn}, 2 convolutions": 5}

    def variants(self, factors):
        generator = np.random.default_rng(0)
        return {
            f"{variant}_{depth}": {
                seed: {
                    "reached": True,
                    "level": [
                        {"row_lambda_max": eigenvalue(depth * factor * wobble)} for _ in range(5)
                    ],
                }
                for seed, wobble in enumerate(np.exp(0.1 * generator.normal(size=5)))
            }
            for variant, factor in factors.items()
            for depth in (2, 8)
        }

    def test_the_runs_to_settle_shrink_the_interval_to_the_threshold(self):
        effects = {"a": Interval(0.3, 0.1, 0.5, 72), "b": Interval(0.25, 0.1, 0.4, 72)}
        word, condition = sweep_claims.one_or_all(effects, 0.2, {}, dict.fromkeys(effects, 144))
        assert word == "untestable here"
        assert condition == "(about 1296 instead of 144 runs in an arm would settle it)"
        mixed = {"a": Interval(0.3, 0.1, 0.5, 72), "b": Interval(-0.3, -0.4, -0.2, 72)}
        _, condition = sweep_claims.one_or_all(mixed, 0.2, {}, dict.fromkeys(mixed, 144))
        needed = "about 576 instead of 144 runs in an arm would settle what is open"
        assert condition == f"({needed})"
        apart = {**mixed, "c": Interval(0.5, 0.4, 0.6, 72)}
        _, condition = sweep_claims.one_or_all(apart, 0.2, {}, dict.fromkeys(apart, 144))
        assert condition == f"(the effects differ; {needed})"
        at_threshold = {"a": Interval(0.2, 0.1, 0.3, 72)}
        _, condition = sweep_claims.one_or_all(
            at_threshold, 0.2, {}, dict.fromkeys(at_threshold, 144)
        )
        assert condition == "(no feasible number of runs would settle it)"

    def test_each_open_effect_counts_the_runs_of_its_own_arm(self):
        effects = {
            "a, clean arm": Interval(0.3, 0.1, 0.5, 72),
            "a, noisy arm": Interval(0, -1, 1, 9),
        }
        arms = {"clean": range(144), "noisy": range(50)}
        runs = sweep_claims._runs(arms, effects)
        assert runs == {"a, clean arm": 144, "a, noisy arm": 50}
        _, condition = sweep_claims.one_or_all(effects, 0.2, {}, runs)
        needed = sweep.runs_to_settle(effects["a, noisy arm"], 0.2, 50)
        assert needed > 576
        assert (
            condition == f"(about {math.ceil(needed)} instead of 50 runs in an arm would settle it)"
        )


LONG_RUNS = {rules.FLAT: {seed: {"checkpoints": []} for seed in range(5)}}


def recorded(**found):
    evidence = MadeUp()
    evidence._studies = found
    return evidence


def arms(clean=None, noisy=None):
    evidence = MadeUp(clean, noisy)
    return {arm: load_sweep(evidence, arm) for arm in falsifiers.ARMS}


def with_column(tables, name, make):
    return {
        arm: replace(table, columns={**table.columns, name: make(table)})
        for arm, table in tables.items()
    }


@pytest.mark.usefixtures("few_draws")
class TestFalsifiers:
    @pytest.mark.parametrize(
        ("truth", "word", "reason"),
        [
            ({"gap": follows("lam")}, "not rejected", ""),
            ({}, "rejected", "the partial tau is below 0.2"),
            (
                {
                    "lam": lambda c, d, n: 0.2 * (c.weight_decay > 0) + c.channels[0] + 0.1 * n,
                    "gap": lambda c, d, n: d["lam"] - 2 * (c.weight_decay > 0),
                },
                "rejected",
                "psi is negative along weight decay",
            ),
        ],
    )
    def test_f1(self, truth, word, reason):
        outcome = f1("clean", arms(Truth(**truth)))
        assert (outcome.word, outcome.reason) == (word, reason), outcome.effects
        assert outcome.effect == outcome.effects["tau(lambda, gap given ln L_S)"]

    def test_f2_chooses_on_the_other_arm(self):
        tables = arms()
        informed = with_column(tables, "relative_flatness", lambda table: table["gap"] + 0.0)
        adds = f2("clean", informed)
        assert adds.word == "adds information"
        assert next(iter(adds.effects)).startswith("Psi(B8) - Psi(")
        nothing = f2("noisy", with_column(informed, "steps", lambda table: table["gap"] + 0.0))
        assert nothing.word == "adds nothing here"
        assert nothing.reason == "B8 and steps are the best on the other arm"

    def test_f2_a_measure_that_is_right_in_one_arm_only(self):
        tables = with_column(arms(), "fisher_rao", lambda table: table["gap"])
        tables["noisy"] = with_column(tables, "fisher_rao", lambda table: -table["gap"])["noisy"]
        noisy = f2("noisy", tables)
        assert noisy.word == "adds nothing here"
        assert noisy.reason.startswith("B7 and ")
        assert noisy.effect.mean < -0.5
        assert not f2("clean", tables).reason.startswith("B7 and ")

    def test_f2_shows_a_baseline_that_is_better_with_the_other_sign(self):
        tables = with_column(arms(), "steps", lambda table: -table["gap"])
        outcome = f2("clean", with_column(tables, "fisher_rao", lambda table: table["gap"]))
        assert outcome.word == "adds information"
        assert outcome.effect.mean > 0.7
        assert outcome.effects["Psi(B7) - Psi(-steps), signed"] == Interval(0, 0, 0, 72)

    def test_f2_undecided(self):
        assert f2("clean", arms(Truth(gap=follows("b5", noise_size=8.0)))).word == "undecided"

    @pytest.mark.parametrize(
        ("truth", "word"),
        [
            ({}, "drop"),
            ({"gap": follows("e2", -1)}, "keep"),
            ({"gap": follows("e2", noise_size=3.0)}, "undecided"),
        ],
    )
    def test_f3(self, truth, word):
        assert f3("clean", arms(Truth(**truth))).word == word

    def test_f4(self):
        steady, moved = f4({"B5-lambda": [1] * 6, "lambda": [1, 1, -1, -1, 1, 1]})
        assert (steady.word, moved.word) == ("sound", "unsound")
        assert moved.reason == "2 of 5 rescalings change its verdict"
        with pytest.raises(ValueError, match="B8 has 2 verdicts: give one, and five rescaled"):
            f4({"B8": [1, 1]})

    def test_f5(self):
        tables = arms(Truth(gap=follows("lam")))
        passing = f5("clean", tables)
        assert (passing.word, passing.reason) == (
            "undecided",
            "0 of 144 runs fail the gate (Q1 0, Q2 0, Q3 0)",
        )
        assert passing.effect == Interval(0, 0, 0, 72)

        def some_saddles(table):
            return np.where(np.arange(144) % 48 == 0, -1.0, -0.01) * table["lambda_max"]

        few = f5("clean", with_column(tables, "lambda_min", some_saddles))
        assert (few.word, few.reason) == (
            "unnecessary",
            "3 of 144 runs fail the gate (Q1 0, Q2 0, Q3 3)",
        )

    def test_f5_when_no_run_passes(self):
        outcome = f5("clean", with_column(arms(), "polish_log_ratio", lambda t: -1 + 0 * t["lr"]))
        assert (outcome.word, outcome.reason) == (
            "undecided",
            "144 of 144 runs fail the gate (Q1 0, Q2 144, Q3 0)",
        )
        assert outcome.effect is None

    @pytest.mark.parametrize(("noise", "word"), [(0.0, "needed"), (6.0, "undecided")])
    def test_f5_when_half_of_the_runs_are_unfinished(self, noise, word):
        """In the unfinished half the gap falls with lambda."""
        bad = np.arange(144) % 4 < 2
        tables = with_column(arms(), "polish_fall", lambda table: np.where(bad, 0.5, 0.0))
        tables = with_column(
            tables,
            "gap",
            lambda t: np.where(bad, -1, 1) * np.log(t["lambda_max"]) + noise * t["random"],
        )
        assert f5("clean", tables).word == word

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("polish_fall", 0.02),
            ("polish_log_ratio", -0.7),
            ("lambda_min", -1e9),
            ("train_loss", 0.051),
        ],
    )
    def test_every_part_of_the_gate(self, column, value):
        def spoil(table):
            spoilt = table[column].copy()
            spoilt[7] = value
            return spoilt

        legs = falsifiers.gate(with_column(arms(), column, spoil)["clean"])
        failing = {name: list(np.flatnonzero(~passed)) for name, passed in legs.items()}
        leg = {"train_loss": "Q1", "lambda_min": "Q3"}.get(column, "Q2")
        assert failing == {"Q1": [], "Q2": [], "Q3": []} | {leg: [7]}

    def test_f5_without_the_polish(self):
        evidence = MadeUp()
        for runs in evidence._studies["validation_sweep"].values():
            for run in runs.values():
                del run["polish"]
        outcome = f5("clean", {"clean": load_sweep(evidence, "clean")})
        assert outcome.word == "undecided"
        assert "no run has 'polish_fall'" in outcome.reason

    def test_f6(self):
        same, noise = Truth(gap=follows("lam")), Truth()
        opposite = Truth(gap=follows("lam", -1))
        assert f6("lambda", arms(same, opposite)).word == "no general claim"
        assert f6("lambda", arms(same, same)).word == "not contradicted"
        assert f6("lambda", arms(opposite, noise)).word == "not contradicted"

    def test_all_of_them(self, monkeypatch):
        monkeypatch.setattr(falsifiers, "MEASURES", {"B5-lambda": "adaptive_lambda_max"})
        monkeypatch.setattr(falsifiers, "RELATIVE", ("B5-lambda",))
        found = falsify(MadeUp())
        names = [outcome.falsifier for outcome in found]
        assert names == ["F1", "F1", "F2", "F2", "F3", "F3", "F5", "F5", "F6"]
        assert str(found[0]).startswith("F1, clean arm: rejected tau(lambda, gap given ln L_S) = ")


class TestAfterwards:
    """Looks that decide nothing, on made-up arms whose answers are known."""

    def arm(self, seed=0, **columns):
        rng = np.random.default_rng(seed)
        table = design()
        gap = np.exp(np.log(table["lr"]) - 0.3 * np.log(table["width"])) * 0.2
        made = {
            "gap": gap,
            "gap_error": gap**2,
            "adaptive_lambda_max": rng.normal(size=RUNS),
            "adaptive_trace": rng.normal(size=RUNS),
            "input_jacobian": rng.normal(size=RUNS),
            "lambda_max": np.abs(rng.normal(size=RUNS)) + 0.1,
            "lambda_min": np.zeros(RUNS),
            "train_loss": np.full(RUNS, 0.01),
            "polish_fall": np.zeros(RUNS),
            "polish_log_ratio": np.zeros(RUNS),
        }
        return replace(table, columns={**table.columns, **made, **columns})

    def test_the_score_of_the_settings_is_the_gap_that_they_decide(self):
        one, two = self.arm(0), self.arm(1)
        score = afterwards.settings_score(one, two)
        assert score == pytest.approx(np.log(one["gap"]))
        assert psi_of(one, one["gap"])(score) == pytest.approx(psi_of(one, one["gap"])(one["gap"]))

    def test_the_score_comes_from_the_other_arm_alone(self):
        one = self.arm(0)
        turned = self.arm(1, gap=1 / one["gap"])
        assert afterwards.settings_score(one, turned) == pytest.approx(-np.log(one["gap"]))

    def test_the_score_refuses_what_has_no_logarithm_or_no_level(self):
        one = self.arm(0)
        with pytest.raises(ValueError, match="positive gaps, got 0"):
            afterwards.settings_score(one, self.arm(1, gap=0 * one["gap"]))
        with pytest.raises(ValueError, match=r"no run of the other arm has lr 0\.24"):
            afterwards.settings_score(one, self.arm(1).only(one["lr"] < 0.2))

    def test_what_two_measures_share_is_gone_once_one_is_known(self):
        x = np.random.default_rng(5).normal(size=RUNS)
        noise = np.random.default_rng(6).normal(size=RUNS)
        one = self.arm(
            gap=np.exp(x),
            gap_error=np.exp(-x),
            adaptive_lambda_max=x + 0.1 * noise,
            input_jacobian=x,
        )
        found = afterwards.looks(one, self.arm(1))
        assert abs(found["B5-lambda given input Jacobian"].mean) < 0.1
        assert found["B5-lambda less input Jacobian"].mean < 0
        assert found["the same, gap in error"].mean > 0
        twin = self.arm(gap=np.exp(x + noise), adaptive_lambda_max=x, input_jacobian=noise)
        found = afterwards.looks(twin, self.arm(1))
        assert found["B5-lambda given input Jacobian"].low > 0.2
        assert found["input Jacobian given B5-lambda"].low > 0.2

    def test_runs_are_left_out_where_it_is_said(self):
        one = self.arm()
        fast, stuck = one["lr"] == 0.24, one["width"] == 16
        gap = one["gap"]
        wrong_if_fast = np.where(fast, 1 / gap, gap)
        wrong_if_stuck = np.where(stuck, 1 / gap, gap)
        one = self.arm(
            lambda_max=wrong_if_fast, adaptive_lambda_max=wrong_if_stuck, polish_fall=1.0 * stuck
        )
        found = afterwards.looks(one, self.arm(1))
        within = one.only(~fast)
        right = psi_of(within, within["gap"])(within["gap"])
        assert found["lambda, without the largest learning rate"].mean == pytest.approx(right)
        assert psi_of(one, gap)(one["lambda_max"]) < right - 0.1
        within = one.only(~stuck)
        right = psi_of(within, within["gap"])(within["gap"])
        assert found["B5-lambda, runs that pass the gate"].mean == pytest.approx(right)

    def test_runs_of_the_same_settings(self):
        table = design(SMALL)
        m = np.where(table["seed"] == 0, 1.0, 2.0)
        t = np.where(table.cell < 5, m, -m)
        t[table.cell == 0] = 1.0  # a tie
        assert afterwards.same_settings(table, m, t) == (4, 15)
        kept = np.arange(SMALL_RUNS) < SMALL_RUNS - 1
        alone = table.only(kept), m[kept], t[kept]
        assert afterwards.same_settings(*alone) == (4, 14), "a run by itself is no pair"

    def test_combinations_of_settings_count_for_the_recipe(self):
        """Batch and learning rate that act only together: nothing to their main effects."""
        table = design()
        signs = np.sign(table["lr"] - 0.09) * np.sign(table["batch_size"] - 32)
        y = signs + 0.3 * np.random.default_rng(0).normal(size=RUNS)
        found = afterwards.combined_shares(table, y)
        assert found["recipe"].low > 0.7
        assert found["width and run seed"].high < 0.1
        factors, strategy = sweep_claims.strategy_of(table)
        apart = omega_squared(y, factors, strategy, cell=table.cell)
        assert apart.mean < found["recipe"].mean - 0.1
