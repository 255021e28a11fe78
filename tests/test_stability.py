"""Sharpness along training: the parts of lambda_max, ratios to the limit, the figures."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from losslandscape.lab.curvature_split import curvature_split
from losslandscape.lab.models import mlp
from losslandscape.report.figures import stability
from losslandscape.report.stability import against_limit, late


def batch_of(classes=3, images=12, size=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, size, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (images,), generator=generator)


def dense(model, batch):
    """Hessian and Gauss-Newton part, by torch.func alone."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def outputs(flat):
        parts = [part.reshape(s) for part, s in zip(flat.split(sizes), shapes, strict=True)]
        return functional_call(model, dict(zip(names, parts, strict=True)), (batch[0],))

    flat = parameters_to_vector(model.parameters()).detach()
    H = hessian(lambda w: cross_entropy(outputs(w), batch[1]))(flat)
    J = jacrev(outputs)(flat)  # (n, classes, D)
    p = outputs(flat).softmax(dim=1)
    A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return H, torch.einsum("ncd,nce,nef->df", J, A, J) / len(p), p


class TestCurvatureSplit:
    @pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
    def test_against_dense_matrices(self, scale):
        model, batch = mlp((4, 5, 3), seed=1), batch_of()
        with torch.no_grad():
            for p in model.parameters():
                p *= scale
        found = curvature_split(model, batch, tol=1e-8)
        H, G, p = dense(model, batch)
        values, vectors = torch.linalg.eigh(H)
        v = vectors[:, -1]
        assert found.lambda_max == pytest.approx(float(values[-1]), rel=1e-9)
        assert found.gauss_newton == pytest.approx(float(v @ G @ v), rel=1e-6)
        assert found.residual == pytest.approx(float(v @ (H - G) @ v), rel=1e-4, abs=1e-8)
        assert found.uncertainty == pytest.approx(float((p * (1 - p)).sum(dim=1).mean()))

    def test_a_linear_classifier_has_no_residual(self):
        found = curvature_split(mlp((4, 3), seed=0), batch_of(), tol=1e-8)
        assert abs(found.residual) < 1e-9 * found.lambda_max

    def test_equal_probabilities_are_the_most_uncertain(self):
        model = nn.Linear(4, 3, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        found = curvature_split(model, batch_of())
        assert found.uncertainty == pytest.approx(2 / 3)
        assert found.norm == 0

    def test_the_model_is_left_alone(self):
        model = mlp((4, 5, 3), seed=1)
        before = parameters_to_vector(model.parameters()).clone()
        curvature_split(model, batch_of())
        assert torch.equal(parameters_to_vector(model.parameters()), before)
        assert all(p.grad is None for p in model.parameters())

    def test_an_uncertified_value_is_refused(self):
        with pytest.raises(ArithmeticError, match="did not converge"):
            curvature_split(mlp((4, 5, 3), seed=1), batch_of(), tol=1e-30)


def edge_run(limit=20.0):
    path = [
        {
            "step": step,
            "lambda_max": {"value": 10.0 + step},
            "batch_sharpness": {"mean_of_ratios": 5.0, "ratio_of_means": 7.0},
            **({"preconditioned": {"value": 40.0}} if step else {}),
        }
        for step in (0, 10)
    ]
    return {"limit": limit, "path": path, "diverged": False}


def test_against_the_limit():
    run = edge_run()
    assert against_limit(run, "lambda_max") == [(0, 0.5), (10, 1.0)]
    assert against_limit(run, "preconditioned") == [(10, 2.0)]
    assert against_limit(run, "batch_sharpness") == [(0, 0.25), (10, 0.25)]


def test_the_second_half_of_an_odd_path_holds_its_middle():
    assert late([(0, 9.0), (1, 1.0), (2, 3.0)]) == 2
    assert late([(0, 9.0), (1, 1.0)]) == 1


class TestFigures:
    def test_long_run_draws_each_seed_and_each_polish(self):
        rows = [
            {"epoch": e, "lambda_max": {"value": 2.0}, "train_loss": 1.0, "test_accuracy": 0.5}
            for e in (0, 1, 2)
        ]
        rows[1]["polish"] = {"lambda_max": [2.0, 1.0], "train_loss": [1.0, 0.5]}
        figure = stability.long_run([rows, rows])
        assert [len(axes.lines) for axes in figure.axes] == [6, 6, 2]
        assert all(0 not in line.get_xdata() for line in figure.axes[0].lines)

    def test_edge_draws_each_limit_once(self):
        figure = stability.edge({"0.1": [edge_run(), edge_run()], "0.2": [edge_run(10.0)]})
        assert len(figure.axes[0].lines) == 5

    def test_the_others_draw(self):
        assert isinstance(stability.anatomy([0, 1], [1.0, 2.0], [0.9, 0.5]), Figure)
        curves = {"momentum": [[(0, 0.5), (1, 1.0)]], "Adam": [[(1, 0.9)]]}
        figure = stability.ratios(curves, {"Adam": [[(1, 0.4)]]})
        colours = [axes.lines[-2].get_color() for axes in figure.axes]
        assert colours[0] == colours[1]
