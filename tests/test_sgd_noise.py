"""Stationary covariances, shuffled epochs and gradient noise against references."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_lyapunov
from torch import nn
from torch.nn.functional import cross_entropy

from losslandscape import sgd_noise
from losslandscape.lab.models import mlp
from losslandscape.sgd_noise import (
    batch_factor,
    gradient_noise,
    langevin_covariance,
    shuffled_factor,
    shuffled_profile,
    simulate_quadratic,
    stability_limit,
    stationary_covariance,
    temperature,
)

F64 = torch.float64


def rotation(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0]


def with_spectrum(values, seed):
    basis = rotation(len(values), seed)
    return basis @ torch.diag(torch.tensor(values, dtype=F64)) @ basis.T


def companion(H, lr, momentum):
    """One step of heavy ball on (w, v), and where the noise enters."""
    eye = torch.eye(len(H), dtype=F64)
    step = torch.cat(
        [
            torch.cat([eye - lr * H, -lr * momentum * eye], dim=1),
            torch.cat([H, momentum * eye], dim=1),
        ]
    )
    return step, torch.cat([-lr * eye, eye])


def reference(H, C, lr, momentum):
    """The same covariance from SciPy's solver and the (2D, 2D) system."""
    step, entry = companion(H, lr, momentum)
    whole = solve_discrete_lyapunov(step.numpy(), (entry @ C @ entry.T).numpy())
    return torch.from_numpy(whole)[: len(H), : len(H)]


curvatures = st.lists(st.floats(0.02, 1.0), min_size=1, max_size=5)
variances = st.lists(st.floats(0.0, 1.0), min_size=5, max_size=5)
momenta = st.sampled_from([0.0, 0.3, 0.9])
shares = st.floats(0.01, 0.97)
scales = st.sampled_from([1e-8, 1.0, 1e8])


class TestStationaryCovariance:
    @settings(max_examples=60, deadline=None)
    @given(curvatures, variances, momenta, shares, scales, scales, st.integers(0, 99))
    def test_agrees_with_the_companion_system(self, values, noise, mu, share, a, b, seed):
        H = with_spectrum(values, seed)
        C = with_spectrum(noise[: len(values)], seed + 1)
        lr = share * 2 * (1 + mu) / max(values)
        expected = reference(H, C, lr, mu)
        # Curvature a H with step lr / a is the same walk with noise a C / a = C in other units.
        found = stationary_covariance(a * H, b * C, lr / a, momentum=mu) * (a**2 / b)
        slack = 1e-7 * max(float(expected.abs().max()), 1e-12)
        assert float((found - expected).abs().max()) <= slack

    @settings(max_examples=40, deadline=None)
    @given(curvatures, variances, shares, st.integers(0, 99))
    def test_solves_the_lyapunov_equation_and_its_trace(self, values, noise, share, seed):
        H = with_spectrum(values, seed)
        C = with_spectrum(noise[: len(values)], seed + 1)
        lr = share * 2 / max(values)
        S = stationary_covariance(H, C, lr)
        left = H @ S + S @ H - lr * H @ S @ H
        torch.testing.assert_close(left, lr * C, rtol=1e-9, atol=1e-10 * lr)
        excess = torch.trace(H @ S) / 2
        torch.testing.assert_close(excess, lr / 4 * (torch.trace(C) + torch.trace(H @ S @ H)))
        assert float(torch.linalg.eigvalsh(S)[0]) >= -1e-9 * float(S.abs().max())

    @pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
    def test_commuting_noise_has_its_closed_form(self, mu):
        values, lr = [0.1, 0.5, 2.0], 0.3
        H = with_spectrum(values, 0)
        c = [3.0, 1.0, 2.0]
        by_hand = [
            lr * b / h * (1 + mu) / ((1 - mu) * (2 * (1 + mu) - lr * h))
            for b, h in zip(c, values, strict=True)
        ]
        found = stationary_covariance(H, with_spectrum(c, 0), lr, momentum=mu)
        torch.testing.assert_close(found, with_spectrum(by_hand, 0))

    def test_eq_6_for_isotropic_noise_and_a_ball_for_noise_like_h(self):
        H, lr = with_spectrum([0.1, 0.5, 2.0], 3), 1e-6
        T = temperature(lr, 4, 8.0, momentum=0.5)
        isotropic = stationary_covariance(H, 2 * torch.eye(3, dtype=F64), lr, momentum=0.5)
        torch.testing.assert_close(isotropic / T, torch.linalg.inv(H), rtol=1e-5, atol=1e-5)
        alike = stationary_covariance(H, H, lr)
        torch.testing.assert_close(alike / (lr / 2), torch.eye(3, dtype=F64), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("mu", [0.0, 0.9])
    def test_langevin_is_the_limit_of_small_steps(self, mu):
        H, C = with_spectrum([0.1, 0.5, 2.0], 3), with_spectrum([1.0, 0.0, 3.0], 4)
        limit = langevin_covariance(H, C, 1.0, momentum=mu)
        torch.testing.assert_close(H @ limit + limit @ H, C / (1 - mu))
        errors = [
            float((stationary_covariance(H, C, lr, momentum=mu) / lr - limit).norm())
            for lr in (1e-3, 1e-4)
        ]
        assert 9 < errors[0] / errors[1] < 11  # first order in lr

    @settings(max_examples=60, deadline=None)
    @given(st.floats(1e-3, 1e3), st.sampled_from([0.0, 0.2, 0.9, 0.99]), st.booleans())
    def test_stability_limit_is_where_a_step_stops_contracting(self, lr, mu, averaged):
        limit = stability_limit(lr, momentum=mu, averaged=averaged)
        step = lr * (1 - mu) if averaged else lr
        for factor, stable in ((0.999, True), (1.001, False)):
            H = torch.tensor([[factor * limit]], dtype=F64)
            radius = float(torch.linalg.eigvals(companion(H, step, mu)[0]).abs().max())
            assert (radius < 1) is stable
            own = sgd_noise._contraction(H[0], step, mu)
            assert math.isclose(own, radius, rel_tol=1e-6)

    @pytest.mark.parametrize("mu", [0.0, 0.8])
    def test_simulation_with_gaussian_noise(self, mu):
        H, C = with_spectrum([0.3, 1.0], 0), with_spectrum([0.2, 1.0], 5)
        found = simulate_quadratic(H, C, 0.4, momentum=mu, steps=1500, chains=100, seed=1)
        errors = (found.covariance - stationary_covariance(H, C, 0.4, momentum=mu)).abs()
        assert float((errors / found.stderr).max()) < 4
        assert float((found.stderr / found.covariance.diagonal().max()).max()) < 0.03

    def test_simulation_with_a_sampler_that_sees_the_weights(self):
        # noise of variance 1 + w^2: s (2 h - lr h^2 - lr) = lr
        def sampler(w, generator):
            z = torch.randn(w.shape, generator=generator, dtype=F64)
            return z * torch.sqrt(1 + w**2)

        found = simulate_quadratic(torch.eye(1), sampler, 0.2, steps=3000, chains=200)
        assert abs(found.covariance - 0.2 / (2 - 0.2 - 0.2)) < 4 * found.stderr

    def test_random_state_is_untouched_and_the_seed_decides(self):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        run = [
            simulate_quadratic(torch.eye(2), torch.eye(2), 0.5, steps=5, seed=seed)
            for seed in (1, 1, 2)
        ]
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(run[0].covariance, run[1].covariance)
        assert not torch.equal(run[0].covariance, run[2].covariance)

    @pytest.mark.parametrize("solve", [stationary_covariance, langevin_covariance])
    def test_curvature_that_is_not_positive_is_refused(self, solve):
        for smallest in (0.0, -0.5):
            H = with_spectrum([smallest, 1.0], 0)
            with pytest.raises(ValueError, match=r"smallest curvature .* is not positive"):
                solve(H, torch.eye(2), 0.1)

    def test_curvature_at_the_stability_limit_is_named(self):
        H = torch.diag(torch.tensor([1.0, 40.0]))
        with pytest.raises(ValueError, match=r"curvature 40 .*limit 38 .*lower lr below 0\.095"):
            stationary_covariance(H, torch.eye(2), 0.1, momentum=0.9)
        with pytest.raises(ValueError, match="stability limit 20"):
            simulate_quadratic(H, torch.eye(2), 0.1, steps=1)

    @pytest.mark.parametrize(
        ("hessian", "noise", "lr", "mu", "message"),
        [
            (torch.ones(2), torch.eye(2), 0.1, 0.0, "square matrix"),
            (torch.eye(2), torch.eye(3), 0.1, 0.0, "must agree"),
            (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.eye(2), 0.1, 0.0, "not symmetric"),
            (torch.eye(2) * math.nan, torch.eye(2), 0.1, 0.0, "NaN or infinity"),
            (torch.eye(2), torch.eye(2), 0.0, 0.0, "lr must be positive"),
            (torch.eye(2), torch.eye(2), 0.1, 1.0, r"momentum must lie in \[0, 1\)"),
        ],
    )
    def test_bad_input(self, hessian, noise, lr, mu, message):
        with pytest.raises(ValueError, match=message):
            stationary_covariance(hessian, noise, lr, momentum=mu)

    def test_simulation_refuses_what_is_no_covariance_and_no_run(self):
        with pytest.raises(ValueError, match="negative eigenvalue -1"):
            simulate_quadratic(torch.eye(2), torch.diag(torch.tensor([1.0, -1.0])), 0.1, steps=1)
        with pytest.raises(ValueError, match="must agree"):
            simulate_quadratic(torch.eye(2), torch.eye(3), 0.1, steps=1)
        with pytest.raises(ValueError, match="steps >= 1 and chains >= 2"):
            simulate_quadratic(torch.eye(2), torch.eye(2), 0.1, steps=0)

    def test_temperature_refuses_nonsense(self):
        assert temperature(0.1, 2, 3.0, momentum=0.5) == pytest.approx(0.1 * 3 / 2 / 2 / 0.5)
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            temperature(0.1, 0, 1.0)
        with pytest.raises(ValueError, match="noise_variance"):
            temperature(0.1, 1, -1.0)


class TestShuffledEpochs:
    @pytest.mark.parametrize("shrink", [1e-3, 0.1, 1.0, 1.7])
    @pytest.mark.parametrize("batches", [2, 3, 7])
    def test_profile_agrees_with_the_dense_covariance_of_an_epoch(self, shrink, batches):
        # The noise of an epoch as one vector; the weights at its ends as an AR(1).
        noise = (batches * np.eye(batches) - 1) / (batches - 1)
        keep = 1 - shrink
        rows = np.array(
            [[keep ** (j - i) if i <= j else 0.0 for i in range(batches)] for j in range(batches)]
        )
        fresh = np.diag(rows @ noise @ rows.T)
        decay = keep ** np.arange(1, batches + 1)
        start = fresh[-1] / (1 - decay[-1] ** 2)
        expected = 2 * shrink * (decay**2 * start + fresh)
        np.testing.assert_allclose(shuffled_profile(shrink, batches), expected, rtol=1e-9)

    @settings(max_examples=40, deadline=None)
    @given(st.floats(0.01, 50))
    def test_factor_is_the_mean_of_the_profile_for_small_steps(self, x):
        profile = shuffled_profile(x / 20_000, 20_000)
        assert abs(float(profile.mean()) - shuffled_factor(x)) < 2e-3
        ends = 1 - 2 / x * math.tanh(x / 2)
        assert abs(float(profile[-1]) - ends) < 2e-3
        assert ends < shuffled_factor(x)

    @settings(max_examples=40, deadline=None)
    @given(st.floats(0.05, 0.2))
    def test_series_and_formula_agree_where_they_meet(self, x):
        assert math.isclose(
            shuffled_factor(x), 1 - 2 * (x - 1 + math.exp(-x)) / x**2, rel_tol=1e-10
        )

    def test_limits(self):
        assert shuffled_factor(0) == 0
        assert math.isclose(shuffled_factor(1e-8), 1e-8 / 3, rel_tol=1e-7)
        assert math.isclose(shuffled_factor(1e8), 1 - 2e-8, rel_tol=1e-12)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="x must be finite"):
            shuffled_factor(-1)
        with pytest.raises(ValueError, match="between 0 and 2"):
            shuffled_profile(2.0, 10)
        with pytest.raises(ValueError, match="at least 2 batches"):
            shuffled_profile(0.1, 1)


def classification(count=40, features=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator, dtype=F64)
    return x, torch.randint(classes, (count,), generator=generator)


def gradients_one_by_one(model, loss_fn, data):
    rows = []
    for i in range(len(data[1])):
        loss = loss_fn(model(data[0][i : i + 1]), data[1][i : i + 1])
        pieces = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return torch.stack(rows)


def directions(model, count=4, seed=2):
    size = sum(p.numel() for p in model.parameters())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, count, generator=generator, dtype=F64)


class Branching(nn.Module):
    """A loss that vmap cannot follow: it branches on a value."""

    def forward(self, outputs, targets):
        loss = cross_entropy(outputs, targets)
        return loss if float(loss.detach()) > -1 else 2 * loss


class Root(nn.Module):
    """Infinitely steep at its weight 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, inputs):
        return self.weight.sqrt() + inputs


class InADict(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return {"logits": self.model(inputs)}


class TestGradientNoise:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 99), st.sampled_from([1e-4, 1.0, 1e4]), st.integers(3, 30))
    def test_slopes_of_random_networks_agree_with_single_gradients(self, seed, scale, chunk):
        data = classification(seed=seed)
        model = mlp((6, 5, 3), seed=seed)
        V = scale * directions(model, seed=seed)
        found = gradient_noise(model, cross_entropy, data, V, chunk_size=chunk)
        G = gradients_one_by_one(model, cross_entropy, data)
        torch.testing.assert_close(found.slopes, G @ V, rtol=1e-8, atol=1e-10 * scale)
        torch.testing.assert_close(found.covariance, V.T @ torch.cov(G.T) @ V)
        torch.testing.assert_close(found.variances.values, found.covariance.diagonal())

    def test_convolutions_pooling_and_batch_norm_in_eval_mode(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = (
                nn.Sequential(
                    nn.Conv2d(1, 3, 3),
                    nn.BatchNorm2d(3),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                    nn.Flatten(),
                    nn.Linear(12, 3),
                )
                .double()
                .eval()
            )
            x = torch.randn(9, 1, 6, 6, dtype=F64)
        data = (x, torch.arange(9) % 3)
        V = directions(model)
        found = gradient_noise(model, cross_entropy, data, V)
        G = gradients_one_by_one(model, cross_entropy, data)
        torch.testing.assert_close(found.slopes, G @ V)

    def test_losses_that_vmap_cannot_follow_and_outputs_in_a_dict(self):
        data = classification()
        model = mlp((6, 5, 3), seed=0)
        V = directions(model)
        expected = gradients_one_by_one(model, cross_entropy, data) @ V
        branching = gradient_noise(model, Branching(), data, V)
        torch.testing.assert_close(branching.slopes, expected)
        wrapped = gradient_noise(
            InADict(model), lambda out, y: cross_entropy(out["logits"], y), data, V
        )
        torch.testing.assert_close(wrapped.slopes, expected)

    def test_one_direction_some_parameters_and_a_loader(self):
        data = classification()
        model = mlp((6, 5, 3), seed=0)
        last = list(model.parameters())[-2:]
        V = torch.ones(18, dtype=F64)
        batches = [(data[0][:7], data[1][:7]), (data[0][7:], data[1][7:])]
        found = gradient_noise(model, cross_entropy, batches, V, params=last)
        G = gradients_one_by_one(model, cross_entropy, data)[:, -18:]
        torch.testing.assert_close(found.slopes, G.sum(dim=1, keepdim=True))

    def test_jackknife_is_the_one_by_definition(self):
        data = classification(count=12)
        model = mlp((6, 3), seed=0)
        found = gradient_noise(model, cross_entropy, data, directions(model))
        count = len(found.slopes)
        left_out = torch.stack(
            [torch.cat([found.slopes[:i], found.slopes[i + 1 :]]).var(dim=0) for i in range(count)]
        )
        by_hand = torch.sqrt((count - 1) * left_out.var(dim=0, correction=0))
        torch.testing.assert_close(found.variances.stderrs, by_hand)

    @pytest.mark.parametrize("replacement", [True, False])
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_batch_covariance_agrees_with_all_batches(self, size, replacement):
        data = classification(count=5)
        model = mlp((6, 3), seed=0)
        found = gradient_noise(model, cross_entropy, data, directions(model))
        draws = (
            itertools.product(range(5), repeat=size)
            if replacement
            else itertools.combinations(range(5), size)
        )
        means = torch.stack([found.slopes[list(draw)].mean(dim=0) for draw in draws])
        torch.testing.assert_close(
            found.of_batch(size, replacement=replacement), torch.cov(means.T, correction=0)
        )

    def test_model_and_random_state_are_left_as_they_are(self):
        data = classification()
        model = mlp((6, 5, 3), seed=0)
        model[1].weight.grad = torch.ones_like(model[1].weight)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        torch.manual_seed(3)
        state = torch.get_rng_state()
        gradient_noise(model, cross_entropy, data, directions(model))
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training
        assert torch.equal(model[1].weight.grad, torch.ones_like(model[1].weight))
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])

    def test_bad_input(self):
        data = classification()
        model = mlp((6, 3), seed=0)
        V = directions(model)
        with pytest.raises(ValueError, match=r"vectors of shape \(21,\) or \(21, k\)"):
            gradient_noise(model, cross_entropy, data, V[:-1])
        with pytest.raises(ValueError, match="give at least 3"):
            gradient_noise(model, cross_entropy, (data[0][:2], data[1][:2]), V)
        with pytest.raises(ValueError, match="not the mean over its examples"):
            gradient_noise(model, lambda out, y: cross_entropy(out, y, reduction="sum"), data, V)
        with pytest.raises(ValueError, match="no batch of 6 can be drawn from 5"):
            batch_factor(6, 5, replacement=False)
        x = torch.zeros(4, 1, dtype=F64)
        with pytest.raises(ValueError, match="slope of an example's loss is not finite"):
            gradient_noise(Root(), lambda out, y: out.mean(), (x, x), torch.ones(1))
