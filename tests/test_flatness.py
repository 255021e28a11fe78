"""Fisher-Rao norm, relative flatness, row norms, input Jacobian."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from losslandscape.eigen import lanczos
from losslandscape.flatness import fisher_rao, input_jacobian, relative_flatness, row_scale
from losslandscape.lab import dense_measures
from losslandscape.operators import HessianOperator, ScaledOperator, weight_scale
from losslandscape.rescaling import hidden_layers, rescale_relu

SEEDS = st.integers(0, 10_000)


def relu_net(seed: int, sizes: tuple[int, ...] = (4, 5, 3, 3)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def problem(seed: int, n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=g)


def dense(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    H = HessianOperator(model, cross_entropy, data)
    return H @ torch.eye(len(weight_scale(model)), dtype=H.dtype)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_the_dense_matrices_say_the_same(seed):
    model, data = relu_net(seed), problem(seed)
    at = dense_measures.look(model, data)
    for name, found in {
        "Fisher-Rao norm w'Gw": fisher_rao(model, cross_entropy, data),
        "relative flatness of the last layer": relative_flatness(model, cross_entropy, data),
        "input Jacobian": input_jacobian(model, data[0]),
    }.items():
        assert found.value == pytest.approx(float(dense_measures.MEASURES[name](at)), rel=1e-9)


def test_relative_flatness_of_cross_entropy_in_closed_form():
    model, (x, y) = relu_net(0), problem(0)
    phi = model[:-1](x)
    p, w = model(x).softmax(dim=1), model[-1].weight
    mean = p @ w
    spread = p @ w.square().sum(dim=1) - mean.square().sum(dim=1)
    expected = (phi.square().sum(dim=1) * spread).mean()
    found = relative_flatness(model, cross_entropy, (x, y)).value
    assert found == pytest.approx(float(expected.detach()), rel=1e-12)


def test_relative_flatness_from_random_products_with_the_hessian():
    """kappa is the mean of <WR, H (WR)> over random sign matrices R."""
    model, data = relu_net(1, (4, 6, 3)), problem(1)
    weight = model[-1].weight
    block = HessianOperator(model, cross_entropy, data, params=[weight])
    g = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(1500):
        signs = torch.randint(2, (6, 6), generator=g).double() * 2 - 1
        v = (weight.detach() @ signs).reshape(-1)
        draws.append(float(v @ (block @ v)))
    samples = torch.tensor(draws)
    stderr = float(samples.std()) / len(samples) ** 0.5
    found = relative_flatness(model, cross_entropy, data).value
    assert abs(found - float(samples.mean())) < 4 * stderr


def test_the_standard_error_is_that_of_a_mean_over_examples():
    """Values from many draws of the data scatter as the standard error of one draw says."""
    model = relu_net(2)
    found = [fisher_rao(model, cross_entropy, problem(seed, 40)) for seed in range(60)]
    scatter = float(torch.tensor([f.value for f in found]).std())
    said = float(torch.tensor([f.stderr for f in found]).mean())
    assert said == pytest.approx(scatter, rel=0.35)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.booleans())
def test_rescaling_changes_nothing(seed, unitwise):
    model, data = relu_net(seed), problem(seed)
    g = torch.Generator().manual_seed(seed)
    alphas = [
        (3 * torch.rand(n if unitwise else 1, generator=g, dtype=torch.float64) - 1.5).exp()
        for n in hidden_layers(model).values()
    ]
    other = rescale_relu(model, alphas)

    def change(measure):
        before, after = measure(model), measure(other)
        return after - before if before == 0 else after / before - 1  # a dead network stays dead

    assert abs(change(lambda m: fisher_rao(m, cross_entropy, data).value)) < 1e-9
    assert abs(change(lambda m: input_jacobian(m, data[0]).value)) < 1e-9
    normalised = change(lambda m: relative_flatness(m, cross_entropy, data, normalise=True).value)
    assert abs(normalised) < 1e-9
    plain = change(lambda m: relative_flatness(m, cross_entropy, data).value)

    def by_row(m):
        scaled = ScaledOperator(HessianOperator(m, cross_entropy, data), row_scale(m))
        return float(lanczos(scaled, tol=1e-10).values[0])

    if unitwise:  # neither belongs to that class: the changes are not zero
        assert abs(plain) > 1e-9
    else:
        assert abs(plain) < 1e-9
        assert abs(change(by_row)) < 1e-7


def test_curvature_by_row_does_not_see_the_scale_of_a_filter_before_batch_normalisation():
    """Train mode, batch statistics: the loss does not depend on the norm of each filter."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3, eps=1e-14), nn.ReLU(), nn.Flatten(),
        nn.Linear(48, 3),
    ).double()  # fmt: skip
    data = (torch.randn(20, 1, 6, 6, dtype=torch.float64), torch.randint(3, (20,)))

    def by_row():
        op = HessianOperator(model, cross_entropy, data, allow=["batchnorm"])
        return float(lanczos(ScaledOperator(op, row_scale(model)), tol=1e-10).values[0])

    before = by_row()
    model[0].weight.data[1] *= 7
    assert by_row() == pytest.approx(before, rel=1e-7)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_the_size_of_filters_before_batch_normalisation_changes_nothing(seed):
    """Evaluation mode: the statistics are scaled along, so the function stays."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3, eps=1e-20), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 3),
    ).double().eval()  # fmt: skip
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    data = (torch.randn(12, 1, 4, 4, dtype=torch.float64), torch.randint(3, (12,)))

    def found():
        H, scale, rows = dense(model, data), weight_scale(model), row_scale(model)
        M, N = scale[:, None] * H * scale, rows[:, None] * H * rows
        return torch.tensor(
            [
                float(torch.linalg.eigvalsh(M)[-1]),
                float(M.trace()),
                float(M.trace() ** 2 / M.square().sum()),
                float(torch.linalg.eigvalsh(N)[-1]),
                fisher_rao(model, cross_entropy, data).value,
                relative_flatness(model, cross_entropy, data).value,
                input_jacobian(model, data[0]).value,
            ],
            dtype=torch.float64,
        )

    before, raw = found(), dense(model, data)
    factors = (3 * torch.rand(3, dtype=torch.float64) - 1.5).exp()
    model[0].weight.data *= factors[:, None, None, None]
    model[1].running_mean *= factors
    model[1].running_var *= factors.square()
    torch.testing.assert_close(found(), before, rtol=1e-7, atol=1e-12)
    assert not torch.allclose(dense(model, data), raw, rtol=1e-3)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_what_belongs_to_the_function_does_not_see_units_split_in_two(seed):
    """Fisher-Rao norm and input Jacobian keep; what looks at single weights does not."""
    model, data = relu_net(seed, (4, 5, 3)), problem(seed)
    first, last = model[0], model[2]
    twin = relu_net(0, (4, 10, 3))
    twin[0].weight.data = torch.cat([first.weight.data] * 2)
    twin[0].bias.data = torch.cat([first.bias.data] * 2)
    twin[2].weight.data = torch.cat([last.weight.data / 2] * 2, dim=1)
    twin[2].bias.data = last.bias.data.clone()
    for keeps in (
        lambda m: fisher_rao(m, cross_entropy, data).value,
        lambda m: input_jacobian(m, data[0]).value,
    ):
        assert keeps(twin) == pytest.approx(keeps(model), rel=1e-9)
    tops = [
        float(torch.linalg.eigvalsh(scale[:, None] * dense(m, data) * scale)[-1])
        for m in (model, twin)
        for scale in [weight_scale(m)]
    ]
    assert tops[1] < 0.99 * tops[0]


def test_squared_error_and_several_chunks():
    model, (x, _) = relu_net(3), problem(3)
    targets = torch.randn(30, 3, dtype=torch.float64)
    whole = fisher_rao(model, mse_loss, (x, targets))
    cut = fisher_rao(model, mse_loss, (x, targets), chunk_size=7)
    assert cut.value == pytest.approx(whole.value, rel=1e-12)
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    jacobian = torch.cat(
        [
            torch.autograd.functional.jacobian(
                lambda *ps: torch.func.functional_call(
                    model, dict(zip(dict(model.named_parameters()), ps, strict=True)), (x,)
                ),
                tuple(model.parameters()),
            )[i].reshape(90, -1)
            for i in range(len(list(model.parameters())))
        ],
        dim=1,
    )
    pushed = (jacobian @ weights).reshape(30, 3)
    assert whole.value == pytest.approx(float(2 * pushed.square().mean()), rel=1e-9)


def test_a_loss_linear_in_the_outputs_has_no_curvature():
    model, (x, _) = relu_net(4), problem(4)
    found = fisher_rao(model, lambda out, y: (out * y).mean(), (x, torch.ones(30, 3).double()))
    assert (found.value, found.stderr) == (0.0, 0.0)


def test_features_that_do_not_vary_are_left_out():
    """A dead unit changes nothing, and no deviation of zero is divided by."""
    model, data = relu_net(5, (4, 5, 3)), problem(5)
    model[0].weight.data[2], model[0].bias.data[2] = 0.0, -1.0
    with_dead = relative_flatness(model, cross_entropy, data, normalise=True)
    model[-1].weight.data[:, 2] *= 100
    again = relative_flatness(model, cross_entropy, data, normalise=True)
    assert with_dead.value == pytest.approx(again.value, rel=1e-12)
    assert with_dead.value > 0


def test_the_model_is_left_as_it_is():
    model, data = relu_net(6), problem(6)
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    fisher_rao(model, cross_entropy, data)
    relative_flatness(model, cross_entropy, data)
    input_jacobian(model, data[0])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(m._forward_hooks for m in model.modules())


def test_what_is_refused():
    model, data = relu_net(7), problem(7)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x), x

    def pair_loss(outputs, y):
        return cross_entropy(outputs[0], y)

    with pytest.raises(ValueError, match="one output tensor, the model returns tuple"):
        fisher_rao(Pair(), pair_loss, data)
    with pytest.raises(ValueError, match=r"ends in nn\.Linear"):
        relative_flatness(nn.Sequential(*model, nn.Tanh()), cross_entropy, data)
    with pytest.raises(ValueError, match=r"torch\.int64 have no derivative"):
        input_jacobian(model, torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="no inputs"):
        input_jacobian(model, [])
