"""Average-case sharpness against closed forms; PAC-Bayes bounds against chance itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln, ndtr
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import losslandscape as ll
from losslandscape import pac_bayes, taylor
from losslandscape.lab.models import mlp
from losslandscape.pac_bayes import (
    best_bound,
    binary_kl,
    error_rate,
    expected_increase,
    expected_remainder,
    kl_inverse,
    pac_bayes_bound,
    perturbed_losses,
    relu_kink_increase,
)
from losslandscape.rescaling import rescale_relu

few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 10**6)
scales = st.floats(-8, 8).map(lambda k: 10.0**k)
shares = st.floats(0, 1)


def problem(examples=40, features=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (examples,), generator=generator)


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def mean_cosine(outputs, targets):
    return outputs.cos().mean()


def wave(weights, inputs):
    """The loss ``mean_i cos(x_i' w)``: its mean under noise has a closed form."""
    model = nn.Linear(inputs.shape[1], 1, bias=False, dtype=torch.float64)
    model.weight.data = weights[None].clone()
    return model, (inputs, torch.zeros(len(inputs), 1, dtype=torch.float64))


# Average-case sharpness


@few
@given(seeds, st.floats(-4, 4).map(lambda k: 10.0**k))
def test_quadratic_loss_rises_by_half_the_trace(seed, scale):
    # L = |X w - y|^2 / n has H = 2 X'X / n
    x = problem(seed=seed)[0]
    model = mlp((5, 1), seed=seed)
    data = (x, torch.zeros(len(x), 1, dtype=torch.float64))
    found = expected_increase(model, mse_loss, data, scale, samples=400, seed=seed)
    trace = 2 * (float(x.square().sum()) / len(x) + 1)
    expected = scale**2 * trace / 2
    assert abs(found.value - expected) <= 5 * found.stderr
    assert 0 < found.stderr < 0.2 * expected
    left = expected_remainder(model, mse_loss, data, [scale], samples=8, seed=seed)[0]
    assert abs(left.value) < 1e-9 * max(expected, 1.0)


@few
@given(seeds, st.floats(0.05, 1.0))
def test_mean_of_a_wave_has_its_closed_form(seed, scale):
    # E cos(x'(w + d)) = cos(x'w) exp(-s^2 |x|^2 / 2)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(3, generator=generator, dtype=torch.float64)
    model, data = wave(w, x)
    cosines, half = (x @ w).cos(), scale**2 * x.square().sum(dim=1) / 2
    rise = float((cosines * (torch.exp(-half) - 1)).mean())
    found = expected_increase(model, mean_cosine, data, scale, samples=300, seed=seed)
    assert abs(found.value - rise) <= 5 * found.stderr + 1e-12
    left = expected_remainder(model, mean_cosine, data, [scale], samples=300, seed=seed)[0]
    expected = float((cosines * (torch.exp(-half) - 1 + half)).mean())
    assert abs(left.value - expected) <= 5 * left.stderr + 1e-12


def test_what_is_left_over_falls_like_the_fourth_power_for_a_smooth_network():
    model, data = mlp((5, 6, 3), seed=0), problem()
    steps = torch.logspace(-2.5, -1.5, 5, dtype=torch.float64)
    left = expected_remainder(model, cross_entropy, data, steps.tolist(), samples=64).values
    slope = np.polyfit(steps.log().numpy(), left.abs().log().numpy(), 1)[0]
    assert slope == pytest.approx(4, abs=0.1)
    relu = mlp((5, 6, 3), activation=nn.ReLU, seed=0)
    left = expected_remainder(relu, cross_entropy, data, steps.tolist(), samples=64).values
    assert np.polyfit(steps.log().numpy(), left.abs().log().numpy(), 1)[0] < 3


def test_remainder_is_rise_minus_half_the_trace_and_needs_far_fewer_draws():
    model, data = mlp((5, 6, 3), seed=0), problem()
    trace = float((ll.HessianOperator(model, cross_entropy, data) @ torch.eye(57)).trace())
    rise = expected_increase(model, cross_entropy, data, 0.1, samples=4000, seed=1)
    left = expected_remainder(model, cross_entropy, data, [0.1], samples=400, seed=2)[0]
    error = math.hypot(rise.stderr, left.stderr)
    assert abs(rise.value - 0.01 * trace / 2 - left.value) <= 4 * error
    assert left.stderr < rise.stderr


def test_pairs_remove_the_slope():
    model, data = mlp((5, 6, 3), seed=0), problem()
    paired = expected_increase(model, cross_entropy, data, 1e-3, samples=64)
    single = expected_increase(model, cross_entropy, data, 1e-3, samples=64, antithetic=False)
    assert paired.stderr < single.stderr / 20


def test_scales_share_their_directions():
    x, _ = problem()
    model = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    data = (x, torch.zeros(len(x), 1, dtype=torch.float64))
    small, large = (perturbed_losses(model, mse_loss, data, s, samples=6) for s in (0.1, 0.3))
    torch.testing.assert_close(large, 9 * small)
    torch.testing.assert_close(small[::2], small[1::2])  # d and -d, where the loss is even
    other = perturbed_losses(model, mse_loss, data, 0.1, samples=6, seed=1)
    assert not torch.isclose(other, small).any()


@few
@given(seeds, st.lists(st.floats(-3, 3).map(lambda k: 10.0**k), min_size=2, max_size=2))
def test_adaptive_noise_does_not_see_a_rescaling(seed, alphas):
    model = mlp((5, 4, 4, 3), activation=nn.ReLU, seed=seed % 1000)
    moved, data = rescale_relu(model, alphas), problem(seed=seed)
    options = {"samples": 8, "seed": seed}
    before = perturbed_losses(model, cross_entropy, data, 0.3, adaptive=True, **options)
    after = perturbed_losses(moved, cross_entropy, data, 0.3, adaptive=True, **options)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=0)
    plain = perturbed_losses(model, cross_entropy, data, 0.3, **options)
    if max(alphas) > 3 or min(alphas) < 1 / 3:
        assert not torch.allclose(
            perturbed_losses(moved, cross_entropy, data, 0.3, **options), plain, rtol=1e-3
        )


def test_zero_one_loss_of_a_linear_decision_is_a_normal_probability():
    # w + d decides x rightly with probability Phi(y x'w / (s |x|))
    model = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    losses = perturbed_losses(
        model, error_rate, (x, torch.tensor([0])), 0.7, samples=4000, antithetic=False
    )
    # the difference of two outputs has variance 2 s^2 |x|^2
    expected = ndtr(-1 / (0.7 * math.sqrt(2 * 1.25)))
    assert set(losses.tolist()) == {0.0, 1.0}
    assert float(losses.mean()) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))


def test_model_and_random_state_are_left_alone():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    model = model.double().eval()
    model[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first = perturbed_losses(model, cross_entropy, problem(), 0.1, samples=4, seed=3)
    expected_remainder(model, cross_entropy, problem(), [0.1], samples=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(
        perturbed_losses(model, cross_entropy, problem(), 0.1, samples=4, seed=3), first
    )

    def fails(outputs, targets):
        if not torch.equal(model[3].weight, before["3.weight"]):
            raise RuntimeError("in the middle")
        return cross_entropy(outputs, targets)

    with pytest.raises(RuntimeError, match="middle"):
        perturbed_losses(model, fails, problem(), 0.1)
    assert torch.equal(model[3].weight, before["3.weight"])


def test_frozen_parameters_are_not_perturbed():
    model, data = mlp((5, 4, 3), seed=0), problem()
    for p in model[:2].parameters():
        p.requires_grad_(False)
    inner = nn.Linear(4, 3, dtype=torch.float64)
    inner.load_state_dict(model[3].state_dict())
    with torch.no_grad():
        hidden = model[:3](data[0])
    whole = perturbed_losses(model, cross_entropy, data, 0.2, samples=4)
    torch.testing.assert_close(
        whole, perturbed_losses(inner, cross_entropy, (hidden, data[1]), 0.2, samples=4)
    )


# Kinks


def test_one_kink_has_its_closed_form():
    # outputs v relu(w x + b): with noise on w and b only, the mean activation is known
    x, s = 2.0, 0.3
    sigma = s * math.sqrt(x**2 + 1)
    for w in (0.1, -0.1):
        model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
        for p, value in zip(model.parameters(), (w, 0.0, 3.0, 0.0), strict=True):
            nn.init.constant_(p, value)
        data = (torch.full((1, 1), x).double(), torch.zeros(1, 1).double())

        def output(outputs, targets):
            return outputs.mean()

        u = w * x / sigma
        density = math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
        mean = w * x * ndtr(u) + sigma * density  # of relu(z), z ~ N(w x, sigma^2)
        expected = 3 * (mean - max(w * x, 0))
        assert relu_kink_increase(model, output, data, s) == pytest.approx(expected, rel=1e-12)
        found = expected_increase(model, output, data, s, samples=4000)
        assert abs(found.value - expected) <= 4 * found.stderr


@pytest.mark.parametrize("seed", range(3))
def test_kinks_explain_what_is_left_over_of_a_relu_network(seed):
    model, data = mlp((5, 8, 3), activation=nn.ReLU, seed=seed), problem(examples=400, seed=seed)
    left = expected_remainder(model, cross_entropy, data, [0.02], samples=1000)[0]
    kinks = relu_kink_increase(model, cross_entropy, data, 0.02)
    assert abs(kinks) > 5 * left.stderr
    assert abs(left.value - kinks) <= 4 * left.stderr + 0.1 * abs(kinks)


# Relative entropy of coins


@given(shares, shares)
def test_binary_kl_is_above_pinsker_and_zero_on_the_diagonal(q, p):
    assert binary_kl(q, p) >= 2 * (q - p) ** 2 - 1e-15
    assert binary_kl(q, q) == 0


@given(shares, scales)
def test_inverse_is_the_largest_probability_within_the_budget(q, budget):
    p = kl_inverse(q, budget)
    assert q <= p <= 1
    if p < 1:
        assert binary_kl(q, max(p - 1e-9, q)) <= budget
        assert binary_kl(q, min(p + 1e-6, 1.0)) > budget or p == q
    assert p <= min(q + math.sqrt(budget / 2), 1) + 1e-9  # Pinsker


def test_inverse_at_zero_errors_is_exponential():
    for budget in (1e-8, 0.1, 3.0):
        assert kl_inverse(0.0, budget) == pytest.approx(-math.expm1(-budget), rel=1e-6)


# Bounds


def exponential_moment(n):
    k = np.arange(n + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(k > 0, k * np.log(k / n), 0) + np.where(
            k < n, (n - k) * np.log1p(-k / n), 0
        )
    binomials = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return float(np.exp(binomials + logs).sum())


def test_exponential_moment_of_a_coin_lies_within_maurers_bounds():
    for n in [*range(1, 50), 1000, 60000]:
        assert math.sqrt(n) <= exponential_moment(n) <= 2 * math.sqrt(n) + 1e-9


def test_bound_without_distance_is_the_formula():
    n, delta = 400, 0.1
    budget = math.log(2 * 20 / delta) / n
    assert pac_bayes_bound(0.2, 0.0, 1.0, n, delta=delta, form="root") == pytest.approx(
        0.2 + math.sqrt(budget / 2)
    )
    kl = pac_bayes_bound(0.2, 0.0, 1.0, n, delta=delta)
    assert binary_kl(0.2, kl) == pytest.approx(budget)
    budget += 9 / (2 * 4 * n) + math.log(7) / n
    assert pac_bayes_bound(0.2, 9.0, 2.0, n, delta=delta, grid=7, form="root") == pytest.approx(
        0.2 + math.sqrt(budget / 2)
    )


@given(shares, st.floats(0, 1e8), scales, st.integers(1, 10**7), st.integers(1, 100))
def test_bound_is_monotone_and_kl_is_the_tighter_form(risk, distance, scale, n, grid):
    value = pac_bayes_bound(risk, distance, scale, n, grid=grid)
    assert risk <= value <= 1
    assert value <= pac_bayes_bound(risk, distance, scale, n, grid=grid, form="root") + 1e-9
    assert pac_bayes_bound(risk, 2 * distance, scale, n, grid=grid) >= value - 1e-9
    assert pac_bayes_bound(risk, distance, scale, n, grid=grid + 1) >= value - 1e-9
    assert pac_bayes_bound(risk, distance, scale, n, grid=grid, delta=0.01) >= value - 1e-9


def training_sets(repeats, n, features, seed=0):
    """Coin-flip labels: every classifier errs on half of unseen data."""
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        x, y = rng.standard_normal((n, features)), rng.choice([-1.0, 1.0], n)
        w = np.linalg.lstsq(x, y, rcond=None)[0]
        for radius in (0.3, 1.0, 3.0, 10.0, 30.0):
            v = radius * w / np.linalg.norm(w)
            # mean error under noise of deviation 1, in closed form
            yield radius, float(ndtr(-y * (x @ v) / np.linalg.norm(x, axis=1)).mean())


def test_bound_holds_where_the_true_error_is_known_and_fails_without_the_distance():
    cases = list(training_sets(200, n=40, features=20))
    for form in pac_bayes.FORMS:
        assert all(pac_bayes_bound(risk, r**2, 1.0, 40, form=form) >= 0.5 for r, risk in cases)
    without = np.reshape([pac_bayes_bound(risk, 0, 1.0, 40) < 0.5 for _, risk in cases], (200, -1))
    assert without.any(axis=1).mean() > 0.2


def test_best_bound_is_made_of_its_parts():
    model, data = mlp((5, 3), seed=0), problem(examples=300)
    prior = flat(model)
    taylor.stationary_point(model, cross_entropy, data, weight_decay=1e-2, tol=1e-6)
    found = best_bound(model, data, prior, [0.1, 0.3, 1.0], samples=200, seed=5, delta=0.1)
    assert found.distance_squared == pytest.approx(float((flat(model) - prior).square().sum()))
    assert found.examples == 300
    losses = perturbed_losses(
        model, error_rate, data, found.scale, samples=200, seed=5, antithetic=False
    )
    assert found.risk == pytest.approx(float(losses.mean()))
    assert binary_kl(found.risk, found.risk_bound) == pytest.approx(math.log(20) / 200)
    parts = (found.risk_bound, found.distance_squared, found.scale, 300)
    assert found.value == pac_bayes_bound(*parts, delta=0.05, grid=3)
    assert found.root == pac_bayes_bound(*parts, delta=0.05, grid=3, form="root")
    assert found.profile.shape == (3, 3)
    assert found.scale == found.profile[found.profile[:, 2].argmin(), 0]


def test_bound_on_the_mean_over_noise_covers_it():
    # 0-1 losses of m networks: the mean exceeds its bound in at most delta of many repetitions
    rng = np.random.default_rng(0)
    for mean in (0.02, 0.5):
        shares_seen = rng.binomial(50, mean, size=2000) / 50
        bounds = np.array([kl_inverse(q, math.log(1 / 0.1) / 50) for q in np.unique(shares_seen)])
        missed = np.isin(shares_seen, np.unique(shares_seen)[bounds < mean]).mean()
        assert missed <= 0.1
        if mean == 0.5:
            assert missed > 0.01


# Bad input


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": math.nan}, "scale must be positive"),
        ({"samples": 5}, "even number"),
        ({"samples": 0, "antithetic": False}, "at least 1"),
        ({"scale": 1e308}, "not finite"),
    ],
)
def test_noise_that_is_none_is_refused(options, reason):
    given_options = {"scale": 0.1, **options}
    with pytest.raises(ValueError, match=reason):
        perturbed_losses(mlp((5, 3), seed=0), cross_entropy, problem(), **given_options)


def test_too_few_draws_for_an_error_are_refused():
    model = mlp((5, 3), seed=0)
    with pytest.raises(ValueError, match="no standard error"):
        expected_increase(model, cross_entropy, problem(), 0.1, samples=2)
    with pytest.raises(ValueError, match="4 or more"):
        expected_remainder(model, cross_entropy, problem(), [0.1], samples=2)


def test_kinks_of_another_network_are_refused():
    with pytest.raises(ValueError, match="Linear - Tanh - Linear"):
        relu_kink_increase(mlp((5, 4, 3), seed=0), cross_entropy, problem(), 0.1)
    with pytest.raises(ValueError, match="scale"):
        relu_kink_increase(
            mlp((5, 4, 3), activation=nn.ReLU, seed=0), cross_entropy, problem(), -1.0
        )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"risk": 1.2}, "risk"),
        ({"distance_squared": -1.0}, "distance_squared"),
        ({"scale": 0.0}, "scale"),
        ({"n": 0}, "n and grid"),
        ({"grid": 0}, "n and grid"),
        ({"delta": 1.0}, "delta"),
        ({"form": "catoni"}, "kl, root"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, reason):
    whole = {"risk": 0.1, "distance_squared": 1.0, "scale": 1.0, "n": 100, **arguments}
    with pytest.raises(ValueError, match=reason):
        pac_bayes_bound(**whole)


def test_no_probability_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        binary_kl(-0.1, 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        kl_inverse(1.1, 0.5)
    with pytest.raises(ValueError, match="budget"):
        kl_inverse(0.5, -1.0)


def test_a_bound_needs_scales_a_prior_and_a_bounded_loss():
    model, data = mlp((5, 3), seed=0), problem()
    with pytest.raises(ValueError, match="no scale"):
        best_bound(model, data, flat(model), [])
    with pytest.raises(ValueError, match=r"\(18,\)"):
        best_bound(model, data, flat(model)[:-1], [0.1])
    with pytest.raises(ValueError, match="outside"):
        best_bound(model, data, flat(model), [3.0], loss_fn=cross_entropy)
