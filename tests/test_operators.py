"""The curvature operators against closed forms, dense matrices and their contract."""

import gc
import random
import resource
import warnings
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

from losslandscape.lab.models import mlp
from losslandscape.objective import MeanLoss, gradient
from losslandscape.operators import (
    GaussNewtonOperator,
    HessianOperator,
    ScaledOperator,
    weight_scale,
)


def classification(examples=23, features=4, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (examples,), generator=generator)
    return x, y


def network(activation=nn.Tanh, seed=0):
    return mlp((4, 5, 3), activation=activation, seed=seed)


def dense_hessian(model, loss_fn, x, y):
    """The D x D Hessian by forward-over-reverse differentiation of one flat function."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(vector):
        pieces = [v.view(s) for v, s in zip(vector.split(sizes), shapes, strict=True)]
        return loss_fn(functional_call(model, dict(zip(names, pieces, strict=True)), (x,)), y)

    return torch.func.hessian(loss)(flat)


def random_vector(size, seed=1, columns=None):
    shape = (size,) if columns is None else (size, columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_least_squares_has_its_closed_form():
    x = random_vector(7, columns=3)
    y = random_vector(7, seed=2)[:, None]
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    H = HessianOperator(model, mse_loss, (x, y))
    torch.testing.assert_close(H @ torch.eye(3, dtype=torch.float64), 2 / 7 * x.T @ x)


def test_softmax_regression_has_its_closed_form():
    # H = mean over examples of (diag(p) - p p') kron (x x'), for logits W x.
    x, y = classification()
    model = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    p = torch.softmax(model(x).detach(), dim=1)
    blocks = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nab,ni,nj->aibj", blocks, x, x).reshape(12, 12) / len(x)
    H = HessianOperator(model, cross_entropy, (x, y))
    torch.testing.assert_close(H @ torch.eye(12, dtype=torch.float64), expected)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_agrees_with_the_dense_hessian(activation):
    x, y = classification()
    model = network(activation)
    expected = dense_hessian(model, cross_entropy, x, y)
    H = HessianOperator(model, cross_entropy, (x, y))
    assert H.shape == expected.shape
    torch.testing.assert_close(H @ torch.eye(len(expected), dtype=torch.float64), expected)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 22), max_size=4, unique=True),
    chunk=st.integers(1, 30),
)
def test_any_cut_into_batches_and_chunks_is_the_same_matrix(cuts, chunk):
    x, y = classification()
    edges = [0, *sorted(cuts), len(x)]
    batches = [(x[a:b], y[a:b]) for a, b in pairwise(edges)]
    model = network()
    whole = HessianOperator(model, cross_entropy, (x, y))
    v = random_vector(whole.shape[0])
    cut = HessianOperator(model, cross_entropy, batches, chunk_size=chunk)
    torch.testing.assert_close(cut @ v, whole @ v, rtol=1e-12, atol=1e-14)


def test_a_mean_of_batch_means_would_be_wrong():
    # The mistake this guards against: unequal batches weighted equally.
    x, y = classification()
    model = network()
    H = HessianOperator(model, cross_entropy, [(x[:20], y[:20]), (x[20:], y[20:])])
    v = random_vector(H.shape[0])
    parts = [
        HessianOperator(model, cross_entropy, (x[s], y[s])) @ v
        for s in (slice(20), slice(20, None))
    ]
    assert not torch.allclose(H @ v, sum(parts) / 2, rtol=1e-3)
    torch.testing.assert_close(H @ v, (20 * parts[0] + 3 * parts[1]) / 23)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(-3, 3))
def test_symmetric_and_linear(seed, scale):
    x, y = classification(seed=seed)
    H = HessianOperator(network(seed=seed), cross_entropy, (x, y))
    u, v = random_vector(H.shape[0], seed), random_vector(H.shape[0], seed + 1)
    torch.testing.assert_close(torch.dot(u, H @ v), torch.dot(v, H @ u), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(H @ (u + scale * v), H @ u + scale * (H @ v), rtol=1e-9, atol=1e-11)


def test_gradient_differences_agree():
    x, y = classification()
    model = network()
    H = HessianOperator(model, cross_entropy, (x, y))
    v = random_vector(H.shape[0])
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    sides = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * 1e-5 * v, model.parameters())
        sides.append(gradient(model, cross_entropy, (x, y))[1])
    nn.utils.vector_to_parameters(start, model.parameters())
    torch.testing.assert_close(H @ v, (sides[0] - sides[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_blocks_count_their_columns():
    H = HessianOperator(network(), cross_entropy, classification())
    V = random_vector(H.shape[0], columns=3)
    HV = H @ V
    assert H.products == 3
    assert HV.shape == V.shape
    torch.testing.assert_close(HV[:, 1], H @ V[:, 1])
    assert (H @ V[:, :0]).shape == (H.shape[0], 0)


def test_weights_are_read_at_product_time():
    x, y = classification()
    model = network()
    H = HessianOperator(model, cross_entropy, (x, y))
    v = random_vector(H.shape[0])
    before = H @ v
    for p in model.parameters():
        p.data.mul_(2.0)
    torch.testing.assert_close(H @ v, dense_hessian(model, cross_entropy, x, y) @ v)
    assert not torch.allclose(H @ v, before)
    model.load_state_dict(network().state_dict())
    torch.testing.assert_close(H @ v, before)


def test_a_subset_of_parameters_is_a_block():
    x, y = classification()
    model = network()
    dense = dense_hessian(model, cross_entropy, x, y)
    last = list(model[-1].parameters())
    H = HessianOperator(model, cross_entropy, (x, y), params=reversed(last))
    size = sum(p.numel() for p in last)
    eye = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(H @ eye, dense[-size:, -size:])


def test_frozen_parameters_are_left_out():
    model = network()
    model[1].weight.requires_grad_(False)
    H = HessianOperator(model, cross_entropy, classification())
    assert H.shape[0] == sum(p.numel() for p in model.parameters()) - model[1].weight.numel()


def test_linear_in_the_weights_gives_zero():
    model = nn.Linear(2, 1, dtype=torch.float64)
    data = (random_vector(5, columns=2), torch.zeros(5, 1))
    H = HessianOperator(model, lambda out, _: out.mean(), data)
    assert torch.equal(H @ random_vector(3), torch.zeros(3, dtype=torch.float64))


def test_a_shuffling_loader_defines_one_matrix():
    x, y = classification()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True, drop_last=True
    )
    H = HessianOperator(network(), cross_entropy, loader)
    v = random_vector(H.shape[0])
    assert torch.equal(H @ v, H @ v)


def test_a_loss_that_is_a_weight_itself():
    """It has no function in the graph; its Hessian is zero."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.tensor(2.0))

        def forward(self, inputs):
            return self.level

    model, batch = Constant(), (torch.zeros(3, 1), torch.zeros(3, 1))
    op = HessianOperator(model, lambda outputs, targets: outputs, batch)
    assert (op @ torch.ones(1)).tolist() == [0.0]


def test_a_generator_may_be_read_once():
    x, y = classification()
    once = HessianOperator(
        network(), cross_entropy, ((x[i : i + 5], y[i : i + 5]) for i in range(0, 23, 5))
    )
    v = random_vector(once.shape[0])
    torch.testing.assert_close(once @ v, HessianOperator(network(), cross_entropy, (x, y)) @ v)


def test_nothing_of_the_caller_is_touched():
    x, y = classification()
    model = nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64), network())
    model.eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True
    )
    H = HessianOperator(model, cross_entropy, loader)
    _ = H @ random_vector(H.shape[0])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_prints_as_one_line():
    op = ScaledOperator(torch.eye(3), torch.ones(3))
    assert repr(op) == "<ScaledOperator 3 x 3, float32 on cpu>"


def test_scipy_sees_the_same_matrix():
    x, y = classification()
    model = network()
    dense = dense_hessian(model, cross_entropy, x, y).numpy()
    A = HessianOperator(model, cross_entropy, (x, y)).to_scipy()
    V = random_vector(A.shape[0], columns=2).numpy()
    assert A.dtype == V.dtype
    assert abs(A @ V - dense @ V).max() < 1e-12
    assert abs(A.rmatvec(V[:, 0]) - dense @ V[:, 0]).max() < 1e-12


def test_gradient_is_that_of_the_mean_loss():
    x, y = classification()
    model = network()
    loss, grad = gradient(model, cross_entropy, [(x[:20], y[:20]), (x[20:], y[20:])])
    expected = cross_entropy(model(x), y)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(grad, torch.cat([p.grad.reshape(-1) for p in model.parameters()]))


def image_network(kind):
    """A small network of each kind that users bring, on 6 x 6 images, in float64."""
    torch.manual_seed(0)
    parts = {
        "cnn": [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
        "batchnorm": [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(2)],
        "residual": [Residual(), nn.Conv2d(1, 2, 3, padding=1), nn.Softplus(), nn.MaxPool2d(2)],
    }[kind]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(18, 3)).double().eval()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return x + torch.tanh(self.conv(x))


def images(examples=11):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(examples, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (examples,), generator=generator)


def one_hot_error(outputs, targets):
    return mse_loss(outputs, nn.functional.one_hot(targets, 3).to(outputs.dtype))


@pytest.mark.parametrize("loss_fn", [cross_entropy, one_hot_error])
@pytest.mark.parametrize("kind", ["cnn", "batchnorm", "residual"])
def test_agrees_with_the_dense_hessian_of_image_networks(kind, loss_fn):
    model, (x, y) = image_network(kind), images()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    expected = dense_hessian(model, loss_fn, x, y)
    eye = torch.eye(len(expected), dtype=torch.float64)
    for budget in (0, 1 << 30):
        H = HessianOperator(model, loss_fn, (x, y), chunk_size=4, memory_budget=budget)
        torch.testing.assert_close(H @ eye, expected)
        torch.testing.assert_close(H @ eye[0], expected[0])


def resident_kilobytes():
    """Memory held now; where the system does not say, the most held so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize() // 1024


class TestKeptGraphs:
    """Keeping the graph of the gradient changes speed and memory, never the matrix."""

    @pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
    def test_any_budget_gives_the_same_product(self, operator):
        data, v = classification(), random_vector(43)
        whole = operator(network(), cross_entropy, data, chunk_size=5)
        for _ in range(2):
            torch.testing.assert_close(whole @ v, operator(network(), cross_entropy, data) @ v)
        assert len(whole._graphs) == 5
        some = operator(
            network(), cross_entropy, data, chunk_size=5, memory_budget=whole._graph_bytes // 2
        )
        for _ in range(2):
            torch.testing.assert_close(some @ v, whole @ v)
        assert 0 < len(some._graphs) < 5
        assert some._graph_bytes <= whole._graph_bytes // 2

    def test_the_budget_counts_what_autograd_keeps(self):
        # Linear - tanh - linear in float64: at least the hidden layer and the outputs of 1,000
        # examples are kept, and no more than a dozen tensors of that size.
        H = HessianOperator(network(), cross_entropy, classification(1000), chunk_size=1000)
        _ = H @ random_vector(43)
        assert 1000 * 8 * 8 < H._graph_bytes < 12 * 1000 * 8 * 8

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: model[0].running_mean.add_(1.0),
            lambda model: model[0].running_var.data.mul_(3.0),
            lambda model: model[1][1].weight.data.mul_(3.0),
            lambda model: model[1][1].weight.detach().mul_(3.0),
            lambda model: model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}),
            lambda model: torch.optim.SGD(model.parameters(), lr=10.0).step(),
        ],
    )
    def test_no_change_of_the_model_goes_unseen(self, change):
        x, y = classification()
        model = nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64), network()).eval()
        H = HessianOperator(model, cross_entropy, (x, y))
        v = random_vector(H.shape[0])
        before = H @ v
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with torch.no_grad():
            change(model)
        after = H @ v
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, HessianOperator(model, cross_entropy, (x, y)) @ v)

    def test_no_change_of_the_data_goes_unseen(self):
        x, y = classification()
        H = HessianOperator(network(), cross_entropy, (x, y))
        v = random_vector(H.shape[0])
        _ = H @ v
        x.mul_(2.0)
        torch.testing.assert_close(H @ v, HessianOperator(network(), cross_entropy, (x, y)) @ v)

    @pytest.mark.parametrize("budget", [0, 1 << 30])
    @pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
    def test_memory_is_flat_over_many_products(self, operator, budget):
        H = operator(network(), cross_entropy, classification(200), memory_budget=budget)
        v = random_vector(H.shape[0])

        def tensors():
            return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

        gc.collect()
        gc.disable()  # a reference cycle would now stay
        try:
            for _ in range(20):
                _ = H @ v
            before, alive = resident_kilobytes(), tensors()
            for _ in range(500):
                _ = H @ v
            assert tensors() == alive
            # One leaked graph of 200 examples would be 50 kB or more, 500 of them 25 MB.
            assert resident_kilobytes() - before < 10_000
        finally:
            gc.enable()

    def test_memory_is_flat_over_many_rebuilt_graphs(self):
        # A kept tensor that is the result of its own node (tanh keeps its result) would be a cycle.
        model = network(nn.Tanh)
        H = HessianOperator(model, cross_entropy, classification(1000), chunk_size=1000)
        v = random_vector(H.shape[0])
        gc.collect()
        gc.disable()
        try:
            for repeat in range(320):
                model[1].weight.data.mul_(1.0001)
                _ = H @ v
                if repeat == 20:
                    before = resident_kilobytes()
            # One leaked graph would be 200 kB or more, 300 of them 60 MB.
            assert resident_kilobytes() - before < 20_000
        finally:
            gc.enable()

    def test_a_discarded_operator_is_freed_at_once(self):
        H = HessianOperator(network(), cross_entropy, classification())
        _ = H @ random_vector(H.shape[0])
        alive = weakref.ref(H)
        gc.disable()  # a reference cycle would now stay
        try:
            del H
            assert alive() is None
        finally:
            gc.enable()

    def test_a_model_that_moved_is_refused(self):
        model = network()
        H = HessianOperator(model, cross_entropy, classification())
        model.float()
        with pytest.raises(ValueError, match=r"now torch\.float32 .* make a new one"):
            _ = H @ random_vector(43)

    def test_an_interrupt_leaves_the_model_and_the_operator_intact(self):
        x, y = classification()
        calls = -1000

        def loss(outputs, targets):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return cross_entropy(outputs, targets)

        model = nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64), network()).eval()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        random_state = torch.get_rng_state()
        H = HessianOperator(model, loss, (x, y), chunk_size=4)
        v = random_vector(H.shape[0])
        calls = 0  # the product is broken off in its third chunk
        with pytest.raises(KeyboardInterrupt):
            _ = H @ v
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        torch.testing.assert_close(H @ v, HessianOperator(model, cross_entropy, (x, y)) @ v)


class TestAskedForByName:
    def test_dropout_is_one_fixed_draw(self):
        x, y = classification()
        model = nn.Sequential(network(), nn.Dropout(0.5))
        H = HessianOperator(model, cross_entropy, (x, y), allow=["dropout"], memory_budget=0)
        kept = HessianOperator(model, cross_entropy, (x, y), allow="dropout")
        v, w = random_vector(43), random_vector(43, seed=2)
        before = H @ v
        torch.manual_seed(123)
        assert torch.equal(H @ v, before)
        assert torch.equal(kept @ v, before)
        torch.testing.assert_close(torch.dot(w, H @ v), torch.dot(v, H @ w))
        assert not torch.allclose(before, HessianOperator(network(), cross_entropy, (x, y)) @ v)

    def test_batch_statistics_are_those_of_whole_batches(self):
        x, y = classification()
        model = nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64), network()).train()
        before = model[0].running_mean.clone()
        H = HessianOperator(model, cross_entropy, (x, y), allow=["batchnorm"], chunk_size=5)
        frozen = nn.Sequential(nn.BatchNorm1d(4, momentum=None, dtype=torch.float64), network())
        frozen(x)  # its running averages become the mean and the unbiased variance of this batch
        frozen[0].running_var.mul_((len(x) - 1) / len(x))
        # Biases and weights of the normalisation act alike in both modes.
        expected = HessianOperator(frozen.eval(), cross_entropy, (x, y))
        v = random_vector(H.shape[0])
        torch.testing.assert_close(H @ v, expected @ v)
        assert torch.equal(model[0].running_mean, before)
        assert model.training

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="allow may name batchnorm and dropout, got 'noise'"):
            HessianOperator(network(), cross_entropy, classification(), allow=["noise"])


def test_fused_attention_is_replaced_during_the_product():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12, dtype=torch.float64)
            self.head = nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            mixed = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
            return self.head(mixed[:, 0].mean(dim=1))

    torch.manual_seed(0)
    model = Attention()
    x, y = random_vector(7 * 5, columns=4).reshape(7, 5, 4), torch.arange(7) % 3
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = dense_hessian(model, cross_entropy, x, y)
    H = HessianOperator(model, cross_entropy, (x, y))
    v = random_vector(H.shape[0])
    torch.testing.assert_close(H @ v, expected @ v)
    assert H.replaced == ("ScaledDotProductFlashAttentionForCpu",)
    assert repr(H).endswith(
        "on cpu, mean over 7 examples, plain attention in place of the fused one>"
    )
    assert H.subsample(3).replaced == H.replaced
    plain = HessianOperator(network(), cross_entropy, classification())
    assert plain.replaced == ()
    assert repr(plain) == "<HessianOperator 43 x 43, float64 on cpu, mean over 23 examples>"


def dense_gauss_newton(model, loss_fn, x, y):
    """J' H_out J from the full Jacobian and the full Hessian in the outputs."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def outputs(vector):
        pieces = [v.view(s) for v, s in zip(vector.split(sizes), shapes, strict=True)]
        return functional_call(model, dict(zip(names, pieces, strict=True)), (x,))

    J = torch.func.jacfwd(outputs)(flat).reshape(-1, len(flat))
    inner = torch.func.hessian(lambda f: loss_fn(f, y))(outputs(flat))
    return J.T @ inner.reshape(len(J), len(J)) @ J


class TestGaussNewton:
    @pytest.mark.parametrize("loss_fn", [cross_entropy, one_hot_error])
    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
    def test_agrees_with_the_dense_matrix(self, activation, loss_fn):
        model, (x, y) = network(activation), classification()
        expected = dense_gauss_newton(model, loss_fn, x, y)
        eye = torch.eye(len(expected), dtype=torch.float64)
        batches = [(x[:9], y[:9]), (x[9:], y[9:])]
        for budget in (0, 1 << 30):
            G = GaussNewtonOperator(model, loss_fn, batches, chunk_size=4, memory_budget=budget)
            torch.testing.assert_close(G @ eye, expected)

    def test_is_the_hessian_of_softmax_regression(self):
        x, y = classification()
        model = nn.Linear(4, 3, dtype=torch.float64)
        V = random_vector(15, columns=2)
        G = GaussNewtonOperator(model, cross_entropy, (x, y))
        torch.testing.assert_close(G @ V, HessianOperator(model, cross_entropy, (x, y)) @ V)

    def test_has_no_negative_curvature_where_the_hessian_has(self):
        model, data = network(), classification()
        eye = torch.eye(43, dtype=torch.float64)
        lowest = [
            float(torch.linalg.eigvalsh(operator(model, cross_entropy, data) @ eye)[0])
            for operator in (HessianOperator, GaussNewtonOperator)
        ]
        assert lowest[0] < -1e-3
        assert lowest[1] > -1e-12

    def test_a_loss_without_curvature_in_the_outputs_gives_zero(self):
        data = (classification()[0], random_vector(23, columns=3))
        G = GaussNewtonOperator(network(), nn.functional.l1_loss, data)
        assert not (G @ random_vector(43)).any()

    def test_outputs_must_be_one_tensor(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, x):
                return self.inner(x), x

        G = GaussNewtonOperator(Two(), lambda o, y: cross_entropy(o[0], y), classification())
        with pytest.raises(ValueError, match="one output tensor, the model returns tuple"):
            _ = G @ random_vector(43)


class TestScaled:
    def test_is_the_product_of_three_matrices(self):
        model, data = network(), classification()
        H = HessianOperator(model, cross_entropy, data)
        scale = weight_scale(model)
        M = ScaledOperator(H, scale)
        eye = torch.eye(43, dtype=torch.float64)
        torch.testing.assert_close(M @ eye, scale[:, None] * (H @ eye) * scale)
        assert M.products == 43
        assert M.shape == H.shape

    def test_weight_scales(self):
        model = network()
        flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        assert torch.equal(weight_scale(model), flat.abs())
        per_tensor = weight_scale(model, per="tensor")
        first = model[1].weight.numel()
        torch.testing.assert_close(
            per_tensor[:first],
            torch.full((first,), model[1].weight.detach().norm().item()).double(),
        )
        with pytest.raises(ValueError, match="per must be 'weight' or 'tensor', got 'row'"):
            weight_scale(model, per="row")

    def test_relative_curvature_survives_a_rescaling_that_leaves_the_function_alone(self):
        # ReLU nets compute the same if one layer is multiplied by a and the next divided by a.
        x, y = classification()
        model = mlp((4, 5, 3), activation=nn.ReLU, seed=0)
        other = mlp((4, 5, 3), activation=nn.ReLU, seed=0)
        with torch.no_grad():
            other[1].weight.mul_(10.0)
            other[1].bias.mul_(10.0)
            other[3].weight.div_(10.0)
        eye = torch.eye(43, dtype=torch.float64)

        def top(net, per):
            H = HessianOperator(net, cross_entropy, (x, y))
            matrix = (H if per is None else ScaledOperator(H, weight_scale(net, per=per))) @ eye
            return float(torch.linalg.eigvalsh(matrix)[-1])

        assert top(other, None) > 2 * top(model, None)
        for per in ("weight", "tensor"):
            assert top(other, per) == pytest.approx(top(model, per), rel=1e-9)

    def test_wrong_scale(self):
        with pytest.raises(ValueError, match=r"shape \(3,\), got \(2,\)"):
            ScaledOperator(torch.eye(3), torch.ones(2))
        with pytest.raises(ValueError, match="finite"):
            ScaledOperator(torch.eye(2), torch.tensor([1.0, float("inf")]))


@pytest.mark.parametrize("kind", ["HessianLinearOperator", "GGNLinearOperator"])
def test_agrees_with_an_independent_library(kind):
    curvlinops = pytest.importorskip("curvlinops")
    x, y = classification()
    model = network()
    batches = [(x[:15], y[:15]), (x[15:], y[15:])]  # of unequal size
    params = list(model.parameters())
    theirs = getattr(curvlinops, kind)(
        model, nn.CrossEntropyLoss(), params, batches, check_deterministic=False
    )
    ours = {"HessianLinearOperator": HessianOperator, "GGNLinearOperator": GaussNewtonOperator}[
        kind
    ]
    V = random_vector(43, columns=3)
    torch.testing.assert_close(ours(model, cross_entropy, batches) @ V, theirs @ V)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_cuda_agrees_with_the_cpu(operator):
    data, v = classification(), random_vector(43)
    expected = operator(network(), cross_entropy, data) @ v
    on_gpu = operator(network().cuda(), cross_entropy, data)
    torch.testing.assert_close((on_gpu @ v.cuda()).cpu(), expected)


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_float32_is_close_to_float64(operator):
    x, y = classification()
    v = random_vector(43)
    exact = operator(network(), cross_entropy, (x, y)) @ v
    single = operator(network().float(), cross_entropy, (x.float(), y)) @ v
    assert single.dtype == torch.float32
    assert float((single - exact).norm() / exact.norm()) < 1e-5


def test_reading_the_data_advances_no_generator():
    """Those of a loader, of Python and of NumPy, from which a data set may draw."""

    class Noisy(torch.utils.data.TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + random.random() + np.random.rand(), y  # noqa: NPY002

    own = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(
        Noisy(*classification()), batch_size=4, shuffle=True, generator=own
    )
    states = own.get_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    HessianOperator(network(), cross_entropy, loader)
    gradient(network(), cross_entropy, loader)
    assert torch.equal(own.get_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002


class TestRefusals:
    """Each wrong input gives one line that names the value and the fix."""

    def test_empty_data(self):
        for data in ([], (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))):
            with pytest.raises(ValueError, match="empty"):
                HessianOperator(network(), cross_entropy, data)

    def test_sum_loss(self):
        def loss(outputs, targets):
            return cross_entropy(outputs, targets, reduction="sum")

        for examples in (23, 1):
            with pytest.raises(ValueError, match="mean over its examples"):
                HessianOperator(network(), loss, classification(examples))

    def test_loss_per_example(self):
        def loss(outputs, targets):
            return cross_entropy(outputs, targets, reduction="none")

        with pytest.raises(ValueError, match="scalar"):
            HessianOperator(network(), loss, classification())

    def test_nan_loss(self):
        model = network()
        model[1].weight.data[0, 0] = float("nan")
        with pytest.raises(ValueError, match="loss is nan"):
            HessianOperator(model, cross_entropy, classification())

    def test_weights_that_turn_nan_later(self):
        model = network()
        H = HessianOperator(model, cross_entropy, classification())
        model[1].weight.data[0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"weights '1\.weight' hold NaN"):
            _ = H @ random_vector(H.shape[0])
        with pytest.raises(ValueError, match="not finite: the vector is not"):
            _ = H @ torch.full((43,), float("nan"))

    def test_nan_in_a_later_chunk(self):
        x, y = classification()
        x[-1, 0] = float("nan")  # not among the 20 on which the loss is tried
        H = HessianOperator(network(), cross_entropy, (x, y), chunk_size=5)
        with pytest.raises(ValueError, match="inputs of chunk 4 hold NaN"):
            _ = H @ random_vector(43)
        x[0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"the loss is nan: the inputs .* hold NaN"):
            HessianOperator(network(), cross_entropy, (x, y), chunk_size=5)

    def test_what_is_no_batch(self):
        x, y = classification()
        for data, reason in (
            ((x.numpy(), y.numpy()), "got ndarray and ndarray"),
            ([(x, y.tolist())], "got a list in it"),
            (
                torch.utils.data.TensorDataset(x, y),
                "data set of single examples: wrap it in a DataLoader",
            ),
            (x, "got one tensor"),
            ([x], "got Tensor"),
            ((x.to_sparse(), y), "a sparse tensor: make it dense"),
            ([(x.to_sparse_csr(), y)], "a sparse tensor: make it dense"),
            ((torch.nested.nested_tensor(list(x)), y), "a nested tensor: make it dense"),
            (iter([]), "read only once"),
        ):
            with pytest.raises(ValueError, match=reason):
                HessianOperator(network(), cross_entropy, data)

    def test_batches_of_other_forms(self):
        x, y = classification()
        for data, reason in (
            ([{"x": x, "y": y}], "got dict: make pairs of two tensors"),
            ([(x, y, y)], "got tuple of 3: make pairs"),
            ([((x, x), y)], r"got a tuple in it \(several inputs: one tensor that"),
        ):
            with pytest.raises(ValueError, match=reason):
                HessianOperator(network(), cross_entropy, data)

    def test_what_has_no_second_derivative(self):
        x, y = classification()

        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx, outputs):
                ctx.save_for_backward(outputs)
                return outputs**3

            @staticmethod
            @once_differentiable
            def backward(ctx, slope):
                return 3 * ctx.saved_tensors[0] ** 2 * slope

        class Hidden(nn.Module):
            def __init__(self, function):
                super().__init__()
                self.net, self.function = network(), function

            def forward(self, inputs):
                return self.net[2](self.function(self.net[1](self.net[0](inputs))))

        def on_outputs(outputs, targets):
            return cross_entropy(Once.apply(outputs), targets)

        def again(inputs):
            return checkpoint(torch.tanh, inputs, use_reentrant=True)

        once = "Once has no second derivative: its backward is once_differentiable"
        for model, loss_fn, words in (
            (network(), on_outputs, once),  # PyTorch gives zero here
            (Hidden(Once.apply), cross_entropy, once),
            (Hidden(again), cross_entropy, r"checkpoint\(use_reentrant=True\) has no second"),
            (network(), lambda o, t: cross_entropy(o.detach(), t), "has no derivative by the wei"),
        ):
            with pytest.raises(ValueError, match=words):
                HessianOperator(model, loss_fn, (x, y))

    def test_what_has_none_does_not_matter_off_the_way_to_the_parameters(self):
        x, y = classification()

        class Backbone(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.block = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh())
                self.head = nn.Linear(5, 3)

            def forward(self, inputs):
                return self.head(checkpoint(self.block, self.first(inputs), use_reentrant=True))

        model = Backbone().double()
        refused = "use_reentrant=True"
        head = HessianOperator(model, cross_entropy, (x, y), params=model.head.parameters())
        assert torch.isfinite(head @ random_vector(18)).all()
        for params in (None, model.first.parameters(), model.block.parameters()):
            with pytest.raises(ValueError, match=refused):
                HessianOperator(model, cross_entropy, (x, y), params=params)

    def test_examples_that_do_not_count(self):
        model, (x, y) = network(), classification()

        def loss(outputs, targets):
            counts = targets > 0
            if not counts.any():
                return torch.zeros((), dtype=torch.float64)
            return (outputs.square().sum(dim=1) * counts).mean()

        rows = y.argsort()
        assert y[rows[:2]].tolist() == [0, 0]
        H = HessianOperator(model, loss, (x[rows], y[rows]))
        v = random_vector(43)
        torch.testing.assert_close(H @ v, HessianOperator(model, loss, (x, y)) @ v)

    def test_compiled_complex_and_inference(self):
        data = classification()
        compiled = torch.compile(network())  # nothing is compiled before it is called
        with pytest.raises(ValueError, match="give model"):
            HessianOperator(compiled, cross_entropy, data)
        with torch.inference_mode(), pytest.raises(ValueError, match="leave torch"):
            HessianOperator(network(), cross_entropy, data)
        with torch.inference_mode():  # no derivative is asked for
            assert MeanLoss(network(), cross_entropy, data).value() > 0
        complex_model = nn.ParameterList([torch.ones(2, dtype=torch.complex64)])
        with pytest.raises(ValueError, match="complex weights are not supported"):
            HessianOperator(complex_model, cross_entropy, data)

    def test_a_loss_class(self):
        with pytest.raises(TypeError, match="class CrossEntropyLoss: give an instance"):
            HessianOperator(network(), nn.CrossEntropyLoss, classification())

    def test_arguments_in_another_order_or_of_another_kind(self):
        model, (x, y) = network(), classification()
        for arguments, words in (
            ((model, (x, y), cross_entropy), "loss_fn cannot be a tuple: the order is model, loss"),
            ((cross_entropy, model, (x, y)), "model cannot be a function: the order is model, los"),
            ((model, cross_entropy, mse_loss), "an iterable of pairs .*, got function"),
        ):
            with pytest.raises(TypeError, match=words):
                HessianOperator(*arguments)
        named = nn.ParameterDict({"weight": model[1].weight})
        for params in (model[1], "1.weight", model[1].weight, named, 3, model):
            with pytest.raises(TypeError, match=r"such as list\(layer\.parameters"):
                HessianOperator(model, cross_entropy, (x, y), params=params)
        with pytest.raises(TypeError, match="got generator of tuple"):
            HessianOperator(model, cross_entropy, (x, y), params=model.named_parameters())
        some = nn.ParameterList([model[1].weight])
        H = HessianOperator(model, cross_entropy, (x, y), params=some)
        assert H.shape[0] == model[1].weight.numel()
        with pytest.raises(ValueError, match="no parameter to differentiate: params is empty"):
            HessianOperator(model, cross_entropy, (x, y), params=[])
        with pytest.raises(TypeError, match="recompute must be a list of modules, got a Linear"):
            HessianOperator(model, cross_entropy, (x, y), recompute=model[1])

    def test_what_model_or_loss_cannot_take(self):
        x, y = classification()

        class Pair(nn.Sequential):
            def forward(self, inputs):
                return super().forward(inputs), None

        for model, data, words in (
            (Pair(network()), (x, y), "returns a tuple: let loss_fn choose from it"),
            (network(), (x.float(), y), r"the model fails .* hold torch\.float32, the weights are"),
            (network(), (x[:, :2], y), "the model fails on a batch of 23: mat1 and mat2"),
            (network(), (x, y + 9), "the loss fails on a batch of 23: IndexError: Target"),
        ):
            with pytest.raises(ValueError, match=words) as caught:
                HessianOperator(model, cross_entropy, data)
            assert caught.value.__cause__ is not None  # the traceback shows where

    def test_ignored_labels(self):
        x, y = classification()
        y[:3] = -100
        with pytest.raises(ValueError, match="reduction='sum' and divide by len"):
            HessianOperator(network(), cross_entropy, (x, y))

        def loss(outputs, targets):
            return cross_entropy(outputs, targets, reduction="sum") / len(targets)

        H = HessianOperator(network(), loss, (x, y), chunk_size=5)
        kept = HessianOperator(network(), cross_entropy, (x[3:], y[3:]))
        v = random_vector(43)
        torch.testing.assert_close(H @ v, (kept @ v) * (len(y) - 3) / len(y))

    def test_ignored_labels_are_seen_wherever_they_are(self):
        x, y = classification(64)
        balanced = y.clone()
        balanced[[3, 40]] = -100  # one in each half
        late = y.clone()
        late[60] = -100  # in the last chunk
        for labels, size in ((balanced, 64), (late, 32)):
            with pytest.raises(ValueError, match="reduction='sum' and divide by len"):
                HessianOperator(network(), cross_entropy, (x, labels), chunk_size=size)

    def test_a_sum_is_seen_where_the_network_is_right(self):
        x = torch.eye(4, dtype=torch.float64).repeat(3, 1)
        y = torch.arange(4).repeat(3)
        model = nn.Linear(4, 4, bias=False).double()
        model.weight.data = 100 * torch.eye(4).double()  # the loss underflows to 0

        def total(outputs, targets):
            return cross_entropy(outputs, targets, reduction="sum")

        assert total(model(x), y) == 0
        for allow in ((), ["batchnorm"], ["dropout"]):
            with pytest.raises(ValueError, match="not the mean over its examples"):
                HessianOperator(model, total, (x, y), allow=allow)
            HessianOperator(model, cross_entropy, (x, y), allow=allow)

    def test_a_loader_that_drops_examples_is_named(self):
        data = torch.utils.data.TensorDataset(*classification())
        loader = torch.utils.data.DataLoader(data, batch_size=5, drop_last=True)
        cut = torch.utils.data.BatchSampler(range(23), batch_size=5, drop_last=True)
        for source in (loader, torch.utils.data.DataLoader(data, batch_sampler=cut)):
            with pytest.warns(UserWarning, match="leaves out 3 examples each time") as caught:
                assert HessianOperator(network(), cross_entropy, source).examples == 20
            assert caught[0].filename == __file__  # the user's line, not one of the package
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # 23 examples in one batch: nothing is left out
            whole = torch.utils.data.DataLoader(data, batch_size=23, drop_last=True)
            assert HessianOperator(network(), cross_entropy, whole).examples == 23

    def test_batch_normalisation_without_running_statistics(self):
        norm = nn.BatchNorm1d(4, track_running_stats=False)
        model = nn.Sequential(norm, network()).double().eval()
        with pytest.raises(ValueError, match="'0' keeps no running statistics"):
            HessianOperator(model, cross_entropy, classification())
        HessianOperator(model, cross_entropy, classification(), allow=["batchnorm"])

    def test_half_precision(self):
        with pytest.raises(ValueError, match=r"torch\.bfloat16: second derivatives need"):
            HessianOperator(network().bfloat16(), cross_entropy, classification())

    def test_active_dropout(self):
        model = nn.Sequential(nn.Dropout(0.5), network())
        with pytest.raises(ValueError, match="dropout"):
            HessianOperator(model, cross_entropy, classification())
        HessianOperator(model.eval(), cross_entropy, classification())

    def test_randomness_that_no_layer_declares(self):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, x):
                return nn.functional.dropout(self.inner(x), 0.5)

        with pytest.raises(ValueError, match="two passes over one batch"):
            HessianOperator(Noisy().eval(), cross_entropy, classification())

    def test_complex_vector(self):
        H = HessianOperator(network(), cross_entropy, classification())
        with pytest.raises(TypeError, match="real vectors"):
            _ = H @ torch.zeros(43, dtype=torch.complex128)

    @pytest.mark.parametrize(("name", "value"), [("chunk_size", 0), ("memory_budget", -1)])
    def test_bad_numbers(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
            HessianOperator(network(), cross_entropy, classification(), **{name: value})

    def test_batchnorm_in_train_mode(self):
        model = nn.Sequential(nn.BatchNorm1d(4, dtype=torch.float64), network())
        before = model[0].running_mean.clone()
        with pytest.raises(ValueError, match="batch normalisation"):
            HessianOperator(model, cross_entropy, classification())
        assert torch.equal(model[0].running_mean, before)

    @pytest.mark.parametrize("shape", [(3,), (), (43, 1, 1), (1, 43)])
    def test_wrong_shape(self, shape):
        H = HessianOperator(network(), cross_entropy, classification())
        with pytest.raises(ValueError, match="expected a vector"):
            _ = H @ torch.zeros(shape, dtype=torch.float64)

    def test_not_a_tensor(self):
        H = HessianOperator(network(), cross_entropy, classification())
        with pytest.raises(TypeError, match="torch tensor"):
            _ = H @ [0.0] * H.shape[0]

    def test_wrong_device(self):
        H = HessianOperator(network(), cross_entropy, classification())
        with pytest.raises(ValueError, match=r"v\.to"):
            _ = H @ torch.zeros(H.shape[0], device="meta")

    def test_no_parameters(self):
        model = network().requires_grad_(False)
        with pytest.raises(ValueError, match="no parameter"):
            HessianOperator(model, cross_entropy, classification())
        with pytest.raises(ValueError, match="requires_grad=False"):
            HessianOperator(model, cross_entropy, classification(), params=model.parameters())

    def test_foreign_parameters(self):
        with pytest.raises(ValueError, match="not a parameter of this model"):
            HessianOperator(
                network(), cross_entropy, classification(), params=network().parameters()
            )

    def test_lengths_that_differ(self):
        x, y = classification()
        with pytest.raises(ValueError, match="23 inputs but 22 targets"):
            HessianOperator(network(), cross_entropy, (x, y[:-1]))

    def test_no_group_without_a_process_group(self):
        with pytest.raises(ValueError, match="no process group yet"):
            HessianOperator(network(), cross_entropy, classification(), group=object())
