"""The mean loss of a model over data, as one fixed function of the weights.

Curvature, gradient noise and sharpness are all taken of this function, so its conventions and
checks live here: which weights, in which order; which examples, weighted how; what is refused.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from losslandscape.distributed import Ranks
from losslandscape.mean_check import check_mean_loss, evenly_spaced, not_finite

LossFunction = Callable[[Any, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]

# What makes the loss of an example depend on chance or on its batch, and may be asked for by name.
ALLOWED = ("batchnorm", "dropout")

# On so many examples a loss is tried, so many of them chosen for their labels.
_EXAMPLES, _LABELS = 32, 16


class MeanLoss:
    """The mean loss over all examples, at the model's current weights.

    References to the batches are taken once, when it is made, so a loader that shuffles or drops
    its last batch still defines one function.

    Args:
        model, loss_fn, data, params, chunk_size, allow, group: As for
            :class:`~losslandscape.operators.HessianOperator`.

    Attributes:
        params: The chosen parameters in ``model.parameters()`` order, each once.
        batches: ``(inputs, targets)`` chunks of at most ``chunk_size`` examples.
        largest_batch: Examples in the largest batch of the data as given.
        ranks: The processes that share the data, ``None`` where there is one only.
        before: How many examples the ranks before this one hold.
        examples: How many examples the mean is over, those of all ranks.
        size: Length ``D`` of a flat vector of weights.
        dtype, device: Of the parameters.

    Raises:
        TypeError: Arguments of another kind, or in another order.
        ValueError: Empty data, no parameters, a loss that is not a finite scalar mean over
            examples, an active dropout layer, batch normalisation in ``train`` mode.
        RankError: Another rank refused its shard, or has other weights.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Batch | Iterable[Batch],
        *,
        params: Iterable[nn.Parameter] | None = None,
        chunk_size: int = 128,
        allow: Collection[str] = (),
        group: Any = None,
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        allow = (allow,) if isinstance(allow, str) else tuple(allow)
        for name in allow:
            if name not in ALLOWED:
                raise ValueError(f"allow may name {' and '.join(ALLOWED)}, got {name!r}")
        check_order(model, loss_fn)
        self.model = model
        self.loss_fn = loss_fn
        self.params = select_parameters(model, params)
        self.dtype = self.params[0].dtype
        self.device = self.params[0].device
        if self.device.type == "meta":
            raise ValueError("the model is on the meta device, where weights have no values")
        self.size = sum(p.numel() for p in self.params)
        self.chunk_size = chunk_size
        self.allow = allow
        self.batches: list[Batch] = []
        self.ranks = None if group is None else Ranks(group)
        if self.ranks is None:
            counts, rank = [self._take(data)], 0
        else:
            shared = {"the model": self.params}
            counts = self.ranks.gather(lambda: self._take(data), shared, self.device)
            rank = self.ranks.rank
        self.before, self.examples = sum(counts[:rank]), sum(counts)
        if not self.examples:
            raise ValueError(
                "the data are empty: give at least one example (a generator can be read only once)"
            )

    def _take(self, data: Batch | Iterable[Batch]) -> int:
        """Keep and check the data of this process; how many examples they are."""
        with untouched(self.model), _draws_put_back(data):
            # With batch statistics an example's loss depends on its batch: batches stay whole.
            size = None if "batchnorm" in self.allow else self.chunk_size
            given = list(_as_batches(data))
            if any(part.is_meta for batch in given for part in batch):
                raise ValueError("the data are on the meta device, where tensors have no values")
            self.batches = [batch for batch in _split(given, size) if len(batch[1])]
        self.largest_batch = max((len(targets) for _, targets in given), default=0)
        if self.batches:
            _refuse(self.model, self.allow)
            step = max(2, min(self.chunk_size, self.largest_batch))
            inputs, targets = _trial(self.batches, step, self.device)
            with untouched(self.model):
                check_mean_loss(
                    *(self.model, self.loss_fn, inputs, targets),
                    step=step,
                    dtype=self.dtype,
                    allow=self.allow,
                )
        return sum(len(targets) for _, targets in self.batches)

    def of_batch(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of one batch, with its graph."""
        return self.loss_fn(self.model(inputs.to(self.device)), targets.to(self.device))

    def value(self) -> float:
        """The mean loss, summed in ``float64``.

        Raises:
            ValueError: It is not finite.
        """
        with untouched(self.model), torch.no_grad():
            mean = float(self._total()) / self.examples
        if not abs(mean) < float("inf"):
            reason = not_finite(self.model, self.batches) or "check data and weights"
            raise ValueError(f"the loss is {mean}: {reason}")
        return mean

    def values_at(self, offsets: Iterable[Tensor]) -> Tensor:
        """The mean loss at the weights plus each offset ``(D,)``; the weights are put back.

        Returns:
            ``(m,)`` in ``float64``, not finite where the loss is not.
        """
        before = [p.detach().clone() for p in self.params]
        found = []
        with untouched(self.model), torch.no_grad():
            try:
                for offset in offsets:
                    moved = self.split(offset.to(device=self.device, dtype=self.dtype))
                    for p, w, d in zip(self.params, before, moved, strict=True):
                        p.data.copy_(w + d)
                    found.append(self._total().cpu() / self.examples)
            finally:
                for p, w in zip(self.params, before, strict=True):
                    p.data.copy_(w)
        return torch.stack(found)

    def _total(self) -> Tensor:
        """The loss summed over all examples, in ``float64``."""
        zero = torch.zeros((), dtype=torch.float64, device=self.device)

        def own() -> Tensor:
            parts = [self.of_batch(x, y).double() * len(y) for x, y in self.batches]
            return torch.stack(parts).sum() if parts else zero

        return own() if self.ranks is None else self.ranks.sum(own, zero)

    def weights(self) -> Tensor:
        """The current weights as one flat vector ``(D,)``, a copy."""
        return flat(self.params)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat vector ``(D,)`` as pieces of the parameters' shapes."""
        pieces = vector.split([p.numel() for p in self.params])
        return [piece.view_as(p) for piece, p in zip(pieces, self.params, strict=True)]

    def subsample(self, count: int, *, seed: int = 0) -> Self:
        """The mean loss over ``count`` of the examples, drawn without replacement.

        Raises:
            ValueError: ``count`` is not between 1 and the number of examples.
        """
        if not 1 <= count <= self.examples:
            raise ValueError(f"count must lie between 1 and {self.examples}, got {count}")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(self.examples, generator=generator)[:count].sort().values
        picked = _rows_of(self.batches, chosen - self.before)
        data: Any = []  # of the examples drawn, a rank may hold none
        if picked:
            data = _joined(picked)
        return type(self)(
            self.model,
            self.loss_fn,
            data,
            params=self.params,
            chunk_size=self.chunk_size,
            allow=self.allow,
            group=None if self.ranks is None else self.ranks.group,
        )


def gradient(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    *,
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
) -> tuple[float, Tensor]:
    """Mean loss and its gradient over all examples, with the same weighting as the Hessian.

    Args:
        model, loss_fn, data, params, chunk_size: As for
            :class:`~losslandscape.operators.HessianOperator`.

    Returns:
        The mean loss, and its gradient as one flat vector ``(D,)``.

    Raises:
        ValueError: Empty data, or a loss that is not finite.
    """
    chosen = select_parameters(model, params)
    with untouched(model), _draws_put_back(data), torch.enable_grad():
        batches = list(_split(_as_batches(data), chunk_size))
        examples = sum(len(targets) for _, targets in batches)
        if not examples:
            raise ValueError("the data are empty: give at least one example")
        mean_loss = 0.0
        total = torch.zeros(sum(p.numel() for p in chosen), dtype=chosen[0].dtype).to(
            chosen[0].device
        )
        for inputs, targets in batches:
            outputs = model(inputs.to(total.device))
            loss = loss_fn(outputs, targets.to(total.device)) * (len(targets) / examples)
            pieces = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)
            total += flat(pieces)
            mean_loss += float(loss.detach())
    if not (torch.isfinite(total).all() and abs(mean_loss) < float("inf")):
        reason = not_finite(model, batches) or "check data and weights"
        raise ValueError(f"the loss or its gradient is not finite (loss {mean_loss}): {reason}")
    return mean_loss, total


def flat(pieces: Iterable[Tensor]) -> Tensor:
    """Tensors of any shapes as one flat vector."""
    return torch.cat([piece.reshape(-1) for piece in pieces]).detach()


def derivatives(
    value: Tensor, variables: list[Any], seed: Tensor | None = None
) -> tuple[Tensor, ...]:
    """First derivatives that can be differentiated again."""
    return torch.autograd.grad(
        value,
        variables,
        grad_outputs=seed,
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def pull_back(
    values: tuple[Tensor, ...], variables: list[Any], directions: list[Tensor]
) -> tuple[Tensor, ...]:
    """The derivative of ``<values, directions>``; the graph stays for the next directions."""
    # A value that does not depend on the variables has no graph; its share is 0.
    live = [(v, d) for v, d in zip(values, directions, strict=True) if v.requires_grad]
    if not live:
        return tuple(torch.zeros_like(variable) for variable in variables)
    return torch.autograd.grad(
        [v for v, _ in live],
        variables,
        grad_outputs=[d for _, d in live],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def check_derivatives(model: nn.Module) -> None:
    """Refuse what has no second derivatives whatever the data.

    Raises:
        ValueError: A compiled model, or inference mode.
    """
    if hasattr(model, "_orig_mod"):
        raise ValueError("a compiled model has no second derivatives: give model._orig_mod")
    if torch.is_inference_mode_enabled():
        raise ValueError("inference mode allows no derivatives: leave torch.inference_mode()")


def select_parameters(
    model: nn.Module, params: Iterable[nn.Parameter] | None
) -> list[nn.Parameter]:
    """The chosen parameters in ``model.parameters()`` order, each once."""
    own = list(model.parameters())
    if not own:
        raise ValueError("the model has no parameters (the order is model, loss_fn, data)")
    if params is None:
        chosen = [p for p in own if p.requires_grad]
    else:
        asked = [params] if isinstance(params, Tensor) else _listed(params)
        if isinstance(params, Tensor) or not all(isinstance(p, Tensor) for p in asked):
            raise TypeError(
                "params must be a list of parameters, such as list(layer.parameters()), "
                f"got {_kind(params, asked)}"
            )
        wanted = {id(p) for p in asked}
        chosen = [p for p in own if id(p) in wanted]
        if len(chosen) != len(wanted):
            raise ValueError("params holds a tensor that is not a parameter of this model")
        if any(not p.requires_grad for p in chosen):
            raise ValueError("params holds a parameter with requires_grad=False: turn it on first")
    if not chosen:
        why = "every one has requires_grad=False" if params is None else "params is empty"
        raise ValueError(f"no parameter to differentiate: {why}")
    if chosen[0].dtype.is_complex:
        raise ValueError(f"the parameters are {chosen[0].dtype}: complex weights are not supported")
    if chosen[0].dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the parameters are {chosen[0].dtype}: second derivatives need model.float()"
        )
    if len({(p.dtype, p.device) for p in chosen}) > 1:
        raise ValueError("the parameters differ in dtype or device: move the model to one of each")
    return chosen


def _kind(given: Any, items: list[Any]) -> str:
    """What this is a thing of, for a message: that of the first item that is no tensor."""
    kind = type(given).__name__
    wrong = [item for item in items if not isinstance(item, Tensor) and item is not given]
    return f"{kind} of {type(wrong[0]).__name__}" if wrong else kind


def _listed(given: Any) -> list[Any]:
    """The items of an iterable, or the thing itself."""
    try:
        return list(given)
    except TypeError:
        return [given]


def _as_batches(data: Batch | Iterable[Batch]) -> Iterator[Batch]:
    if isinstance(data, (tuple, list)) and len(data) == 2:
        inputs, targets = data
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            yield inputs, targets
            return
    if isinstance(data, Tensor):
        raise ValueError("data must be a pair (X, y) or an iterable of such pairs, got one tensor")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise ValueError("data is a data set of single examples: wrap it in a DataLoader")
    try:
        items = iter(data)
    except TypeError:
        kind = type(data).__name__
        raise TypeError(f"data must be an iterable of pairs (X, y), got {kind}") from None
    _warn_of_dropped(data)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], (tuple, list)):
        kinds = " and ".join(type(part).__name__ for part in data)
        raise ValueError(f"data must be a pair of tensors, got {kinds}: use torch.as_tensor")
    for item in items:
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            size = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
            raise ValueError(
                f"each batch must be a pair (X, y), got {type(item).__name__}{size}: make pairs of "
                "two tensors in a list"
            )
        for part in item:
            if not isinstance(part, Tensor):
                raise ValueError(
                    f"each batch must be a pair of tensors, got a {type(part).__name__} in it "
                    "(several inputs: one tensor that a wrapping module takes apart)"
                )
            if part.ndim == 0:
                raise ValueError(
                    "the data yield single examples, not batches: wrap a data set in a DataLoader"
                )
        yield (item[0], item[1])


@contextmanager
def _draws_put_back(data: object) -> Iterator[None]:
    """Put back what reading data may advance: generators of Python, NumPy and a loader."""
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002  # what old code of users draws from
    own = data.generator if isinstance(data, DataLoader) else None
    state = None if own is None else own.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if own is not None and state is not None:
            own.set_state(state)


def _warn_of_dropped(data: object) -> None:
    """Say that a loader leaves examples out: which ones, a shuffling loader draws anew."""
    cut = data.batch_sampler if isinstance(data, DataLoader) else None
    if not (isinstance(cut, BatchSampler) and cut.drop_last and isinstance(cut.sampler, Sized)):
        return
    left_out = len(cut.sampler) % cut.batch_size
    if left_out:
        warnings.warn(
            f"the loader leaves out {left_out} examples each time (drop_last=True), so the mean is "
            "over the others only",
            stacklevel=_callers_level(),
        )


def _callers_level() -> int:
    """The ``stacklevel`` at which a warning names the line of the user, outside this package."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"].startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    return level + 1


def _split(batches: Iterable[Batch], chunk_size: int | None) -> Iterator[Batch]:
    """Cut batches into chunks of at most ``chunk_size`` examples; ``None`` leaves them whole."""
    for inputs, targets in batches:
        for part in (inputs, targets):
            if part.is_nested or part.layout != torch.strided:
                kind = "nested" if part.is_nested else "sparse"
                raise ValueError(f"the data hold a {kind} tensor: make it dense first")
        if len(inputs) != len(targets):
            raise ValueError(f"a batch has {len(inputs)} inputs but {len(targets)} targets")
        step = chunk_size or max(1, len(targets))
        for start in range(0, len(targets), step):
            yield inputs[start : start + step], targets[start : start + step]


def _trial(batches: list[Batch], step: int, device: torch.device) -> Batch:
    """Some 32 examples of all kinds, on which a loss shows whether it is a mean.

    Of integer targets up to 16 labels are in, among them the smallest and the largest (of an
    example with many labels, its extremes count), for labels may have weights or be left out; the
    others are spread over all batches, for data may be sorted.
    Inputs of different shapes cannot be mixed: then it is the largest group of one shape, of those
    with labels below 0 if there are any.
    The number is a multiple of ``step``, if there are more.
    """
    groups: dict[Any, list[Batch]] = {}
    for x, y in batches:
        groups.setdefault((x.shape[1:], x.dtype, y.shape[1:], y.dtype), []).append((x, y))
    found = [(some, torch.cat([_extreme_labels(y) for _, y in some])) for some in groups.values()]
    group, labels = max(found, key=lambda one: (bool((one[1] < 0).any()), len(one[1])))
    rows = []
    for column in labels.unbind(dim=1):
        rows += _one_of_each(column, _LABELS // labels.shape[1])
    rows += evenly_spaced(len(labels), _EXAMPLES).tolist()
    rows = list(dict.fromkeys(rows))[:_EXAMPLES]
    count = len(rows) - len(rows) % step if len(rows) > step else len(rows)
    picked = [_rows_of(group, torch.tensor([row])) for row in rows[:count]]
    return _joined([(x.to(device), y.to(device)) for one in picked for x, y in one])


def _extreme_labels(targets: Tensor) -> Tensor:
    """The label ``(n, 1)`` of each example, or its smallest and largest ``(n, 2)``; else none."""
    if targets.is_floating_point() or targets.is_complex() or not targets.numel():
        return torch.zeros(len(targets), 0, dtype=torch.int64)
    if targets.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        targets = targets.long()  # torch does not order the others
    flat_targets = targets.reshape(len(targets), -1)
    ends = [flat_targets.amin(dim=1), flat_targets.amax(dim=1)]
    return torch.stack(ends[: flat_targets.shape[1]], dim=1).long().cpu()


def _one_of_each(labels: Tensor, count: int) -> list[int]:
    """Places of one example of each label, of at most ``count`` evenly spaced ones."""
    values, group = labels.unique(return_inverse=True)
    first = torch.full((len(values),), len(labels)).scatter_reduce(
        0, group, torch.arange(len(labels)), "amin"
    )
    return first[evenly_spaced(len(first), count)].tolist()


def _rows_of(batches: list[Batch], rows: Tensor) -> list[Batch]:
    """The examples at these places of the whole, batch by batch; places outside are passed over."""
    picked, start = [], 0
    for inputs, targets in batches:
        own = rows[(rows >= start) & (rows < start + len(targets))] - start
        start += len(targets)
        if len(own):
            picked.append((inputs[own.to(inputs.device)], targets[own.to(targets.device)]))
    return picked


def _joined(batches: list[Batch]) -> Batch:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def _refuse(model: nn.Module, allow: Collection[str]) -> None:
    """Refuse what makes the loss of an example depend on its batch or on chance."""
    for name, module in model.named_modules():
        normalises = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if normalises and "batchnorm" not in allow:
            depends = "so the loss of an example depends on its batch"
            if module.training:
                raise ValueError(
                    f"batch normalisation '{name}' is in train mode, {depends}: call model.eval() "
                    "first (HessianOperator can also take allow=['batchnorm'])"
                )
            if module.running_mean is None:
                raise ValueError(
                    f"batch normalisation '{name}' keeps no running statistics, {depends}: make a "
                    "HessianOperator with allow=['batchnorm'] on batches of your choice"
                )
        if not module.training:
            continue
        active = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if active and "dropout" not in allow:
            raise ValueError(
                f"dropout '{name}' is active (p = {module.p}): call model.eval() first "
                "(HessianOperator can also take allow=['dropout'], one fixed draw)"
            )


def check_order(model: Any, loss_fn: Any) -> None:
    """Refuse arguments in another order, and a class in place of an instance.

    Raises:
        TypeError: It is so.
    """
    if isinstance(loss_fn, type):
        raise TypeError(f"loss_fn is the class {loss_fn.__name__}: give an instance")
    for name, given, fits in (
        ("model", model, isinstance(model, nn.Module)),
        ("loss_fn", loss_fn, callable(loss_fn)),
    ):
        if not fits:
            raise TypeError(
                f"{name} cannot be a {type(given).__name__}: the order is model, loss_fn, data"
            )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run model code and put back the random state and the buffers afterwards."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    setattr(module, name, buffer)  # a pass may have put another in its place
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
