"""The validation sweep: the draw, the wrong labels, the stop band, and what a run records."""

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from losslandscape.flatness import fisher_rao, row_scale
from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import validation
from losslandscape.lab.experiments.validation import Settings, SweepRecipe
from losslandscape.lab.models import cnn
from losslandscape.lab.studies import find_study
from losslandscape.lab.training import predict, steps
from losslandscape.operators import HessianOperator
from losslandscape.rescaling import rescale_relu

SMALL = {"channels": (2, 3), "hidden": 5}
TINY = Settings(images=200, target=1.0, band=(0.9, 1.1), budget=5.0, probes=8)
CLEAN = SweepRecipe("clean", "clean", "sgd", 0.1, 16, 1e-3, **SMALL)
NOISY = dataclasses.replace(CLEAN, name="noisy", arm="noisy")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def result(digits):
    return validation.measure(CLEAN, digits, 0, TINY)


@pytest.fixture(scope="module")
def stopped(digits, result):
    """The network of ``result``, trained again by the plain loop; its data, dense Hessian."""
    training = validation.training_set(digits, CLEAN, TINY)
    model = cnn(digits, seed=0, **SMALL)
    for step in steps(model, validation._plain(CLEAN), training, seed=0):
        if step == result["steps"]:
            break
    data = (training.x_train, training.y_train)
    H = HessianOperator(model, cross_entropy, data) @ torch.eye(result["parameters"])
    return model, data, H.double()


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class TestDraw:
    def test_both_arms_train_on_the_same_images_whatever_the_run(self, digits):
        clean, noisy = (validation.training_set(digits, r, TINY) for r in (CLEAN, NOISY))
        other = dataclasses.replace(NOISY, name="other", optimizer="adam", lr=1.0)
        again = validation.training_set(digits, other, TINY)
        assert torch.equal(clean.x_train, noisy.x_train)
        assert torch.equal(again.y_train, noisy.y_train)
        images, labels = digits.stratified_subset(200)
        assert torch.equal(clean.x_train, images)
        assert torch.equal(clean.y_train, labels)

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 1.0])
    def test_exactly_the_share_of_labels_is_wrong(self, digits, share):
        settings = dataclasses.replace(TINY, wrong_labels=share)
        right = validation.training_set(digits, CLEAN, settings).y_train
        given = validation.training_set(digits, NOISY, settings).y_train
        assert int((right != given).sum()) == round(200 * share)
        assert given.min() >= 0
        assert given.max() < digits.classes

    def test_a_wrong_label_may_be_any_other_class(self, digits):
        settings = dataclasses.replace(TINY, images=1200, wrong_labels=1.0)
        right = validation.training_set(digits, CLEAN, settings).y_train
        shift = (validation.training_set(digits, NOISY, settings).y_train - right) % 10
        counts = torch.bincount(shift, minlength=10)
        assert counts[0] == 0
        # 1 200 wrong labels over 9 classes: 133 expected, standard deviation 11.
        assert (counts[1:] - 1200 / 9).abs().max() < 45

    def test_the_data_set_keeps_its_labels(self, digits):
        before = digits.y_train.clone()
        validation.training_set(digits, NOISY, TINY)
        assert torch.equal(digits.y_train, before)

    def test_held_out_images_are_all_others_with_right_labels(self, digits):
        places = dataclasses.replace(
            digits,
            x_train=torch.arange(1437.0).reshape(-1, 1, 1, 1),
            x_test=-1 - torch.arange(360.0).reshape(-1, 1, 1, 1),
        )
        trained = set(validation.training_set(places, NOISY, TINY).x_train.flatten().tolist())
        images, labels = validation.held_out(places, TINY)
        unseen = set(images.flatten().tolist())
        assert len(trained) == 200
        assert len(images) == 360 + 1437 - 200
        assert trained | unseen == set(range(-360, 1437))
        for image, label in zip(images.flatten().long().tolist(), labels.tolist(), strict=True):
            truth = digits.y_train[image] if image >= 0 else digits.y_test[-1 - image]
            assert label == truth


class TestStop:
    def stop(self, digits, recipe=CLEAN, **changes):
        settings = dataclasses.replace(TINY, **changes)
        training = validation.training_set(digits, recipe, settings)
        model = cnn(digits, seed=0, **SMALL)
        return validation.train_to_band(model, recipe, training, 0, settings), model, training

    @pytest.mark.parametrize("recipe", [CLEAN, NOISY], ids=lambda recipe: recipe.arm)
    def test_training_stops_at_the_first_reading_in_the_band(self, digits, recipe):
        stop, model, training = self.stop(digits, recipe)
        assert stop.reached
        assert stop.reason == "band"
        assert stop.steps % TINY.every == 0
        data = (training.x_train, training.y_train)
        loss = float(cross_entropy(predict(model, data[0]), data[1]))
        assert loss == stop.train_loss
        assert TINY.band[0] <= loss <= TINY.band[1]
        twin, batches = cnn(digits, seed=0, **SMALL), []
        losses = validation._batch_losses(twin, recipe, training, 0)
        near = False
        for step in range(5, stop.steps, 5):
            batches += [next(losses) for _ in range(5)]
            near = near or any(sum(batches[i : i + 5]) < 5 * 1.5 for i in range(len(batches) - 4))
            level = float(cross_entropy(predict(twin, data[0]), data[1]))
            assert not (near and TINY.band[0] <= level <= TINY.band[1]), step

    def test_the_steps_are_those_of_the_plain_loop(self, digits):
        for optimizer, lr in (("sgd", 0.03), ("adam", 0.01)):
            recipe = dataclasses.replace(CLEAN, optimizer=optimizer, lr=lr)
            stop, model, training = self.stop(digits, recipe)
            twin = cnn(digits, seed=0, **SMALL)
            for step in steps(twin, validation._plain(recipe), training, seed=0):
                if step == stop.steps:
                    break
            assert torch.equal(flat(model), flat(twin))

    def test_nothing_is_read_before_the_batch_loss_is_low(self, digits):
        # The initial loss, ln 10, lies in the band; batch losses are not below the target yet.
        stop, _, _ = self.stop(digits, band=(0.0, 3.0), target=0.5, alert=1.5)
        assert stop.train_loss < 1.0
        early, _, _ = self.stop(digits, band=(0.0, 3.0), target=2.0, alert=1.5)
        assert early.steps == 5

    def test_reading_goes_on_once_it_has_begun(self, digits, monkeypatch):
        # A single quiet moment, then batch losses far above the target.
        losses = [0.1] * 5 + [9.0] * 10
        monkeypatch.setattr(validation, "_batch_losses", lambda *_: iter(losses))
        levels = iter([0.5, 1.2, 1.0])  # below the band, above it, inside
        monkeypatch.setattr(validation, "train_loss", lambda *_: next(levels))
        stop, _, _ = self.stop(digits)
        assert stop == validation.Stop(True, 1.0, 15, "band")

    def test_divergence_is_a_result(self, digits):
        wild = dataclasses.replace(CLEAN, lr=1e6)
        result = validation.measure(wild, digits, 0, TINY)
        assert result == {
            "reached": False,
            "train_loss": None,
            "steps": result["steps"],
            "reason": "diverged",
        }
        assert result["steps"] < 20
        json.dumps(result, allow_nan=False)

    def test_a_missed_band_is_a_result(self, digits):
        slow = dataclasses.replace(CLEAN, lr=1e-9)
        result = validation.measure(slow, digits, 0, dataclasses.replace(TINY, budget=0.05))
        assert (result["reached"], result["reason"]) == (False, "budget")
        assert set(result) == {"reached", "train_loss", "steps", "reason"}
        assert result["train_loss"] == pytest.approx(2.3, abs=0.1)


class TestMeasures:
    def test_a_run_records_what_was_agreed(self, result):
        assert set(result) == {
            *("reached", "train_loss", "train_error", "steps", "epochs", "weight_norm"),
            *("distance", "parameters", "heldout_loss", "heldout_error"),
            *("lambda_max", "lambda_min", "adaptive_lambda_max", "row_lambda_max"),
            *("trace", "participation_ratio", "adaptive_trace"),
            *("adaptive_participation_ratio", "row_trace", "fisher_rao", "relative_flatness"),
            *("relative_flatness_normalised", "radial_curvature", "input_jacobian"),
            *("polish", "rescaled"),
        }
        for name in ("trace", "participation_ratio", "fisher_rao", "relative_flatness"):
            assert set(result[name]) == {"value", "stderr"}
        for name in ("lambda_max", "lambda_min", "adaptive_lambda_max", "row_lambda_max"):
            assert result[name]["converged"]
            assert result[name]["images"] == 200
        json.dumps(result, allow_nan=False)

    def test_the_same_seed_gives_the_same_numbers(self, digits, result):
        assert validation.measure(CLEAN, digits, 0, TINY) == result
        part = validation.measure_training(CLEAN, digits, 0, TINY)
        assert part.items() <= result.items()
        other = validation.measure_training(CLEAN, digits, 1, TINY)
        assert other["heldout_loss"] != part["heldout_loss"]

    def test_losses_errors_and_distances_are_those_of_the_network(self, digits, result, stopped):
        model, (images, labels), _ = stopped
        start = flat(cnn(digits, seed=0, **SMALL))
        with torch.no_grad():
            fitted, (unseen, truth) = model(images), validation.held_out(digits, TINY)
            outputs = model(unseen)
        assert result["train_loss"] == pytest.approx(float(cross_entropy(fitted, labels)))
        assert result["train_error"] == pytest.approx(
            float((fitted.argmax(1) != labels).double().mean())
        )
        assert result["heldout_loss"] == pytest.approx(float(cross_entropy(outputs, truth)))
        assert result["heldout_error"] == pytest.approx(
            float((outputs.argmax(1) != truth).double().mean())
        )
        assert result["distance"] == pytest.approx(float((flat(model) - start).norm()))
        assert result["weight_norm"] == pytest.approx(float(flat(model).norm()))
        assert result["epochs"] == result["steps"] / 13
        assert result["parameters"] == len(start)

    def test_eigenvalues_are_those_of_the_dense_matrices(self, result, stopped):
        model, _, H = stopped
        for name, scale in (
            ("lambda_max", torch.ones(len(H))),
            ("adaptive_lambda_max", flat(model).abs()),
            ("row_lambda_max", row_scale(model)),
        ):
            spectrum = torch.linalg.eigvalsh(scale[:, None] * H * scale)
            assert result[name]["value"] == pytest.approx(float(spectrum[-1]), rel=1e-2)
            if name == "lambda_max":
                tolerance = {"rel": 1e-3, "abs": 1e-6}
                assert result["lambda_min"]["value"] == pytest.approx(
                    float(spectrum[0]), **tolerance
                )

    def test_traces_agree_with_the_dense_matrices(self, result, stopped):
        model, _, H = stopped
        for name, scale in (
            ("trace", torch.ones(len(H))),
            ("adaptive_trace", flat(model).abs()),
            ("row_trace", row_scale(model)),
        ):
            truth = float((scale.double() ** 2 * H.diagonal()).sum())
            assert abs(result[name]["value"] - truth) < 6 * result[name]["stderr"] + 1e-4 * truth
        M = flat(model).abs()[:, None] * H * flat(model).abs()
        truth = float(M.trace() ** 2 / (M**2).sum())
        found = result["adaptive_participation_ratio"]
        assert abs(found["value"] - truth) < 6 * found["stderr"] + 1e-3 * truth

    def test_the_other_measures_are_those_of_the_network(self, result, stopped):
        model, data, H = stopped
        w = flat(model).double()
        assert result["radial_curvature"] == pytest.approx(float(w @ H @ w), rel=1e-3)
        truth = fisher_rao(model, cross_entropy, data).value
        assert result["fisher_rao"]["value"] == pytest.approx(truth, rel=1e-4)
        assert result["polish"]["train_loss"][0] == pytest.approx(result["train_loss"])
        sharpness = result["polish"]["lambda_max"][0]
        assert sharpness == pytest.approx(result["lambda_max"]["value"], rel=2e-2)

    def test_the_rescaled_value_is_that_of_a_rescaled_network(self, result, stopped):
        model, data, _ = stopped
        found = result["rescaled"]
        other = rescale_relu(model, [1, 1, 10 ** found["log10_alpha"]])
        torch.testing.assert_close(other(data[0]), model(data[0]), rtol=1e-4, atol=1e-4)
        H = HessianOperator(other, cross_entropy, data) @ torch.eye(result["parameters"])
        top = float(torch.linalg.eigvalsh(H.double())[-1])
        assert found["lambda_max"]["value"] == pytest.approx(top, rel=2e-3)
        assert found["layer"] == "7"
        changed = dict(model.named_parameters())["7.weight"] * 10 ** found["log10_alpha"]
        torch.testing.assert_close(other.get_parameter("7.weight"), changed)

    def test_factors_are_spread_evenly_and_belong_to_name_and_seed(self, stopped, monkeypatch):
        model, data, _ = stopped
        hessian = HessianOperator(model, cross_entropy, data)
        monkeypatch.setattr(validation, "lanczos", lambda *_, **__: None)
        monkeypatch.setattr(validation, "summary", lambda *_: {})

        def exponent(recipe, seed):
            return validation.rescaled(model, hessian, recipe, seed, TINY)["log10_alpha"]

        study = find_study("validation_sweep")
        found = torch.tensor([exponent(recipe, seed) for recipe, seed in study.runs()])
        assert len(set(found.tolist())) == 336
        expected = torch.linspace(-1, 1, 336)
        # Kolmogorov-Smirnov: 1.63/sqrt(336) of the range at the 1 % level.
        assert (found.sort().values - expected).abs().max() < 2 * 1.63 / 336**0.5
        assert exponent(CLEAN, 0) == exponent(dataclasses.replace(CLEAN, lr=9.0), 0)


def test_the_grid_is_the_registered_one():
    study = find_study("validation_sweep")
    assert len(study.runs()) == 336
    for arm in ("clean", "noisy"):
        cells = [recipe for recipe in study.recipes if recipe.arm == arm]
        sgd = [recipe for recipe in cells if recipe.optimizer == "sgd"]
        adam = [recipe for recipe in cells if recipe.optimizer == "adam"]
        assert (len(sgd), len(adam)) == (72, 12)
        assert {recipe.lr for recipe in sgd} == {0.03, 0.06, 0.12, 0.24}
        assert {recipe.batch_size for recipe in sgd} == {16, 48, 128}
        assert {recipe.weight_decay for recipe in sgd} == {0, 1e-3}
        assert {recipe.lr for recipe in adam} == {1e-3, 3e-3}
        assert {recipe.batch_size for recipe in adam} == {16, 128}
        assert {recipe.weight_decay for recipe in adam} == {0}
        widths = {(8, 16, 32), (12, 24, 48), (16, 32, 64)}
        assert {(*recipe.channels, recipe.hidden) for recipe in cells} == widths
    settings = study.settings
    assert (settings.images, settings.wrong_labels, settings.budget) == (2000, 0.1, 240)
    assert (settings.band, settings.every, settings.alert) == ((0.009, 0.011), 5, 1.5)
    name = "clean_sgd_lr0.03_b16_wd0.001_w12"
    assert study.recipe(name) == SweepRecipe(name, "clean", "sgd", 0.03, 16, 1e-3, (12, 24), 48)
    json.dumps(dataclasses.asdict(settings), allow_nan=False)


@pytest.mark.parametrize(("field", "value"), [("arm", "dirty"), ("optimizer", "lion")])
def test_unknown_arms_and_optimizers_are_refused(field, value):
    with pytest.raises(ValueError, match=f"unknown {field} '{value}': choose one of"):
        dataclasses.replace(CLEAN, **{field: value})
