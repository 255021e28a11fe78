"""Curvature matrices of a network's mean loss, as linear operators.

A network with ``D`` parameters has a ``D x D`` Hessian, far too large to store.
Everything in this package needs it only through products ``H @ v``, and one product costs a few
gradients (Pearlmutter, *Fast Exact Multiplication by the Hessian*, Neural Computation 6, 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

LossFunction = Callable[[Any, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]

# Two evaluations of one mean loss may differ by rounding only: this many units in the last place.
_ROUNDING_UNITS = 1e3


class CurvatureOperator:
    """A symmetric ``D x D`` matrix known through its products with vectors.

    Subclasses set the attributes and implement :meth:`_product`.

    Attributes:
        shape: ``(D, D)``.
        dtype: Type of the entries.
        device: Where vectors must live.
        products: Products computed so far; a ``(D, k)`` block counts ``k``.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    products: int

    def _product(self, vector: Tensor) -> Tensor:
        raise NotImplementedError

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply by one vector ``(D,)`` or by the ``k`` columns of ``(D, k)``.

        Vectors of another floating type are converted to :attr:`dtype`.

        Raises:
            TypeError: ``vectors`` is not a tensor.
            ValueError: Wrong length or device, or the product is not finite.
        """
        size = self.shape[1]
        if not isinstance(vectors, Tensor):
            raise TypeError(
                f"expected a torch tensor of length {size}, got {type(vectors).__name__}"
            )
        if vectors.ndim not in (1, 2) or vectors.shape[0] != size:
            raise ValueError(
                f"expected a vector of shape ({size},) or ({size}, k), got {tuple(vectors.shape)}"
            )
        if vectors.device != self.device:
            raise ValueError(
                f"the vector is on {vectors.device}, the operator on {self.device}: "
                f"move it with v.to('{self.device}')"
            )
        vectors = vectors.detach().to(self.dtype)
        columns = [vectors] if vectors.ndim == 1 else list(vectors.unbind(dim=1))
        results = []
        for column in columns:
            result = self._product(column)
            self.products += 1
            if not torch.isfinite(result).all():
                raise ValueError(
                    "the product is not finite: the loss or its derivatives overflow at these "
                    "weights, or the vector holds NaN"
                )
            results.append(result)
        if vectors.ndim == 1:
            return results[0]
        return torch.stack(results, dim=1) if results else vectors.clone()

    def to_scipy(self) -> ScipyOperator:
        """The same matrix for SciPy: a ``scipy.sparse.linalg.LinearOperator`` on numpy arrays."""
        from scipy.sparse.linalg import LinearOperator

        def product(array: Any) -> Any:
            vectors = torch.as_tensor(array, dtype=self.dtype, device=self.device)
            return (self @ vectors).cpu().numpy()

        def matvec(array: Any) -> Any:
            return product(array.reshape(-1))

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(
            self.shape, matvec=matvec, rmatvec=matvec, matmat=product, rmatmat=product, dtype=dtype
        )


class HessianOperator(CurvatureOperator):
    r"""The Hessian of the mean loss over all examples, at the model's current weights.

    .. math:: H = \nabla^2_w \, \frac1n \sum_{i=1}^n \ell\bigl(f_w(x_i), y_i\bigr)

    The product uses :math:`Hv = \nabla_w \langle \nabla_w L, v \rangle`, batch by batch: a batch of
    :math:`n_b` examples enters with weight :math:`n_b / n`, so unequal batches are exact.

    The operator copies references to the batches once, when it is made: a loader that shuffles or
    drops its last batch still defines one fixed matrix.
    Weights and buffers are read at every product.
    The model, its mode, gradients, buffers and the random state are left untouched.
    Flat vectors follow ``model.parameters()``, each parameter once.

    Args:
        model: Any differentiable module.
            Modes are taken as they are: batch normalisation must be in ``eval`` mode.
        loss_fn: ``loss_fn(outputs, targets)``, the scalar **mean** loss of a batch.
        data: A pair ``(X, y)`` of tensors whose first axis is the example,
            or an iterable of such pairs, for instance a ``DataLoader``.
        params: Parameters to differentiate; ``None`` means all that require a gradient.
        chunk_size: Largest number of examples in one forward pass.
            It bounds memory and changes the result by rounding only.
        group: Reserved for data sharded over processes; only ``None`` is accepted so far.

    Raises:
        ValueError: Empty data, no parameters, a loss that is not a finite scalar mean over
            examples, an active dropout layer, batch normalisation in ``train`` mode.

    Example:
        Least squares, :math:`L = \frac1n \lVert Xw - y\rVert^2`, has :math:`H = \frac2n X^\top X`.

        >>> import torch
        >>> X = torch.tensor([[1., 0.], [1., 2.]])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> H = HessianOperator(model, torch.nn.functional.mse_loss, (X, torch.zeros(2, 1)))
        >>> H @ torch.tensor([1., 0.])
        tensor([2., 2.])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Batch | Iterable[Batch],
        *,
        params: Iterable[nn.Parameter] | None = None,
        chunk_size: int = 128,
        group: Any = None,
    ) -> None:
        if group is not None:
            raise NotImplementedError(
                "data sharded over processes is not supported yet: group=None"
            )
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        self._model = model
        self._loss_fn = loss_fn
        self._params = _select_parameters(model, params)
        self.dtype = self._params[0].dtype
        self.device = self._params[0].device
        size = sum(p.numel() for p in self._params)
        self.shape = (size, size)
        self.products = 0
        with _untouched(model):
            self._batches = list(_split(_as_batches(data), chunk_size))
        if not self._batches:
            raise ValueError("the data are empty: give at least one example")
        self._examples = sum(len(targets) for _, targets in self._batches)
        _refuse_train_batchnorm(model)
        with _untouched(model):
            _check_mean_loss(self._batch_loss, self._batches[0])

    def _batch_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = self._model(inputs.to(self.device))
        return self._loss_fn(outputs, targets.to(self.device))

    def _product(self, vector: Tensor) -> Tensor:
        sizes = [p.numel() for p in self._params]
        directions = [
            piece.view_as(p) for piece, p in zip(vector.split(sizes), self._params, strict=True)
        ]
        total = torch.zeros_like(vector)
        with _untouched(self._model), torch.enable_grad():
            for inputs, targets in self._batches:
                loss = self._batch_loss(inputs, targets) * (len(targets) / self._examples)
                total += _flat(_double_backward(loss, self._params, directions))
        return total


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
        model, loss_fn, data, params, chunk_size: As for :class:`HessianOperator`.

    Returns:
        The mean loss, and its gradient as one flat vector ``(D,)``.

    Raises:
        ValueError: Empty data, or a loss that is not finite.
    """
    chosen = _select_parameters(model, params)
    with _untouched(model), torch.enable_grad():
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
            total += _flat(pieces)
            mean_loss += float(loss.detach())
    if not (torch.isfinite(total).all() and abs(mean_loss) < float("inf")):
        raise ValueError(f"the loss or its gradient is not finite (loss {mean_loss})")
    return mean_loss, total


def _flat(pieces: Iterable[Tensor]) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in pieces]).detach()


def _double_backward(
    loss: Tensor, params: list[nn.Parameter], directions: list[Tensor]
) -> tuple[Tensor, ...]:
    """Hessian of ``loss`` times ``directions``: the gradient of the directional derivative."""
    grads = torch.autograd.grad(
        loss, params, create_graph=True, allow_unused=True, materialize_grads=True
    )
    # A gradient that no longer depends on the weights has no graph; its share of the product is 0.
    live = [(g, d) for g, d in zip(grads, directions, strict=True) if g.requires_grad]
    if not live:
        return tuple(torch.zeros_like(p) for p in params)
    return torch.autograd.grad(
        [g for g, _ in live],
        params,
        grad_outputs=[d for _, d in live],
        allow_unused=True,
        materialize_grads=True,
    )


def _select_parameters(
    model: nn.Module, params: Iterable[nn.Parameter] | None
) -> list[nn.Parameter]:
    """The chosen parameters in ``model.parameters()`` order, each once."""
    own = list(model.parameters())
    if params is None:
        chosen = [p for p in own if p.requires_grad]
    else:
        wanted = {id(p) for p in params}
        chosen = [p for p in own if id(p) in wanted]
        if len(chosen) != len(wanted):
            raise ValueError("params holds a tensor that is not a parameter of this model")
        if any(not p.requires_grad for p in chosen):
            raise ValueError("params holds a parameter with requires_grad=False: turn it on first")
    if not chosen:
        raise ValueError("no parameter to differentiate: every one has requires_grad=False")
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
    for item in data:
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise ValueError("each batch must be a pair (X, y) of tensors")
        yield (item[0], item[1])


def _split(batches: Iterable[Batch], chunk_size: int) -> Iterator[Batch]:
    """Cut large batches into chunks, so that a forward pass never sees more than ``chunk_size``."""
    for inputs, targets in batches:
        if len(inputs) != len(targets):
            raise ValueError(f"a batch has {len(inputs)} inputs but {len(targets)} targets")
        for start in range(0, len(targets), chunk_size):
            yield inputs[start : start + chunk_size], targets[start : start + chunk_size]


def _refuse_train_batchnorm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"batch normalisation '{name}' is in train mode, so the loss of an example depends "
                "on its batch: call model.eval() first"
            )


def _check_mean_loss(batch_loss: Callable[[Tensor, Tensor], Tensor], batch: Batch) -> None:
    """Refuse a loss that is no finite, repeatable scalar mean over the examples of a batch."""
    inputs, targets = batch
    with torch.no_grad():
        whole = batch_loss(inputs, targets)
        if not isinstance(whole, Tensor) or whole.numel() != 1:
            raise ValueError("loss_fn must return a scalar: use reduction='mean'")
        if not torch.isfinite(whole):
            raise ValueError(
                f"the loss is {whole.item()} on the first batch: check data and weights"
            )
        again = batch_loss(inputs, targets)
        slack = _ROUNDING_UNITS * torch.finfo(whole.dtype).eps * max(1.0, abs(float(whole)))
        if abs(float(whole - again)) > slack:
            raise ValueError(
                "two passes over one batch give different losses: turn dropout and other random "
                "layers off with model.eval()"
            )
        half = max(1, len(targets) // 2)
        # One example is its own two halves: a mean keeps its value, a sum doubles.
        rest = slice(half, None) if len(targets) > 1 else slice(0, 1)
        parts = [(inputs[:half], targets[:half]), (inputs[rest], targets[rest])]
        count = sum(len(part) for _, part in parts)
        mean = sum(float(batch_loss(x, y)) * len(y) / count for x, y in parts)
        if len(targets) == 1:
            whole = batch_loss(torch.cat([inputs, inputs]), torch.cat([targets, targets]))
        if abs(float(whole) - mean) > slack:
            raise ValueError(
                "the loss of a batch is not the mean over its examples (did you use "
                f"reduction='sum'?): {float(whole):.6g} for the batch, {mean:.6g} from its halves"
            )


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
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
