"""Is a loss the finite, repeatable mean over the examples of a batch, and if not, why?

Every product here is a sum over chunks, each weighted by its number of examples.
A loss that is no such mean would give another matrix for every chunk size, and no error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Outputs = Any  # one tensor, or tuples and dicts of tensors
LossFunction = Callable[[Outputs, Tensor], Tensor]

# Two evaluations of one mean loss may differ by rounding only: this many units in the last place.
_ROUNDING_UNITS = 1e3
# So may two evaluations of a loss of the same outputs.
_LOSS_UNITS = 1e2
# So many single examples tell how large the terms of a loss are, where those of both signs cancel.
_SINGLE = 16
# Passes over so many examples are compared with passes over parts of them: the fewer, the less they
# are alike by chance.
_FEW = 8


def check_mean_loss(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Tensor,
    targets: Tensor,
    *,
    step: int,
    dtype: torch.dtype,
    allow: Collection[str] = (),
) -> None:
    """Refuse a loss that is no finite, repeatable scalar mean over the examples of a batch.

    The outputs of an example must not depend on its batch, and the loss of given outputs must be
    the mean of those of many small parts of them, and so must that of each two neighbouring parts:
    with the outputs as they are, and with those that belong to other examples, where the loss is
    large and hides nothing.
    Where outputs cannot be cut along their first axis (tokens in a row, time first), or a loss
    keeps something from the model's pass, passes over parts of a batch are compared with the whole.

    Args:
        model, loss_fn: As for :class:`~losslandscape.operators.HessianOperator`.
        inputs, targets: Some examples of all kinds that there are, on the device of the model.
        step: Examples in one pass; their number is a multiple of it, or they are fewer.
        dtype: Of the weights.
        allow: With ``"dropout"`` or ``"batchnorm"`` parts of a batch have other outputs, so only
            the loss of given outputs is compared.

    Raises:
        ValueError: It is none, or the model or the loss fails; one line says how and why.
    """
    if len(targets) == 1:  # one example is its own two parts: a mean keeps its value, a sum doubles
        inputs, targets = torch.cat([inputs, inputs]), torch.cat([targets, targets])
        step = 2
    step = min(step, len(targets))
    with torch.no_grad():
        outputs, values = [], []
        for x, y in zip(inputs.split(step), targets.split(step), strict=True):
            outputs.append(_outputs_of(model, x, dtype))
            values.append(_finite_loss(model, loss_fn, outputs[-1], x, y))
        first = targets[:step]
        eps = _eps(loss_fn, outputs[0], first, dtype)
        scale = max(1.0, _term(loss_fn, outputs[0], first), *map(abs, values))
        slack = _ROUNDING_UNITS * eps * scale
        if "dropout" not in allow:
            again = _loss_of(loss_fn, _outputs_of(model, inputs[:step], dtype), first)
            if not abs(values[0] - again) <= slack:
                raise ValueError(
                    "two passes over one batch give different losses: turn dropout and other "
                    "random layers off with model.eval()"
                )
        alone = first_axis(outputs[0], step)
        if not allow:
            alone = _treats_alone(model, inputs, outputs[0], step, dtype, eps)
        # What the loss may keep from the model's last pass now belongs to other examples.
        if alone and _gives(loss_fn, outputs[0], first, values[0], slack):
            joined = tree_map(join, outputs[0], *outputs[1:])
            for given in (joined, _exchanged(joined)):
                _check_loss_alone(loss_fn, given, targets, eps)
        elif not allow:
            few = min(step, _FEW)
            for x, y in zip(inputs.split(few), targets.split(few), strict=True):
                parts = _parts(len(y))
                whole, *losses = [
                    _loss_of(loss_fn, _outputs_of(model, x[rows], dtype), y[rows])
                    for rows in [slice(None), *parts]
                ]
                _compare(whole, losses, parts, y, slack)


def not_finite(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Which inputs, targets, weights or buffers hold NaN or infinity; empty if none does."""
    for number, batch in enumerate(batches):
        for name, tensor in zip(("inputs", "targets"), batch, strict=True):
            if not torch.isfinite(tensor).all():
                return f"the {name} of chunk {number} hold NaN or infinity"
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            return f"the weights '{name}' hold NaN or infinity"
    for name, buffer in model.named_buffers():
        if torch.isnan(buffer).any():  # a mask may hold infinity
            return f"the buffer '{name}' holds NaN"
    return ""


def _treats_alone(
    model: nn.Module, inputs: Tensor, outputs: Outputs, step: int, dtype: torch.dtype, eps: float
) -> bool:
    """Whether the first axis of the outputs is the example, in the pass over a part as well.

    Raises:
        ValueError: It is, but the outputs of an example are others there.
    """
    rows = _parts(step)[0]
    part = _outputs_of(model, inputs[rows], dtype)
    if not (first_axis(outputs, step) and first_axis(part, rows.stop)):
        return False
    if not _alike(part, outputs, rows, eps):
        raise ValueError(
            "the outputs of an example depend on the others of its batch: a mean over examples "
            "needs a model that treats each alone"
        )
    return True


def _check_loss_alone(loss_fn: LossFunction, outputs: Outputs, targets: Tensor, eps: float) -> None:
    """The loss of given outputs must be the mean over them, and over each two neighbouring parts.

    That of all is near the mean of its parts in one batch of some hundred by chance.
    """
    size = len(targets)
    parts = _parts(size)
    pairs = [parts[i : i + 2] for i in range(0, len(parts) - 1, 2)]
    try:
        whole, *losses = [
            _value(loss_fn, _cut(outputs, rows, size), targets[rows])
            for rows in [slice(0, size), *parts, *map(_joined, pairs)]
        ]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # not every loss takes outputs that are not the model's
        return
    if not math.isfinite(whole):
        return
    sizes = [abs(value) for value in [whole, *losses] if math.isfinite(value)]
    scale = max(_term(loss_fn, outputs, targets), *sizes)
    slack = _LOSS_UNITS * eps * scale
    _compare(whole, losses[: len(parts)], parts, targets, slack)
    for i, pair in enumerate(pairs):
        _compare(losses[len(parts) + i], losses[2 * i : 2 * i + 2], pair, targets, slack)


def _parts(size: int) -> list[slice]:
    """Small parts of 2, 3, 4, ... examples, single ones where there are fewer than 4.

    The smaller a part, the further its mean is from that of all; in parts of one size the weights
    of a loss could cancel.
    """
    lengths: list[int] = []
    left, length = size, 2 if size > 3 else 1
    while left >= 2 * length + (size > 4):
        lengths.append(length)
        left, length = left - length, length + (size > 3)
    ends = list(accumulate([*lengths, left]))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _joined(parts: list[slice]) -> slice:
    return slice(parts[0].start, parts[-1].stop)


def _compare(
    whole: float, losses: list[float], parts: list[slice], targets: Tensor, slack: float
) -> None:
    """Refuse a loss of a batch that is not the mean of those of its parts."""
    sizes = [rows.stop - rows.start for rows in parts]
    mean = sum(value * n for value, n in zip(losses, sizes, strict=True)) / sum(sizes)
    if abs(whole - mean) <= slack:  # false where a part is not finite
        return
    raise ValueError(
        f"the loss of a batch is not the mean over its examples: {whole:.6g} for the batch, "
        f"{mean:.6g} from parts of it (reduction='sum', class weights, ignored labels, targets of "
        f"another shape than the outputs?{_aside(targets)})"
    )


def _aside(targets: Tensor) -> str:
    """What to do about labels below 0, if there are any."""
    signed = targets.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
    if not (signed and bool((targets < 0).any())):
        return ""
    return (
        " If labels below 0 are left out, take reduction='sum' and divide by len(targets) times "
        "the mean number of labels that an example keeps"
    )


def _term(loss_fn: LossFunction, outputs: Outputs, targets: Tensor) -> float:
    """Mean absolute loss of some single examples; 0 where they have none."""
    size = len(targets)
    places = evenly_spaced(size, _SINGLE).tolist()
    try:
        values = [
            abs(_value(loss_fn, _cut(outputs, slice(i, i + 1), size), targets[i : i + 1]))
            for i in places
        ]
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return 0.0
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else 0.0


def evenly_spaced(size: int, count: int) -> Tensor:
    """At most ``count`` of the places 0 to ``size - 1``, from the first to the last.

    >>> evenly_spaced(9, 3), evenly_spaced(2, 3)
    (tensor([0, 4, 8]), tensor([0, 1]))
    """
    return torch.linspace(0, size - 1, min(count, size), dtype=torch.float64).round().long()


def call_on_copy(loss_fn: LossFunction, outputs: Outputs, targets: Tensor) -> Tensor:
    """The loss of a copy of the outputs: some work in place."""

    def copy(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    return loss_fn(tree_map(copy, outputs), targets)


def _value(loss_fn: LossFunction, outputs: Outputs, targets: Tensor) -> float:
    return float(call_on_copy(loss_fn, outputs, targets))


def _cut(outputs: Outputs, rows: slice, size: int) -> Outputs:
    """The rows of all outputs whose first axis is the example."""

    def cut(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.shape[:1] == (size,)
        return leaf[rows] if whole else leaf

    return tree_map(cut, outputs)


def join(*leaves: Any) -> Any:
    """One output of several batches as that of all of them."""
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def _exchanged(outputs: Outputs) -> Outputs:
    """Each example with the outputs of another; outputs that are all alike get a wave on top."""
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    alike = all(torch.equal(leaf.roll(1, dims=0), leaf) for leaf in tensors)

    def exchange(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if alike and leaf.is_floating_point():
            places = torch.arange(leaf.numel(), device=leaf.device).reshape(leaf.shape)
            return leaf + (1 + places).sin().to(leaf)
        return leaf.roll(1, dims=0)

    return tree_map(exchange, outputs)


def first_axis(outputs: Outputs, size: int) -> bool:
    """Whether outputs are tensors whose first axis is the example."""
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return bool(tensors) and all(leaf.shape[:1] == (size,) for leaf in tensors)


def _alike(part: Outputs, outputs: Outputs, rows: slice, eps: float) -> bool:
    """Whether the outputs of a part are, but for rounding, those rows of the outputs."""
    for a, whole in zip(tree_leaves(part), tree_leaves(outputs), strict=True):
        if not (isinstance(a, Tensor) and a.is_floating_point()):
            continue
        if a.shape[1:] != whole.shape[1:]:
            return False
        known = torch.where(torch.isfinite(whole), whole, torch.nan)  # a mask may hold -inf
        size, spread = _largest(known), _largest(known - known.nanmean(dim=0))
        slack = max(1e-2 * spread, _ROUNDING_UNITS * eps * size)
        if not torch.allclose(a, whole[rows], rtol=0.0, atol=slack, equal_nan=True):
            return False
    return True


def _largest(tensor: Tensor) -> float:
    """The largest modulus of the entries that are no NaN."""
    return float(tensor.abs().nan_to_num(0.0).max()) if tensor.numel() else 0.0


def _gives(
    loss_fn: LossFunction, outputs: Outputs, targets: Tensor, value: float, slack: float
) -> bool:
    """Whether the loss of these outputs is this value."""
    try:
        return abs(_value(loss_fn, outputs, targets) - value) <= slack
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False


def _eps(loss_fn: LossFunction, outputs: Outputs, targets: Tensor, dtype: torch.dtype) -> float:
    """The coarsest unit in the last place of weights, outputs and loss."""
    kinds = {dtype, call_on_copy(loss_fn, outputs, targets).dtype}
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            kinds.add(leaf.dtype)
    return max(torch.finfo(kind).eps for kind in kinds)


def _finite_loss(
    model: nn.Module, loss_fn: LossFunction, outputs: Outputs, inputs: Tensor, targets: Tensor
) -> float:
    value = _loss_of(loss_fn, outputs, targets)
    if not math.isfinite(value):
        reason = not_finite(model, [(inputs, targets)]) or "check data and weights"
        raise ValueError(f"the loss is {value}: {reason}{_aside(targets)}")
    return value


def _outputs_of(model: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Any:
    try:
        return model(inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        hint = ""
        if inputs.is_floating_point() and inputs.dtype != dtype:
            hint = f" (the data hold {inputs.dtype}, the weights are {dtype})"
        elif "does not require grad" in str(error):
            hint = " (a model that differentiates needs torch.enable_grad() inside forward)"
        raise ValueError(
            f"the model fails on a batch of {len(inputs)}: {_said(error)}{hint}"
        ) from error


def _loss_of(loss_fn: LossFunction, outputs: Outputs, targets: Tensor) -> float:
    try:
        loss = call_on_copy(loss_fn, outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"the loss fails on a batch of {len(targets)}: {_said(error)}{_choice(outputs)}"
        ) from error
    if isinstance(loss, (int, float)):
        raise ValueError(
            "loss_fn must return a scalar tensor, got a plain number: leave out .item()"
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError("loss_fn must return a scalar: use reduction='mean'")
    if not loss.is_floating_point():
        raise ValueError(f"loss_fn must return a floating-point number, got {loss.dtype}")
    return float(loss)


def _said(error: Exception) -> str:
    """The first line of a message, with the kind of the error where that says more."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    plain = isinstance(error, (RuntimeError, ValueError))
    return lines[0] if plain else f"{type(error).__name__}: {lines[0]}"


def _choice(outputs: Any) -> str:
    """How a loss may choose from outputs that are no tensor."""
    if isinstance(outputs, Tensor):
        return ""
    kind = type(outputs).__name__
    advice = "let loss_fn choose from it"
    if isinstance(outputs, (Mapping, tuple, list)) and outputs:
        key = repr(next(iter(outputs))) if isinstance(outputs, Mapping) else "0"
        advice += f", as in lambda outputs, targets: loss(outputs[{key}], targets)"
    return (
        f" (the model returns a {kind}: {advice}; a module around it that returns one tensor lets "
        "all measures of assess be taken)"
    )
