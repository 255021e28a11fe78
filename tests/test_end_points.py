"""Experiments on the end points of Table 1: measures, matched training loss, reconstruction."""

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos
from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import climbs, end_points, matched_loss, reconstruction
from losslandscape.lab.models import cnn
from losslandscape.lab.training import RECIPES, Recipe, fit, predict, steps
from losslandscape.operators import HessianOperator

SMALL = {"channels": (2, 3), "hidden": 5}
ADAM = Recipe("Adam_Default", "adam", lr=3e-3, epochs=3)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def trained(digits, recipe, seed=0):
    model = cnn(digits, seed=seed, **SMALL)
    fit(model, recipe, digits, seed=seed, progress=False, on_epoch=None)
    return model


def dense_spectrum(model, data):
    H = HessianOperator(model, cross_entropy, data)
    return torch.linalg.eigvalsh((H @ torch.eye(H.shape[0])).double())


class TestEndPoints:
    SETTINGS = end_points.Settings(
        **SMALL,
        hessian_images=100,
        noise_images=200,
        noise_pairs=3,
        rescaled_goal=50.0,
        detailed_seeds=1,
        batch_sizes=((16, 3),),
        density_probes=2,
        density_steps=10,
    )

    def test_the_extreme_eigenvalues_are_those_of_the_dense_hessian(self, digits, result):
        spectrum = dense_spectrum(trained(digits, ADAM), digits.stratified_subset(100))
        assert result["lambda_max"]["value"] == pytest.approx(float(spectrum[-1]), rel=1e-3)
        lowest = result["lambda_min_path"][-1]
        assert lowest["value"] == pytest.approx(float(spectrum[0]), rel=1e-2)
        assert [row["epoch"] for row in result["lambda_min_path"]] == [0, 1, 2, 3]
        trace = result["trace"]
        assert abs(trace["value"] - float(spectrum.sum())) < 5 * trace["stderr"]
        assert len(result["density"]["nodes"]) == 2

    def test_the_adaptive_measure_is_that_of_the_scaled_matrix(self, digits, result):
        model, data = trained(digits, ADAM), digits.stratified_subset(100)
        w = torch.cat([p.detach().abs().reshape(-1) for p in model.parameters()])
        H = HessianOperator(model, cross_entropy, data) @ torch.eye(len(w))
        top = torch.linalg.eigvalsh((w[:, None] * H * w).double())[-1]
        assert result["adaptive_lambda_max"]["value"] == pytest.approx(float(top), rel=1e-2)

    def test_the_rescaled_network_is_the_same_function_and_sharper(self, digits, result):
        lifted = result["rescaled"]
        assert lifted["lambda_max"]["value"] > 50 > result["lambda_max"]["value"]
        assert lifted["logit_change"] < 1e-5
        assert lifted["test_accuracy"] == result["history"][-1]["test_accuracy"]
        assert lifted["adaptive_lambda_max"]["value"] == pytest.approx(
            result["adaptive_lambda_max"]["value"], rel=2e-2
        )
        factor = lifted["factor"]
        weaker = dataclasses.replace(self.SETTINGS, rescaled_goal=1e9, largest_factor=factor // 2)
        model, subset = trained(digits, ADAM), digits.stratified_subset(100)
        before = end_points._lifted(model, digits, subset, weaker)
        assert before["factor"] == factor // 2
        assert before["lambda_max"]["value"] <= 50  # the smallest power of two was taken

    def test_eigenvectors_and_noise_come_from_disjoint_images(self, digits, result):
        noise = result["noise"]
        images, labels = digits.stratified_subset(400)
        model = trained(digits, ADAM)
        first = HessianOperator(model, cross_entropy, (images[::2], labels[::2]))
        top = lanczos(first, k=3, tol=1e-3)
        assert noise["curvature"] == pytest.approx(top.values.tolist(), rel=1e-2)
        slopes = []
        for image, label in zip(images[1::2], labels[1::2], strict=True):
            loss = cross_entropy(model(image[None]), label[None])
            grad = torch.autograd.grad(loss, list(model.parameters()))
            slopes.append(torch.cat([g.reshape(-1) for g in grad]) @ top.vectors[:, 0])
        assert noise["variance"][0] == pytest.approx(float(torch.stack(slopes).var()), rel=1e-2)

    def test_later_seeds_and_other_rows_are_measured_less(self, digits):
        recipe = dataclasses.replace(ADAM, name="other", epochs=2)
        result = end_points.measure(recipe, digits, 1, self.SETTINGS)
        assert [row["epoch"] for row in result["lambda_min_path"]] == [2]
        assert not {"rescaled", "batch_lambda_max", "density"} & set(result)
        json.dumps(result, allow_nan=False)

    def test_wrong_images_and_gradients_are_those_of_the_end_point(self, digits, result):
        wrong = result["wrong_test_images"]
        share = 1 - len(wrong) / len(digits.y_test)
        assert share == pytest.approx(result["history"][-1]["test_accuracy"])
        model = trained(digits, ADAM)
        outputs = predict(model, digits.x_test)
        assert int(outputs[wrong[0]].argmax()) != int(digits.y_test[wrong[0]])
        decayed = dataclasses.replace(ADAM, weight_decay=0.1)
        found = end_points.stationarity(model, decayed, digits)
        loss = cross_entropy(model(digits.x_train), digits.y_train)
        weights = torch.cat([p.reshape(-1) for p in model.parameters()])
        objective = loss + 0.05 * weights.square().sum()
        slope = torch.autograd.grad(objective, list(model.parameters()))
        norm = float(torch.cat([g.reshape(-1) for g in slope]).norm())
        assert found["objective_grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert found["grad_norm"] == pytest.approx(result["history"][-1]["grad_norm"], rel=1e-4)
        along = found["objective_grad_norm"] ** 2
        along -= found["grad_norm"] ** 2 + (0.1 * found["weight_norm"]) ** 2
        assert found["weight_dot_grad"] == pytest.approx(along / 0.2, rel=1e-3)

    def test_products_are_counted_until_the_value_stays(self):
        history = torch.tensor([[1.0, 9.95, 0], [2.0, 9.0, 0], [3.0, 9.95, 0], [4.0, 10.0, 0]])
        assert end_points._settled(history, 10.0) == 3
        assert end_points._settled(history[:2], 10.0) is None

    def test_both_methods_find_the_same_eigenvalue(self, result):
        power, krylov = result["power"]["power"], result["power"]["lanczos"]
        gap = abs(power["value"] - krylov["value"])
        assert gap <= power["residual"] + krylov["residual"]
        assert krylov["within_percent"] <= power["within_percent"]

    def test_the_halved_start_is_half_the_initial_weights(self, digits, result):
        model = cnn(digits, seed=0, **SMALL)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)
        spectrum = dense_spectrum(model, digits.stratified_subset(100))
        found = result["halved_start"]["lambda_max"]["value"]
        assert found == pytest.approx(float(spectrum[-1]), rel=1e-3)


@pytest.fixture(scope="module")
def result(digits):
    return end_points.measure(ADAM, digits, 0, TestEndPoints.SETTINGS)


class TestMatchedLoss:
    SETTINGS = matched_loss.Settings(
        **SMALL, hessian_images=100, level=1.5, level_images=200, every=4, checkpoints=3, gap=2
    )

    def test_checkpoints_start_at_the_first_reading_below_the_level(self, digits):
        recipe = Recipe("r", "sgd", lr=0.1, epochs=20)
        rows = matched_loss.measure(recipe, digits, 3, self.SETTINGS)["level"]
        first, second, third = (row["step"] for row in rows)
        assert (second - first, third - second) == (2, 2)
        assert first % 4 == 0
        images, labels = digits.stratified_subset(200)
        model = cnn(digits, seed=3, **SMALL)
        for step in steps(model, recipe, digits, seed=3):
            loss = float(cross_entropy(predict(model, images), labels))
            if step == first:
                assert loss == pytest.approx(rows[0]["train_loss"], rel=1e-5)
                assert loss <= 1.5
                break
            assert step % 4 or loss > 1.5
        spectrum = dense_spectrum(model, digits.stratified_subset(100))
        assert rows[0]["lambda_max"]["value"] == pytest.approx(float(spectrum[-1]), rel=1e-2)

    def test_a_level_never_reached_is_an_empty_list(self, digits):
        recipe = Recipe("r", "sgd", lr=1e-6, epochs=1)
        assert matched_loss.measure(recipe, digits, 0, self.SETTINGS) == {"level": []}


class TestReconstruction:
    SETTINGS = reconstruction.Settings(hidden=5, batches=2, hessian_images=100)

    def test_twenty_candidates_vary_what_the_paper_leaves_open(self):
        assert len({c.name for c in reconstruction.CANDIDATES}) == 20
        rows = [c.row for c in reconstruction.CANDIDATES]
        assert {row: rows.count(row) for row in RECIPES} == {
            "Sharp_SGD_HighLR": 4,
            "Flat_SGD_LowLR": 12,
            "Adam_Default": 4,
        }

    def candidate(self, standardised):
        recipe = Recipe("r", "sgd", lr=0.05, epochs=2)
        return reconstruction.Candidate("c", "r", recipe, (2, 3), standardised)

    def test_every_epoch_is_that_of_the_plain_loop(self, digits):
        result = reconstruction.measure(self.candidate(True), digits, 1, self.SETTINGS)
        model = cnn(digits, seed=1, **SMALL)
        run = fit(
            model, self.candidate(True).training, digits, seed=1, progress=False, on_epoch=None
        )
        for row, truth in zip(result["epochs"], run.history, strict=True):
            assert row["test_accuracy"] == truth["test_accuracy"]
            assert row["test_loss"] == pytest.approx(truth["test_loss"], rel=1e-5)
            assert len(set(row["batch_lambda_max"])) == 2
        spectrum = dense_spectrum(model, digits.stratified_subset(100))
        assert result["lambda_max"]["value"] == pytest.approx(float(spectrum[-1]), rel=1e-3)

    def test_raw_inputs_are_pixels(self, digits):
        raw = reconstruction._raw(dataclasses.replace(digits, x_train=(0 * digits.x_train)))
        assert torch.allclose(raw.x_train, torch.tensor(0.1307))
        results = [
            reconstruction.measure(self.candidate(s), digits, 1, self.SETTINGS)
            for s in (True, False)
        ]
        assert results[0]["epochs"][0]["test_loss"] != results[1]["epochs"][0]["test_loss"]


def test_a_climb_starts_along_the_gradient_and_the_sharpest_direction(digits):
    settings = climbs.Settings(**SMALL, images=100, tol=1e-6, radii=(1e-6, 1e-2), steps=2)
    result = climbs.measure(ADAM, digits, 0, settings)
    model, data = trained(digits, ADAM), digits.stratified_subset(100)
    assert result["lambda_max"]["value"] == pytest.approx(
        float(dense_spectrum(model, data)[-1]), rel=1e-3
    )
    tiny, wider = result["rises"]
    g, along_v = result["grad_norm"], result["slope"]
    assert tiny[:2] == pytest.approx([1e-6 * g] * 2, rel=1e-3)  # downhill turns uphill
    second = 1e-4 * result["lambda_max"]["value"] / 2
    assert wider[2] > 0.9 * (1e-2 * along_v + second)
    assert wider[3] > 0.9 * (-1e-2 * along_v + second)
    json.dumps(result, allow_nan=False)
    assert [len(path) for radius in result["paths"] for path in radius] == [3] * 8
    assert [[path[-1] for path in radius] for radius in result["paths"]] == result["rises"]
    exact = result["quadratic"]
    assert all(exact["converged"])
    assert exact["rises"][0] == pytest.approx(tiny[0], rel=1e-3)
    assert result["history"][-1]["epoch"] == 3
    assert climbs.measure_training(ADAM, digits, 0, settings)["history"] == result["history"]


def test_before_the_first_step_a_climb_is_a_difference_of_losses(digits):
    eps = 1e-5
    settings = climbs.Settings(**SMALL, images=100, tol=1e-6, radii=(eps,), steps=0)
    result = climbs.measure(ADAM, digits, 0, settings)
    model, (images, labels) = trained(digits, ADAM).double(), digits.stratified_subset(100)
    loss = float(cross_entropy(model(images.double()), labels).detach())
    assert result["loss"] == pytest.approx(loss, rel=1e-10)
    uphill, downhill, along, against = result["rises"][0]
    assert (uphill - downhill) / (2 * eps) == pytest.approx(result["grad_norm"], rel=1e-4)
    assert (along - against) / (2 * eps) == pytest.approx(result["slope"], rel=1e-4)
    assert (along + against) / eps**2 == pytest.approx(result["lambda_max"]["value"], rel=1e-2)


def test_settings_and_recipes_are_json_ready():
    for item in (
        climbs.Settings(),
        end_points.Settings(),
        matched_loss.Settings(),
        reconstruction.Settings(),
        *reconstruction.CANDIDATES,
    ):
        json.dumps(dataclasses.asdict(item), allow_nan=False)
