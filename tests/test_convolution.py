"""Convolutions of data: the numbers of PyTorch's own, without the derivative by the data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

import losslandscape.operators
from losslandscape import GaussNewtonOperator, HessianOperator
from losslandscape.convolution import data_convolutions

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
    with data_convolutions():
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
    with data_convolutions():
        names = {name: F.conv2d(*args).grad_fn.name() for name, args in cases.items()}
        frozen = F.conv2d(data, weight.detach())
        keywords = F.conv2d(data, weight, padding=1)
    assert names.pop("data") == "_DataConvolutionBackward"
    assert all(name.startswith(("ConvolutionBackward", "Squeeze")) for name in names.values())
    assert frozen.grad_fn is None
    torch.testing.assert_close(keywords, F.conv2d(data, weight, padding=1))


class Vmapped(nn.Module):
    """A model that itself maps over its examples."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        features = torch.func.vmap(lambda image: self.convolution(image[None])[0])(images)
        return self.head(torch.tanh(features).flatten(1))


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
    monkeypatch.setattr(losslandscape.operators, "data_convolutions", lambda: torch.enable_grad())
    expected = operator(model, cross_entropy, data, memory_budget=budget) @ vectors
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_the_derivative_by_the_data_is_not_computed():
    """What the replacement is for: no node of the graph has the data's derivative as a result."""
    weight = torch.randn(3, 1, 2, 2, requires_grad=True)
    data = torch.randn(2, 1, 4, 4)
    with data_convolutions():
        output = F.conv2d(data, weight).tanh().sum()
    (slope,) = torch.autograd.grad(output, [weight], create_graph=True)
    names, pending = set(), [slope.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None:
            names.add(node.name())
            pending += [before for before, _ in node.next_functions]
    assert not any(name.startswith("ConvolutionBackwardBackward") for name in names), names
