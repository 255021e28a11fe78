"""The yardstick of what a network has gained: the best outputs that are alike for all examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from losslandscape.mean_check import Outputs, call_on_copy, evenly_spaced, first_axis, join
from losslandscape.objective import Batch, LossFunction, derivatives

# So many examples, evenly spread over the data, tell the loss well enough.
_EXAMPLES, _CHUNK = 4096, 128


def loss_and_constant_loss(
    model: nn.Module, loss_fn: LossFunction, data: Batch
) -> tuple[float, float] | None:
    """The loss of the outputs and of the best constant outputs, on up to 4,096 examples.

    The search begins at the mean outputs, by L-BFGS. Where that leaves what the loss takes, such as
    probabilities, it begins again by gradient steps that stay inside. None where outputs have no
    example along their first axis, or no constant ones have a finite loss.
    """
    some = evenly_spaced(len(data[1]), _EXAMPLES)
    inputs, labels = (part[some.to(part.device)] for part in data)
    labels = labels.to(next(model.parameters()).device)
    outputs = _outputs(model, inputs, labels.device)
    if outputs is None:
        return None
    leaves, spec = tree_flatten(outputs)
    places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def loss_of(rows: list[Tensor]) -> Tensor:
        filled = list(leaves)
        for i, row in zip(places, rows, strict=True):
            filled[i] = row.expand_as(leaves[i])
        return call_on_copy(loss_fn, tree_unflatten(filled, spec), labels)

    mean = [leaves[i].mean(dim=0, keepdim=True) for i in places]
    with torch.no_grad():
        own = float(loss_of([leaves[i] for i in places]))
        found = [float(loss_of(mean))]
    try:
        found.append(_by_lbfgs(loss_of, mean))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):
        found.append(_by_gradients(loss_of, mean))
    finite = [value for value in found if math.isfinite(value)]
    return (own, min(finite)) if finite else None


def _outputs(model: nn.Module, inputs: Tensor, device: torch.device) -> Outputs | None:
    """The outputs for all inputs; None where an example is no row of them."""
    with torch.no_grad():
        parts = [(model(some.to(device)), len(some)) for some in inputs.split(_CHUNK)]
    if not all(first_axis(part, count) for part, count in parts):
        return None
    return tree_map(join, *(part for part, _ in parts))


def _by_lbfgs(loss_of: Callable[[list[Tensor]], Tensor], start: list[Tensor]) -> float:
    """The loss that L-BFGS reaches from these rows.

    Raises:
        RuntimeError, ValueError: A step leaves what the loss takes.
    """
    rows = [row.clone().requires_grad_() for row in start]

    def closure() -> Tensor:
        loss, slopes = _at(loss_of, rows)
        for row, slope in zip(rows, slopes, strict=True):
            row.grad = slope
        return loss

    torch.optim.LBFGS(rows, 1.0, 50, line_search_fn="strong_wolfe").step(closure)
    return float(loss_of(rows).detach())


def _by_gradients(
    loss_of: Callable[[list[Tensor]], Tensor], start: list[Tensor], steps: int = 300
) -> float:
    """The loss that steps down the gradient reach; one that does not lower it is halved."""

    def inside(rows: list[Tensor]) -> tuple[float, list[Tensor]]:
        try:
            value, slopes = _at(loss_of, rows)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError):
            return math.inf, []
        return float(value), slopes

    rows, length = start, 1.0
    value, slopes = inside(rows)
    for _ in range(steps):
        norm = float(sum(slope.square().sum() for slope in slopes)) ** 0.5
        if norm == 0:
            break
        trial = [row - length / norm * slope for row, slope in zip(rows, slopes, strict=True)]
        lower, there = inside(trial)
        if lower < value:
            rows, value, slopes, length = trial, lower, there, 2 * length
        else:
            length /= 2
    return value


def _at(
    loss_of: Callable[[list[Tensor]], Tensor], rows: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The loss of these rows and its gradient.

    Raises:
        ValueError: The loss is not finite.
    """
    rows = [row.detach().requires_grad_() for row in rows]
    loss = loss_of(rows)
    if not torch.isfinite(loss):
        raise ValueError(f"the loss of these outputs is {float(loss.detach())}")
    return loss.detach(), [slope.detach() for slope in derivatives(loss, rows)]


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
