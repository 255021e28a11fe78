"""Experiments inside training: steps, the polish test, unfinished training, the stability limit."""

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import edge_of_stability, unfinished_training
from losslandscape.lab.experiments.edge_of_stability import EdgeRecipe
from losslandscape.lab.experiments.polish import polish, train_loss
from losslandscape.lab.models import cnn, mlp
from losslandscape.lab.training import Recipe, fit, steps

SMALL = {"channels": (2, 3), "hidden": 5}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_are_the_steps_of_fit(digits, optimizer):
    recipe = Recipe("r", optimizer, lr=0.01, weight_decay=1e-3, epochs=2)
    whole = cnn(digits, seed=0, **SMALL)
    fit(whole, recipe, digits, seed=5, progress=False, on_epoch=None)
    stepwise = cnn(digits, seed=0, **SMALL)
    per_epoch = -(-len(digits.y_train) // recipe.batch_size)
    for done in steps(stepwise, recipe, digits, seed=5):
        assert not stepwise.training
        if done == 2 * per_epoch:
            break
    assert torch.equal(weights(whole), weights(stepwise))


def test_polish_tells_unfinished_training_from_a_minimum(digits):
    subset = digits.stratified_subset(200)
    found = {}
    for name, epochs in (("start", 1), ("end", 30)):
        recipe = Recipe("r", "sgd", lr=0.1, epochs=epochs)
        model = cnn(digits, seed=0, channels=(4, 8), hidden=16)
        fit(model, recipe, digits, seed=0, progress=False, on_epoch=None)
        before = weights(model)
        found[name] = polish(model, recipe, digits, subset, seed=0, tol=1e-2)
        assert torch.equal(weights(model), before)
        assert found[name]["train_loss"][0] == pytest.approx(train_loss(model, digits))
    assert found["start"]["fall"] > 0.02 > found["end"]["fall"]


class TestUnfinishedTraining:
    SETTINGS = unfinished_training.Settings(
        **SMALL,
        followed=("long",),
        early_steps=(0, 5),
        epochs=(1, 2),
        polished=(2,),
        hessian_images=100,
        level=2.0,
        level_images=100,
        level_every=4,
        level_checkpoints=3,
        level_gap=2,
    )

    def test_a_followed_run_is_measured_at_its_checkpoints(self, digits):
        recipe = Recipe("long", "sgd", lr=0.1, epochs=2)
        result = unfinished_training.measure(recipe, digits, 0, self.SETTINGS)
        per_epoch = -(-len(digits.y_train) // 64)
        assert [row["step"] for row in result["checkpoints"]] == [0, 5, per_epoch, 2 * per_epoch]
        assert [("polish" in row) for row in result["checkpoints"]] == [False] * 3 + [True]
        assert result["checkpoints"][-1]["lambda_min"]["converged"]
        model = cnn(digits, seed=0, **SMALL)
        fit(model, recipe, digits, seed=0, progress=False, on_epoch=None)
        assert result["checkpoints"][-1]["train_loss"] == pytest.approx(train_loss(model, digits))

    def test_the_level_is_averaged_from_the_crossing_on(self, digits):
        recipe = Recipe("short", "sgd", lr=0.1, epochs=50)
        result = unfinished_training.measure(recipe, digits, 0, self.SETTINGS)
        assert result["checkpoints"] == []
        first, second, third = (row["step"] for row in result["level"])
        assert (second - first, third - second) == (2, 2)
        assert first % 4 == 0
        assert result["level"][0]["train_loss"] <= 2.0
        reading = digits.stratified_subset(100)
        model = cnn(digits, seed=0, **SMALL)
        for done in steps(model, recipe, digits, seed=0):
            loss = float(cross_entropy(model(reading[0]), reading[1]).detach())
            if done == first:
                assert loss == pytest.approx(result["level"][0]["train_loss"], rel=1e-5)
                break
            assert done % 4 or loss > 2.0

    def test_a_level_never_reached_is_an_empty_list(self, digits):
        recipe = Recipe("short", "sgd", lr=1e-6, epochs=1)
        result = unfinished_training.measure(recipe, digits, 0, self.SETTINGS)
        assert result == {"checkpoints": [], "level": []}


class TestEdgeOfStability:
    SETTINGS = edge_of_stability.Settings(**SMALL, images=60, every=10, batches=4)

    def run(self, digits, **recipe):
        recipe = EdgeRecipe("r", steps=30, **recipe)
        return edge_of_stability.measure(recipe, digits, 0, self.SETTINGS)

    def test_rows_and_limits(self, digits):
        result = self.run(digits, loss="cross_entropy", optimizer="gd", lr=0.1, momentum=0.9)
        assert result["limit"] == pytest.approx(38)
        assert [row["step"] for row in result["path"]] == [0, 10, 20, 30]
        adam = self.run(digits, loss="squared_error", optimizer="adam", lr=1e-3)
        assert adam["limit"] == pytest.approx(38_000)
        assert ["preconditioned" in row for row in adam["path"]] == [False, True, True, True]
        batches = self.run(digits, loss="cross_entropy", optimizer="gd", lr=0.1, batch_size=8)
        assert all("batch_sharpness" in row for row in batches["path"])

    def test_divergence_is_said_and_nothing_lost(self, digits):
        result = self.run(digits, loss="squared_error", optimizer="gd", lr=1e4)
        assert result["diverged"]
        assert len(result["path"]) >= 1

    def test_squared_error_is_half_a_squared_distance(self):
        outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
        value = edge_of_stability.squared_error(outputs, torch.tensor([1, 0]))
        assert float(value) == pytest.approx((1 + 1 + 1 + 0) / 4)

    def test_the_preconditioner_is_that_of_adams_step(self, digits):
        model = mlp((64, 3, 10), seed=0)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            x = digits.x_train[:20].double()
            cross_entropy(model(x), digits.y_train[:20]).backward()
            before = weights(model)
            optimizer.step()
        momentum = torch.cat([s["exp_avg"].reshape(-1) for s in optimizer.state.values()])
        recipe = EdgeRecipe("r", "cross_entropy", "adam", lr=0.01)
        scale = edge_of_stability.preconditioner(optimizer, recipe)
        torch.testing.assert_close(before - 0.01 * momentum / scale, weights(model))

    def test_batch_sharpness_of_a_quadratic_is_its_curvature(self):
        model = torch.nn.Linear(1, 1, bias=False).double()
        x = torch.ones(10, 1, dtype=torch.float64)
        found = edge_of_stability.batch_sharpness(
            model, torch.nn.functional.mse_loss, (x, 0 * x), 4, 3, seed=0
        )
        assert found == pytest.approx({"mean_of_ratios": 2.0, "ratio_of_means": 2.0})


def test_settings_and_recipes_are_json_ready():
    for item in (TestUnfinishedTraining.SETTINGS, TestEdgeOfStability.SETTINGS):
        assert all(isinstance(v, int | float | tuple) for v in dataclasses.asdict(item).values())
