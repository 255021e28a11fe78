"""Convolutions of inputs that need no gradient, without the derivative nobody asked for.

PyTorch differentiates a convolution a second time as a whole: with the weights' part comes the
part of the layer's input, also where that input is the data. In the first layer of a small network
this is a good part of a Hessian-vector product. The functions here leave it out; the numbers
are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import grad as known
from torch.overrides import TorchFunctionMode

_WEIGHT_GRADIENT: dict[Any, Any] = {
    torch.conv1d: known.conv1d_weight,
    torch.conv2d: known.conv2d_weight,
    torch.conv3d: known.conv3d_weight,
}
_DEFAULTS = (None, 1, 0, 1, 1)  # bias, stride, padding, dilation, groups


class data_convolutions(TorchFunctionMode):
    """Within it, convolutions of data build graphs that hold derivatives by the weights only.

    A convolution counts if its weights need a gradient and its input needs none; all other calls
    are passed on as they are.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _WEIGHT_GRADIENT and not kwargs and _is_of_data(args):
            given = [*args, *_DEFAULTS[len(args) - 2 :]]
            inputs, weight, bias, geometry = given[0], given[1], given[2], given[3:]
            return _apply(_DataConvolution, inputs, weight, bias, func, geometry)
        return func(*args, **(kwargs or {}))


def _apply(function: Any, *args: Any) -> Any:
    return function.apply(*args)


def _is_of_data(args: tuple[Any, ...]) -> bool:
    if len(args) < 2 or any(isinstance(arg, str) for arg in args):  # padding="same"
        return False
    inputs, weight = args[:2]
    return (
        weight.requires_grad
        and not inputs.requires_grad
        and inputs.ndim == weight.ndim
        and inputs.is_floating_point()
        and not torch.is_autocast_enabled(inputs.device.type)
    )


class _DataConvolution(Function):
    """A convolution whose gradient is taken by weight and bias alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Any, convolve: Any, geometry: Any) -> Any:
        return convolve(inputs, weight, bias, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        data, weight, bias, ctx.convolve, ctx.geometry = inputs
        ctx.save_for_backward(data)
        ctx.weight_shape, ctx.has_bias = weight.shape, bias is not None

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (data,) = ctx.saved_tensors
        shape, convolve = ctx.weight_shape, ctx.convolve
        weight = _apply(_WeightGradient, slope, data, shape, convolve, ctx.geometry)
        bias = slope.sum((0, *range(2, slope.ndim))) if ctx.has_bias else None
        return None, weight, bias, None, None


class _WeightGradient(Function):
    """The gradient by the weights, linear in the slope: its transpose is the convolution."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, data: Tensor, shape: Any, convolve: Any, geometry: Any) -> Any:
        gradient: Tensor = _WEIGHT_GRADIENT[convolve](data, shape, slope, *geometry)
        return gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, data, _, ctx.convolve, ctx.geometry = inputs
        ctx.save_for_backward(data)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        (data,) = ctx.saved_tensors
        slope = ctx.convolve(data, direction, None, *ctx.geometry)
        return slope, None, None, None, None
