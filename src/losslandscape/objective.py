"""The mean loss of a model over data, as one fixed function of the weights.

Curvature, gradient noise and sharpness are all taken of this function, so its conventions and
checks live here: which weights, in which order; which examples, weighted how; what is refused.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from losslandscape.distributed import Ranks

LossFunction = Callable[[Any, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]

# What makes the loss of an example depend on chance or on its batch, and may be asked for by name.
ALLOWED = ("batchnorm", "dropout")

# What a model or a loss raises when it is given what it cannot take.
_SLIPS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError)

# Two evaluations of one mean loss may differ by rounding only: this many units in the last place.
_ROUNDING_UNITS = 1e3
# So may two evaluations of a loss of the same outputs.
_LOSS_UNITS = 1e2


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
        _check_order(model, loss_fn)
        self.model = model
        self.loss_fn = loss_fn
        self.params = select_parameters(model, params)
        self.dtype = self.params[0].dtype
        self.device = self.params[0].device
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
        with untouched(self.model):
            # With batch statistics an example's loss depends on its batch: batches stay whole.
            size = None if "batchnorm" in self.allow else self.chunk_size
            self.batches = [batch for batch in _split(_as_batches(data), size) if len(batch[1])]
        if self.batches:
            _refuse(self.model, self.allow)
            with untouched(self.model):
                # Labels below 0 often are those that a loss leaves out: these show what it does.
                first = next((b for b in self.batches if _marks(b[1])), self.batches[0])
                try:
                    _check_mean_loss(self.model, self.loss_fn, self._here(first), self.allow)
                except _SLIPS as error:
                    raise ValueError(self._why_it_fails(error)) from error
        return sum(len(targets) for _, targets in self.batches)

    def _why_it_fails(self, error: Exception) -> str:
        """What the user may have meant otherwise, when model or loss fail on the first batch."""
        inputs, targets = self._here(self.batches[0])
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kinds = {part.dtype for part in (inputs, targets) if part.is_floating_point()}
        other = ", ".join(sorted(str(kind) for kind in kinds - {self.dtype}))
        hint = f" (the data hold {other}, the weights are {self.dtype})" if other else ""
        try:
            with torch.no_grad():
                outputs = self.model(inputs)
        except Exception:
            return f"the model fails on the first batch: {said}{hint}"
        if not isinstance(outputs, Tensor):
            hint = (
                f" (the model returns a {type(outputs).__name__}: let loss_fn choose from it, as "
                "in lambda outputs, targets: loss(outputs[0], targets))"
            )
        return f"the loss fails on the first batch: {said}{hint}"

    def _here(self, batch: Batch) -> Batch:
        """The batch on the device of the parameters."""
        return batch[0].to(self.device), batch[1].to(self.device)

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
            raise ValueError(f"the loss is {mean}: check data and weights")
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
        picked, start = [], self.before
        for inputs, targets in self.batches:
            rows = chosen[(chosen >= start) & (chosen < start + len(targets))] - start
            start += len(targets)
            if len(rows):
                picked.append((inputs[rows.to(inputs.device)], targets[rows.to(targets.device)]))
        data: Any = []  # of the examples drawn, a rank may hold none
        if picked:
            data = tuple(torch.cat(parts) for parts in zip(*picked, strict=True))
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
    with untouched(model), torch.enable_grad():
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
        raise ValueError(f"the loss or its gradient is not finite (loss {mean_loss})")
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


def select_parameters(
    model: nn.Module, params: Iterable[nn.Parameter] | None
) -> list[nn.Parameter]:
    """The chosen parameters in ``model.parameters()`` order, each once."""
    own = list(model.parameters())
    if params is None:
        chosen = [p for p in own if p.requires_grad]
    elif isinstance(params, (nn.Module, str, Tensor)):
        raise TypeError(
            "params must be a list of parameters, such as list(layer.parameters()), "
            f"got {type(params).__name__}"
        )
    else:
        wanted = {id(p) for p in params}
        chosen = [p for p in own if id(p) in wanted]
        if len(chosen) != len(wanted):
            raise ValueError("params holds a tensor that is not a parameter of this model")
        if any(not p.requires_grad for p in chosen):
            raise ValueError("params holds a parameter with requires_grad=False: turn it on first")
    if not chosen:
        why = "every one has requires_grad=False" if params is None else "params is empty"
        raise ValueError(f"no parameter to differentiate: {why}")
    if chosen[0].dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the parameters are {chosen[0].dtype}: second derivatives need model.float()"
        )
    if len({(p.dtype, p.device) for p in chosen}) > 1:
        raise ValueError("the parameters differ in dtype or device: move the model to one of each")
    return chosen


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
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be an iterable of pairs (X, y), got {type(data).__name__}")
    _warn_of_dropped(data)
    if isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], (tuple, list)):
        kinds = " and ".join(type(part).__name__ for part in data)
        raise ValueError(f"data must be a pair of tensors, got {kinds}: use torch.as_tensor")
    for item in data:
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise ValueError(f"each batch must be a pair (X, y), got {type(item).__name__}")
        for part in item:
            if not isinstance(part, Tensor):
                raise ValueError(
                    f"each batch must be a pair of tensors, got a {type(part).__name__} in it"
                )
            if part.ndim == 0:
                raise ValueError(
                    "the data yield single examples, not batches: wrap a data set in a DataLoader"
                )
        yield (item[0], item[1])


def _warn_of_dropped(data: object) -> None:
    """Say that a loader leaves examples out: which ones, a shuffling loader draws anew."""
    if not (isinstance(data, DataLoader) and data.drop_last and data.batch_size):
        return
    sampler = data.sampler
    left_out = len(sampler) % data.batch_size if isinstance(sampler, Sized) else 0
    if left_out:
        warnings.warn(
            f"the loader leaves out {left_out} examples each time (drop_last=True), so the mean is "
            "over the others only",
            stacklevel=2,
        )


def _split(batches: Iterable[Batch], chunk_size: int | None) -> Iterator[Batch]:
    """Cut batches into chunks of at most ``chunk_size`` examples; ``None`` leaves them whole."""
    for inputs, targets in batches:
        if len(inputs) != len(targets):
            raise ValueError(f"a batch has {len(inputs)} inputs but {len(targets)} targets")
        step = chunk_size or max(1, len(targets))
        for start in range(0, len(targets), step):
            yield inputs[start : start + step], targets[start : start + step]


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


def _check_mean_loss(
    model: nn.Module, loss_fn: LossFunction, batch: Batch, allow: Collection[str]
) -> None:
    """Refuse a loss that is no finite, repeatable scalar mean over the examples of a batch."""
    inputs, targets = batch

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return loss_fn(model(inputs), targets)

    with torch.no_grad():
        outputs = model(inputs)
        whole = loss_fn(outputs, targets)
        if not isinstance(whole, Tensor) or whole.numel() != 1:
            raise ValueError("loss_fn must return a scalar: use reduction='mean'")
        if not torch.isfinite(whole):
            raise ValueError(
                f"the loss is {whole.item()} on the first batch: check data and weights"
            )
        eps = torch.finfo(whole.dtype).eps
        slack = _ROUNDING_UNITS * eps * max(1.0, abs(float(whole)))
        # With dropout the parts of a batch would draw other masks; with batch statistics they have
        # other statistics.
        if "dropout" not in allow and abs(float(whole - loss_of(inputs, targets))) > slack:
            raise ValueError(
                "two passes over one batch give different losses: turn dropout and other random "
                "layers off with model.eval()"
            )
        if not allow:
            _compare_parts(loss_of, inputs, targets, float(whole), slack)
        # The loss alone, with outputs that belong to other examples: there it is large, and no
        # rounding of the network hides a wrong weight.
        if isinstance(outputs, Tensor) and outputs.shape[:1] == targets.shape[:1]:
            others = outputs.roll(1, dims=0)
            large = float(loss_fn(others, targets))
            _compare_parts(loss_fn, others, targets, large, _LOSS_UNITS * eps * abs(large))


def _compare_parts(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    whole: float,
    slack: float,
) -> None:
    """Refuse a loss of a batch, ``whole``, that is not the mean of those of two parts."""
    size = len(targets)
    # Sizes without a common divisor: two halves may hold equally many labels that are left out.
    cut = next((k for k in range(size // 2, 0, -1) if math.gcd(k, size) == 1), 1)
    if size == 1:  # one example is its own two parts: a mean keeps its value, a sum doubles
        inputs, targets = torch.cat([inputs, inputs]), torch.cat([targets, targets])
        whole = float(loss_of(inputs, targets))
    parts = [(inputs[:cut], targets[:cut]), (inputs[cut:], targets[cut:])]
    mean = sum(float(loss_of(x, y)) * len(y) / len(targets) for x, y in parts)
    if abs(whole - mean) > slack:
        causes = (
            "reduction='sum', class weights, ignored labels, targets of another shape than the "
            "outputs?"
        )
        if _marks(targets):
            causes = (
                "labels below 0 are left out, so batches weigh differently: take reduction='sum' "
                "and divide by len(targets)"
            )
        raise ValueError(
            f"the loss of a batch is not the mean over its examples: {whole:.6g} for the batch, "
            f"{mean:.6g} from two parts of it ({causes})"
        )


def _marks(targets: Tensor) -> bool:
    """Whether integer targets hold numbers below 0, which are no classes."""
    return not (targets.is_floating_point() or targets.is_complex()) and bool((targets < 0).any())


def _check_order(model: Any, loss_fn: Any) -> None:
    """Refuse arguments in another order, and a class in place of an instance."""
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
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[d.index for d in devices]):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
