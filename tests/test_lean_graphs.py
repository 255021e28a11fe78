"""Lean graphs: the numbers of PyTorch's own, without the parts that nobody needs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

import losslandscape.operators
from losslandscape import GaussNewtonOperator, HessianOperator
from losslandscape.lean_graphs import lean_graphs
from losslandscape.objective import gradient

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def first_and_second(convolve, data, weight, bias, options):
    """The gradient by the weights of a curved function of the output, and its derivative."""
    parameters = [weight] if bias is None else [weight, bias]
    value = torch.tanh(convolve(data, weight, bias, *options)).square().sum()
    slopes = torch.autograd.grad(value, parameters, create_graph=True)
    inner = sum((slope * slope.detach().sin()).sum() for slope in slopes)
    return slopes, torch.autograd.grad(inner, parameters)


@settings(max_examples=40, deadline=None)
@given(
    dimensions=st.integers(1, 3),
    groups=st.integers(1, 2),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_both_derivatives_are_those_of_pytorch(
    dimensions, groups, stride, padding, dilation, with_bias, seed
):
    torch.manual_seed(seed)
    convolve = CONVOLUTIONS[dimensions]
    data = torch.randn(2, 2 * groups, *[6] * dimensions, dtype=torch.float64)
    shape = (3 * groups, 2, *[2] * dimensions)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3 * groups, dtype=torch.float64, requires_grad=True) if with_bias else None
    options = (stride, padding, dilation, groups)
    expected = first_and_second(convolve, data, weight, bias, options)
    with lean_graphs():
        found = first_and_second(convolve, data, weight, bias, options)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_only_convolutions_of_data_are_replaced():
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    data = torch.randn(1, 2, 4, 4)
    cases = {
        "data": (data, weight),
        "input with a gradient": (data.clone().requires_grad_(), weight),
        "padding by name": (data, weight, None, 1, "same"),
        "one image": (data[0], weight),
    }
    with lean_graphs():
        names = {name: F.conv2d(*args).grad_fn.name() for name, args in cases.items()}
        frozen = F.conv2d(data, weight.detach())
        keywords = F.conv2d(data, weight, padding=1)
    assert names.pop("data") == "_DataConvolutionBackward"
    assert all(name.startswith(("ConvolutionBackward", "Squeeze")) for name in names.values())
    assert frozen.grad_fn is None
    torch.testing.assert_close(keywords, F.conv2d(data, weight, padding=1))


def slopes_and_derivatives(function, inputs):
    """The slope of a curved function of the output, and the derivative of its own slope."""
    inputs = inputs.clone().requires_grad_()
    value = torch.sin(function(inputs)).square().sum()
    (slope,) = torch.autograd.grad(value, inputs, create_graph=True)
    (second,) = torch.autograd.grad((slope * slope.detach().cos()).sum(), inputs)
    return slope, second


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.one_of(st.integers(2, 3), st.tuples(st.integers(1, 3), st.integers(2, 3))),
    stride=st.one_of(st.none(), st.integers(1, 3)),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pooling_is_that_of_pytorch(
    kernel, stride, padding, dilation, ceil_mode, channels_last, seed
):
    padding = 0 if isinstance(kernel, tuple) and kernel[0] == 1 else padding
    torch.manual_seed(seed)
    inputs = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    if channels_last:
        inputs = inputs.to(memory_format=torch.channels_last)
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    expected = slopes_and_derivatives(pool, inputs)
    with lean_graphs():
        found = slopes_and_derivatives(pool, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weight_normalisation_has_the_second_derivative_of_its_formula(dim):
    """PyTorch's own is wrong for one norm per row or column; first derivatives are right."""
    torch.manual_seed(0)
    v = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    g = torch.rand_like(torch.norm_except_dim(v, 2, dim)).requires_grad_()
    with lean_graphs():
        assert torch.autograd.gradgradcheck(lambda *given: torch._weight_norm(*given, dim), (v, g))
        found = torch._weight_norm(v, g, dim)
    torch.testing.assert_close(found, torch._weight_norm(v, g, dim))


@pytest.mark.parametrize("normalise", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_products_of_a_network_with_weight_normalisation(normalise):
    torch.manual_seed(0)
    X, y = torch.randn(20, 4).double(), torch.randint(3, (20,))
    block = nn.Sequential(normalise(nn.Linear(4, 5)), nn.Tanh())
    model = nn.Sequential(block, nn.Linear(5, 3)).double()
    operator = HessianOperator(model, cross_entropy, (X, y))
    d = torch.linalg.qr(torch.randn(operator.shape[0], 1).double())[0][:, 0]
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    slopes = []
    for step in (1e-5, -1e-5):
        nn.utils.vector_to_parameters(before + step * d, model.parameters())
        slopes.append(gradient(model, cross_entropy, (X, y))[1])
    nn.utils.vector_to_parameters(before, model.parameters())
    difference = (slopes[0] - slopes[1]) / 2e-5
    torch.testing.assert_close(operator @ d, difference, rtol=1e-6, atol=1e-8)
    again = HessianOperator(model, cross_entropy, (X, y), recompute=[block])
    torch.testing.assert_close(again @ d, operator @ d)


RELUS = {
    "module": nn.ReLU(),
    "functional": F.relu,
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "in place": lambda x: nn.ReLU(inplace=True)(1 * x),
}


@pytest.mark.parametrize("name", RELUS)
def test_relu_is_that_of_pytorch(name):
    torch.manual_seed(0)
    inputs = torch.randn(50, dtype=torch.float64)
    inputs[0] = 0.0
    expected = slopes_and_derivatives(RELUS[name], inputs)
    with lean_graphs():
        found = slopes_and_derivatives(RELUS[name], inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_replaced_and_what_is_not():
    free = torch.randn(1, 2, 4, 4, requires_grad=True)
    with lean_graphs():
        names = {
            "relu": F.relu(free).grad_fn.name(),
            "in place": F.relu(1 * free, inplace=True).grad_fn.name(),
            "pooling": F.max_pool2d(free, 2).grad_fn.name(),
            "torch pooling": torch.max_pool2d(free, 2, 2, 0, 1, False).grad_fn.name(),
            "with indices": F.max_pool2d(free, 2, return_indices=True)[0].grad_fn.name(),
            "one image": F.max_pool2d(free[0], 2).grad_fn.name(),
        }
        assert F.relu(free.detach()).grad_fn is None
        assert F.max_pool2d(free.detach(), 2).grad_fn is None
        with torch.autocast("cpu", torch.bfloat16):
            names["autocast"] = F.relu(free).grad_fn.name()
    assert names == {
        "relu": "_ReluBackward",
        "in place": "ReluBackward0",
        "pooling": "_MaxPoolBackward",
        "torch pooling": "_MaxPoolBackward",
        "with indices": "MaxPool2DWithIndicesBackward0",
        "one image": "MaxPool2DWithIndicesBackward0",
        "autocast": "ReluBackward0",
    }


def test_third_derivatives_are_those_of_pytorch():
    torch.manual_seed(0)
    inputs = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)

    def third():
        value = torch.sin(F.max_pool2d(F.relu(inputs), 2)).sum()
        for _ in range(3):
            (slope,) = torch.autograd.grad(value, inputs, create_graph=True)
            value = slope.square().sum()
        return slope

    expected = third()
    with lean_graphs():
        assert torch.equal(third(), expected)


class Vmapped(nn.Module):
    """A model that itself maps over its examples."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(2, 3)

    def forward(self, images):
        def one(image):
            return F.max_pool2d(F.relu(self.convolution(image[None])), 2)[0]

        return self.head(torch.tanh(torch.func.vmap(one)(images)).flatten(1))


class Shared(nn.Module):
    """One convolution applied to the data and again to its own output."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        return self.head(torch.tanh(self.convolution(self.convolution(images))).flatten(1))


MODELS = {
    "strided": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 2, stride=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "circular padding": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(2, 2, 3),
        nn.Flatten(),
        nn.Linear(8, 3),
    ),
    "ReLU and pooling": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 3, 2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(12, 3),
    ),
    "vmapped": Vmapped,
    "shared": Shared,
}


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("name", MODELS)
def test_products_do_not_change(name, budget, operator, monkeypatch):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    data = (torch.randn(7, 1, 4, 4, dtype=torch.float64), torch.arange(7) % 3)
    size = sum(p.numel() for p in model.parameters())
    vectors = torch.eye(size, dtype=torch.float64)
    found = operator(model, cross_entropy, data, memory_budget=budget) @ vectors
    monkeypatch.setattr(losslandscape.operators, "lean_graphs", lambda: torch.enable_grad())
    expected = operator(model, cross_entropy, data, memory_budget=budget) @ vectors
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def names_in_the_graph(value, weight):
    """Names of all nodes of the graph of a gradient by the weight."""
    (slope,) = torch.autograd.grad(value, [weight], create_graph=True)
    names, pending = set(), [slope.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None:
            names.add(node.name())
            pending += [before for before, _ in node.next_functions]
    return names


def test_what_nobody_needs_is_not_computed():
    """No node gives the data's derivative, and none zeros for the masks of ReLU and pooling."""
    weight = torch.randn(3, 1, 3, 3, requires_grad=True)
    data = torch.randn(2, 1, 6, 6)

    def value():
        return F.max_pool2d(F.relu(F.conv2d(data, weight)), 2).tanh().sum()

    wasteful = {
        "ConvolutionBackwardBackward0",
        "ThresholdBackwardBackward0",
        "MaxPool2DWithIndicesBackwardBackward0",
    }
    assert wasteful <= names_in_the_graph(value(), weight)
    with lean_graphs():
        output = value()
    assert not wasteful & names_in_the_graph(output, weight)
