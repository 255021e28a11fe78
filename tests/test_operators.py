"""The Hessian operator against closed forms, dense Hessians and its contract."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from losslandscape.lab.models import mlp
from losslandscape.operators import HessianOperator, gradient


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
        with pytest.raises(ValueError, match="not finite"):
            _ = H @ random_vector(H.shape[0])

    def test_active_dropout(self):
        model = nn.Sequential(nn.Dropout(0.5), network())
        with pytest.raises(ValueError, match="dropout"):
            HessianOperator(model, cross_entropy, classification())
        HessianOperator(model.eval(), cross_entropy, classification())

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

    def test_group_is_not_supported_yet(self):
        with pytest.raises(NotImplementedError, match="group"):
            HessianOperator(network(), cross_entropy, classification(), group=object())
