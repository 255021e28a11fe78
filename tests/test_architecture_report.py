"""Pairs of networks with and without a component, and the figures of the chapter on them."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from losslandscape.report import claims
from losslandscape.report.architecture import VARIANTS, log_ratios
from losslandscape.report.figures import architecture as figures

BOOK = Path(__file__).parents[1] / "book"
MEASURES = ("lambda_max", "row_lambda_max")


def run(*values, reached=True):
    """A run whose eigenvalues are these, checkpoint by checkpoint."""
    found = {"value": 0.0, "residual": 0.0}
    level = [{name: {**found, "value": value} for name in MEASURES} for value in values]
    return {"reached": reached, "level": level}


@pytest.fixture
def runs():
    """Five seeds of two depths: batch normalisation halves, residual connections depend on both."""
    made = {}
    for depth in (2, 8):
        for seed in range(5):
            plain = depth * (1 + seed)
            values = {"plain": plain, "bn": plain / 2, "both": plain / 3}
            values["residual"] = plain / (1 + 0.1 * seed * depth)
            for variant, value in values.items():
                made.setdefault(f"{variant}_{depth}", {})[seed] = run(value, value)
    return made


def test_a_ratio_is_of_the_geometric_means_over_the_checkpoints():
    runs = {"plain_2": {0: run(2.0, 8.0)}, "bn_2": {0: run(1.0, 1.0)}, "both_2": {0: run(16.0)}}
    found = log_ratios(runs, "lambda_max")
    assert found["bn"] == {(2, 0): pytest.approx(math.log(4))}
    assert found["both"] == {(2, 0): pytest.approx(-math.log(4))}
    assert found["residual"] == {}


def test_only_pairs_of_one_depth_and_seed_that_reached_the_level_take_part(runs):
    found = log_ratios(runs, "row_lambda_max")
    assert set(found["bn"]) == {(depth, seed) for depth in (2, 8) for seed in range(5)}
    del runs["plain_8"][1]
    runs["bn_2"][3] = run(reached=False)
    runs["plain_2"][4]["reached"] = False
    found = log_ratios(runs, "row_lambda_max")
    assert set(found["bn"]) == {(2, 0), (2, 1), (2, 2), (8, 0), (8, 2), (8, 3), (8, 4)}
    assert (2, 3) in found["residual"]


def test_the_pairs_are_those_of_the_registered_effects(runs):
    evidence = claims.Evidence(BOOK / "records")
    evidence._studies = {"architecture": runs}
    effects = claims.judge("C35", evidence).effects
    for variant, words in (("bn", "batch normalisation"), ("residual", "residual connections")):
        pairs = log_ratios(runs, "row_lambda_max")[variant]
        effect = effects[name := f"ln B4-lambda of plain / {words}"]
        assert effect.count == len(pairs) == 10
        assert effect.mean == pytest.approx(sum(pairs.values()) / 10)
        for depth in (2, 8):
            of_depth = [pair for (deep, _), pair in pairs.items() if deep == depth]
            beside = effects[f"{name}, {depth} convolutions"]
            assert beside.count == len(of_depth) == 5
            assert beside.mean == pytest.approx(sum(of_depth) / 5)


def test_no_run_gives_no_pair():
    assert log_ratios({}, "lambda_max") == {variant: {} for variant in VARIANTS}


def drawn(figure):
    assert isinstance(figure, Figure)
    assert figure.get_figwidth() == 5.0
    figure.draw_without_rendering()
    return figure.axes


def test_every_pair_is_a_point_and_two_are_an_interval(runs):
    found = {"raw": log_ratios(runs, "lambda_max")}
    del runs["both_2"]
    runs["both_8"] = {0: run(1.0)}
    found["relative"] = log_ratios(runs, "row_lambda_max")
    (axis,) = drawn(figures.ratios(found, 1.5))
    points = sum(len(line.get_xdata()) for line in axis.lines if line.get_marker() in "os")
    assert points == 5 * 10 + 1
    assert sum(line.get_linewidth() == 6 for line in axis.lines) == 5
    assert [line.get_xdata()[0] for line in axis.lines if line.get_color() == "0.3"] == [1.5]
    drawn(figures.ratios({"raw": log_ratios({}, "lambda_max")}, 1.5))


def test_every_run_is_a_point_beside_its_kind():
    found = {"plain": {2: [1.0, 4.0], 8: [3.0]}, "bn": {2: [5.0]}, "residual": {2: []}}
    (axis,) = drawn(figures.side_by_side({"raw": found}))
    points = [line for line in axis.lines if line.get_linestyle() == "None"]
    assert sorted(y for line in points for y in line.get_ydata()) == [1.0, 3.0, 4.0, 5.0]
    bars = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "-"]
    assert bars == pytest.approx([2.0, 5.0, 3.0])


def test_the_other_figures_draw_what_they_get():
    path = {"step": [1, 2], "norm": [3.0, 2.0], "raw": [1.0, 5.0]}
    axes = drawn(figures.decay({"a": path, "b": path}, {"norm": "n", "raw": "r"}))
    assert [len(axis.lines) for axis in axes] == [2, 2]
    assert axes[1].get_ylim() == (0.0, pytest.approx(5.4))
    rows = {kind: {2: (1.0, 0.1), 8: (50.0, 2.0)} for kind in figures.KINDS}
    before, after = drawn(figures.start(rows))
    assert list(before.lines[0].get_ydata()) == [1.0, 50.0]
    assert list(after.lines[3].get_ydata()) == [0.1, 2.0]
    curves = {"all": {"plain": [[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]}}
    (axis,) = drawn(figures.lines({"all": [0, 1]}, curves))
    assert list(axis.lines[0].get_ydata()) == [3.0, 4.0]
