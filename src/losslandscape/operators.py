"""Curvature matrices of a network's mean loss, as linear operators.

A network with ``D`` parameters has a ``D x D`` Hessian, far too large to store.
Everything in this package needs it only through products ``H @ v``, and one product costs a few
gradients (Pearlmutter, *Fast Exact Multiplication by the Hessian*, Neural Computation 6, 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from losslandscape.lean_graphs import lean_graphs
from losslandscape.mean_check import not_finite
from losslandscape.objective import (
    Batch,
    LossFunction,
    MeanLoss,
    check_derivatives,
    derivatives,
    flat,
    pull_back,
    select_parameters,
    untouched,
)
from losslandscape.recomputation import recomputed

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

# The code that a backward gets from the decorator once_differentiable.
_ONCE = once_differentiable(lambda _: None).__code__

# One chunk's share of a product: a direction for each parameter in, a piece for each out.
Share = Callable[[list[Tensor]], tuple[Tensor, ...]]


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

    def __repr__(self) -> str:
        place = f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
        return f"<{type(self).__name__} {self.shape[0]} x {self.shape[1]}, {place}{self._aside()}>"

    def _aside(self) -> str:
        """What a reader of the ``repr`` should know."""
        return ""

    def _product(self, vectors: Tensor) -> Tensor:
        """Multiply the columns of ``vectors`` (D, k)."""
        raise NotImplementedError

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply by one vector ``(D,)`` or by the ``k`` columns of ``(D, k)``.

        Vectors of another floating type are converted to :attr:`dtype`.

        Raises:
            TypeError: ``vectors`` is not a tensor of real numbers.
            ValueError: Wrong length or device, or the product is not finite.
        """
        size = self.shape[1]
        if not isinstance(vectors, Tensor):
            raise TypeError(
                f"expected a torch tensor of length {size}, got {type(vectors).__name__}"
            )
        if vectors.is_complex():
            raise TypeError(f"expected real vectors, got {vectors.dtype}: multiply both parts")
        if vectors.ndim not in (1, 2) or vectors.shape[0] != size:
            raise ValueError(
                f"expected a vector of shape ({size},) or ({size}, k), got {tuple(vectors.shape)}"
            )
        if vectors.device != self.device:
            raise ValueError(
                f"the vector is on {vectors.device}, the operator on {self.device}: "
                f"move it with v.to('{self.device}')"
            )
        columns = vectors.detach().to(self.dtype).reshape(size, -1)
        if columns.shape[1] == 0:
            return columns.clone()
        result = self._product(columns)
        self.products += columns.shape[1]
        if not torch.isfinite(result).all():
            reason = (
                self._why_not_finite() if torch.isfinite(columns).all() else "the vector is not"
            )
            raise ValueError(f"the product is not finite: {reason}")
        return result.reshape(vectors.shape)

    def _why_not_finite(self) -> str:
        return "the matrix is not"

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


class _MeanLossOperator(CurvatureOperator):
    """What the curvature matrices of one mean loss share: chunk by chunk, with kept graphs.

    Subclasses implement :meth:`_share`.

    Attributes:
        objective: The mean loss.
        replaced: Names of the fused attention kernels of the model, which have no second
            derivative: products use the plain kernel in their place.
    """

    objective: MeanLoss
    replaced: tuple[str, ...]

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Batch | Iterable[Batch],
        *,
        params: Iterable[nn.Parameter] | None = None,
        chunk_size: int = 128,
        memory_budget: int = 1 << 30,
        allow: Collection[str] = (),
        recompute: Iterable[nn.Module] = (),
        group: Any = None,
    ) -> None:
        check_derivatives(model)
        objective = MeanLoss(
            *(model, loss_fn, data),
            params=params,
            chunk_size=chunk_size,
            allow=allow,
            group=group,
        )
        if isinstance(recompute, nn.Module) and not isinstance(recompute, Iterable):
            kind = type(recompute).__name__
            raise TypeError(f"recompute must be a list of modules, got a {kind}")
        modules = list(recompute)
        inside = set(model.modules())
        if not all(module in inside for module in modules):
            raise ValueError("recompute holds what is not a module of this model")
        self._begin(objective, memory_budget, modules)

    def _begin(self, objective: MeanLoss, memory_budget: int, recompute: list[nn.Module]) -> None:
        if memory_budget < 0:
            raise ValueError(f"memory_budget must be 0 bytes or more, got {memory_budget}")
        self.objective = objective
        self.dtype, self.device = objective.dtype, objective.device
        self.shape = (objective.size, objective.size)
        self.products = 0
        self.replaced = self._look_at_graph()
        self._memory_budget = memory_budget
        self._recompute = recompute
        self._graphs: dict[int, Share] = {}
        self._graph_bytes = 0
        self._graphs_full = memory_budget == 0
        self._state: list[Any] = []

    def _look_at_graph(self) -> tuple[str, ...]:
        """The fused attention kernels that the loss goes through.

        Raises:
            ValueError: The loss has no derivative, or no second one.
        """
        if not self.objective.batches:  # those of other ranks
            return ()
        loss = _loss_of_few(self.objective, *self.objective.batches[0])
        functions = _functions_of(loss)
        doubtful = [node for node in functions if _once_only(node)]
        if doubtful:
            _refuse_on_the_way(doubtful, loss, self.objective)
        return _fused_attention(functions)

    def _share(self, inputs: Tensor, targets: Tensor, weight: float) -> Share:
        """Build the graph of one chunk and return its share of a product, times ``weight``."""
        raise NotImplementedError

    def _aside(self) -> str:
        kernel = ", plain attention in place of the fused one" if self.replaced else ""
        return f", mean over {self.examples:,} examples{kernel}"

    @property
    def examples(self) -> int:
        """How many examples the mean is over, those of all ranks."""
        return self.objective.examples

    @property
    def speaks(self) -> bool:
        """Whether this process tells the user how work goes: the first of a group does."""
        return self.objective.ranks is None or self.objective.ranks.rank == 0

    def subsample(self, count: int, *, seed: int = 0) -> Self:
        """The same matrix on ``count`` of the examples, drawn without replacement.

        Raises:
            ValueError: ``count`` is not between 1 and the number of examples.

        Example:
            >>> data = (torch.randn(9, 2), torch.zeros(9, 1))
            >>> H = HessianOperator(nn.Linear(2, 1), nn.functional.mse_loss, data)
            >>> H.subsample(4).examples, H.subsample(4).shape
            (4, (3, 3))
        """
        smaller = object.__new__(type(self))
        chosen = self.objective.subsample(count, seed=seed)
        smaller._begin(chosen, self._memory_budget, self._recompute)
        return smaller

    def by_chunk(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        r"""The curvature along a vector, chunk of examples by chunk; costs one product.

        Args:
            vector: ``(D,)``.

        Returns:
            :math:`v^\top A_b v` for the matrix :math:`A_b` of each chunk alone, and how many
            examples it holds, both ``(B,)`` in ``float64``.
            The mean weighted by the sizes is :math:`v^\top A v`.

        Raises:
            ValueError: The operator is shared by a group of processes.

        Example:
            >>> data = (torch.tensor([[1.], [3.]]), torch.zeros(2, 1))
            >>> model = nn.Linear(1, 1, bias=False)
            >>> H = HessianOperator(model, nn.functional.mse_loss, data, chunk_size=1)
            >>> H.by_chunk(torch.ones(1))[0]
            tensor([ 2., 18.], dtype=torch.float64)
        """
        if self.objective.ranks is not None:
            raise ValueError("by_chunk is for one process: give each rank its own operator")
        sizes = torch.tensor([len(targets) for _, targets in self.objective.batches])
        weights = sizes.double() / self.objective.examples
        vector = vector.to(self.dtype)
        direction = self.objective.split(vector)
        parts = [float(vector @ flat(share(direction))) for share in self._shares()]
        self.products += 1
        return torch.tensor(parts, dtype=torch.float64) / weights, sizes.double()

    def curved_start(self, *, seed: int = 0) -> Tensor:
        r"""A random vector rich in directions of large curvature, for the price of a gradient.

        .. math:: \sum_i J_i^\top \, \nabla^2_f \ell(f_i, y_i) \, \xi_i,
            \qquad \xi_i \text{ random signs}

        Its second moment is :math:`\sum_i J_i^\top (\nabla^2_f \ell)^2 J_i`: every example whose
        outputs bend the loss puts its direction in, also one that no subsample holds.
        A little white noise is added, so that no direction is left out.

        Returns:
            ``(D,)``, of unit length.
        """
        generator = torch.Generator().manual_seed(seed)
        ranks = self.objective.ranks
        total = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        if ranks is None:
            total = self._bent(total, generator)
        else:
            # One stream of signs for all the data: each rank passes over those of the others.
            sizes = ranks.gather(self._outputs_per_example, device=self.device)
            own = sum(len(targets) for _, targets in self.objective.batches)
            after = self.objective.examples - self.objective.before - own
            _pass_over(self.objective.before * max(sizes), generator)
            total = ranks.sum(lambda: self._bent(torch.zeros_like(total), generator), total)
            _pass_over(after * max(sizes), generator)
        white = torch.randn(self.shape[0], generator=generator, dtype=torch.float64).to(total)
        length = torch.linalg.vector_norm(total)
        if not (torch.isfinite(length) and length > 0):
            total, length = white, torch.linalg.vector_norm(white)
        start = total / length + 0.1 * white / torch.linalg.vector_norm(white)
        unit: Tensor = start / torch.linalg.vector_norm(start)
        return unit

    def _bent(self, total: Tensor, generator: torch.Generator) -> Tensor:
        """Add what this process' examples put into :meth:`curved_start`."""
        with untouched(self.objective.model), torch.enable_grad(), recomputed(self._recompute):
            for inputs, targets in self.objective.batches:
                outputs = self.objective.model(inputs.to(self.device))
                if not isinstance(outputs, Tensor):
                    break
                free = outputs.detach().requires_grad_()
                slope = derivatives(self.objective.loss_fn(free, targets.to(self.device)), [free])
                # Signs, not Gaussian numbers: no example draws a weight close to zero.
                signs = 2 * torch.randint(2, free.shape, generator=generator).to(free) - 1
                bent = pull_back(slope, [free], [signs * len(targets)])
                total += flat(pull_back((outputs,), self.objective.params, list(bent)))
        return total

    def _outputs_per_example(self) -> int:
        """How many numbers the model returns for one example; 0 on a rank without data."""
        for inputs, _ in self.objective.batches[:1]:
            with untouched(self.objective.model), torch.no_grad():
                outputs = self.objective.model(inputs[:1].to(self.device))
            return outputs.numel() if isinstance(outputs, Tensor) else 0
        return 0

    def _product(self, vectors: Tensor) -> Tensor:
        ranks = self.objective.ranks
        if ranks is None:
            return self._own_part(vectors)

        def part() -> Tensor:
            own = self._own_part(vectors)
            if not torch.isfinite(own).all() and torch.isfinite(vectors).all():
                raise ValueError(f"the product is not finite: {self._why_not_finite()}")
            return own

        shared: dict[str, list[Any]] = {"the vector": [vectors], "the model": self.objective.params}
        return ranks.sum(part, vectors, shared)

    def _own_part(self, vectors: Tensor) -> Tensor:
        directions = [self.objective.split(column) for column in vectors.unbind(dim=1)]
        totals = [torch.zeros_like(vectors[:, 0]) for _ in directions]
        try:
            for share in self._shares():
                for total, direction in zip(totals, directions, strict=True):
                    total += flat(share(direction))
        except RuntimeError as error:
            said = str(error).splitlines()[0] if str(error) else ""
            if said.startswith("derivative for") and said.endswith("is not implemented"):
                raise ValueError(f"PyTorch has no second derivative of it: {said}") from error
            raise
        return torch.stack(totals, dim=1)

    def _shares(self) -> Iterator[Share]:
        """The chunks' shares of a product."""
        with untouched(self.objective.model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._drop_outdated_graphs()
            for index in range(len(self.objective.batches)):
                yield self._graphs.get(index) or self._build(index)

    def _why_not_finite(self) -> str:
        reason = not_finite(self.objective.model, self.objective.batches)
        return reason or "the loss or its derivatives overflow at these weights"

    def _build(self, index: int) -> Share:
        """The share of chunk ``index``; its graph is kept while the memory budget lasts."""
        inputs, targets = self.objective.batches[index]
        if self.device.type == "cpu":
            # Plain strides: second derivatives of channels-last images are slower on CPU.
            inputs = inputs.flatten().view(inputs.shape)
        weight = len(targets) / self.objective.examples
        torch.manual_seed(index)  # one fixed draw of dropout masks, where allowed
        if self._graphs_full:
            with lean_graphs(), recomputed(self._recompute):
                return self._share(inputs, targets, weight)
        with (
            _saved_bytes({*self.objective.params, inputs, targets}) as saved,
            lean_graphs(),
            recomputed(self._recompute),
        ):
            share = self._share(inputs, targets, weight)
        # The first derivative itself, one number for each parameter, is kept as well.
        needed = saved["bytes"] + self.shape[0] * self.dtype.itemsize
        if self._graph_bytes + needed <= self._memory_budget:
            self._graphs[index] = share
            self._graph_bytes += needed
        else:
            self._graphs_full = True
        return share

    def _drop_outdated_graphs(self) -> None:
        """Forget the kept graphs if weights, buffers, modes or data are not what they were.

        Weights are compared by value: a change through ``.data`` leaves no other trace.
        """
        now = self.objective.params[0]
        if now.dtype != self.dtype or now.device != self.device:
            raise ValueError(
                f"the model is now {now.dtype} on {now.device}, the "
                f"operator was made for {self.dtype} on {self.device}: make a new one"
            )
        tensors = [*self.objective.model.parameters(), *self.objective.model.buffers()]
        marks: list[int] = [module.training for module in self.objective.model.modules()]
        marks += [tensor._version for batch in self.objective.batches for tensor in batch]
        if self._state:
            copies, old_marks = self._state
            if (
                marks == old_marks
                and len(copies) == len(tensors)
                and all(torch.equal(a, b) for a, b in zip(copies, tensors, strict=True))
            ):
                return
        self._graphs.clear()
        self._graph_bytes = 0
        self._graphs_full = self._memory_budget == 0
        if not self._graphs_full:
            self._state = [[tensor.detach().clone() for tensor in tensors], marks]


class HessianOperator(_MeanLossOperator):
    r"""The Hessian of the mean loss over all examples, at the model's current weights.

    .. math:: H = \nabla^2_w \, \frac1n \sum_{i=1}^n \ell\bigl(f_w(x_i), y_i\bigr)

    The product uses :math:`Hv = \nabla_w \langle \nabla_w L, v \rangle`, chunk by chunk: a chunk of
    :math:`n_b` examples enters with weight :math:`n_b / n`, so unequal batches are exact.

    The graph of the gradient is kept for the next product, as many chunks of it as fit into
    ``memory_budget``; the others are computed anew each time.
    A product costs about 2 gradients with a kept graph and 3 without.

    The operator copies references to the batches once, when it is made: a loader that shuffles or
    drops its last batch still defines one fixed matrix.
    Weights and buffers are read at every product.
    The model, its mode, gradients, buffers and the random state are left untouched.
    Flat vectors follow ``model.parameters()``, each parameter once.

    Args:
        model: Any differentiable module.
            Modes are taken as they are: call ``model.eval()`` before for batch normalisation and
            dropout.
            Fused attention, which has no second derivative, is replaced during a product;
            :attr:`replaced` and the operator's ``repr`` say so.
            Weight normalisation, of which PyTorch's second derivative can be wrong, is written out.
        loss_fn: ``loss_fn(outputs, targets)``, the scalar **mean** loss of a batch.
        data: A pair ``(X, y)`` of tensors whose first axis is the example,
            or an iterable of such pairs, for instance a ``DataLoader``.
        params: Parameters to differentiate; ``None`` means all that require a gradient.
            Those of one layer give that layer's diagonal block.
        chunk_size: Largest number of examples in one forward pass.
            It bounds memory and changes the result by rounding only.
        memory_budget: Bytes that kept graphs may take; 0 keeps none.
        allow: ``"batchnorm"`` takes batch statistics in ``train`` mode as they are: the loss of an
            example then depends on its batch, and batches are never cut.
            ``"dropout"`` takes one fixed draw of the random layers.
            The loss of given outputs has to be their mean all the same: one that compares the
            examples of a batch, as contrastive losses do, is refused.
        recompute: Modules of the model, such as the blocks of a transformer, whose activations are
            computed again when a product needs them: it then keeps their inputs only, and takes
            about twice as long. Each must return one tensor.
        group: A ``torch.distributed`` process group whose ranks each hold a shard of the data, of
            any size, and the same weights; ``None`` is this process alone.
            Every rank makes the same calls in the same order, and gets the same results, for the
            price of one all-reduce of the vector per product.
            (``DistributedSampler`` repeats examples to make shards equal, so they would count
            twice: take every ``size``-th example instead.)

    Raises:
        ValueError: Empty data, no parameters, a loss that is not a finite scalar mean over
            examples or has no second derivative, an active dropout layer, batch normalisation in
            ``train`` mode.
        RankError: Another rank failed, is silent past the time limit of the group, or has other
            weights or another vector; the message names it.

    Example:
        Least squares, :math:`L = \frac1n \lVert Xw - y\rVert^2`, has :math:`H = \frac2n X^\top X`.

        >>> import torch
        >>> X = torch.tensor([[1., 0.], [1., 2.]])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> H = HessianOperator(model, torch.nn.functional.mse_loss, (X, torch.zeros(2, 1)))
        >>> H @ torch.tensor([1., 0.])
        tensor([2., 2.])
    """

    def _share(self, inputs: Tensor, targets: Tensor, weight: float) -> Share:
        slopes = derivatives(
            self.objective.of_batch(inputs, targets) * weight, self.objective.params
        )
        params = self.objective.params  # a share that held the operator itself would be a cycle
        return lambda directions: pull_back(slopes, params, directions)


class GaussNewtonOperator(_MeanLossOperator):
    r"""The generalised Gauss-Newton matrix of the mean loss: curvature of the loss, not of the net.

    .. math:: G = \frac1n \sum_{i=1}^n J_i^\top \, \nabla^2_f \ell(f_i, y_i) \, J_i,
        \qquad J_i = \frac{\partial f_w(x_i)}{\partial w}

    The Hessian is :math:`G` plus the curvature of the outputs weighted by the slope of the loss
    (Schraudolph, *Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent*, Neural
    Computation 14, 2002).
    Where the loss is convex in the outputs, as cross-entropy and squared error are, :math:`G` has
    no negative eigenvalue.

    Arguments, errors, kept graphs and guarantees are those of :class:`HessianOperator`; in
    addition the outputs must be one tensor.

    Example:
        A model linear in its weights has no curvature of its own, so both matrices agree.

        >>> import torch
        >>> X = torch.tensor([[1., 0.], [1., 2.]])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> G = GaussNewtonOperator(model, torch.nn.functional.mse_loss, (X, torch.zeros(2, 1)))
        >>> G @ torch.tensor([1., 0.])
        tensor([2., 2.])
    """

    def _share(self, inputs: Tensor, targets: Tensor, weight: float) -> Share:
        outputs = self.objective.model(inputs.to(self.device))
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"Gauss-Newton needs one output tensor, the model returns {type(outputs).__name__}"
            )
        free = outputs.detach().requires_grad_()
        loss = self.objective.loss_fn(free, targets.to(self.device)) * weight
        slope = derivatives(loss, [free])
        # J^T u is linear in u, so its derivative with respect to u, along v, is J v.
        dummy = torch.zeros_like(outputs, requires_grad=True)
        params = self.objective.params
        pulled = derivatives(outputs, params, dummy)

        def share(directions: list[Tensor]) -> tuple[Tensor, ...]:
            pushed = pull_back(pulled, [dummy], directions)
            bent = pull_back(slope, [free], list(pushed))
            return pull_back((outputs,), params, list(bent))

        return share


class ScaledOperator(CurvatureOperator):
    r"""A symmetric matrix in other units: :math:`S A S` with a diagonal :math:`S`.

    With :math:`S = \operatorname{diag}|w|` the Hessian measures relative changes of the weights
    (Tsuzuku, Sato, Sugiyama, *Normalized Flat Minima*, ICML 2020; Kwon et al., *ASAM*, ICML 2021).

    Args:
        op: Symmetric ``(D, D)``, one of this module's operators or a plain tensor.
        scale: The diagonal, ``(D,)``; :func:`weight_scale` makes the usual ones.

    Raises:
        ValueError: ``scale`` is not finite or not of length ``D``.

    Example:
        >>> ScaledOperator(torch.eye(2), torch.tensor([1., 3.])) @ torch.ones(2)
        tensor([1., 9.])
    """

    def __init__(self, op: CurvatureOperator | Tensor, scale: Tensor) -> None:
        size = op.shape[0]
        if tuple(scale.shape) != (size,):
            raise ValueError(f"scale must have shape ({size},), got {tuple(scale.shape)}")
        if not torch.isfinite(scale).all():
            raise ValueError("scale must be finite")
        self._op = op
        self.shape = (size, size)
        self.dtype = op.dtype
        self.device = op.device
        self.products = 0
        self._scale = scale.detach().to(dtype=op.dtype, device=op.device)[:, None]

    def _product(self, vectors: Tensor) -> Tensor:
        return self._scale * (self._op @ (self._scale * vectors))


def weight_scale(
    model: nn.Module, *, per: str = "weight", params: Iterable[nn.Parameter] | None = None
) -> Tensor:
    """The diagonal of a :class:`ScaledOperator` that makes curvature relative to the weights.

    Args:
        model: Its current weights are read.
        per: ``"weight"``: ``|w_i|``; ``"tensor"``: the Euclidean norm of the tensor that holds
            ``w_i``.
        params: As for :class:`HessianOperator`.

    Returns:
        ``(D,)``, in the order of ``model.parameters()``.

    Raises:
        ValueError: ``per`` is neither.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[3., -4.]])
        >>> weight_scale(model), weight_scale(model, per="tensor")
        (tensor([3., 4.]), tensor([5., 5.]))
    """
    chosen = [p.detach() for p in select_parameters(model, params)]
    if per == "weight":
        return flat(p.abs() for p in chosen)
    if per == "tensor":
        return flat(torch.linalg.vector_norm(p).expand_as(p) for p in chosen)
    raise ValueError(f"per must be 'weight' or 'tensor', got {per!r}")


def _loss_of_few(objective: MeanLoss, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of two examples, with the graph of its derivative.

    Raises:
        ValueError: It has no derivative.
    """
    whole = "batchnorm" in objective.allow
    few = (inputs, targets) if whole else (inputs[:2], targets[:2])
    with untouched(objective.model), torch.enable_grad():
        loss = objective.of_batch(*few)
        if not loss.requires_grad:  # perhaps the two do not count
            loss = objective.of_batch(inputs, targets)
    if not loss.requires_grad:
        raise ValueError(
            "the loss has no derivative by the weights: does model or loss_fn detach, or work "
            "under torch.no_grad()?"
        )
    return loss


def _functions_of(loss: Tensor) -> list[Any]:
    """The functions of the graph that autograd keeps of a loss."""
    waiting: list[Any] = [] if loss.grad_fn is None else [loss.grad_fn]  # a weight has none
    found = dict.fromkeys(waiting)
    while waiting:
        for later, _ in waiting.pop().next_functions:
            if later is not None and later not in found:
                found[later] = None
                waiting.append(later)
    return list(found)


def _fused_attention(functions: list[Any]) -> tuple[str, ...]:
    """The fused attention kernels among them, which have no second derivative."""
    names = {node.name() for node in functions}
    return tuple(
        sorted(n.removesuffix("Backward0") for n in names if n.startswith("ScaledDotProduct"))
    )


def _once_only(node: Any) -> str:
    """Why a function can be differentiated once only; PyTorch may give zeros for more."""
    function = getattr(node, "_forward_cls", None)
    if function is None:
        return ""
    if function.__name__ == "CheckpointFunction":
        return "checkpoint(use_reentrant=True) has no second derivative: give False"
    if getattr(function.backward, "__code__", None) is _ONCE:
        return f"{function.__name__} has no second derivative: its backward is once_differentiable"
    return ""


def _refuse_on_the_way(doubtful: list[Any], loss: Tensor, objective: MeanLoss) -> None:
    """Refuse the functions that the derivative by the chosen parameters goes through.

    A reentrant checkpoint hides its weights, so one stands in the way of parameters not found.
    """
    passed: list[Any] = []
    for node in doubtful:
        node.register_prehook(lambda *_, node=node: passed.append(node))
    slopes: Any = (None,)
    with untouched(objective.model), suppress(RuntimeError):
        slopes = torch.autograd.grad(loss, objective.params, allow_unused=True)
    hidden = any(slope is None for slope in slopes)
    for node in doubtful:
        why = _once_only(node)
        if node in passed or (hidden and why.startswith("checkpoint")):
            raise ValueError(why)


def _pass_over(count: int, generator: torch.Generator) -> None:
    """Draw so many signs for nothing."""
    for start in range(0, count, 1 << 20):
        torch.randint(2, (min(1 << 20, count - start),), generator=generator)


@contextmanager
def _saved_bytes(free: Iterable[Tensor]) -> Iterator[dict[str, int]]:
    """Count the bytes that autograd keeps, apart from the storages of ``free``."""
    known = {tensor.untyped_storage().data_ptr() for tensor in free}
    count = {"bytes": 0}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            count["bytes"] += storage.nbytes()
        # Detached: a tensor kept by the node that made it would be a cycle, and leak.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield count
