r"""The loss on lines, planes and curves through weight space: what a picture of it is made of.

A slice is an affine map :math:`c \mapsto w_0 + B c` from one or two coordinates to the weights.
Its Hessian at the origin is :math:`B^\top H B`: a picture knows that much of the curvature and no
more.

Weights are flat vectors ``(D,)`` in the order of ``model.parameters()``, those that require a
gradient, each once.
Nothing here moves the model: weights are put back, and modes, gradients, ``requires_grad``,
buffers and the random state are left as they are.
Buffers such as the running statistics of batch normalisation are no weights: they keep their
values on the whole slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from losslandscape.eigen import EigenResult, top_eigenpairs
from losslandscape.objective import (
    Batch,
    LossFunction,
    MeanLoss,
    flat,
    select_parameters,
    untouched,
)

NORMALISATIONS = ("filter", "unit")
# Three points whose triangle is flatter than this share of its longest side span no plane.
_COLLINEAR = 1e-5


@dataclass(frozen=True)
class Slice:
    """An affine line, plane or ``k``-dimensional subspace of weight space.

    Attributes:
        origin: ``(D,)``, the point with coordinates 0.
        basis: ``(D, k)``, one direction per column; neither their lengths nor their angles are
            fixed.

    Example:
        >>> line = Slice(torch.zeros(3), torch.tensor([[2.0], [0.0], [0.0]]))
        >>> line.at(torch.tensor([1.5])).tolist()
        [3.0, 0.0, 0.0]
        >>> line.coordinates(torch.tensor([5.0, 7.0, 0.0])).tolist()
        [2.5]
    """

    origin: Tensor  # (D,)
    basis: Tensor  # (D, k)

    def __post_init__(self) -> None:
        size = self.origin.shape[0] if self.origin.ndim == 1 else None
        if size is None or self.basis.ndim != 2 or self.basis.shape[0] != size:
            raise ValueError(
                "expected an origin (D,) and a basis (D, k), got "
                f"{tuple(self.origin.shape)} and {tuple(self.basis.shape)}"
            )
        if not (torch.isfinite(self.origin).all() and torch.isfinite(self.basis).all()):
            raise ValueError("the origin or the basis holds NaN or infinity")

    def at(self, coordinates: Tensor) -> Tensor:
        """The weights ``(..., D)`` at ``coordinates`` (..., k)."""
        return self.origin + coordinates.to(self.basis) @ self.basis.T

    def coordinates(self, points: Tensor) -> Tensor:
        """Coordinates ``(..., k)`` of the points of the slice closest to ``points`` (..., D).

        Raises:
            ValueError: The directions are linearly dependent.
        """
        gram = self.basis.T @ self.basis
        length = gram.diagonal().sqrt()
        if not (length > 0).all():
            raise ValueError("a direction of the slice is zero")
        # Unit directions: one short direction beside a long one is no dependence.
        angles = gram / length / length[:, None]
        if float(torch.linalg.eigvalsh(angles)[0]) < 1e-6:
            raise ValueError("the directions of the slice are linearly dependent")
        along: Tensor = (points.to(self.origin) - self.origin) @ (self.basis / length)
        found: Tensor = torch.linalg.solve(angles, along[..., None])[..., 0] / length
        return found

    def project(self, points: Tensor) -> Tensor:
        """The points of the slice closest to ``points`` (..., D)."""
        return self.at(self.coordinates(points))


def filter_normalised(
    model: nn.Module, direction: Tensor, *, params: Iterable[nn.Parameter] | None = None
) -> Tensor:
    r"""The direction, each filter of it given the norm of the model's filter.

    .. math:: d_f \leftarrow \frac{\lVert w_f \rVert}{\lVert d_f \rVert} d_f

    A filter is a slice along the first axis of a parameter with two or more axes: the weights into
    one unit of a ``Linear``, one output channel of a convolution.
    Parameters with fewer axes (biases, scales and shifts of normalisation layers) get zero.

    A slice along it keeps its picture when whole layers are rescaled, ``w -> T w`` with one factor
    for each filter, since ``T d`` is then the normalised direction of ``T w``.
    It does not when the *inputs* of a filter are rescaled by different factors, as in a rescaling
    unit by unit.

    Source: Li, Xu, Taylor, Studer & Goldstein, *Visualizing the Loss Landscape of Neural Nets*,
    NeurIPS 2018, section 4.

    Args:
        model, params: Whose weights, as for :class:`~losslandscape.operators.HessianOperator`.
        direction: ``(D,)``, or ``(D, k)`` for ``k`` directions.

    Returns:
        Of the shape of ``direction``; zero where the model's filter or the direction's is.

    Raises:
        ValueError: Wrong length, or no parameter has filters.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> model.weight.data = torch.tensor([[3.0, 4.0]])
        >>> filter_normalised(model, torch.tensor([0.0, 7.0, 7.0])).tolist()
        [0.0, 5.0, 0.0]
    """
    chosen = select_parameters(model, params)
    if all(p.ndim < 2 for p in chosen):
        raise ValueError("no parameter has two axes, so there is no filter to normalise by")
    size = sum(p.numel() for p in chosen)
    if direction.ndim not in (1, 2) or direction.shape[0] != size:
        raise ValueError(
            f"expected a direction of shape ({size},) or ({size}, k), got {tuple(direction.shape)}"
        )
    columns = direction.detach().reshape(size, -1)
    pieces = []
    for p, piece in zip(chosen, columns.split([p.numel() for p in chosen]), strict=True):
        if p.ndim < 2:
            pieces.append(torch.zeros_like(piece))
            continue
        filters = piece.reshape(len(p), -1, columns.shape[1])
        old = torch.linalg.vector_norm(filters, dim=1, keepdim=True)
        new = torch.linalg.vector_norm(p.detach().reshape(len(p), -1), dim=1)[:, None, None]
        # Divided first: the product of two small norms could underflow.
        scaled = torch.where(old > 0, filters / old, torch.zeros_like(filters)) * new.to(old)
        pieces.append(scaled.reshape(piece.shape))
    return torch.cat(pieces).reshape(direction.shape)


def random_slice(
    model: nn.Module,
    k: int = 2,
    *,
    seed: int,
    normalise: str = "filter",
    params: Iterable[nn.Parameter] | None = None,
) -> Slice:
    """The slice through the model's weights along ``k`` independent Gaussian directions.

    Args:
        model, params: As for :class:`~losslandscape.operators.HessianOperator`.
        k: Number of directions; they are not made orthogonal, and in high dimension nearly are.
        seed: Seed of the directions.
        normalise: ``"filter"`` for :func:`filter_normalised` directions, ``"unit"`` for directions
            of length 1, which treat all weights alike.

    Raises:
        ValueError: Unknown normalisation, ``k`` below 1, or no parameter with filters.
    """
    if normalise not in NORMALISATIONS:
        raise ValueError(
            f"unknown normalisation {normalise!r}: choose one of {', '.join(NORMALISATIONS)}"
        )
    if k < 1:
        raise ValueError(f"a slice needs at least one direction, got k = {k}")
    chosen = select_parameters(model, params)
    origin = flat(chosen)
    # Drawn on the CPU in float64, so that a seed means the same directions on every device.
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(len(origin), generator=generator, dtype=torch.float64) for _ in range(k)]
    draw = torch.stack(rows, dim=1).to(origin)
    if normalise == "filter":
        return Slice(origin, filter_normalised(model, draw, params=chosen))
    return Slice(origin, draw / torch.linalg.vector_norm(draw, dim=0))


def eigen_slice(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    k: int = 2,
    *,
    params: Iterable[nn.Parameter] | None = None,
    which: str = "LA",
    tol: float = 1e-2,
    max_products: int = 300,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Slice, EigenResult]:
    """The slice through the model's weights along ``k`` eigenvectors of the Hessian.

    The sign of an eigenvector means nothing; it is chosen so that the largest entry is positive.

    Args:
        model, loss_fn, data, params: As for :class:`~losslandscape.operators.HessianOperator`;
            batch normalisation in ``eval`` mode is a fixed function and does no harm.
        k, which, tol, max_products, seed, progress: As for :func:`~losslandscape.eigen.lanczos`.

    Returns:
        The slice, its directions of length 1 and orthogonal, and the eigenpairs with their
        certificates: look at ``converged`` before you trust the picture.
    """
    chosen = select_parameters(model, params)
    pairs = top_eigenpairs(
        model,
        loss_fn,
        data,
        k,
        which=which,
        params=chosen,
        tol=tol,
        seed=seed,
        max_products=max_products,
        progress=progress,
    )
    largest = pairs.vectors.gather(0, pairs.vectors.abs().argmax(dim=0, keepdim=True))
    return Slice(flat(chosen), pairs.vectors * largest.sign()), pairs


def plane_through(first: Tensor, second: Tensor, third: Tensor) -> Slice:
    """The plane through three points ``(D,)``, with an orthonormal basis.

    The first point is the origin, the second lies on the positive first axis, the third has a
    positive second coordinate; :meth:`Slice.coordinates` gives the numbers.

    Source: Garipov, Izmailov, Podoprikhin, Vetrov & Wilson, *Loss Surfaces, Mode Connectivity, and
    Fast Ensembling of DNNs*, NeurIPS 2018, section 3 and figure 1.

    Raises:
        ValueError: Different lengths, or points that (nearly) lie on one line.

    Example:
        >>> points = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [2.0, 5.0, 0.0]])
        >>> plane_through(*points).coordinates(points).tolist()
        [[0.0, 0.0], [2.0, 0.0], [1.0, 5.0]]
    """
    _check_points(first, second, third)
    if not first.shape == second.shape == third.shape or first.ndim != 1:
        shapes = ", ".join(str(tuple(p.shape)) for p in (first, second, third))
        raise ValueError(f"expected three points of one length, got {shapes}")
    one, two = (second - first).detach(), (third - first).detach()
    size = max(float(torch.linalg.vector_norm(side)) for side in (one, two, one - two))
    if not torch.linalg.vector_norm(one) > _COLLINEAR * size:
        raise ValueError("the first two points coincide: they span no plane")
    one = one / torch.linalg.vector_norm(one)
    for _ in range(2):  # twice is enough for orthogonality to rounding
        two = two - torch.dot(one, two) * one
    height = torch.linalg.vector_norm(two)
    if not height > _COLLINEAR * size:
        raise ValueError("the three points lie on one line: they span no plane")
    return Slice(first.detach(), torch.stack([one, two / height], dim=1))


def _check_points(*points: Tensor) -> None:
    for point in points:
        if not isinstance(point, Tensor):
            raise TypeError(
                "expected weights as flat tensors, such as "
                f"parameters_to_vector(model.parameters()), got {type(point).__name__}"
            )


def line_through(start: Tensor, end: Tensor) -> Slice:
    """The straight path: coordinate 0 is ``start``, coordinate 1 is ``end``."""
    _check_points(start, end)
    return Slice(start.detach(), (end - start).detach()[:, None])


@dataclass(frozen=True)
class Bezier:
    r"""A quadratic Bezier curve, :math:`\phi(t) = (1-t)^2 a + 2t(1-t)\, m + t^2 b`.

    Attributes:
        start, middle, end: ``(D,)``; the curve passes through ``start`` and ``end`` only.

    Example:
        >>> curve = Bezier(torch.zeros(1), torch.ones(1), torch.zeros(1))
        >>> curve.at(0.5).item()
        0.5
    """

    start: Tensor  # (D,)
    middle: Tensor  # (D,)
    end: Tensor  # (D,)

    def at(self, t: float) -> Tensor:
        """The weights ``(D,)`` at ``t`` in [0, 1]."""
        return (1 - t) ** 2 * self.start + 2 * t * (1 - t) * self.middle + t**2 * self.end

    def length(self, pieces: int = 1000) -> float:
        """Length of the curve, as that of a polygon of so many pieces."""
        t = torch.linspace(0, 1, pieces + 1, dtype=torch.float64)
        # phi is a combination of three vectors, so the polygon needs their 3 x 3 products only.
        weights = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], dim=1).diff(dim=0)
        corners = torch.stack([self.start, self.middle, self.end])
        corners = (corners - self.start).double()
        products = (corners @ corners.T).to(weights)
        return float(
            torch.einsum("ia,ab,ib->i", weights, products, weights).clamp(min=0).sqrt().sum()
        )


def bent_path(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    start: Tensor,
    end: Tensor,
    *,
    steps: int,
    lr: float = 1e-3,
    batch_size: int = 128,
    params: Iterable[nn.Parameter] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Bezier:
    r"""A curve between two points whose middle point is trained for a low loss along it.

    Minimises :math:`\int_0^1 L(\phi(t))\, dt` over the middle point :math:`m` with Adam, one batch
    and one uniform random :math:`t` per step, the rate falling linearly to 0;
    :math:`\nabla_m = 2t(1-t)\, \nabla L(\phi(t))`.

    Source: Garipov et al., NeurIPS 2018, eq. 2; Draxler, Veschgini, Salmhofer & Hamprecht,
    *Essentially No Barriers in Neural Network Energy Landscape*, ICML 2018.

    Args:
        model, loss_fn, params: As for :class:`~losslandscape.operators.HessianOperator`.
        data: Training data, cut into batches in the given order: shuffle sorted data before.
        start, end: ``(D,)`` end points, which stay.
        steps: Number of steps.
        lr: Adam's first rate.
        batch_size: Examples per step.
        seed: Seed of batches and of ``t``.
        progress: Show a bar.

    Raises:
        ValueError: ``steps`` or ``lr`` out of range, end points of the wrong length.
        FloatingPointError: The loss ceases to be finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    objective = MeanLoss(model, loss_fn, data, params=params, chunk_size=batch_size)
    a, b = (_weights(point, objective) for point in (start, end))
    middle = ((a + b) / 2).requires_grad_()
    optimizer = torch.optim.Adam([middle], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    count = len(objective.batches)
    with _moving(objective) as place, torch.enable_grad():
        order: list[int] = []
        for step in tqdm(range(steps), desc="bent path", disable=not progress):
            order = order or torch.randperm(count, generator=generator).tolist()
            t = float(torch.rand((), generator=generator, dtype=torch.float64))
            place(Bezier(a, middle.detach(), b).at(t))
            loss = objective.of_batch(*objective.batches[order.pop()])
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {step}: lower lr (now {lr})"
                )
            pieces = torch.autograd.grad(
                loss, objective.params, allow_unused=True, materialize_grads=True
            )
            middle.grad = 2 * t * (1 - t) * flat(pieces)
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            optimizer.step()
    return Bezier(a, middle.detach(), b)


def barrier(positions: Tensor, losses: Tensor) -> float:
    r"""How far the loss along a path rises above the straight line between its end values.

    .. math:: \max_t \bigl[ L(t) - (1-t)\, L(0) - t\, L(1) \bigr] \ge 0

    Source: Entezari, Sedghi, Saukh & Neyshabur, *The Role of Permutation Invariance in Linear Mode
    Connectivity of Neural Networks*, ICLR 2022, definition 2.1.

    Args:
        positions: ``(m,)`` values of ``t``, from 0 to 1.
        losses: ``(m,)``.

    Raises:
        ValueError: Different lengths, or positions that do not run from 0 to 1.

    Example:
        >>> barrier(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 5.0, 3.0]))
        3.0
    """
    if positions.shape != losses.shape or positions.ndim != 1:
        raise ValueError(
            f"expected as many losses as positions, got {tuple(losses.shape)} and "
            f"{tuple(positions.shape)}"
        )
    if len(positions) < 2 or positions[0] != 0 or positions[-1] != 1:
        raise ValueError("the positions must run from 0 to 1")
    return float((losses - losses[0] - positions * (losses[-1] - losses[0])).max())


def trajectory_plane(points: Tensor, k: int = 2) -> tuple[Slice, Tensor]:
    r"""The slice through the last point along the first principal components of a trajectory.

    The components are those of the points about their mean, from the small matrix of their
    products, never from a ``D x D`` covariance.
    Through the last point, as in Li et al. (2018), section 7: the picture is exact there, and the
    other points lie beside it.
    The signs are such that the trajectory starts at positive coordinates.

    Beware: the first components of a random walk in high dimension are cosines and explain most of
    it (Antognini & Sohl-Dickstein, *PCA of high dimensional random walks with comparison to neural
    network training*, NeurIPS 2018).

    Args:
        points: ``(m, D)``, more than ``k`` of them.
        k: Number of directions.

    Returns:
        The slice, with an orthonormal basis, and the share ``(m - 1,)`` of the variance that each
        component explains, largest first.

    Raises:
        ValueError: Too few points, or points that span fewer than ``k`` directions.

    Example:
        >>> t = torch.linspace(-1, 1, 5)
        >>> plane, explained = trajectory_plane(torch.stack([3 * t, t**2, 0 * t], dim=1))
        >>> [round(float(share), 2) for share in explained[:3]]
        [0.96, 0.04, 0.0]
    """
    if points.ndim != 2 or not 1 <= k < len(points):
        raise ValueError(
            f"expected more than {k} points (m, D) and k of 1 or more, got {tuple(points.shape)}"
        )
    centred = points.detach() - points.detach().mean(dim=0)
    # Scaled, so that no square over- or underflows.
    scaled = centred / (float(centred.abs().max()) or 1.0)
    values, vectors = torch.linalg.eigh((scaled @ scaled.T).double().cpu())
    values, vectors = values.flip(0)[:-1].clamp(min=0), vectors.flip(1)[:, :-1]
    if not values[k - 1] > len(points) * torch.finfo(points.dtype).eps * values[0]:
        raise ValueError(f"the points span fewer than {k} directions")
    axes = scaled.T @ vectors[:, :k].to(scaled)
    basis, _ = torch.linalg.qr(axes)  # orthogonal to rounding
    signs = torch.where((points[0] - points[-1]).detach() @ basis < 0, -1.0, 1.0).to(basis)
    return Slice(points[-1].detach(), basis * signs), values / values.sum()


def evaluate_at(
    model: nn.Module,
    functions: Mapping[str, LossFunction],
    data: Batch | Iterable[Batch],
    points: Iterable[Tensor],
    *,
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Averages over the data at each of ``points``, one forward pass for all functions.

    Args:
        model, params: As for :class:`~losslandscape.operators.HessianOperator`; batch normalisation
            in ``train`` mode and active dropout are refused.
        functions: By name, each ``f(outputs, targets)`` with a scalar tensor: the mean over a
            batch, for instance a loss or an accuracy.
        data: As for :class:`~losslandscape.operators.HessianOperator`.
        points: Flat weights ``(D,)``.
        chunk_size: Largest number of examples in one forward pass; bounds memory.
        progress: Show a bar.

    Returns:
        By name, ``(m,)`` in ``float64``; not finite where the function is not.

    Raises:
        ValueError: No function, one that is not a mean over examples, a point of wrong length.
    """
    if not functions:
        raise ValueError("no function to evaluate: give at least one, for instance a loss")
    if not isinstance(functions, Mapping):
        raise TypeError(
            "functions must be a dict of functions by name, such as {'loss': loss_fn}, "
            f"got {type(functions).__name__}"
        )
    chosen = select_parameters(model, params)
    objective: MeanLoss | None = None
    for function in functions.values():  # each is checked; data that can be read once are read once
        batches = objective.batches if objective else data
        objective = MeanLoss(model, function, batches, params=chosen, chunk_size=chunk_size)
    assert objective
    rows = []
    with _moving(objective) as place, torch.no_grad():
        for point in tqdm(points, desc="slice", unit="point", disable=not progress):
            place(_weights(point, objective))
            total = torch.zeros(len(functions), dtype=torch.float64, device=objective.device)
            for inputs, targets in objective.batches:
                inputs, targets = inputs.to(total.device), targets.to(total.device)
                outputs = model(inputs)
                values = [function(outputs, targets).double() for function in functions.values()]
                total += torch.stack([value.reshape(()) for value in values]) * len(targets)
            rows.append(total.cpu() / objective.examples)
    found = torch.stack(rows) if rows else torch.zeros(0, len(functions), dtype=torch.float64)
    return dict(zip(functions, found.unbind(dim=1), strict=True))


def evaluate_on(
    model: nn.Module,
    functions: Mapping[str, LossFunction],
    data: Batch | Iterable[Batch],
    where: Slice,
    *axes: Tensor | Sequence[float],
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Averages over the data on a line or a grid of a slice.

    Args:
        model, functions, data, params, chunk_size, progress: As for :func:`evaluate_at`.
        where: The slice.
        axes: One list of coordinates for each direction of the slice.

    Returns:
        By name, ``(len(axes[0]), len(axes[1]), ...)``: entry ``[i, j]`` belongs to the coordinates
        ``(axes[0][i], axes[1][j])``.

    Raises:
        ValueError: As for :func:`evaluate_at`, or another number of axes than directions.

    Example:
        >>> model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> data = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
        >>> line = Slice(torch.zeros(1), torch.ones(1, 1))
        >>> loss = {"loss": nn.functional.mse_loss}
        >>> evaluate_on(model, loss, data, line, [0.0, 3.0], progress=False)["loss"].tolist()
        [0.0, 9.0]
    """
    grids = [torch.as_tensor(axis, dtype=torch.float64) for axis in axes]
    if len(grids) != where.basis.shape[1]:
        raise ValueError(
            f"the slice has {where.basis.shape[1]} directions but {len(grids)} axes are given"
        )
    for grid in grids:
        if grid.ndim != 1 or not len(grid) or not torch.isfinite(grid).all():
            raise ValueError(f"an axis must be a list of finite numbers, got {grid.tolist()}")
    coordinates = torch.stack(torch.meshgrid(*grids, indexing="ij"), dim=-1)
    found = evaluate_at(
        model,
        functions,
        data,
        _Points(where.at, coordinates.reshape(-1, len(grids))),
        params=params,
        chunk_size=chunk_size,
        progress=progress,
    )
    return {name: values.reshape(coordinates.shape[:-1]) for name, values in found.items()}


def projection_gap(
    model: nn.Module,
    functions: Mapping[str, LossFunction],
    data: Batch | Iterable[Batch],
    points: Tensor,
    where: Slice,
    *,
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The averages at points and at their projections into a slice, side by side.

    A trajectory drawn on the contours of a plane seems to have the loss of its projections.
    It has that of its points.

    Args:
        model, functions, data, params, chunk_size, progress: As for :func:`evaluate_at`.
        points: ``(m, D)``.
        where: The slice.

    Returns:
        By name, ``(m, 2)``: at the point, at its projection.
    """
    coordinates = where.coordinates(points)

    def one_by_one(row: Tensor) -> Tensor:
        which, projected = divmod(int(row), 2)
        return where.at(coordinates[which]) if projected else points[which]

    found = evaluate_at(
        model,
        functions,
        data,
        _Points(one_by_one, torch.arange(2 * len(points))),
        params=params,
        chunk_size=chunk_size,
        progress=progress,
    )
    return {name: values.reshape(-1, 2) for name, values in found.items()}


@dataclass(frozen=True)
class _Points:
    """Points made one at a time: a grid of weights would not fit into memory."""

    at: Callable[[Tensor], Tensor]
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.at(row) for row in self.rows)


def _weights(point: Tensor, objective: MeanLoss) -> Tensor:
    if point.shape != (objective.size,):
        raise ValueError(f"expected weights of shape ({objective.size},), got {tuple(point.shape)}")
    return point.detach().to(device=objective.device, dtype=objective.dtype)


@contextmanager
def _moving(objective: MeanLoss) -> Iterator[Callable[[Tensor], None]]:
    """Lend out the model: the function given places weights, and all is put back at the end."""
    before = [p.detach().clone() for p in objective.params]

    def place(weights: Tensor) -> None:
        for p, piece in zip(objective.params, objective.split(weights), strict=True):
            p.data.copy_(piece)

    with untouched(objective.model):
        try:
            yield place
        finally:
            for p, kept in zip(objective.params, before, strict=True):
                p.data.copy_(kept)
