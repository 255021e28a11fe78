"""The examples that curvature is measured on."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor, nn

from losslandscape.mean_check import call_on_copy, evenly_spaced
from losslandscape.objective import Batch, LossFunction, MeanLoss, untouched
from losslandscape.operators import HessianOperator

BLOCKS = 32
# Curvature is measured on all examples up to so many; of more, on so many.
_ALL_UP_TO, _OF_MORE = 8192, 4096


@dataclass(frozen=True)
class HessianSet:
    """The examples that curvature is measured on, and blocks of them."""

    loss_fn: LossFunction
    data: Batch
    chunk_size: int

    def hessian(self, model: nn.Module) -> HessianOperator:
        """The Hessian of the mean loss over these examples."""
        return HessianOperator(model, self.loss_fn, self.data, chunk_size=self.chunk_size)

    def blocks(self, model: nn.Module) -> Iterator[HessianOperator]:
        """The Hessian of each block, in order."""
        for inputs, targets in self.block_data():
            yield HessianOperator(
                model, self.loss_fn, (inputs, targets), chunk_size=self.chunk_size, memory_budget=0
            )

    def block_data(self) -> list[Batch]:
        """The examples in blocks of equal size, up to one."""
        inputs, targets = self.data
        count = min(BLOCKS, len(targets))
        return list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))

    def per_block(self, terms: Tensor) -> Tensor:
        """Terms of a mean over examples ``(n,)`` as contributions of blocks ``(K, 1)``."""
        count = min(BLOCKS, len(terms))
        sums = torch.stack([part.sum() for part in terms.tensor_split(count)])
        return (sums * (count / len(terms)))[:, None]

    def first(self, count: int) -> HessianSet:
        """The same on the first ``count`` examples; they are in random order."""
        inputs, targets = self.data
        return replace(self, data=(inputs[:count], targets[:count]))


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy in ``eval`` mode."""
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        if "graph leaves" in reason:
            reason = "an attribute of it holds a tensor with a graph, so detach that first"
        raise ValueError(f"the model cannot be copied: {reason}") from error


def check_loss_of_copy(
    model: nn.Module, own: nn.Module, loss_fn: LossFunction, data: Batch
) -> None:
    """Refuse a loss that reads the caller's model, since its copy is what is measured.

    Raises:
        ValueError: The loss has a derivative by the weights of ``model``, or is another one after
            another pass of ``model``.
    """
    device = next(own.parameters()).device
    (first, labels), (last, _) = (
        [part[rows].to(device) for part in data] for rows in (slice(2), slice(-2, None))
    )
    theirs = [p for p in model.parameters() if p.requires_grad]
    remedy = "a penalty on the weights is the optimizer's weight_decay, other terms are outputs"
    with untouched(own), torch.enable_grad():
        loss = loss_fn(own(first), labels)
        slopes = torch.autograd.grad(loss, theirs, allow_unused=True) if loss.requires_grad else ()
    if any(slope is not None for slope in slopes):
        raise ValueError(
            f"loss_fn reads the weights of the model itself, and a copy is measured: {remedy}"
        )
    values = []
    with untouched(own), untouched(model), torch.no_grad():
        outputs = own(first)
        for inputs in (first, last):  # the model may keep something of its last pass
            with suppress(ValueError, RuntimeError):  # in train mode one example may be too few
                model(inputs)
            values.append(float(call_on_copy(loss_fn, outputs, labels)))
    if values[0] != values[1]:
        raise ValueError(
            f"loss_fn reads what the model keeps of its last pass, and a copy is measured: {remedy}"
        )


def joined(loss: MeanLoss) -> Batch:
    """All examples as one batch."""
    inputs, targets = zip(*loss.batches, strict=True)
    if len({part.shape[1:] for part in inputs}) > 1:
        raise ValueError("the inputs of all batches must have one shape: pad them")
    return torch.cat(inputs), torch.cat(targets)


def hessian_size(asked: int | None, examples: int) -> int:
    """How many examples to measure curvature on."""
    if asked is None:
        return examples if examples <= _ALL_UP_TO else _OF_MORE
    if not (isinstance(asked, Integral) and 1 <= asked <= examples):
        raise ValueError(
            f"hessian_examples must be a whole number between 1 and {examples}, got {asked}"
        )
    return asked


def subset_of(data: Batch, count: int, seed: int) -> Batch:
    """``count`` examples in random order; of class labels each class in proportion."""
    inputs, targets = data
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets), generator=generator)
    if targets.ndim == 1 and not targets.is_floating_point():
        order = order[torch.argsort(targets.cpu()[order], stable=True)]
    chosen = order[evenly_spaced(len(targets), count)][torch.randperm(count, generator=generator)]
    return inputs[chosen.to(inputs.device)], targets[chosen.to(targets.device)]


def digest(data: Batch) -> str:
    """Which examples these are, in which order."""
    found = hashlib.sha256()
    for part in data:
        found.update(str((part.dtype, tuple(part.shape))).encode())
        found.update(part.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
