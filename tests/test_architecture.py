"""Networks with and without batch normalisation and shortcuts; the identities of scale."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import architecture
from losslandscape.lab.experiments.architecture import ArchitectureRecipe, Settings
from losslandscape.lab.models import ConvolutionLayer, convolutional
from losslandscape.lab.studies import find_study
from losslandscape.lab.training import Recipe, predict, steps
from losslandscape.operators import HessianOperator

TRAINING = Recipe("training", "sgd", lr=0.1, epochs=20)
TINY = Settings(
    channels=3,
    images=400,
    hessian_images=60,
    level=0.8,
    level_images=200,
    every=5,
    checkpoints=3,
    gap=2,
    outliers=4,
    probes=6,
    slices=2,
    slice_points=5,
    identity_images=20,
)
KINDS = {
    "plain": {"batchnorm": False, "residual": False},
    "bn": {"batchnorm": True, "residual": False},
    "residual": {"batchnorm": False, "residual": True},
    "both": {"batchnorm": True, "residual": True},
}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def network(digits, kind, convolutions=2, seed=0, **options):
    options = {"channels": 3} | options
    return convolutional(digits, seed=seed, convolutions=convolutions, **KINDS[kind], **options)


def layers(model):
    return [module for module in model.modules() if isinstance(module, ConvolutionLayer)]


@pytest.fixture(scope="module")
def models(digits):
    """Two networks with batch normalisation after a few steps of training."""
    found = []
    for kind in ("bn", "both"):
        model = network(digits, kind, 3)
        for step in steps(model, TRAINING, digits, seed=0):
            if step == 20:
                break
        found.append(model)
    return found


@pytest.fixture(scope="module")
def result(digits):
    recipe = ArchitectureRecipe("both_2", **KINDS["both"], convolutions=2, training=TRAINING)
    return architecture.measure(recipe, digits, 1, TINY)


class TestNetworks:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("convolutions", [2, 8])
    def test_parts(self, digits, kind, convolutions):
        model = network(digits, kind, convolutions, channels=16)
        found = layers(model)
        assert len(found) == convolutions
        assert {isinstance(layer.norm, nn.BatchNorm2d) for layer in found} == {
            KINDS[kind]["batchnorm"]
        }
        assert {layer.conv.bias is None for layer in found} == {KINDS[kind]["batchnorm"]}
        shortcuts = [layer.shortcut for layer in found]
        assert shortcuts == [False] + [KINDS[kind]["residual"]] * (convolutions - 1)
        assert {layer.conv.out_channels for layer in found} == {16}
        assert model(digits.x_test[:3]).shape == (3, 10)

    def test_a_layer_computes_what_it_says(self):
        x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
        plain = ConvolutionLayer(2, 2, batchnorm=False, shortcut=False)
        torch.testing.assert_close(plain(x), plain.conv(x).clamp(min=0))
        both = ConvolutionLayer(2, 2, batchnorm=True, shortcut=True)
        y = both.conv(x)
        y = (y - y.mean((0, 2, 3), keepdim=True)) / (
            y.var((0, 2, 3), keepdim=True, correction=0) + both.norm.eps
        ).sqrt()
        torch.testing.assert_close(both(x), (x + y).clamp(min=0))

    def test_the_seed_decides_and_the_random_state_stays(self, digits):
        before = torch.get_rng_state()
        same = [network(digits, "both", seed=3) for _ in range(2)]
        other = network(digits, "both", seed=4)
        assert torch.equal(torch.get_rng_state(), before)
        first, second, third = (
            torch.cat([p.reshape(-1) for p in m.parameters()]) for m in [*same, other]
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, third)
        assert network(digits, "both", dtype=torch.float64)[0].conv.weight.dtype == torch.float64

    def test_one_convolution_is_too_few(self, digits):
        with pytest.raises(ValueError, match="convolutions must be at least 2, got 1"):
            network(digits, "plain", 1)


class TestScaleInvariance:
    def test_the_identities_hold_with_batch_statistics(self, digits, models):
        batch = digits.stratified_subset(40)
        for model in models:
            errors = architecture.scale_invariance(model, batch)
            assert set(errors) == {"loss", "radial", "product", "gradient", "hessian"}
            assert max(errors.values()) < 1e-8, errors

    def test_they_are_false_in_evaluation_mode(self, digits, models):
        batch = digits.stratified_subset(40)
        for model in models:
            errors = architecture.scale_invariance(model, batch, training=False)
            assert errors["radial"] > 1e-3, errors
            assert min(errors["product"], errors["gradient"], errors["hessian"]) > 0.1, errors

    def test_the_constant_beside_the_variance_breaks_them(self, digits, models, monkeypatch):
        monkeypatch.setattr(architecture, "_TINY", 1e-1)
        errors = architecture.scale_invariance(models[0], digits.stratified_subset(40))
        assert errors["product"] > 1e-3

    def test_hessian_and_gradient_against_plain_autograd(self, digits, models):
        twin = copy.deepcopy(models[1]).double().train()
        for layer in layers(twin):
            layer.norm.eps = 1e-30
        x, y = digits.stratified_subset(40)
        for layer in layers(twin):
            weight = layer.conv.weight
            loss = cross_entropy(twin(x.double()), y)
            (g,) = torch.autograd.grad(loss, weight, create_graph=True)
            (hw,) = torch.autograd.grad((g * weight.detach()).sum(), weight)
            torch.testing.assert_close(hw, -g.detach(), rtol=1e-8, atol=1e-12)

    def test_the_model_is_left_as_it_is(self, digits, models):
        before = {name: value.clone() for name, value in models[0].state_dict().items()}
        architecture.scale_invariance(models[0], digits.stratified_subset(40))
        for name, value in models[0].state_dict().items():
            assert torch.equal(value, before[name])
        assert not models[0].training
        assert layers(models[0])[0].norm.eps == 1e-5
        assert all(p.grad is None or p.dtype == torch.float32 for p in models[0].parameters())

    def test_without_batch_normalisation_there_is_nothing_to_check(self, digits):
        with pytest.raises(ValueError, match="no convolution of this model feeds batch norm"):
            architecture.scale_invariance(network(digits, "plain"), digits.stratified_subset(20))


def test_filter_scale_leaves_normalisation_layers_out(digits):
    model = network(digits, "both")
    scale = dict(
        zip(
            (name for name, _ in model.named_parameters()),
            architecture.filter_scale(model).split([p.numel() for p in model.parameters()]),
            strict=True,
        )
    )
    for name, p in model.named_parameters():
        if "norm" in name:
            assert not scale[name].any()
        elif p.ndim > 1:
            norms = p.detach().flatten(1).norm(dim=1)
            torch.testing.assert_close(scale[name].reshape(len(p), -1)[:, 0], norms)
        else:
            torch.testing.assert_close(scale[name], p.detach().abs())


def test_filter_relative_curvature_ignores_the_scale_of_a_filter(digits):
    """In evaluation mode the running statistics have to be rescaled with the filter."""
    model = network(digits, "bn", dtype=torch.float64).eval()
    data = (digits.x_train[:40].double(), digits.y_train[:40])
    other = copy.deepcopy(model)
    for layer in layers(other):
        layer.norm.eps = 1e-30
    for layer in layers(model):
        layer.norm.eps = 1e-30
    scaled = layers(other)[1]
    with torch.no_grad():
        scaled.conv.weight[0] *= 10
        scaled.norm.running_mean[0] *= 10
        scaled.norm.running_var[0] *= 100
    tops = [architecture._sharpness(m, data, 1e-6) for m in (model, other)]
    first, second = (top["row_lambda_max"]["value"] for top in tops)
    assert second == pytest.approx(first, rel=1e-5)


class TestRun:
    def test_checkpoints_start_at_the_first_reading_below_the_level(self, digits, result):
        assert result["reached"]
        first, second, third = (row["step"] for row in result["level"])
        assert (second - first, third - second) == (2, 2)
        assert first % 5 == 0
        assert result["steps"] == third
        images, labels = digits.stratified_subset(400)
        training = dataclasses.replace(digits, x_train=images, y_train=labels)
        reading = training.stratified_subset(200)
        model = network(digits, "both", seed=1)
        for step in steps(model, TRAINING, training, seed=1):
            loss = float(cross_entropy(predict(model, reading[0]), reading[1]))
            if step == first:
                assert loss == pytest.approx(result["level"][0]["train_loss"], rel=1e-5)
                assert loss <= 0.8
                data = training.stratified_subset(60)
                H = HessianOperator(model, cross_entropy, data)
                H = (H @ torch.eye(H.shape[0])).double()
                scale = architecture.filter_scale(model)
                for name, matrix in (
                    ("lambda_max", H),
                    ("row_lambda_max", scale[:, None] * H * scale),
                ):
                    top = float(torch.linalg.eigvalsh(matrix)[-1])
                    assert result["level"][0][name]["value"] == pytest.approx(top, rel=1e-2)
            if step == third:
                break
            assert step % 5 or step >= first or loss > 0.8
        outputs = predict(model, digits.x_test)
        assert result["test_loss"] == pytest.approx(float(cross_entropy(outputs, digits.y_test)))

    def test_the_rest_is_taken_at_the_last_checkpoint(self, result):
        top = result["level"][-1]["lambda_max"]["value"]
        assert result["outliers"][0] == pytest.approx(top, rel=2e-2)
        assert result["outliers"] == sorted(result["outliers"], reverse=True)
        assert len(result["outliers"]) == len(result["outlier_residuals"]) == 4
        assert result["lambda_min"]["value"] < result["outliers"][-1]
        assert max(result["identity"].values()) < 1e-8
        slices = result["slices"]
        assert slices["positions"] == [-1, -0.5, 0, 0.5, 1]
        centres = [losses[2] for losses in slices["losses"]]
        assert centres[0] == centres[1]
        assert slices["losses"][0][0] != slices["losses"][1][0]
        json.dumps(result, allow_nan=False)

    def test_the_same_seed_gives_the_same_numbers(self, digits, result):
        recipe = ArchitectureRecipe("again", **KINDS["both"], convolutions=2, training=TRAINING)
        assert architecture.measure(recipe, digits, 1, TINY) == result

    def test_a_level_never_reached_is_a_result(self, digits):
        slow = dataclasses.replace(TRAINING, lr=1e-6, epochs=1)
        recipe = ArchitectureRecipe("slow", **KINDS["plain"], convolutions=2, training=slow)
        result = architecture.measure(recipe, digits, 0, TINY)
        assert result == {"reached": False, "level": [], "steps": math.ceil(400 / 64)}

    def test_divergence_is_a_result(self, digits):
        wild = dataclasses.replace(TRAINING, lr=1e38)
        recipe = ArchitectureRecipe("wild", **KINDS["plain"], convolutions=2, training=wild)
        result = architecture.measure(recipe, digits, 0, TINY)
        assert not result["reached"]
        assert result["steps"] == 5


def test_the_study_is_the_registered_one():
    study = find_study("architecture")
    assert len(study.runs()) == 40
    assert {recipe.name for recipe in study.recipes} == {
        f"{kind}_{convolutions}" for kind in KINDS for convolutions in (2, 8)
    }
    for recipe in study.recipes:
        kind, _, convolutions = recipe.name.partition("_")
        assert {"batchnorm": recipe.batchnorm, "residual": recipe.residual} == KINDS[kind]
        assert recipe.convolutions == int(convolutions)
    assert len({recipe.training for recipe in study.recipes}) == 1
    s = study.settings
    assert (s.channels, s.images, s.hessian_images) == (16, 10_000, 2048)
    assert (s.level, s.level_images, s.every, s.checkpoints, s.gap) == (0.02, 4096, 50, 5, 100)
    json.dumps(dataclasses.asdict(study.recipes[0]), allow_nan=False)
