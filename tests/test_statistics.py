"""Intervals over runs and comparisons paired by image."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from losslandscape.report.statistics import compare_errors, predict_run, t_interval


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=20))
def test_the_interval_of_a_mean_is_scipys(values):
    if np.std(values) < 1e-6:
        return
    found = t_interval(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


class TestPredictive:
    def test_a_further_run_is_covered_as_often_as_it_says(self):
        generator = np.random.default_rng(0)
        draws = generator.normal(3, 2, (4000, 11))
        p = np.array([predict_run(row[:10]).p_value(row[10]) for row in draws])
        below = np.array([predict_run(row[:10]).percentile(row[10]) for row in draws])
        for share in (0.05, 0.3):
            assert np.mean(p < share) == pytest.approx(share, abs=0.02)
            assert np.mean(below < 100 * share) == pytest.approx(share, abs=0.02)

    @given(st.sampled_from(["plain", "log", "logit"]), st.integers(0, 1000))
    def test_interval_percentile_and_p_value_agree(self, scale, seed):
        values = np.random.default_rng(seed).uniform(0.1, 0.9, 6)
        law = predict_run(values, scale)
        low, high = law.interval(0.9)
        assert law.percentile(low) == pytest.approx(5)
        assert law.percentile(high) == pytest.approx(95)
        assert law.p_value(high) == pytest.approx(0.1)

    def test_scales_are_those_they_are_named_after(self):
        values = [0.97, 0.98, 0.99]
        logits = predict_run([math.log(v / (1 - v)) for v in values])
        assert predict_run(values, "logit").p_value(0.95) == pytest.approx(
            logits.p_value(math.log(0.95 / 0.05))
        )
        assert predict_run(values, "logit").interval(0.999)[1] < 1


class TestPairedErrors:
    def test_only_disagreements_count(self):
        found = compare_errors([1, 2, 3, 50], [50, 4], 1000)
        assert (found.only_first, found.only_second) == (3, 1)
        assert found.difference == pytest.approx(0.002)
        assert found.p_value == pytest.approx(2 * sum(math.comb(4, k) for k in (3, 4)) / 16)

    def test_the_standard_error_is_that_of_the_paired_differences(self):
        first, second = [0, 1, 2, 3, 4], [3, 4, 5]
        wrong = np.zeros((2, 40))
        wrong[0, first] = wrong[1, second] = 1
        differences = wrong[0] - wrong[1]
        found = compare_errors(first, second, 40)
        assert found.difference == pytest.approx(differences.mean())
        assert found.stderr == pytest.approx(differences.std() / math.sqrt(40))

    def test_equal_classifiers(self):
        found = compare_errors([1, 2], [2, 1], 10)
        assert (found.difference, found.stderr, found.p_value) == (0, 0, 1)


def test_too_few_or_equal_values_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        t_interval([1.0])
    with pytest.raises(ValueError, match="at least two"):
        predict_run([1.0])
    with pytest.raises(ValueError, match="all values are equal"):
        predict_run([1.0, 1.0])
