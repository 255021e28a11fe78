"""Rescaled networks: the same function, the law of gradient and Hessian, the orbit's minimum."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from losslandscape.lab.data import load_dataset
from losslandscape.lab.dense_measures import MEASURES, largest_changes
from losslandscape.lab.models import cnn, mlp
from losslandscape.objective import gradient
from losslandscape.operators import (
    GaussNewtonOperator,
    HessianOperator,
    ScaledOperator,
)
from losslandscape.rescaling import (
    along_orbit,
    balanced,
    hidden_layers,
    orbit_minimum,
    rescale_relu,
    rescaling_diagonal,
)

CLASSES = 3


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count):
    return torch.arange(count) % CLASSES


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


def small_convolutional():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.PReLU(4), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.LeakyReLU(0.1)),
        nn.AvgPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, CLASSES),
    )


class Functional(nn.Module):
    """A network whose chain is only in its ``forward``."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.third = nn.Linear(6 * 4, 5)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.adaptive_avg_pool2d(self.second(x).relu(), 2)
        x = x.view(x.size(0), -1)
        return F.log_softmax(self.last(torch.relu(self.third(x))), dim=1)


def sequence_network():
    """Linear layers on 3 positions, laid out in a row: units repeat position by position."""
    return nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 6), nn.ReLU(), nn.Linear(6, CLASSES)
    )


CASES = {
    "convolutional": (small_convolutional, (6, 2, 4, 4)),
    "functional": (Functional, (6, 2, 4, 4)),
    "sequence": (sequence_network, (6, 3, 4)),
    "volume": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 2, 2), nn.ReLU(), nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(2, 3)
        ),
        (6, 1, 3, 3, 3),
    ),
    "signal": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(2), nn.Conv1d(2, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3),
            nn.Softmax(dim=1),
        ),
        (6, 2, 4),
    ),
}  # fmt: skip


def random_alphas(model, *, seed, per_unit=True, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    alphas = []
    for units in hidden_layers(model).values():
        count = units if per_unit else 1
        draw = 2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1
        alphas.append((spread * draw).exp())
    return alphas


def dense(op):
    return op @ torch.eye(op.shape[0], dtype=torch.float64)


def assert_law(model, x, alphas, tolerance=1e-9):
    """Outputs, gradient and Hessian of the rescaled network against the law."""
    y = labels(len(x))
    other = rescale_relu(model, alphas)
    torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-12)
    d = rescaling_diagonal(model, alphas)
    w, moved = (parameters_to_vector(m.parameters()).detach() for m in (model, other))
    assert torch.equal(moved, d * w)
    g, after = (gradient(m, cross_entropy, (x, y))[1] for m in (model, other))
    scale = g.abs().max()
    torch.testing.assert_close(d * after, g, rtol=tolerance, atol=tolerance * scale)
    h, after = (dense(HessianOperator(m, cross_entropy, (x, y))) for m in (model, other))
    expected = h / d / d[:, None]
    torch.testing.assert_close(after, expected, rtol=tolerance, atol=1e-12 * expected.abs().max())
    return h, after


@settings(max_examples=25, deadline=None)
@given(
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
    per_unit=st.booleans(),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_law_on_random_networks(widths, seed, per_unit, spread):
    model = mlp((4, *widths, CLASSES), activation=nn.ReLU, seed=seed)
    alphas = random_alphas(model, seed=seed, per_unit=per_unit, spread=spread)
    assert_law(model, normal(7, 4, seed=seed), alphas)


@pytest.mark.parametrize("name", CASES)
def test_law_through_convolutions_pooling_and_layouts(name):
    build, shape = CASES[name]
    model = seeded(build)
    for seed in range(2):
        assert_law(model, normal(*shape), random_alphas(model, seed=seed))


def test_one_hidden_layer_by_hand():
    # f = v relu(u x + b) + c at x = 1: alpha moves (u, b, v, c) = (2, 1, 3, 5) to (4, 2, 1.5, 5)
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    for p, value in zip(model.parameters(), (2.0, 1.0, 3.0, 5.0), strict=True):
        nn.init.constant_(p, value)
    other = rescale_relu(model, [2])
    assert [p.item() for p in other.parameters()] == [4.0, 2.0, 1.5, 5.0]
    assert [p.item() for p in model.parameters()] == [2.0, 1.0, 3.0, 5.0]
    assert other(torch.ones(1, 1)).item() == model(torch.ones(1, 1)).item() == 14.0
    # The Hessian of f itself: d2f/du dv = x, d2f/db dv = 1 and nothing else.
    hessian = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).double()
    d = rescaling_diagonal(model, [2]).double()
    assert torch.equal(hessian / d / d[:, None], hessian)


def test_blocks_of_two_layers():
    model = mlp((4, 5, CLASSES), activation=nn.ReLU, seed=1)
    a = 7.0
    before, after = assert_law(model, normal(9, 4), [a])
    first, second, bias = slice(0, 25), slice(25, 40), slice(40, 43)
    powers = [
        (first, first, -2),
        (second, second, 2),
        (first, second, 0),
        (bias, bias, 0),
        (first, bias, -1),
        (second, bias, 1),
    ]
    for rows, columns, power in powers:
        assert before[rows, columns].abs().max() > 0
        torch.testing.assert_close(after[rows, columns], a**power * before[rows, columns])
    largest = torch.linalg.eigvalsh(after)[-1]
    for block in (first, second, bias):
        assert largest >= torch.linalg.eigvalsh(after[block, block])[-1]


def test_biases_move_with_the_activations_of_their_layer():
    model = mlp((3, 4, 4, CLASSES), activation=nn.ReLU, seed=0)
    other = rescale_relu(model, [2.0, 8.0])
    for place, weight, bias in ((1, 2.0, 2.0), (3, 4.0, 8.0), (5, 1 / 8, 1.0)):
        assert torch.equal(other[place].weight, weight * model[place].weight)
        assert torch.equal(other[place].bias, bias * model[place].bias)


def test_inertia_is_kept():
    for seed in range(5):
        model = mlp((4, 3, 3, CLASSES), activation=nn.ReLU, seed=seed)
        alphas = random_alphas(model, seed=seed, spread=1.0)
        before, after = assert_law(model, normal(20, 4, seed=seed), alphas)
        counts = []
        for matrix in (before, after):
            values = torch.linalg.eigvalsh(matrix)
            zero = 1e-11 * values.abs().max()
            counts.append((int((values > zero).sum()), int((values < -zero).sum())))
        assert counts[0] == counts[1]
        assert counts[0][1] > 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rescalings_form_a_group(seed):
    model = seeded(small_convolutional, seed)
    a, b = (random_alphas(model, seed=seed + k) for k in (0, 1))
    both = parameters_to_vector(rescale_relu(rescale_relu(model, a), b).parameters())
    product = [x * y for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(
        both, parameters_to_vector(rescale_relu(model, product).parameters())
    )
    back = rescale_relu(rescale_relu(model, a), [1 / x for x in a])
    torch.testing.assert_close(
        parameters_to_vector(back.parameters()), parameters_to_vector(model.parameters())
    )


def test_ones_change_no_bit_and_the_argument_is_untouched():
    model = seeded(small_convolutional)
    model.train()
    before = parameters_to_vector(model.parameters()).clone()
    state = torch.get_rng_state()
    same = rescale_relu(model, [1, 1, 1])
    assert torch.equal(parameters_to_vector(same.parameters()), before)
    other = rescale_relu(model, [2, np.float32(3), torch.full((5,), 4)])
    assert torch.equal(parameters_to_vector(model.parameters()), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.training
    assert all(p.requires_grad and p.grad is None for p in other.parameters())
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}


def test_the_network_of_the_report_and_powers_of_two_in_single_precision():
    data = load_dataset("digits")
    model = cnn(data, seed=0, channels=(4, 8), hidden=16)
    assert list(hidden_layers(model).values()) == [4, 8, 16]
    # Powers of two are exact in floating point, so not a bit of any output moves.
    other = rescale_relu(model, [4, 2.0 ** torch.arange(8), 0.5])
    assert torch.equal(other(data.x_test[:50]), model(data.x_test[:50]))


def test_extreme_alphas():
    model = mlp((4, 5, CLASSES), activation=nn.ReLU, seed=0)
    x = normal(9, 4)
    for alpha in (1e-8, 1e8):
        torch.testing.assert_close(rescale_relu(model, [alpha])(x), model(x), rtol=1e-10, atol=1e-9)
    with pytest.raises(ValueError, match=r"range of torch.float32"):
        rescale_relu(mlp((4, 5, 3), activation=nn.ReLU, seed=0, dtype=torch.float32), [1e60])


def test_diagonal_follows_the_parameters_of_an_operator():
    model = mlp((4, 5, CLASSES), activation=nn.ReLU, seed=0)
    model[1].weight.requires_grad_(False)
    assert rescaling_diagonal(model, [10.0]).tolist() == [10.0] * 5 + [0.1] * 15 + [1.0] * 3
    some = rescaling_diagonal(model, [10.0], params=[model[3].bias])
    assert some.tolist() == [1.0] * 3


def test_a_single_layer_has_nothing_to_rescale():
    for model in (nn.Linear(3, 2), nn.Sequential(nn.Tanh(), nn.Linear(3, 2))):
        assert hidden_layers(model) == {}
        assert rescale_relu(model, []) is not model
        with pytest.raises(ValueError, match="no hidden layer"):
            orbit_minimum(model, torch.eye(8))


def positive(size, rank, seed):
    root = normal(rank, size, seed=seed)
    return root.T @ root


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rank=st.integers(1, 6),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_log_lambda_max_is_convex_in_all_log_scales_for_psd(seed, rank, scale):
    matrix = scale * positive(6, rank, seed)
    ends = normal(2, 6, seed=seed + 1)

    def height(s):
        d = s.exp()
        return torch.linalg.eigvalsh(matrix / d / d[:, None])[-1].log()

    chord = (height(ends[0]) + height(ends[1])) / 2
    assert height(ends.mean(dim=0)) <= chord + 1e-10


def test_log_lambda_max_is_convex_along_the_orbit_of_a_network():
    model = mlp((4, 5, 4, CLASSES), activation=nn.ReLU, seed=0)
    matrix = dense(GaussNewtonOperator(model, cross_entropy, (normal(12, 4), labels(12))))
    for seed in range(10):
        ends = normal(2, 2, seed=seed)
        heights = []
        for s in (ends[0], ends[1], ends.mean(dim=0)):
            d = rescaling_diagonal(model, s.exp())
            heights.append(float(torch.linalg.eigvalsh(matrix / d / d[:, None])[-1].log()))
        assert heights[2] <= (heights[0] + heights[1]) / 2 + 1e-10


def test_an_indefinite_matrix_need_not_be_convex():
    matrix = torch.tensor([[-1.0, 1.5], [1.5, -1.0]], dtype=torch.float64)

    def log_height(t):
        d = torch.tensor([t, -t], dtype=torch.float64).exp()
        return math.log(torch.linalg.eigvalsh(matrix / d / d[:, None])[-1])

    assert log_height(0.0) > (log_height(0.7) + log_height(-0.7)) / 2 + 0.1


@pytest.mark.parametrize("name", CASES)
def test_every_way_to_write_a_function_leads_to_the_same_balanced_network(name):
    build, shape = CASES[name]
    model, x = seeded(build), normal(*shape)
    best = parameters_to_vector(balanced(model).parameters()).detach()
    torch.testing.assert_close(balanced(model)(x), model(x), rtol=1e-10, atol=1e-12)
    for seed in range(3):
        other = rescale_relu(model, random_alphas(model, seed=seed))
        found = parameters_to_vector(balanced(other).parameters()).detach()
        torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-8)
        assert best.norm() <= parameters_to_vector(other.parameters()).detach().norm()


def test_a_balanced_network_is_where_the_norm_is_stationary():
    """Each unit has as much norm coming in as going out, biases with what comes in."""
    model = balanced(mlp((4, 5, 6, CLASSES), activation=nn.ReLU, seed=2))
    first, second, last = (m for m in model if isinstance(m, nn.Linear))
    for here, after in ((first, second), (second, last)):
        incoming = here.weight.square().sum(dim=1) + here.bias.square()
        torch.testing.assert_close(incoming, after.weight.square().sum(dim=0), rtol=1e-6, atol=0)


def test_balancing_by_layer_where_units_cannot_be_told_apart_and_dead_units():
    pooled = nn.Sequential(nn.Linear(3, 4), nn.MaxPool1d(2), nn.Linear(2, 3)).double()
    x = normal(5, 2, 3)
    best = balanced(pooled)
    torch.testing.assert_close(best(x), pooled(x))
    sides = [sum(p.square().sum() for p in best[0].parameters()), best[2].weight.square().sum()]
    torch.testing.assert_close(*sides)
    dead = mlp((4, 3, CLASSES), activation=nn.ReLU, seed=0)
    dead[-1].weight.data[:, 1] = 0.0
    before = dead[1].weight[1].detach().clone()
    assert torch.equal(balanced(dead)[1].weight[1], before)


def brute_force(model, matrix, points=201, reach=3.0):
    def height(t):
        d = rescaling_diagonal(model, [math.exp(t)])
        return float(torch.linalg.eigvalsh(matrix / d / d[:, None])[-1])

    return min(height(t) for t in np.linspace(-reach, reach, points))


@pytest.mark.parametrize("seed", range(4))
def test_orbit_minimum_against_brute_force(seed):
    model = mlp((4, 5, CLASSES), activation=nn.ReLU, seed=seed)
    model = rescale_relu(model, [[0.2, 1.0, 5.0][seed % 3]])
    op = GaussNewtonOperator(model, cross_entropy, (normal(12, 4), labels(12)))
    best = orbit_minimum(model, op, tol=1e-4)
    matrix = dense(op)
    assert best.converged
    assert best.lower_bound <= best.value <= best.start
    assert best.value == pytest.approx(brute_force(model, matrix), rel=2e-3)
    assert best.lower_bound <= brute_force(model, matrix) * (1 + 1e-6)
    made = rescale_relu(model, best.alphas)
    there = dense(GaussNewtonOperator(made, cross_entropy, (normal(12, 4), labels(12))))
    assert float(torch.linalg.eigvalsh(there)[-1]) == pytest.approx(best.value, rel=1e-3)


def test_orbit_minimum_does_not_depend_on_where_the_orbit_is_entered():
    model = mlp((4, 5, 4, CLASSES), activation=nn.ReLU, seed=0)
    data = (normal(12, 4), labels(12))
    found = []
    for alphas in ([1.0, 1.0], [3.0, 0.5], [0.3, 2.0]):
        other = rescale_relu(model, alphas)
        op = GaussNewtonOperator(other, cross_entropy, data)
        found.append(orbit_minimum(other, op, tol=1e-3))
    assert all(best.converged for best in found)
    assert max(b.value for b in found) <= 1.002 * min(b.value for b in found)
    assert max(b.start for b in found) > 1.5 * min(b.start for b in found)


def test_orbit_minimum_reports_an_edge_and_a_budget():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    only_first = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    best = orbit_minimum(model, only_first, limit=10.0)
    assert best.alphas.item() == pytest.approx(10.0)
    assert best.value == pytest.approx(0.01)
    lopsided = torch.diag(torch.tensor([1.0, 9.0], dtype=torch.float64))
    assert not orbit_minimum(model, lopsided, max_steps=1).converged


def test_along_orbit_measures_the_networks_it_makes():
    model = mlp((4, 5, 4, CLASSES), activation=nn.ReLU, seed=0)
    data = (normal(12, 4), labels(12))
    alphas = [0.25, 1.0, 8.0]
    found = along_orbit(model, cross_entropy, data, alphas, layer=1, tol=1e-8)
    op = HessianOperator(model, cross_entropy, data)
    for place, alpha in enumerate(alphas):
        scaled = ScaledOperator(op, 1 / rescaling_diagonal(model, [1.0, alpha]))
        expected = torch.linalg.eigvalsh(dense(scaled))[-1]
        assert float(found.lambda_max[place]) == pytest.approx(float(expected), rel=1e-6)
    assert found.lambda_max.max() > 2 * found.lambda_max.min()
    assert float(found.relative.max() / found.relative.min() - 1) < 1e-8
    assert float(found.loss.max() - found.loss.min()) < 1e-12
    assert found.predictions_changed.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="between 0 and 1"):
        along_orbit(model, cross_entropy, data, alphas, layer=2)


# What a common positive factor per layer, and one per unit, must leave alone (derived by hand).
ALWAYS = {
    "largest eigenvalue of |w| H |w|", "trace of |w| H |w|", "participation ratio of |w| H |w|",
    "w'Hw", "w'Hw, each tensor alone", "<w, g>, each tensor alone", "Fisher-Rao norm w'Gw",
    "numbers of positive and negative eigenvalues", "input Jacobian", "loss",
}  # fmt: skip
BY_LAYER = ALWAYS | {
    "trace, per tensor", "largest eigenvalue, per tensor", "trace, per row",
    "relative flatness of the last layer",
}  # fmt: skip


def test_measures_keep_what_they_must_and_nothing_else():
    changes = largest_changes(networks=6, seed=3)
    assert set(changes) == set(MEASURES)
    for name, change in changes.items():
        for kind, kept in (("layer by layer", BY_LAYER), ("unit by unit", ALWAYS)):
            if name in kept:
                assert change[kind] < 1e-8, (name, kind)
            else:
                assert change[kind] > 1e-2, (name, kind)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(h + self.inner(h).relu())


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.one(x) + self.two(x)


class Transposed(nn.Module):
    """A weight used a second time, by name."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return F.linear(self.two(self.one(x).relu()), self.one.weight.T)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)

    def forward(self, x):
        return self.one(x) if x.sum() > 0 else x


def between(*layers):
    return nn.Sequential(nn.Linear(3, 3), *layers, nn.Linear(3, 3))


def tied():
    model = between(nn.ReLU())
    model[2].weight = model[0].weight
    return model


def twice():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


REFUSED = {
    "tanh": (between(nn.Tanh()), r"layer '1' \(Tanh\)"),
    "sigmoid": (between(nn.ReLU(), nn.Sigmoid()), r"layer '2' \(Sigmoid\)"),
    "softplus": (between(nn.Sequential(nn.Softplus())), r"layer '1.0' \(Softplus\)"),
    "gelu": (between(nn.GELU()), r"layer '1' \(GELU\)"),
    "clipped": (between(nn.ReLU6()), r"layer '1' \(ReLU6\)"),
    "batch norm": (between(nn.BatchNorm1d(3), nn.ReLU()), r"layer '1' \(BatchNorm1d\)"),
    "layer norm": (between(nn.LayerNorm(3), nn.ReLU()), r"layer '1' \(LayerNorm\)"),
    "transposed convolution": (
        nn.Sequential(nn.Conv1d(2, 2, 1), nn.ConvTranspose1d(2, 2, 1), nn.Conv1d(2, 2, 1)),
        "ConvTranspose1d",
    ),
    "residual": (Residual(), "residual connection"),
    "parallel": (Heads(), "not fed by layer 'one'"),
    "tied": (tied(), r"'0.weight' is shared with 2.weight"),
    "twice": (twice(), "layer '0' is used 2 times"),
    "transposed": (Transposed(), r"'one.weight' is shared"),
    "branching": (Branching(), "cannot be traced"),
    "spectral norm": (
        nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)), nn.ReLU(), nn.Linear(3, 3)),
        "layer '0' is computed",
    ),
    "no layer": (nn.Sequential(nn.ReLU()), "no Linear or Conv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_without_the_symmetry_are_refused(name):
    model, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as caught:
        rescale_relu(model, [2.0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("alphas", "reason"),
    [
        ([1.0], r"expected 2 alphas, one per hidden layer \('1', '3'\), got 1"),
        ([1.0, 1.0, 1.0], "got 3"),
        (2.0, "one entry per hidden layer"),
        (torch.tensor(2.0), "one entry per hidden layer"),
        ([1.0, 0.0], r"alphas\[1\] must be positive and finite, got 0"),
        ([-1.0, 1.0], r"alphas\[0\].* got -1"),
        ([float("nan"), 1.0], "got nan"),
        ([1.0, float("inf")], "got inf"),
        ([[1.0, 2.0, 3.0], 1.0], r"alphas\[0\] must be a number or 4 numbers.*'1'"),
        ([[1.0, 1.0, 1.0, -2.0], 1.0], "got -2"),
    ],
)
def test_bad_alphas_are_refused(alphas, reason):
    model = mlp((3, 4, 5, CLASSES), activation=nn.ReLU, seed=0)
    with pytest.raises(ValueError, match=reason):
        rescale_relu(model, alphas)


def test_units_that_cannot_be_followed_need_one_number():
    pooled = nn.Sequential(nn.Linear(3, 4), nn.MaxPool1d(2), nn.Linear(2, 3)).double()
    x = normal(5, 2, 3)
    torch.testing.assert_close(rescale_relu(pooled, [3.0])(x), pooled(x))
    with pytest.raises(ValueError, match=r"units of layer '0' cannot be told apart.*'2'"):
        rescale_relu(pooled, [[1.0, 2.0, 3.0, 4.0]])
    unflattened = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Linear(3, 2)).double()
    x = normal(5, 2, 3)
    torch.testing.assert_close(rescale_relu(unflattened, [3.0])(x), unflattened(x))
    with pytest.raises(ValueError, match="cannot be told apart"):
        rescale_relu(unflattened, [[1.0, 2.0, 3.0]])


def test_orbit_minimum_refuses_a_wrong_matrix():
    model = mlp((3, 4, CLASSES), activation=nn.ReLU, seed=0)
    with pytest.raises(ValueError, match="5 rows, the model 31"):
        orbit_minimum(model, torch.eye(5))
    with pytest.raises(ValueError, match="no positive eigenvalue"):
        orbit_minimum(model, -torch.eye(31))
    with pytest.raises(ValueError, match="limit"):
        orbit_minimum(model, torch.eye(31), limit=1.0)
