"""Remainders, kinks and the stationary point against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from losslandscape import taylor
from losslandscape.lab.models import mlp
from losslandscape.objective import gradient


def problem(examples=30, features=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (examples,), generator=generator)


def unit_direction(model, seed=1):
    size = sum(p.numel() for p in model.parameters())
    generator = torch.Generator().manual_seed(seed)
    d = torch.randn(size, generator=generator, dtype=torch.float64)
    return d / d.norm()


class Power(nn.Module):
    """One weight at 1; the output is its ``power``-th power for every example."""

    def __init__(self, power):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.power = power

    def forward(self, inputs):
        return self.weight**self.power * torch.ones_like(inputs)


def mean_output(outputs, targets):
    return outputs.mean()


RADII = torch.logspace(-2, -1, 9, dtype=torch.float64)


def test_remainders_of_a_cubic_have_their_closed_form():
    # (1 + t)^3 = 1 + 3 t + 3 t^2 + t^3
    x = torch.zeros(4, 1, dtype=torch.float64)
    found = taylor.remainders(Power(3), mean_output, (x, x), torch.ones(1), RADII)
    t = RADII
    expected = torch.stack([3 * t + 3 * t**2 + t**3, 3 * t**2 + t**3, t**3])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_second_difference_of_a_quartic_has_its_closed_form():
    # (1 + h)^4 - 2 + (1 - h)^4 = 12 h^2 + 2 h^4, and four times as much along twice the direction
    x = torch.zeros(4, 1, dtype=torch.float64)
    model, h = Power(4), 0.1
    found = taylor.second_differences(model, mean_output, (x, x), torch.tensor([[1.0, 2.0]]), h)
    expected = [12 + 2 * h**2, 4 * (12 + 2 * (2 * h) ** 2)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert model.weight.item() == 1.0


@pytest.mark.parametrize("step", [0.0, float("nan"), float("inf")])
def test_second_difference_needs_a_step(step):
    x = torch.zeros(4, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^expected a step that is finite and not 0, got"):
        taylor.second_differences(Power(4), mean_output, (x, x), torch.ones(1), step)


def test_quadratic_loss_leaves_no_second_remainder_and_weights_are_put_back():
    x, _ = problem()
    model = nn.Linear(5, 2, dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    data = (x, torch.zeros(len(x), 2, dtype=torch.float64))
    found = taylor.remainders(model, mse_loss, data, unit_direction(model), RADII)
    assert found[2].abs().max() < 1e-14
    assert found[1].abs().min() > 1e-6
    for p, kept in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, kept)


def test_several_directions_are_stacked_last():
    data = problem()
    model = mlp((5, 4, 3), seed=0)
    directions = torch.stack([unit_direction(model, seed) for seed in (1, 2)], dim=1)
    both = taylor.remainders(model, cross_entropy, data, directions, RADII)
    assert both.shape == (3, 9, 2)
    second = taylor.remainders(model, cross_entropy, data, directions[:, 1], RADII)
    torch.testing.assert_close(both[..., 1], second)


def test_smooth_network_has_slopes_one_two_three():
    model = mlp((5, 6, 3), seed=0)
    left = taylor.remainders(model, cross_entropy, problem(), unit_direction(model), RADII / 10)
    slopes = taylor.loglog_slope(RADII / 10, left, dim=1)
    torch.testing.assert_close(slopes, torch.tensor([1.0, 2.0, 3.0]).double(), rtol=0.02, atol=0)


def test_kinks_are_where_the_slope_jumps_and_by_as_much():
    x, y = problem(examples=6)
    model = mlp((5, 4, 3), activation=nn.ReLU, seed=0)
    d = unit_direction(model)
    kinks = taylor.relu_kinks(model, (x, y), d, 3.0)
    assert len(kinks.positions) > 3
    assert (kinks.positions.diff() > 0).all()
    start = nn.utils.parameters_to_vector(model.parameters()).detach()

    def derivative(t):
        nn.utils.vector_to_parameters(start + t * d, model.parameters())
        return float(gradient(model, cross_entropy, (x, y))[1] @ d)

    h = 1e-7
    room = torch.diff(kinks.positions, prepend=torch.zeros(1)).minimum(
        torch.diff(kinks.positions, append=torch.full((1,), 3.0))
    )
    for t, slope, curvature, free in zip(
        kinks.positions, kinks.slope_jumps, kinks.curvature_jumps, room, strict=True
    ):
        assert derivative(t + h) - derivative(t - h) == pytest.approx(float(slope), abs=1e-6)
        k = min(1e-4, float(free) / 4)
        right = (derivative(t + 3 * k) - derivative(t + k)) / (2 * k)
        left = (derivative(t - k) - derivative(t - 3 * k)) / (2 * k)
        assert right - left == pytest.approx(float(curvature), abs=1e-3)
    nn.utils.vector_to_parameters(start, model.parameters())


def test_without_its_kinks_a_relu_network_has_slope_three():
    x, y = problem(examples=400)
    model = mlp((5, 8, 3), activation=nn.ReLU, seed=0)
    slopes, raw = [], []
    for seed in range(11):
        d = unit_direction(model, seed)
        left = taylor.remainders(model, cross_entropy, (x, y), d, RADII)[2]
        kinks = taylor.relu_kinks(model, (x, y), d, 1.0)
        smooth = left - kinks.first_order(RADII) - kinks.second_order(RADII)
        slopes.append(float(taylor.loglog_slope(RADII, smooth)))
        raw.append(float(taylor.loglog_slope(RADII, left)))
        assert (kinks.first_order(RADII).abs() <= kinks.bound(RADII)).all()
    assert np.median(slopes) == pytest.approx(3.0, abs=0.1)
    assert np.median(raw) < 2.6


def test_stationary_point_of_the_penalised_loss_balances_the_gradient():
    x, y = problem()
    model = nn.Linear(5, 3, dtype=torch.float64)
    assert taylor.stationary_point(model, cross_entropy, (x, y), weight_decay=1e-3) <= 1e-12
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    _, grad = gradient(model, cross_entropy, (x, y))
    torch.testing.assert_close(grad, -1e-3 * weights, rtol=0, atol=1e-12)
    assert grad.norm() > 1e-4


def test_one_weight_ridge_has_its_closed_form():
    # mean of (w - 2)^2 plus wd/2 w^2 is stationary at w = 4/(2 + wd)
    model = Power(1)
    data = (torch.zeros(3, 1, dtype=torch.float64), torch.full((3, 1), 2.0, dtype=torch.float64))
    taylor.stationary_point(model, mse_loss, data, weight_decay=0.5)
    assert model.weight.item() == pytest.approx(4 / 2.5, abs=1e-12)


def test_wrong_input_is_refused_with_a_reason():
    data = problem()
    model = mlp((5, 4, 3), seed=0)
    d = unit_direction(model)
    with pytest.raises(ValueError, match=r"shape \(39,\)"):
        taylor.remainders(model, cross_entropy, data, d[:-1], RADII)
    with pytest.raises(ValueError, match="NaN"):
        taylor.losses_along(model, cross_entropy, data, d * float("nan"), RADII)
    with pytest.raises(ValueError, match="Linear - Tanh - Linear"):
        taylor.relu_kinks(model, data, d, 1.0)
    with pytest.raises(ValueError, match="weight_decay"):
        taylor.stationary_point(model, cross_entropy, data, weight_decay=0.0)
    with pytest.raises(RuntimeError, match="max_steps"):
        taylor.stationary_point(model, cross_entropy, data, weight_decay=1.0, max_steps=0)
    single = mlp((5, 4, 3), seed=0, dtype=torch.float32)
    with pytest.raises(ValueError, match="float64"):
        taylor.remainders(single, cross_entropy, (data[0].float(), data[1]), d, RADII)
