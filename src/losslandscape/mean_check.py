"""Is a loss the finite, repeatable mean over the examples of a batch, and if not, why?

Every product here is a sum over chunks, each weighted by its number of examples.
A loss that is no such mean would give another matrix for every chunk size, and no error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Two evaluations of one mean loss may differ by rounding only: this many units in the last place.
_ROUNDING_UNITS = 1e3
# So may two evaluations of a loss of the same outputs.
_LOSS_UNITS = 1e2
# So many single examples tell how large the terms of a loss are, where those of both signs cancel.
_SINGLE = 16

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)


def check_mean_loss(
    model: nn.Module,
    loss_fn: Callable[[Any, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    *,
    dtype: torch.dtype,
    allow: Collection[str] = (),
) -> None:
    """Refuse a loss that is no finite, repeatable scalar mean over the examples of a batch.

    Three comparisons: two passes over the batch; the batch with two parts of it; and, where the
    first axis of the outputs is the example, the same with outputs that belong to other examples.
    There the loss is large, and no rounding of the network hides a wrong weight.

    Args:
        model, loss_fn: As for :class:`~losslandscape.operators.HessianOperator`.
        inputs, targets: Examples of all kinds that there are, on the device of the model.
        dtype: Of the weights.
        allow: With ``"dropout"`` or ``"batchnorm"`` parts of a batch have another loss, so only the
            loss of given outputs is compared.

    Raises:
        ValueError: It is none, or the model or the loss fails; one line says how and why.
    """
    if len(targets) == 1:  # one example is its own two parts: a mean keeps its value, a sum doubles
        inputs, targets = torch.cat([inputs, inputs]), torch.cat([targets, targets])
    with torch.no_grad():
        outputs = _outputs_of(model, inputs, dtype)
        whole = _loss_of(loss_fn, outputs, targets)
        if not math.isfinite(whole):
            reason = not_finite(model, [(inputs, targets)]) or "check data and weights"
            raise ValueError(f"the loss is {whole}: {reason}")
        kinds = {dtype, loss_fn(outputs, targets).dtype}
        if isinstance(outputs, Tensor) and outputs.is_floating_point():
            kinds.add(outputs.dtype)
        eps = max(torch.finfo(kind).eps for kind in kinds)
        sliced = isinstance(outputs, Tensor) and outputs.shape[:1] == targets.shape[:1]
        scale = max(1.0, abs(whole), _term(loss_fn, outputs, targets) if sliced else 0.0)
        slack = _ROUNDING_UNITS * eps * scale
        if "dropout" not in allow:
            again = _loss_of(loss_fn, _outputs_of(model, inputs, dtype), targets)
            if not abs(whole - again) <= slack:
                raise ValueError(
                    "two passes over one batch give different losses: turn dropout and other "
                    "random layers off with model.eval()"
                )
        if not allow:
            values = []
            for rows in _parts(targets):
                part = _outputs_of(model, inputs[rows], dtype)
                values.append(_loss_of(loss_fn, part, targets[rows]))
                sliced = sliced and _alike(part, outputs[rows])
            _compare(whole, values, targets, slack)
        if sliced:
            _check_loss_alone(loss_fn, outputs, targets, whole, slack, eps)


def not_finite(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Which inputs, targets or weights hold NaN or infinity; empty if none does."""
    for number, batch in enumerate(batches):
        for name, tensor in zip(("inputs", "targets"), batch, strict=True):
            if not torch.isfinite(tensor).all():
                return f"the {name} of chunk {number} hold NaN or infinity"
    for name, p in model.named_parameters():
        if not torch.isfinite(p).all():
            return f"the weights '{name}' hold NaN or infinity"
    return ""


def marked(targets: Tensor) -> Tensor:
    """Which examples ``(n,)`` have an integer target below 0, no class: they may be left out."""
    if targets.dtype not in _SIGNED:
        return torch.zeros(len(targets), dtype=torch.bool)
    return (targets < 0).reshape(len(targets), -1).any(dim=1).cpu()


def _check_loss_alone(
    loss_fn: Callable[[Any, Tensor], Tensor],
    outputs: Tensor,
    targets: Tensor,
    whole: float,
    slack: float,
    eps: float,
) -> None:
    """The loss of given outputs must be the mean over them; one with a state of its own passes."""
    others = outputs.roll(1, dims=0)
    try:
        # What the loss keeps from the model's last pass now belongs to other examples.
        if not abs(float(loss_fn(outputs, targets)) - whole) <= slack:
            return
        large = float(loss_fn(others, targets))
        values = [float(loss_fn(others[rows], targets[rows])) for rows in _parts(targets)]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # not every loss takes outputs that are not the model's
        return
    if math.isfinite(large):
        scale = max(abs(large), _term(loss_fn, others, targets))
        _compare(large, values, targets, _LOSS_UNITS * eps * scale)


def _parts(targets: Tensor) -> tuple[slice, slice]:
    """Two parts whose sizes share no divisor: halves may hold equally many labels left out."""
    size = len(targets)
    cut = next((k for k in range(size // 2, 0, -1) if math.gcd(k, size) == 1), 1)
    return slice(0, cut), slice(cut, size)


def _compare(whole: float, values: list[float], targets: Tensor, slack: float) -> None:
    """Refuse a loss of a batch that is not the mean of the ``values`` of its two parts."""
    sizes = [len(targets[rows]) for rows in _parts(targets)]
    mean = sum(v * n for v, n in zip(values, sizes, strict=True)) / len(targets)
    if abs(whole - mean) <= slack:  # false where a part is not finite
        return
    causes = (
        "reduction='sum', class weights, ignored labels, targets of another shape than the outputs?"
    )
    if bool(marked(targets).any()):
        causes += " If labels below 0 are left out, take reduction='sum' and divide by len(targets)"
    raise ValueError(
        f"the loss of a batch is not the mean over its examples: {whole:.6g} for the batch, "
        f"{mean:.6g} from two parts of it ({causes})"
    )


def _term(loss_fn: Callable[[Any, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> float:
    """Mean absolute loss of some single examples; 0 where they have none."""
    places = torch.linspace(0, len(targets) - 1, min(_SINGLE, len(targets))).round().long()
    try:
        values = [abs(float(loss_fn(outputs[i : i + 1], targets[i : i + 1]))) for i in places]
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return 0.0
    values = [value for value in values if math.isfinite(value)]
    return sum(values) / len(values) if values else 0.0


def _alike(part: Any, expected: Tensor) -> bool:
    """Whether the outputs of a part are, but for rounding, that part of the outputs."""
    if not isinstance(part, Tensor) or part.shape != expected.shape:
        return False
    if not part.is_floating_point():
        return torch.equal(part, expected)
    size = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(part, expected, rtol=0.0, atol=1e-2 * size)


def _outputs_of(model: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Any:
    try:
        return model(inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        hint = ""
        if inputs.is_floating_point() and inputs.dtype != dtype:
            hint = f" (the data hold {inputs.dtype}, the weights are {dtype})"
        raise ValueError(
            f"the model fails on a batch of {len(inputs)}: {_said(error)}{hint}"
        ) from error


def _loss_of(loss_fn: Callable[[Any, Tensor], Tensor], outputs: Any, targets: Tensor) -> float:
    try:
        loss = loss_fn(outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"the loss fails on a batch of {len(targets)}: {_said(error)}{_choice(outputs)}"
        ) from error
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
    if outputs and isinstance(outputs, (Mapping, tuple, list)):
        key = repr(next(iter(outputs))) if isinstance(outputs, Mapping) else "0"
        advice += f", as in lambda outputs, targets: loss(outputs[{key}], targets)"
    return f" (the model returns a {kind}: {advice})"
