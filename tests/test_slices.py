"""Slices, paths and trajectories against closed forms, and the mistakes that public tools make."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from losslandscape.lab.models import mlp
from losslandscape.operators import HessianOperator
from losslandscape.rescaling import rescale_relu
from losslandscape.slices import (
    Bezier,
    Slice,
    barrier,
    bent_path,
    eigen_slice,
    evaluate_at,
    evaluate_on,
    filter_normalised,
    line_through,
    plane_through,
    projection_gap,
    random_slice,
    trajectory_plane,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


def problem(features=5, classes=3, examples=30):
    return normal(examples, features), torch.arange(examples) % classes


def accuracy(outputs, targets):
    return (outputs.argmax(dim=1) == targets).double().mean()


FUNCTIONS = {"loss": cross_entropy, "accuracy": accuracy}
LOSS = {"loss": cross_entropy}


def flat(model):
    return parameters_to_vector(model.parameters()).detach()


class Quadratic(nn.Module):
    """The output is half the quadratic form of a matrix at the weights, minus ``minimum``."""

    def __init__(self, matrix, at, minimum=0.0):
        super().__init__()
        self.matrix, self.minimum = matrix, minimum
        self.weight = nn.Parameter(at.clone().reshape(2, -1))

    def forward(self, inputs):
        w = self.weight.reshape(-1) - self.minimum
        return 0.5 * w @ self.matrix @ w * torch.ones(len(inputs), 1, dtype=w.dtype)


def mean_output(outputs, targets):
    return outputs.mean()


def quadratic(size=6, at=0.0, minimum=0.0):
    root = normal(size, size, seed=5)
    matrix = root @ root.T / size + 0.1 * torch.eye(size)
    return Quadratic(matrix.double(), torch.full((size,), at).double(), minimum), matrix.double()


NOTHING = (torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))


def convolutional():
    """With batch normalisation whose running statistics are not the initial ones."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1, groups=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 3),
    ).double()
    with torch.no_grad():
        model(normal(50, 1, 4, 4, seed=9))
    return model


IMAGES = (normal(24, 1, 4, 4), torch.arange(24) % 3)


class TestSlice:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 3), st.floats(-8, 8), st.integers(0, 50))
    def test_coordinates_and_points_are_inverse(self, k, exponent, seed):
        where = Slice(normal(7, seed=seed), 10**exponent * normal(7, k, seed=seed + 1))
        coordinates = normal(4, k, seed=seed + 2)
        torch.testing.assert_close(where.coordinates(where.at(coordinates)), coordinates)

    def test_short_and_long_directions_together(self):
        basis = normal(7, 2) * torch.tensor([1e-4, 1e4], dtype=torch.float64)
        where = Slice(torch.zeros(7, dtype=torch.float64), basis)
        torch.testing.assert_close(
            where.coordinates(where.at(torch.ones(2))), torch.ones(2).double()
        )

    def test_projection_is_the_closest_point(self):
        where, points = Slice(normal(7), normal(7, 2, seed=1)), normal(5, 7, seed=2)
        rest = points - where.project(points)
        torch.testing.assert_close(rest @ where.basis, torch.zeros(5, 2).double())
        torch.testing.assert_close(where.project(where.project(points)), where.project(points))

    @pytest.mark.parametrize(
        ("origin", "basis", "message"),
        [
            (torch.zeros(3), torch.zeros(3), r"got \(3,\) and \(3,\)"),
            (torch.zeros(3), torch.zeros(4, 1), r"got \(3,\) and \(4, 1\)"),
            (torch.tensor([0.0, float("nan")]), torch.ones(2, 1), "holds NaN or infinity"),
        ],
    )
    def test_wrong_shapes_are_refused(self, origin, basis, message):
        with pytest.raises(ValueError, match=message):
            Slice(origin, basis)

    @pytest.mark.parametrize(
        ("second", "message"), [(0.0, "direction of the slice is zero"), (2.0, "dependent")]
    )
    def test_no_coordinates_without_independent_directions(self, second, message):
        d = torch.tensor([1.0, 2.0])
        where = Slice(torch.zeros(2), torch.stack([d, second * d], dim=1))
        with pytest.raises(ValueError, match=message):
            where.coordinates(torch.ones(2))


class TestFilterNormalised:
    def test_every_filter_has_the_norm_of_the_models_filter(self):
        model = seeded(convolutional)
        direction = random_slice(model, 1, seed=1).basis[:, 0]
        for p, piece in zip(
            model.parameters(),
            direction.split([p.numel() for p in model.parameters()]),
            strict=True,
        ):
            if p.ndim == 1:  # biases, and scale and shift of batch normalisation
                assert (piece == 0).all()
                continue
            for filter_of_model, filter_of_direction in zip(p, piece.view_as(p), strict=True):
                torch.testing.assert_close(filter_of_direction.norm(), filter_of_model.norm())

    def test_filter_by_filter_and_not_layer_by_layer(self):
        # One large and one small filter: a layer's norm would hide the small one.
        model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        model.weight.data = torch.tensor([[1e6, 0.0], [0.0, 1e-6]], dtype=torch.float64)
        found = filter_normalised(model, torch.ones(4, dtype=torch.float64)).view(2, 2)
        torch.testing.assert_close(
            found.norm(dim=1), torch.tensor([1e6, 1e-6], dtype=torch.float64)
        )

    @settings(max_examples=30, deadline=None)
    @given(st.floats(-8, 8), st.floats(-8, 8), st.integers(0, 50))
    def test_only_the_angles_of_the_direction_count(self, exponent, weights, seed):
        model = mlp((4, 3, 2), seed=seed)
        for p in model.parameters():
            p.data *= 10**weights
        direction = normal(len(flat(model)), 2, seed=seed)
        found = filter_normalised(model, direction)
        torch.testing.assert_close(filter_normalised(model, 10**exponent * direction), found)
        torch.testing.assert_close(filter_normalised(model, found), found)

    def test_zero_filters_give_zero_and_no_nan(self):
        model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        model.weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
        found = filter_normalised(model, torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
        assert found.tolist() == [0, 0, 5, 0]
        assert filter_normalised(model, torch.zeros(4).double()).tolist() == [0, 0, 0, 0]

    def test_wrong_input_is_refused(self):
        with pytest.raises(ValueError, match=r"expected a direction of shape \(3,\)"):
            filter_normalised(nn.Linear(2, 1), torch.zeros(4))
        with pytest.raises(ValueError, match="no parameter has two axes"):
            filter_normalised(nn.BatchNorm1d(3), torch.zeros(6))


class TestRandomSlice:
    def test_directions_have_both_signs_and_are_nearly_orthogonal(self):
        # A peer draws uniform numbers in [0, 1]: the cosine of two such directions is near 3/4.
        model = mlp((30, 40, 20), seed=0)
        for normalise in ("filter", "unit"):
            basis = random_slice(model, 2, seed=0, normalise=normalise).basis
            used = basis[basis[:, 0] != 0]
            assert 0.4 < float((used[:, 0] > 0).double().mean()) < 0.6
            assert abs(float(torch.cosine_similarity(*basis.T, dim=0))) < 0.1

    def test_unit_directions_have_length_one(self):
        basis = random_slice(mlp((4, 3, 2), seed=0), 3, seed=0, normalise="unit").basis
        torch.testing.assert_close(basis.norm(dim=0), torch.ones(3).double())

    def test_the_seed_decides_and_the_global_state_is_left_alone(self):
        model = mlp((4, 3, 2), seed=0)
        state = torch.random.get_rng_state()
        one, again, other = (random_slice(model, seed=s).basis for s in (1, 1, 2))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        # More directions do not change the first ones, nor does the type of the weights.
        assert torch.equal(random_slice(model, 5, seed=1).basis[:, :2], one)
        single = random_slice(copy.deepcopy(model).float(), seed=1).basis
        torch.testing.assert_close(single.double(), one, rtol=1e-5, atol=1e-6)

    def test_wrong_input_is_refused(self):
        model = mlp((4, 3, 2), seed=0)
        with pytest.raises(ValueError, match="unknown normalisation 'layer'"):
            random_slice(model, seed=0, normalise="layer")
        with pytest.raises(ValueError, match="k = 0"):
            random_slice(model, 0, seed=0)

    def test_the_mean_curvature_of_random_unit_directions_is_the_trace_over_d(self):
        _, matrix = quadratic(20)
        model = Quadratic(matrix, torch.zeros(20).double())
        basis = random_slice(model, 20_000, seed=0, normalise="unit").basis
        curvature = (basis * (matrix @ basis)).sum(dim=0)
        mean, square = matrix.trace() / 20, (matrix @ matrix).trace() / 20
        # Moments of the uniform distribution on the sphere.
        variance = 2 / 22 * (square - mean**2)
        assert float(curvature.mean()) == pytest.approx(
            float(mean), abs=4 * math.sqrt(float(variance) / 20_000)
        )
        assert float(curvature.var()) == pytest.approx(float(variance), rel=0.05)


class TestRescaling:
    """What filter normalisation makes invariant, and what it does not."""

    MODEL = mlp((5, 7, 6, 3), activation=nn.ReLU, seed=0)
    AXIS = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def picture(self, model, **kwargs):
        where = random_slice(model, 2, seed=3, **kwargs)
        return evaluate_on(model, LOSS, problem(), where, self.AXIS, self.AXIS, progress=False)[
            "loss"
        ]

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.floats(-3, 3), min_size=2, max_size=2))
    def test_rescaled_layers_keep_the_picture_of_the_same_seed(self, exponents):
        rescaled = rescale_relu(self.MODEL, [10**e for e in exponents])
        torch.testing.assert_close(
            self.picture(rescaled), self.picture(self.MODEL), rtol=1e-9, atol=1e-12
        )

    def test_the_direction_is_another_vector_it_is_rescaled_as_the_weights_are(self):
        rescaled = rescale_relu(self.MODEL, [10.0, 10.0])
        before, after = (random_slice(m, 1, seed=3).basis for m in (self.MODEL, rescaled))
        for p, old, new, factor in zip(
            self.MODEL.parameters(),
            before.split([p.numel() for p in self.MODEL.parameters()]),
            after.split([p.numel() for p in self.MODEL.parameters()]),
            (10, 0, 1, 0, 0.1, 0),
            strict=True,
        ):
            assert p.numel() == len(new)
            torch.testing.assert_close(new, factor * old)

    def test_unit_directions_do_not_keep_it(self):
        rescaled = rescale_relu(self.MODEL, [10.0, 10.0])
        change = self.picture(rescaled, normalise="unit") - self.picture(
            self.MODEL, normalise="unit"
        )
        assert float(change.abs().max()) > 0.1

    def test_a_rescaling_unit_by_unit_is_not_covered_beyond_the_first_layer(self):
        units = torch.logspace(-1, 1, 7, dtype=torch.float64)
        rescaled = rescale_relu(self.MODEL, [units, 1.0])
        assert float((self.picture(rescaled) - self.picture(self.MODEL)).abs().max()) > 0.01
        # The first layer's filters are rows with inputs of their own: they are covered.
        pictures = []
        for model in (self.MODEL, rescaled):
            first = [model[1].weight]
            where = random_slice(model, 2, seed=3, params=first)
            pictures.append(
                evaluate_on(
                    model,
                    LOSS,
                    problem(),
                    where,
                    self.AXIS,
                    self.AXIS,
                    params=first,
                    progress=False,
                )["loss"]
            )
        torch.testing.assert_close(*pictures, rtol=1e-9, atol=1e-12)


class TestEigenSlice:
    def test_curvature_along_its_axes_is_the_eigenvalues(self):
        data = problem()
        model = mlp((5, 4, 3), seed=0)
        where, pairs = eigen_slice(model, cross_entropy, data, 2, tol=1e-8, progress=False)
        dense = torch.linalg.eigvalsh(
            HessianOperator(model, cross_entropy, data) @ torch.eye(len(flat(model))).double()
        )
        torch.testing.assert_close(pairs.values, dense[-2:].flip(0), rtol=1e-6, atol=0)
        assert pairs.converged.all()
        torch.testing.assert_close(
            where.basis.T @ where.basis, torch.eye(2).double(), rtol=0, atol=1e-6
        )
        h = 1e-3
        for number in range(2):
            along = Slice(where.origin, where.basis[:, number : number + 1])
            left, here, right = evaluate_on(model, LOSS, data, along, [-h, 0, h], progress=False)[
                "loss"
            ]
            second = float(left - 2 * here + right) / h**2
            assert second == pytest.approx(float(pairs.values[number]), rel=1e-3)

    def test_with_batch_normalisation_in_eval_mode(self):
        # A peer raises here: its state dictionary lacks the buffers.
        model = seeded(convolutional)
        where, pairs = eigen_slice(model, cross_entropy, IMAGES, tol=1e-4, progress=False)
        assert pairs.converged.all()
        found = evaluate_on(model, FUNCTIONS, IMAGES, where, [-0.1, 0, 0.1], [0.0], progress=False)
        assert torch.isfinite(found["loss"]).all()

    def test_the_sign_does_not_depend_on_the_start(self):
        model, data = mlp((5, 4, 3), seed=0), problem()
        one, other = (
            eigen_slice(model, cross_entropy, data, tol=1e-6, seed=s, progress=False)[0].basis
            for s in (0, 1)
        )
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


class TestPlaneThrough:
    @settings(max_examples=30, deadline=None)
    @given(st.floats(-8, 8), st.integers(0, 100))
    def test_coordinates_reproduce_points_and_distances(self, exponent, seed):
        points = 10**exponent * normal(3, 9, seed=seed)
        where = plane_through(*points)
        found = where.coordinates(points)
        torch.testing.assert_close(where.at(found), points)
        torch.testing.assert_close(torch.pdist(found), torch.pdist(points))
        torch.testing.assert_close(where.basis.T @ where.basis, torch.eye(2).double())
        assert found[0].abs().max() <= 1e-12 * 10**exponent
        assert found[1, 0] > 0
        assert abs(found[1, 1]) <= 1e-12 * 10**exponent
        assert found[2, 1] > 0

    def test_single_precision_and_near_collinear_points(self):
        points = normal(3, 1000).float()
        points[2] = 0.3 * points[0] + 0.7 * points[1] + 1e-3 * points[2]
        where = plane_through(*points)
        torch.testing.assert_close(where.basis.T @ where.basis, torch.eye(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(where.project(points), points, rtol=1e-4, atol=1e-4)

    def test_points_that_span_no_plane_are_refused(self):
        a, b = normal(2, 5)
        with pytest.raises(ValueError, match="lie on one line"):
            plane_through(a, b, 3 * b - 2 * a)
        with pytest.raises(ValueError, match="first two points coincide"):
            plane_through(a, a, b)
        with pytest.raises(ValueError, match="first two points coincide"):
            plane_through(a, a, a)
        with pytest.raises(ValueError, match=r"one length, got \(5,\), \(4,\), \(5,\)"):
            plane_through(a, a[:4], b)
        net = mlp((5, 4, 3), seed=0)
        for call in (lambda: plane_through(a, b, net), lambda: line_through(net, net)):
            with pytest.raises(TypeError, match=r"parameters_to_vector.*, got Sequential"):
                call()


class TestEvaluate:
    def test_the_slice_of_a_quadratic_is_the_quadratic_on_it(self):
        model, matrix = quadratic()
        basis = normal(6, 2, seed=1)
        where = Slice(flat(model), basis)
        first, second = [-2.0, -0.3, 0.0, 5.0], [0.5, 4.0, -1.0]
        found = evaluate_on(
            model, {"loss": mean_output}, NOTHING, where, first, second, progress=False
        )["loss"]
        small = basis.T @ matrix @ basis  # the Hessian of a slice
        # Every cell by itself: no row may be shifted, no axis swapped or divided by a distance.
        for i, x in enumerate(first):
            for j, y in enumerate(second):
                c = torch.tensor([x, y], dtype=torch.float64)
                assert float(found[i, j]) == pytest.approx(float(0.5 * c @ small @ c), abs=1e-12)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 100), st.floats(-2, 2))
    def test_curvature_through_a_minimum_is_d_h_d(self, seed, exponent):
        model, matrix = quadratic()
        d = normal(6, seed=seed)
        d = 10**exponent * d / d.norm()
        along = Slice(flat(model), d[:, None])
        left, here, right = evaluate_on(
            model, {"loss": mean_output}, NOTHING, along, [-1, 0, 1], progress=False
        )["loss"]
        assert float(here) == 0
        assert float(left + right) == pytest.approx(float(d @ matrix @ d), rel=1e-9)

    def test_distance_is_a_distance_of_the_weights(self):
        # A peer divides by it: distance 10 reaches a tenth of the way.
        model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        model.weight.data.fill_(0.0)
        ones = torch.ones(2, 1, dtype=torch.float64)
        along = Slice(torch.zeros(1).double(), torch.ones(1, 1).double())
        found = evaluate_on(
            model, {"loss": mse_loss}, (ones, 0 * ones), along, [0, 1, 10], progress=False
        )["loss"]
        assert found.tolist() == [0, 1, 100]

    def test_uneven_batches_and_chunks_are_weighted_exactly(self):
        x, y = problem()
        model = mlp((5, 4, 3), seed=0)
        points = flat(model) + normal(3, len(flat(model)), seed=4)
        whole = evaluate_at(model, FUNCTIONS, (x, y), points, progress=False)
        loader = [(x[:17], y[:17]), (x[17:], y[17:])]
        uneven = evaluate_at(model, FUNCTIONS, loader, points, chunk_size=7, progress=False)
        for point, loss, share in zip(points, whole["loss"], whole["accuracy"], strict=True):
            moved = copy.deepcopy(model)
            vector_to_parameters(point, moved.parameters())
            assert float(loss) == pytest.approx(float(cross_entropy(moved(x), y).detach()))
            assert float(share) == pytest.approx(float(accuracy(moved(x), y)))
        for name in FUNCTIONS:
            torch.testing.assert_close(whole[name], uneven[name])
        # Data that can be read only once are read once.
        once = evaluate_at(model, FUNCTIONS, iter(loader), points, progress=False)
        torch.testing.assert_close(once["loss"], whole["loss"])

    @pytest.mark.parametrize("fail", [False, True])
    def test_the_model_is_left_exactly_as_it_was(self, fail):
        model = seeded(convolutional)
        model[0].weight.requires_grad_(False)
        cross_entropy(model(IMAGES[0]), IMAGES[1]).backward()
        before = copy.deepcopy(model.state_dict())
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        flags = [p.requires_grad for p in model.parameters()]
        objects = [id(p) for p in model.parameters()]
        state = torch.random.get_rng_state()
        where = random_slice(model, 2, seed=0)
        calls = []

        def loss(outputs, targets):
            calls.append(len(outputs))
            if fail and len(calls) > 5:
                raise KeyboardInterrupt
            return cross_entropy(outputs, targets)

        if fail:
            with pytest.raises(KeyboardInterrupt):
                evaluate_on(model, {"loss": loss}, IMAGES, where, [0, 1, 2], [3], progress=False)
        else:
            evaluate_on(model, {"loss": loss}, IMAGES, where, [0, 1, 2], [3], progress=False)
            eigen_slice(model, cross_entropy, IMAGES, max_products=4, progress=False)
            ends = where.at(torch.tensor([[0.0, 0.0], [0.1, 0.0]]))
            bent_path(model, cross_entropy, IMAGES, *ends, steps=3, progress=False)
            projection_gap(model, FUNCTIONS, IMAGES, ends, where, progress=False)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        for p, grad in zip(model.parameters(), grads, strict=True):
            assert grad is None if p.grad is None else torch.equal(p.grad, grad)
        assert [p.requires_grad for p in model.parameters()] == flags
        assert [id(p) for p in model.parameters()] == objects
        assert not any(module.training for module in model.modules())
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_running_statistics_are_no_weights(self):
        # A peer moves running_var too: it turns negative and the loss NaN in half of the plane.
        model = seeded(convolutional)
        where = random_slice(model, 2, seed=0)
        assert len(where.origin) == sum(p.numel() for p in model.parameters())
        axis = torch.linspace(-3, 3, 5)
        found = evaluate_on(model, FUNCTIONS, IMAGES, where, axis, axis, progress=False)
        assert torch.isfinite(found["loss"]).all()

    def test_a_loss_that_overflows_is_not_finite_there_and_only_there(self):
        model, _ = quadratic()
        along = Slice(flat(model), torch.ones(6, 1).double())
        found = evaluate_on(
            model, {"loss": mean_output}, NOTHING, along, [0, 1e200], progress=False
        )["loss"]
        assert found[0] == 0
        assert found[1] == float("inf")

    def test_wrong_input_is_refused(self):
        model, data = mlp((5, 4, 3), seed=0), problem()
        where = random_slice(model, 2, seed=0)
        with pytest.raises(ValueError, match="no function to evaluate"):
            evaluate_at(model, {}, data, [])
        with pytest.raises(TypeError, match=r"dict of functions by name, .* got function"):
            evaluate_at(model, cross_entropy, data, [])
        with pytest.raises(ValueError, match=r"expected weights of shape \(39,\), got \(3,\)"):
            evaluate_at(model, LOSS, data, [torch.zeros(3)], progress=False)
        with pytest.raises(ValueError, match="2 directions but 1 axes"):
            evaluate_on(model, LOSS, data, where, [0.0])
        with pytest.raises(ValueError, match="list of finite numbers"):
            evaluate_on(model, LOSS, data, where, [0.0], [float("nan")])
        with pytest.raises(ValueError, match="not the mean over its examples"):
            evaluate_at(model, {"sum": lambda o, t: cross_entropy(o, t, reduction="sum")}, data, [])
        with pytest.raises(ValueError, match="not the mean over its examples"):
            evaluate_at(model, {**LOSS, "sum": lambda o, t: o.sum()}, data, [])
        with pytest.raises(ValueError, match=r"model\.eval\(\)"):
            evaluate_at(convolutional().train(), LOSS, IMAGES, [])

    def test_no_points_give_no_values(self):
        found = evaluate_at(mlp((5, 4, 3), seed=0), FUNCTIONS, problem(), [], progress=False)
        assert {name: len(values) for name, values in found.items()} == {"loss": 0, "accuracy": 0}


class TestPaths:
    def test_the_straight_path(self):
        a, b = normal(2, 5)
        line = line_through(a, b)
        at = line.at(torch.tensor([[0.0], [0.5], [1.0]]))
        torch.testing.assert_close(at, torch.stack([a, (a + b) / 2, b]))

    def test_a_bezier_curve_and_its_length(self):
        a, m, b = normal(3, 5)
        curve = Bezier(a, m, b)
        torch.testing.assert_close(curve.at(0), a)
        torch.testing.assert_close(curve.at(1), b)
        torch.testing.assert_close(curve.at(0.5), a / 4 + m / 2 + b / 4)
        straight = Bezier(a, (a + b) / 2, b)
        assert straight.length() == pytest.approx(float((b - a).norm()))
        t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        points = torch.stack([curve.at(float(x)) for x in t[::20]])
        polygon = float(points.diff(dim=0).norm(dim=1).sum())
        assert curve.length() == pytest.approx(polygon, rel=1e-6)
        # A parabola, closed form: the middle of ((0,0), (1,2), (2,0)) is at (1,1).
        parabola = Bezier(*torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 0.0]]).double())
        exact = math.sqrt(5) + math.asinh(2) / 2
        assert parabola.length() == pytest.approx(exact, rel=1e-5)

    def test_the_trained_middle_of_a_quadratic_has_a_closed_form(self):
        # The integral of 2t(1-t) H (phi(t) - w) vanishes at m = 5/2 w - 3/4 (a + b), whatever H is.
        w = 0.4
        model, _ = quadratic(at=1.0, minimum=w)
        a, b = 0.3 * normal(2, 6, seed=2)
        curve = bent_path(
            model, mean_output, NOTHING, a, b, steps=4000, lr=0.02, seed=1, progress=False
        )
        torch.testing.assert_close(curve.middle, 2.5 * w - 0.75 * (a + b), rtol=0, atol=0.03)
        assert torch.equal(curve.start, a)
        assert torch.equal(curve.end, b)

    def test_a_bend_goes_round_a_barrier(self):
        # Two wells of a ring: L = (|w|^2 - 1)^2; the straight path crosses the hill at 0.
        class Ring(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.tensor([[1.0, 0.0]], dtype=torch.float64))

            def forward(self, inputs):
                hill = (self.weight.square().sum() - 1) ** 2
                return hill * torch.ones(len(inputs), 1, dtype=torch.float64)

        model, loss = Ring(), {"loss": mean_output}
        ends = torch.tensor([[1.0, 0.05], [-1.0, 0.05]], dtype=torch.float64)
        curve = bent_path(model, mean_output, NOTHING, *ends, steps=2000, lr=0.02, progress=False)
        t = torch.linspace(0, 1, 21, dtype=torch.float64)
        straight = evaluate_on(model, loss, NOTHING, line_through(*ends), t, progress=False)
        bent = evaluate_at(model, loss, NOTHING, [curve.at(float(x)) for x in t], progress=False)
        assert barrier(t, straight["loss"]) > 0.9
        assert barrier(t, bent["loss"]) < 0.15

    def test_seeds_decide_the_bend(self):
        model, data = mlp((5, 4, 3), seed=0), problem()
        ends = flat(model), flat(mlp((5, 4, 3), seed=1))
        one, again, other = (
            bent_path(
                model, cross_entropy, data, *ends, steps=5, batch_size=8, seed=s, progress=False
            )
            for s in (0, 0, 1)
        )
        assert torch.equal(one.middle, again.middle)
        assert not torch.equal(one.middle, other.middle)

    def test_barrier(self):
        t = torch.linspace(0, 1, 11, dtype=torch.float64)
        assert barrier(t, 3 + 2 * t) == pytest.approx(0, abs=1e-12)
        assert barrier(t, t**2) == 0  # convex along the path: never above the chord
        assert barrier(t, 3 + 2 * t + 4 * t * (1 - t)) == pytest.approx(1)
        with pytest.raises(ValueError, match="run from 0 to 1"):
            barrier(t[1:], t[1:])
        with pytest.raises(ValueError, match="as many losses as positions"):
            barrier(t, t[1:])

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [({"steps": 0}, "steps must be"), ({"steps": 1, "lr": 0.0}, "lr must be positive")],
    )
    def test_wrong_input_is_refused(self, kwargs, message):
        model = mlp((5, 4, 3), seed=0)
        with pytest.raises(ValueError, match=message):
            bent_path(model, cross_entropy, problem(), flat(model), flat(model), **kwargs)

    def test_wrong_ends_and_a_diverging_bend_are_refused(self):
        model = mlp((5, 4, 3), seed=0)
        with pytest.raises(ValueError, match=r"shape \(39,\), got \(3,\)"):
            bent_path(model, cross_entropy, problem(), flat(model), torch.zeros(3), steps=1)
        square, _ = quadratic(at=1.0)
        far = torch.full((6,), 1e200, dtype=torch.float64)
        with pytest.raises(FloatingPointError, match="lower lr"):
            bent_path(square, mean_output, NOTHING, far, -far / 2, steps=9, progress=False)


class TestTrajectory:
    def test_components_are_those_of_the_dense_covariance(self):
        points = normal(8, 20) * torch.linspace(3, 0.1, 20, dtype=torch.float64)
        where, explained = trajectory_plane(points)
        centred = points - points.mean(dim=0)
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        torch.testing.assert_close(explained, values.flip(0)[:7] / values.sum())
        alignment = (where.basis.T @ vectors.flip(1)[:, :2]).abs()
        torch.testing.assert_close(alignment, torch.eye(2).double(), rtol=0, atol=1e-8)
        assert torch.equal(where.origin, points[-1])
        assert torch.equal(where.coordinates(points)[-1], torch.zeros(2).double())
        assert (where.coordinates(points)[0] > 0).all()
        assert (trajectory_plane(-points)[0].coordinates(-points)[0] > 0).all()

    def test_what_the_plane_leaves_out_is_what_it_does_not_explain(self):
        points = normal(8, 20)
        where, explained = trajectory_plane(points)
        centred = points - points.mean(dim=0)
        rest = centred - centred @ where.basis @ where.basis.T
        share = float((rest**2).sum() / (centred**2).sum())
        assert share == pytest.approx(1 - float(explained[:2].sum()))

    @pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
    def test_a_plane_trajectory_is_explained_entirely(self, size):
        points = size * normal(9, 2) @ normal(2, 30, seed=1)
        where, explained = trajectory_plane(points)
        assert float(explained[:2].sum()) == pytest.approx(1)
        torch.testing.assert_close(where.project(points), points, rtol=1e-6, atol=1e-8 * size)

    def test_a_random_walk_becomes_cosines(self):
        # Antognini & Sohl-Dickstein (2018): shares 6 / (pi k)^2 and half waves cos(pi k t).
        steps = 100
        walk = normal(steps, 20_000).cumsum(dim=0)
        where, explained = trajectory_plane(walk)
        shares = [6 / (math.pi * k) ** 2 for k in (1, 2, 3)]
        assert explained[:3].tolist() == pytest.approx(shares, rel=0.05)
        time = (np.arange(steps) + 0.5) / steps
        for k, column in enumerate(where.coordinates(walk).T, start=1):
            correlation = np.corrcoef(column.numpy(), np.cos(math.pi * k * time))[0, 1]
            assert abs(correlation) > 0.99

    def test_points_that_span_too_little_are_refused(self):
        line = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None] * normal(1, 9)
        with pytest.raises(ValueError, match="fewer than 2 directions"):
            trajectory_plane(line)
        with pytest.raises(ValueError, match="fewer than 2 directions"):
            trajectory_plane(line.float())
        with pytest.raises(ValueError, match="fewer than 2 directions"):
            trajectory_plane(torch.ones(5, 4))
        with pytest.raises(ValueError, match=r"more than 2 points"):
            trajectory_plane(normal(2, 9))
        assert len(trajectory_plane(line, 1)[1]) == 5

    def test_the_gap_between_points_and_their_projections(self):
        model, matrix = quadratic()
        where = Slice(torch.zeros(6).double(), torch.eye(6).double()[:, :2])
        points = normal(4, 6, seed=3)
        found = projection_gap(
            model, {"loss": mean_output}, NOTHING, points, where, progress=False
        )["loss"]
        flattened = points.clone()
        flattened[:, 2:] = 0
        for row, at, projected in zip(found, points, flattened, strict=True):
            assert float(row[0]) == pytest.approx(float(0.5 * at @ matrix @ at))
            assert float(row[1]) == pytest.approx(float(0.5 * projected @ matrix @ projected))
