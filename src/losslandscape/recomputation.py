"""Modules whose activations are computed again when a derivative needs them, not kept.

A second derivative keeps what every operation of the pass *and* of its gradient needs.
PyTorch's own checkpoints save nothing here: asked for a gradient that can be differentiated again,
they keep the graph of the second pass.
Here both derivatives of a module start from its inputs alone (the idea, for one derivative: Chen
et al., *Training Deep Nets with Sublinear Memory Cost*, 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from losslandscape.lean_graphs import lean_graphs
from losslandscape.objective import derivatives, pull_back

Computation = Callable[..., Tensor]
Place = tuple[dict[str, Any], str]
RandomState = list[tuple[torch.device | None, Tensor]]


@contextmanager
def recomputed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, passes through the modules keep their inputs and weights only.

    Each module must return one tensor. Numbers are the same, also those of random layers.
    """
    plain = [(module, module.__dict__.get("forward")) for module in dict.fromkeys(modules)]
    try:
        for module, _ in plain:
            module.forward = _Recomputed(module)
        yield
    finally:
        for module, own in plain:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.forward = own


class _Recomputed:
    """What stands in for the ``forward`` of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._forward = module, module.forward

    def __call__(self, *args: Any, **named: Any) -> Any:
        given: dict[Any, Any] = {**dict(enumerate(args)), **named}
        places = [key for key, value in given.items() if _can_bend(value)]
        places_of = _places(self._module)
        weights = [place[name] for ((place, name), *_) in places_of]
        variables = [*(given[key] for key in places), *weights]
        if not variables:
            return self._forward(*args, **named)

        def compute(*tensors: Tensor) -> Tensor:
            fresh = {**given, **dict(zip(places, tensors, strict=False))}
            inputs = [fresh.pop(place) for place in range(len(args))]
            with _put(tensors[len(places) :], places_of):
                outputs = self._forward(*inputs, **fresh)
            if not isinstance(outputs, Tensor):
                raise ValueError(
                    f"recompute needs modules that return one tensor, "
                    f"{type(self._module).__name__} returns {type(outputs).__name__}: "
                    "name the modules inside it"
                )
            return outputs

        return _apply(_Pass, compute, _random_state(variables), *variables)


def _places(module: nn.Module) -> list[list[Place]]:
    """Where each weight that bends stands; a shared one stands at several places."""
    found: dict[int, list[Place]] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if _can_bend(weight):
                found.setdefault(id(weight), []).append((part._parameters, name))
    return list(found.values())


@contextmanager
def _put(tensors: Iterable[Tensor], places: list[list[Place]]) -> Iterator[None]:
    """Let modules work with other tensors, and put back what was there.

    ``torch.func.functional_call`` leaves a module that stands at two places of its parent with the
    other tensors.
    """
    before = [(place, name, place[name]) for group in places for place, name in group]
    try:
        for tensor, group in zip(tensors, places, strict=True):
            for place, name in group:
                place[name] = tensor
        yield
    finally:
        for place, name, weight in before:
            place[name] = weight


class _Pass(Function):
    """A module's outputs, from its inputs and weights."""

    @staticmethod
    def forward(ctx: Any, compute: Computation, state: RandomState, *variables: Tensor) -> Tensor:
        ctx.compute, ctx.state = compute, state
        ctx.save_for_backward(*variables)
        return compute(*variables)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        found = _apply(_PullBack, ctx.compute, ctx.state, slope, *ctx.saved_tensors)
        return None, None, *found


class _PullBack(Function):
    """The slopes of a module's inputs and weights, from the slope of its outputs."""

    @staticmethod
    def forward(
        ctx: Any, compute: Computation, state: RandomState, slope: Tensor, *variables: Tensor
    ) -> Any:
        ctx.compute, ctx.state = compute, state
        ctx.save_for_backward(slope, *variables)
        with torch.enable_grad(), _drawing_again(state), _kept_for_a_moment():
            own = _leaves(variables)
            return pull_back((compute(*own),), own, [slope])

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> Any:
        with torch.enable_grad(), _drawing_again(ctx.state), lean_graphs():
            slope, *own = _leaves(ctx.saved_tensors)
            slopes = derivatives(ctx.compute(*own), own, slope)
            return None, None, *pull_back(slopes, [slope, *own], list(directions))


def _kept_for_a_moment() -> Any:
    """Hide what a graph keeps from those who count it: this graph does not stay."""
    return torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda tensor: tensor)


def _leaves(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _apply(function: Any, *args: Any) -> Any:
    return function.apply(*args)


def _can_bend(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _random_state(tensors: Iterable[Tensor]) -> RandomState:
    """Where the generators stand that a pass may draw from."""
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    return [(None, torch.get_rng_state())] + [(d, torch.cuda.get_rng_state(d)) for d in devices]


@contextmanager
def _drawing_again(state: RandomState) -> Iterator[None]:
    """Draw the same random numbers once more, and leave the generators alone."""
    devices = [device.index for device, _ in state if device is not None]
    with torch.random.fork_rng(devices=devices):
        for device, numbers in state:
            if device is None:
                torch.set_rng_state(numbers)
            else:
                torch.cuda.set_rng_state(numbers, device)
        yield
