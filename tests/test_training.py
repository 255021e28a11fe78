"""Recipes, the training loop and what it reports."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from losslandscape.lab.data import load_dataset
from losslandscape.lab.models import cnn
from losslandscape.lab.training import (
    RECIPES,
    Recipe,
    RecipeError,
    evaluate,
    recipe_for,
    train,
)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def small(digits):
    """A tenth of the training set, for speed."""
    return dataclasses.replace(digits, x_train=digits.x_train[:140], y_train=digits.y_train[:140])


def test_the_three_recipes_are_the_papers():
    sharp, flat, adam = RECIPES.values()
    assert (sharp.name, sharp.optimizer, sharp.lr, sharp.weight_decay) == (
        "Sharp_SGD_HighLR",
        "sgd",
        0.1,
        0.0,
    )
    assert (flat.name, flat.optimizer, flat.lr, flat.weight_decay) == (
        "Flat_SGD_LowLR",
        "sgd",
        1e-3,
        1e-2,
    )
    assert (adam.name, adam.optimizer, adam.lr, adam.weight_decay) == (
        "Adam_Default",
        "adam",
        1e-3,
        0.0,
    )
    assert all((r.batch_size, r.epochs, r.momentum) == (64, 5, 0.0) for r in RECIPES.values())


def test_the_network_has_the_size_the_report_states(digits):
    mnist_like = dataclasses.replace(digits, x_train=torch.zeros(1, 1, 28, 28))
    assert sum(p.numel() for p in cnn(mnist_like, seed=0).parameters()) == 421_642
    assert sum(p.numel() for p in cnn(digits, seed=0).parameters()) == 53_002


def test_history_has_one_dict_per_epoch(small):
    run = train(Recipe("short", "adam", lr=1e-3, epochs=2), small, seed=0, progress=False)
    assert [row["epoch"] for row in run.history] == [1, 2]
    assert set(run.history[0]) == {
        "epoch",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "grad_norm",
    }
    assert run.wall_seconds > 0
    assert run.cpu_seconds > 0
    assert not run.model.training


def test_evaluate_against_plain_torch(small):
    model = cnn(small, seed=3).eval()
    measured = evaluate(model, small)
    outputs = model(small.x_train)
    loss = cross_entropy(outputs, small.y_train)
    loss.backward()
    norm = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).norm()
    right = (outputs.argmax(1) == small.y_train).sum()
    assert measured["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert measured["train_accuracy"] == pytest.approx(int(right) / 140, abs=1e-12)
    assert measured["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert measured["test_loss"] == pytest.approx(
        cross_entropy(model(small.x_test), small.y_test).item(), rel=1e-5
    )


def test_one_step_is_that_of_the_update_rule(small):
    # One batch, so one step: w <- w - lr (grad + wd w).
    recipe = Recipe("step", "sgd", lr=0.05, weight_decay=0.1, batch_size=140, epochs=1)
    model = cnn(small, seed=1)
    before = [p.detach().clone() for p in model.parameters()]
    cross_entropy(model(small.x_train), small.y_train).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    trained = train(recipe, small, seed=1, progress=False).model
    for new, old, grad in zip(trained.parameters(), before, grads, strict=True):
        torch.testing.assert_close(new, old - 0.05 * (grad + 0.1 * old), rtol=1e-4, atol=1e-6)


def test_seeds_repeat_and_differ(small):
    recipe = Recipe("short", "sgd", lr=0.1, epochs=1)
    runs = [train(recipe, small, seed=seed, progress=False) for seed in (0, 0, 1)]
    assert runs[0].history == runs[1].history
    assert runs[0].history != runs[2].history


def test_the_callers_random_state_is_untouched(small):
    before = torch.get_rng_state()
    train(Recipe("short", "sgd", lr=0.1, epochs=1), small, seed=0, progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_the_callback_sees_epoch_zero_and_eval_mode(small):
    seen = []
    train(
        Recipe("short", "sgd", lr=0.1, epochs=2),
        small,
        seed=0,
        progress=False,
        on_epoch=lambda epoch, model: seen.append((epoch, model.training)),
    )
    assert seen == [(0, False), (1, False), (2, False)]


def test_a_given_model_is_trained_in_place(small):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.detach().clone()
    run = train(
        Recipe("short", "sgd", lr=0.1, epochs=1), small, seed=0, model=model, progress=False
    )
    assert run.model is model
    assert not torch.equal(model[1].weight, before)


def test_float64_data_give_a_float64_network(small):
    run = train(
        Recipe("short", "sgd", lr=0.1, epochs=1), small.to(torch.float64), seed=0, progress=False
    )
    assert next(run.model.parameters()).dtype == torch.float64


def test_recipes_fit_their_data_set(digits):
    mnist_like = dataclasses.replace(digits, name="mnist")
    for name in RECIPES:
        assert recipe_for(name, mnist_like).epochs == 5
        assert recipe_for(name, digits).epochs > 5


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["Adam_Default"].lr = 1.0


class TestRefusals:
    def test_unknown_recipe(self, digits):
        with pytest.raises(RecipeError, match="unknown recipe 'Flat': choose one of Sharp_SGD"):
            train("Flat", digits, seed=0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": 0}, "epochs must be at least 1, got 0"),
            ({"epochs": -3}, "epochs must be at least 1, got -3"),
            ({"lr": 0.0}, "lr must be positive"),
            ({"lr": float("nan")}, "lr must be positive, got nan"),
            ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
            ({"weight_decay": -1.0}, "weight_decay must not be negative"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"optimizer": "lion"}, "unknown optimizer 'lion': choose one of sgd, adam"),
        ],
    )
    def test_values_out_of_range(self, change, message):
        with pytest.raises(RecipeError, match=message):
            dataclasses.replace(RECIPES["Adam_Default"], **change)

    def test_divergence_is_said(self, small):
        with pytest.raises(FloatingPointError, match="training diverged"):
            train(Recipe("hot", "sgd", lr=1e6, epochs=3), small, seed=0, progress=False)
