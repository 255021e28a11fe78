"""Graphs for second derivatives, without the parts that are zero or that nobody asked for.

PyTorch differentiates some operations twice with more work than their mathematics needs:

- A convolution is differentiated as a whole. With the weights' part comes the part of its input,
  also where that input is the data.
- The slope of a ReLU is a step, that of max pooling a choice: both are constant almost everywhere.
  PyTorch writes their derivatives out as tensors of zeros, and adds these to the others.

In a small network this is a good part of a Hessian-vector product. The functions here leave it out;
the numbers are the same.

One more is replaced because its second derivative is wrong: the fused product of weight
normalisation, by the formula it stands for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.nn import grad as known
from torch.overrides import TorchFunctionMode

_WEIGHT_GRADIENT: dict[Any, Any] = {
    torch.conv1d: known.conv1d_weight,
    torch.conv2d: known.conv2d_weight,
    torch.conv3d: known.conv3d_weight,
}
_CONVOLUTION = (None, 1, 0, 1, 1)  # bias, stride, padding, dilation, groups
_RELU = (torch.relu, Tensor.relu, functional.relu)
_MAX_POOL = (torch.max_pool2d, functional.max_pool2d)
# Its arguments after the kernel, in order, with their defaults; no stride: that of the kernel.
_POOLING = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
_aten = torch.ops.aten


class lean_graphs(TorchFunctionMode):
    """Within it, convolutions of data, ReLU and 2-D max pooling build leaner graphs.

    Weight normalisation is written out.

    A convolution counts if its weights need a gradient and its input needs none, the others if
    their input needs one; all other calls are passed on as they are.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func in _WEIGHT_GRADIENT and not named and _is_of_data(args):
            given: list[Any] = [*args, *_CONVOLUTION[len(args) - 2 :]]
            return _apply(_DataConvolution, *given[:3], func, given[3:])
        if func in _RELU and len(args) == 1 and not named.get("inplace") and _bends(args[0]):
            return _apply(_Relu, args[0])
        if func in _MAX_POOL and len(args) > 1 and not named.get("return_indices"):
            geometry = _pooling(*args[1:], **named)
            if geometry is not None and _bends(args[0]) and args[0].ndim == 4:
                return _apply(_MaxPool, args[0], geometry)[0]
        if func is torch._weight_norm:
            return _weight_norm(*args, **named)
        return func(*args, **named)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / ||v||``, the norm over all axes but one; over all for ``dim = -1``."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _apply(function: Any, *args: Any) -> Any:
    return function.apply(*args)


def _bends(value: Any) -> bool:
    """Whether this is a tensor of numbers that a derivative passes through."""
    return (
        isinstance(value, Tensor)
        and value.requires_grad
        and value.is_floating_point()
        and not torch.is_autocast_enabled(value.device.type)
    )


def _is_of_data(args: tuple[Any, ...]) -> bool:
    if len(args) < 2 or any(isinstance(arg, str) for arg in args):  # padding="same"
        return False
    inputs, weight = args[:2]
    return (
        _bends(weight)
        and not inputs.requires_grad
        and inputs.ndim == weight.ndim
        and inputs.is_floating_point()
    )


def _pooling(kernel: Any, *args: Any, **named: Any) -> tuple[Any, ...] | None:
    """Kernel, stride, padding, dilation and rounding of max pooling; ``None`` if there is more."""
    named.pop("return_indices", None)
    given = {**_POOLING, **dict(zip(_POOLING, args, strict=False)), **named}
    if len(args) > len(_POOLING) or given.keys() != _POOLING.keys():
        return None
    stride = [] if given["stride"] is None else given["stride"]
    return kernel, stride, given["padding"], given["dilation"], given["ceil_mode"]


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


class _Relu(Function):
    """``max(x, 0)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return torch.relu(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return _apply(_Passed, slope, *ctx.saved_tensors)


class _Passed(Function):
    """A slope where the ReLU let its input pass, 0 elsewhere: its own transpose."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, output: Tensor) -> Any:
        return _aten.threshold_backward(slope, output, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        return _apply(_Passed, direction, *ctx.saved_tensors), None


class _MaxPool(Function):
    """The largest number of each window, and its place."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, geometry: tuple[Any, ...]) -> Any:
        return _aten.max_pool2d_with_indices(inputs, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.geometry, places = inputs[1], output[1]
        ctx.mark_non_differentiable(places)
        ctx.save_for_backward(inputs[0], places)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Any) -> Any:
        return _apply(_Unpooled, slope, *ctx.saved_tensors, ctx.geometry), None


class _Unpooled(Function):
    """A slope put back to the places of the largest numbers: its transpose picks from there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, pooled: Tensor, places: Tensor, geometry: Any) -> Any:
        return _aten.max_pool2d_with_indices_backward(slope, pooled, *geometry, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        picked = direction.flatten(-2).gather(-1, places.flatten(-2)).view_as(places)
        return picked, None, None, None
