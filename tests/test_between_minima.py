"""The between_minima experiment with tiny networks: what a record holds, and that it is true."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import between_minima as bm
from losslandscape.lab.models import cnn
from losslandscape.lab.training import RECIPES, Recipe, fit
from losslandscape.operators import HessianOperator
from losslandscape.slices import random_slice

SETTINGS = bm.Settings(
    channels=(2, 3),
    hidden=5,
    epochs=1,
    images=60,
    grid=5,
    filter_range=0.5,
    eigen_range=0.1,
    lines=2,
    line_points=3,
    probes=4,
    snapshots=4,
    path_points=3,
    bend_steps=60,
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def results(digits):
    """One run of each kind, as a record holds it."""
    chosen = {}
    for recipe in bm.MINIMA_RECIPES:
        chosen.setdefault(recipe.kind, recipe)
    return {
        kind: json.loads(json.dumps(bm.measure(recipe, digits, 3, SETTINGS), allow_nan=False))
        for kind, recipe in chosen.items()
    }


@pytest.fixture(scope="module")
def sharp(digits):
    """The network of the run around the first configuration."""
    return bm.trained("Sharp_SGD_HighLR", digits, 3, SETTINGS)[0]


def test_eight_recipes():
    names = [recipe.name for recipe in bm.MINIMA_RECIPES]
    assert names == [
        *("around_Sharp_SGD_HighLR", "around_Flat_SGD_LowLR", "around_Adam_Default"),
        "path_Sharp_SGD_HighLR_Flat_SGD_LowLR",
        "path_Sharp_SGD_HighLR_Adam_Default",
        "path_Flat_SGD_LowLR_Adam_Default",
        "path_Adam_Default_other_start",
        "three_minima",
    ]
    for recipe in bm.MINIMA_RECIPES:
        assert set(recipe.configurations) <= set(RECIPES)


def test_training_is_that_of_the_other_studies(digits):
    model, trajectory = bm.trained("Adam_Default", digits, 3, SETTINGS)
    other = cnn(digits, seed=3, channels=(2, 3), hidden=5)
    recipe = Recipe("Adam_Default", "adam", lr=1e-3, epochs=1)
    fit(other, recipe, digits, seed=3, progress=False, on_epoch=None)
    assert torch.equal(bm.flat(model), bm.flat(other))
    assert list(trajectory) == [0, 6, 12, 17, 23]
    assert torch.equal(trajectory[0], bm.flat(cnn(digits, seed=3, channels=(2, 3), hidden=5)))
    assert torch.equal(trajectory[23], bm.flat(model))


class TestAround:
    def test_the_middle_of_each_plane_is_the_end_point(self, results, sharp, digits):
        x, y = digits.stratified_subset(60)
        loss = float(cross_entropy(sharp(x), y).detach())
        for name in ("filter", "unit", "eigen"):
            plane = results["around"]["planes"][name]
            assert [len(row) for row in plane["loss"]] == [5] * 5
            assert plane["axes"][0][2] == plane["axes"][1][2] == 0
            assert plane["loss"][2][2] == pytest.approx(loss, rel=1e-4)
            assert min(map(min, plane["accuracy"])) >= 0

    def test_directions_of_both_random_planes_are_equally_long(self, results):
        planes = results["around"]["planes"]
        lengths = planes["filter"]["lengths"] + planes["unit"]["lengths"]
        assert lengths == pytest.approx([lengths[0]] * 4, rel=1e-4)
        assert planes["eigen"]["lengths"] == pytest.approx([1, 1], rel=1e-5)

    def test_grid_entries_are_at_their_coordinates(self, results, sharp, digits):
        x, y = digits.stratified_subset(60)
        plane = results["around"]["planes"]["filter"]
        where = random_slice(sharp, 2, seed=3)
        for i, j in ((0, 3), (4, 1)):
            moved = cnn(digits, seed=0, channels=(2, 3), hidden=5)
            place = torch.tensor([plane["axes"][0][i], plane["axes"][1][j]])
            torch.nn.utils.vector_to_parameters(where.at(place), moved.parameters())
            outputs = moved(x)
            assert plane["loss"][i][j] == pytest.approx(
                float(cross_entropy(outputs, y).detach()), rel=1e-4
            )
            right = float((outputs.argmax(1) == y).float().mean())
            assert plane["accuracy"][i][j] == pytest.approx(right, abs=0.02)

    def test_curvatures(self, results, sharp, digits):
        around = results["around"]
        hessian = HessianOperator(sharp, cross_entropy, digits.stratified_subset(60))
        exact = torch.linalg.eigvalsh(hessian @ torch.eye(hessian.shape[0]))
        assert around["lambda_max"]["value"] == pytest.approx(float(exact[-1]), rel=0.01)
        assert around["second"]["value"] == pytest.approx(float(exact[-2]), rel=0.01)
        assert around["planes"]["eigen"]["curvature"] == pytest.approx(
            [around["lambda_max"]["value"], around["second"]["value"]], rel=1e-3
        )
        direction = random_slice(sharp, 2, seed=3).basis[:, 1]
        assert around["lines"]["filter"]["curvature"][1] == pytest.approx(
            float(direction @ (hessian @ direction)), rel=1e-3
        )
        trace = around["trace"]
        assert abs(trace["value"] - float(exact.sum())) < 6 * trace["stderr"]
        assert around["parameters"] == hessian.shape[0]

    def test_the_trajectory_ends_in_its_plane(self, results):
        trajectory = results["around"]["trajectory"]
        assert trajectory["steps"] == [0, 6, 12, 17, 23]
        assert trajectory["coordinates"][-1] == pytest.approx([0, 0], abs=1e-6)
        at, projected = trajectory["pairs"]["loss"][-1]
        assert at == pytest.approx(projected, rel=1e-5)
        assert sum(trajectory["explained"]) == pytest.approx(1, rel=1e-3)
        for axis, column in zip(trajectory["axes"], (0, 1), strict=True):
            inside = [row[column] for row in trajectory["coordinates"]]
            assert axis[0] < min(inside) <= max(inside) < axis[-1]


class TestPath:
    def test_both_paths_have_the_measured_end_points(self, results):
        path = results["path"]
        for name in ("straight", "bent"):
            for end, configuration in ((0, "Sharp_SGD_HighLR"), (-1, "Flat_SGD_LowLR")):
                for what in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
                    assert path[name][what][end] == pytest.approx(
                        path["ends"][configuration][what], rel=1e-4
                    )
            assert len(path[name]["train_loss"]) == len(path["positions"]) == 3
            assert path[name]["barrier"]["train_loss"] >= 0

    def test_the_bent_path_is_longer(self, results):
        path = results["path"]
        assert path["straight"]["length"] == pytest.approx(path["distance"])
        assert path["bent"]["length"] > path["distance"]


def test_a_path_between_two_starts_of_one_configuration(digits):
    recipe = next(r for r in bm.MINIMA_RECIPES if r.name == "path_Adam_Default_other_start")
    ends = bm.measure_ends(recipe, digits, 3, SETTINGS)["ends"]
    assert list(ends) == ["Adam_Default", "Adam_Default+1"]
    alone = bm.measure_ends(bm.MINIMA_RECIPES[2], digits, 4, SETTINGS)["ends"]["Adam_Default"]
    assert ends["Adam_Default+1"] == alone


def test_the_plane_through_three_end_points_passes_through_them(results, digits):
    found = results["plane"]
    points = found["points"]
    assert points["Sharp_SGD_HighLR"]["coordinates"] == pytest.approx([0, 0], abs=1e-6)
    assert points["Flat_SGD_LowLR"]["coordinates"][1] == pytest.approx(0, abs=1e-5)
    assert points["Adam_Default"]["coordinates"][1] > 0
    x, y = digits.stratified_subset(60)
    for name in RECIPES:
        model, _ = bm.trained(name, digits, 3, SETTINGS)
        loss = float(cross_entropy(model(x), y).detach())
        assert points[name]["loss"] == pytest.approx(loss, rel=1e-4)
        assert points[name]["lambda_max"]["converged"]
        for axis, place in zip(found["axes"], points[name]["coordinates"], strict=True):
            assert axis[0] < place < axis[-1]


def test_the_repeated_part_gives_the_same_ends(digits, results):
    recipe = bm.MINIMA_RECIPES[0]
    ends = bm.measure_ends(recipe, digits, 3, SETTINGS)["ends"]["Sharp_SGD_HighLR"]
    recorded = results["around"]["ends"]["Sharp_SGD_HighLR"]
    assert ends == {name: recorded[name] for name in ends}


def test_numbers_are_rounded_and_finite(results):
    def floats(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from floats(part)
        elif isinstance(value, float):
            yield value

    found = list(floats(results))
    assert len(found) > 300
    assert all(value == float(f"{value:.6g}") for value in found)
    with pytest.raises(FloatingPointError, match=r"results\.a holds inf"):
        bm._rounded({"a": [1.0, float("inf")]}, "results")


@pytest.mark.parametrize(
    ("kind", "configurations", "message"),
    [("cube", ("a",), "unknown kind 'cube'"), ("path", ("a",), "path needs 2 configurations")],
)
def test_wrong_recipes_are_refused(kind, configurations, message):
    with pytest.raises(ValueError, match=message):
        bm.MinimaRecipe("r", kind, configurations)
