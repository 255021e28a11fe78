"""Figures of the chapter on prediction, and live runs as the table of a sweep."""

import math
from itertools import product

import numpy as np
import pytest

from losslandscape.lab.experiments.validation import SweepRecipe
from losslandscape.report.figures import prediction
from losslandscape.report.statistics import Interval
from losslandscape.report.sweep import AXES, Power, axis_pairs, summarise, sweep_of

CELLS = [
    SweepRecipe(
        f"lr{lr}_b{batch}_wd{decay}_w{width}", "clean", "sgd", lr, batch, decay, (width, 8), 4
    )
    for lr, batch, decay, width in product((0.1, 0.2), (8, 16), (0.0, 1e-3), (2, 4))
]


def results(cell, seed):
    return {
        "reached": True,
        "train_loss": 0.01,
        "train_error": 0.0,
        "heldout_loss": 0.01 + cell.lr + cell.channels[0],
        "heldout_error": 0.2,
        "lambda_max": {"value": 1.0 + cell.channels[0] + 0.1 * seed, "residual": 1e-4},
        "rescaled": {"layer": "fc1", "lambda_max": {"value": 3.0}},
    }


@pytest.fixture
def runs():
    return [(cell, seed, results(cell, seed)) for cell in CELLS for seed in (0, 1)]


@pytest.fixture
def table(runs):
    return sweep_of(runs)


class TestLiveRuns:
    def test_columns(self, table):
        assert (len(table), table.asked, table.missing) == (32, 32, 0)
        assert table["gap"] == pytest.approx(table["lr"] + table["width"])
        assert table["gap_error"] == pytest.approx(np.full(32, 0.2))
        assert set(table["lambda_max"]) == {3.0, 3.1, 5.0, 5.1}
        assert set(table["rescaled_lambda_max"]) == {3.0}
        assert set(np.bincount(table.cell)) == {2}

    def test_a_run_without_a_network_is_left_out_and_counted(self, runs):
        cell, seed, _ = runs[5]
        runs[5] = (cell, seed, {"reached": False, "reason": "diverged"})
        table = sweep_of(runs, asked=40)
        assert (len(table), table.asked, table.missing) == (31, 40, 8)
        assert table.left_out == (f"{cell.name} seed {seed}: diverged",)

    def test_a_design_without_results_has_its_factors(self):
        table = sweep_of((cell, 0, {"reached": True}) for cell in CELLS)
        assert len(table) == len(set(table.cell)) == 16
        assert {axis: len(set(table[axis])) for axis in AXES} == dict.fromkeys(AXES, 2)
        with pytest.raises(ValueError, match="no run has 'gap'"):
            table["gap"]

    def test_no_runs(self):
        assert len(sweep_of([], asked=3)) == 0
        assert sweep_of([], asked=3).missing == 3

    def test_nulls_that_are_not_asked_for_are_not_computed(self, table):
        asked = {"resamples": 20, "permutations": 19}
        (few,) = summarise(table, {"lambda": "lambda_max"}, nulls=("psi",), **asked)
        (full,) = summarise(table, {"lambda": "lambda_max"}, **asked)
        assert math.isnan(few.p_partial)
        assert math.isnan(few.p_information)
        assert few.p_psi == full.p_psi == few.adjusted
        assert 0 < full.p_partial <= 1


class TestFigures:
    def test_along_training_joins_the_stops_of_a_network(self):
        path = [{"level": level, "lambda_max": 1 / level, "gap": 1 - level} for level in (0.3, 0.1)]
        axis = prediction.along_training({"a": path, "b": path}).axes[0]
        networks, levels = axis.lines[:2], axis.lines[2:]
        assert [list(line.get_ydata()) for line in networks] == [[0.7, 0.9]] * 2
        assert [line.get_label() for line in levels] == [r"$L_S \approx$ 0.3", r"$L_S \approx$ 0.1"]
        assert list(levels[1].get_ydata()) == [0.9, 0.9]

    def test_design_has_a_mark_for_each_run(self):
        states = {(cell, seed): "to come" for cell in CELLS for seed in (0, 1)}
        states[CELLS[0], 0], states[CELLS[0], 1] = "recorded", "left out"
        figure = prediction.design(states)
        marks = [line for axis in figure.axes for line in axis.lines if len(line.get_xdata()) == 1]
        places = {
            (n, *(round(float(v[0]), 3) for v in line.get_data()))
            for n, axis in enumerate(figure.axes)
            for line in axis.lines
            if len(line.get_xdata()) == 1
        }
        assert len(marks) == len(places) == 32
        assert sum(line.get_marker() == "x" for line in marks) == 1
        filled = [line for line in marks if line.get_markerfacecolor() != "none"]
        assert len(filled) == 1
        with pytest.raises(ValueError, match="unknown state 'lost'"):
            prediction.design({(CELLS[0], 0): "lost"})

    def test_clouds_draw_every_run_once(self, table):
        measures = {"sharpness": "lambda_max", "loss": "train_loss"}
        figure = prediction.clouds({"one": table, "other": table}, measures)
        panels = figure.axes
        assert len(panels) == 4
        columns = ("lambda_max", "lambda_max", "train_loss", "train_loss")
        for axis, column in zip(panels, columns, strict=True):
            drawn = [line.get_xydata() for line in axis.lines]
            assert len(drawn) == 4, "learning rates x widths"
            points = np.array(sorted(np.concatenate(drawn).tolist()))
            expected = sorted(zip(table[column], table["gap"], strict=True))
            assert points == pytest.approx(np.array(expected))
        looks = {(line.get_color(), line.get_marker()) for line in panels[0].lines}
        assert len(looks) == 4
        (legend,) = figure.legends
        rates, widths = (sorted(set(table[name].tolist())) for name in ("lr", "width"))
        for line in panels[0].lines:
            x, y = line.get_xydata()[0]
            first = (table["lambda_max"] == x) & (table["gap"] == y)
            nth = rates.index(table["lr"][first][0]), widths.index(table["width"][first][0])
            assert legend.legend_handles[nth[0]].get_color() == line.get_color()
            assert legend.legend_handles[2 + nth[1]].get_marker() == line.get_marker()
        assert [text.get_text() for text in legend.get_texts()] == [
            *(f"learning rate {rate:g}" for rate in rates),
            *(f"width {width:g}" for width in widths),
        ]

    def test_pairs_are_solid_where_the_orders_agree(self, table):
        figure = prediction.pairs(table, "lambda_max", label="sharpness")
        panels = dict(zip(AXES, figure.axes, strict=True))
        for axis, panel in panels.items():
            drawn = [line for line in panel.lines if len(line.get_xdata()) == 2]
            found = axis_pairs(table, axis)
            agree = found.signs(table["lambda_max"]) * found.signs(table["gap"])
            assert sum(line.get_linestyle() == "-" for line in drawn) == (agree > 0).sum()
            assert sum(line.get_linestyle() == "--" for line in drawn) == (agree < 0).sum()
        assert panels["width"].get_title(loc="left") == "only width differs: +1.00"
        assert panels["lr"].get_title(loc="left") == "only learning rate differs: +0.00"

    def test_simpson_tells_each_group(self):
        m = np.array([0.0, 1, 2, 3])
        axis = prediction.simpson(m, np.array([2.0, 3, 0, 1]), np.array([8, 8, 16, 16])).axes[0]
        assert [line.get_label() for line in axis.lines] == ["width 8: +1.00", "width 16: +1.00"]
        assert axis.get_title(loc="left") == "Kendall's tau of all runs: -0.33"

    def test_power_in_per_cent(self):
        axis = prediction.power_curves({"a": [Power(0.1, 0.25, 8), Power(0.4, 1.0, 8)]}).axes[0]
        assert list(axis.lines[0].get_xdata()) == [0.1, 0.4]
        assert list(axis.lines[0].get_ydata()) == [25, 100]

    def test_forest_has_the_baselines_below_and_squares(self):
        effects = {"m": Interval(0.5, 0.4, 0.6, 9), "width": Interval(-0.25, -0.3, -0.2, 9)}
        figure = prediction.forest(
            {"live": effects, "MNIST": effects}, thresholds=(-0.2, 0.2), last=1
        )
        assert [axis.get_title() for axis in figure.axes] == ["live", "MNIST"]
        axis = figure.axes[0]
        assert [label.get_text() for label in axis.get_yticklabels()] == ["width", "m"]
        points = {line.get_ydata()[0]: line for line in axis.lines if len(line.get_xdata()) == 1}
        assert [points[n].get_marker() for n in (0, 1)] == ["s", "o"]
        assert [points[n].get_xdata()[0] for n in (0, 1)] == [-0.25, 0.5]
