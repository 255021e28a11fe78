r"""Worst-case sharpness: how far the loss can rise within a distance of the weights.

.. math:: \mathcal{S}_\epsilon(w) = \max_{\lVert d \rVert \le \epsilon} L(w + d) - L(w)

For the quadratic model of the loss this is a trust-region problem, whose global maximum can be
found and certified although it need not be convex (Moré & Sorensen, *Computing a Trust Region
Step*, SIAM J. Sci. Stat. Comput. 4, 1983).
For the loss itself only lower bounds are known, from ascents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from losslandscape import sums
from losslandscape.eigen import (
    Basis,
    EigenResult,
    SymmetricMatrix,
    bordered,
    lambda_max,
    lanczos,
    orthogonalise,
)
from losslandscape.objective import Batch, LossFunction, MeanLoss, gradient
from losslandscape.operators import HessianOperator


@dataclass(frozen=True)
class QuadraticSharpness:
    r"""Global maxima of :math:`q(d) = g^\top d + \frac12 d^\top H d` over balls, certified.

    A point of the ball with :math:`(\mu I - H) d = g`, :math:`\mu \ge \max(\lambda_{\max}, 0)` and
    :math:`\mu (\lVert d \rVert - \epsilon) = 0` is a global maximum, and there is no other kind.

    Attributes:
        radii: ``(m,)``.
        values: ``(m,)`` values of ``q`` at ``directions``, from true products.
        directions: ``(D, m)``, each at most as long as its radius.
        multipliers: ``(m,)`` values of ``mu``; ``dS/d(eps) = mu eps``.
        cases: For each radius ``"boundary"``, ``"interior"`` (``mu = 0``), or ``"hard"``
            (``mu`` equals the largest eigenvalue to within the tolerance).
        residuals: ``(m,)`` true ``||(mu I - H) d - g||``.
        products: Products with ``H`` used, those of the certificate included.
        converged: ``(m,)`` bool, ``residuals <= tol (||g|| + mu ||d||)`` with a converged ``top``.
        top: The eigenpair of the largest eigenvalue.
    """

    radii: Tensor  # (m,)
    values: Tensor  # (m,)
    directions: Tensor  # (D, m)
    multipliers: Tensor  # (m,)
    cases: tuple[str, ...]
    residuals: Tensor  # (m,)
    products: int
    converged: Tensor  # (m,) bool
    top: EigenResult


def quadratic_sharpness(
    op: SymmetricMatrix,
    gradient: Tensor,
    radius: float | Sequence[float] | Tensor,
    *,
    tol: float = 1e-8,
    max_products: int = 300,
    seed: int = 0,
) -> QuadraticSharpness:
    r"""The largest rise of the quadratic model within a radius, through products only.

    The problem is solved exactly in a subspace that grows until the optimality conditions hold
    (Gould, Lucidi, Roma, Toint, *Solving the Trust-Region Subproblem Using the Lanczos Method*,
    SIAM J. Optim. 9, 1999).
    A Krylov space started at ``g`` alone never meets a top eigenvector orthogonal to ``g``, the
    hard case; so the subspace starts with the top eigenvector, from :func:`lanczos`.
    One subspace serves all radii.

    Args:
        op: Symmetric ``(D, D)``, definite or not.
        gradient: ``g``, ``(D,)``; it may be zero.
        radius: One radius or several, positive.
        tol: Relative residual asked for; about 1e-4 for operators in ``float32``.
        max_products: Upper bound on products, never exceeded; the certificate takes one for each
            radius.
            At most half of them go into the top eigenpair.
        seed: Seed of the start vector of :func:`lanczos`.

    Raises:
        ValueError: An argument out of range, not finite or of the wrong shape.

    Example:
        Along the top eigenvector nothing is approximated: ``eps |g| + eps^2 lambda / 2``.

        >>> H, g = torch.diag(torch.tensor([4.0, -1.0])).double(), torch.tensor([3.0, 0.0]).double()
        >>> found = quadratic_sharpness(H, g, [0.1, 1.0])
        >>> [round(value, 6) for value in found.values.tolist()], found.cases
        ([0.32, 5.0], ('boundary', 'boundary'))
    """
    radii = _radii(radius)
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    budget = max_products - len(radii)  # what the certificate leaves
    if budget < 4:
        raise ValueError(
            f"max_products must be at least {4 + len(radii)} for {len(radii)} radii, "
            f"got {max_products}"
        )
    g = _checked_gradient(op, gradient)
    norm = float(sums.norm(g))
    noise = torch.randn(len(g), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # The gradient is rich in directions of large curvature; the noise leaves no direction out.
    start = 0.5 * noise.to(g) / float(noise.norm()) + (g / norm if norm > 0 else 0)
    # An error of the eigenpair enters the residual as it is: half of the tolerance for it.
    top = lanczos(op, tol=tol / 2, max_products=budget // 2, v0=start, seed=seed)
    products = top.products

    space = Basis(top.vectors[:, 0])
    projected = top.values[:1].double().cpu().numpy().reshape(1, 1)
    leak = float(top.residuals[0])
    rest, _ = orthogonalise(g, space.vectors)
    scale = norm  # of the vector that rest was made from
    rounding = len(g) ** 0.5 * torch.finfo(g.dtype).eps
    while True:
        slopes = sums.contract(space.vectors, g).double().cpu().numpy()
        theta, frame = np.linalg.eigh(projected)
        solved = [_maximum(theta, frame.T @ slopes, float(eps)) for eps in radii]
        weights = frame @ np.stack([y for y, _ in solved], axis=1)
        mu = np.array([multiplier for _, multiplier in solved])
        beta = float(sums.norm(rest))
        outside = beta if len(projected) == 1 else beta * np.abs(weights[-1])
        errors = np.hypot(outside, leak * np.abs(weights[0]))
        allowed = tol * (norm + mu * np.linalg.norm(weights, axis=0))
        done = bool(np.all(errors <= 0.9 * allowed))
        if done or beta <= rounding * scale or products >= budget:
            break
        space.append(rest / beta)
        rest, column = orthogonalise(op @ space.vectors[-1], space.vectors)
        products += 1
        projected = bordered(projected, column.double().cpu().numpy())
        scale = float(np.abs(projected).max())

    d = space.combine(weights).T
    # Rounding must not carry a direction out of its ball.
    d = d * (radii.to(d) / sums.norm(d)).clamp(max=1.0)
    images = torch.stack([op @ column for column in d.T], dim=1)
    multipliers = torch.as_tensor(mu)
    wide, slope = d.double().cpu(), g.double().cpu()
    misfit = multipliers * wide - images.double().cpu() - slope[:, None]
    residuals = sums.norm(misfit)
    lengths = sums.norm(wide)
    settled = bool(top.residuals[0] <= tol * np.abs(theta).max())
    return QuadraticSharpness(
        radii=radii,
        values=slope @ wide + (wide * images.double().cpu()).sum(dim=0) / 2,
        directions=d,
        multipliers=multipliers,
        cases=tuple(
            "interior"
            if length < (1 - 1e-9) * eps
            else ("hard" if m - theta[-1] <= tol * m else "boundary")
            for m, length, eps in zip(mu, np.linalg.norm(weights, axis=0), radii, strict=True)
        ),
        residuals=residuals,
        products=products + len(radii),
        converged=(residuals <= tol * (norm + multipliers * lengths)) & settled,
        top=top,
    )


def quadratic_sharpness_dense(
    matrix: Tensor, gradient: Tensor, radius: float | Sequence[float] | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same maxima from all eigenvalues of a stored matrix: a reference for small ones.

    Args:
        matrix: Symmetric ``(D, D)``.
        gradient: ``(D,)``.
        radius: One radius or several, positive.

    Returns:
        Values ``(m,)``, directions ``(D, m)`` and multipliers ``(m,)``, in ``float64``.

    Raises:
        ValueError: An argument not finite or of the wrong shape.

    Example:
        >>> H, g = torch.diag(torch.tensor([4.0, -1.0])), torch.zeros(2)
        >>> values, _, multipliers = quadratic_sharpness_dense(H, g, [1.0])
        >>> values.tolist(), multipliers.tolist()
        ([2.0], [4.0])
    """
    radii = _radii(radius)
    g = _checked_gradient(matrix, gradient).double()
    theta, frame = torch.linalg.eigh(matrix.double())
    slopes = frame.T @ g
    solved = [_maximum(theta.numpy(), slopes.numpy(), float(eps)) for eps in radii]
    weights = torch.as_tensor(np.stack([y for y, _ in solved], axis=1))
    values = slopes @ weights + theta @ weights**2 / 2
    return values, frame @ weights, torch.tensor([mu for _, mu in solved], dtype=torch.float64)


def quadratic_bounds(
    op: SymmetricMatrix,
    gradient: Tensor,
    radius: float | Sequence[float] | Tensor,
    top: EigenResult,
) -> tuple[Tensor, Tensor]:
    r"""Two-sided bounds on the largest rise of the quadratic model, for one product.

    .. math:: \max\Bigl\{ \epsilon \lVert g \rVert + \tfrac12 \epsilon^2 u^\top H u, \;
        \tfrac12 \epsilon^2 \lambda_{\max} + \epsilon |g^\top v_1| \Bigr\} \le \mathcal{S}_q \le
        \epsilon \lVert g \rVert + \tfrac12 \epsilon^2 \max(\lambda_{\max}, 0),
        \qquad u = g / \lVert g \rVert

    The lower bound is the better of two points of the ball; the upper one bounds each term alone.

    Args:
        op: Symmetric ``(D, D)``.
        gradient: ``g``, ``(D,)``.
        radius: One radius or several, positive.
        top: The largest eigenvalue and its eigenvector, from :func:`lanczos`.

    Returns:
        Lower and upper bounds, ``(m,)`` each, in ``float64``.

    Raises:
        ValueError: An argument not finite or of the wrong shape.

    Example:
        >>> H, g = torch.diag(torch.tensor([4.0, -1.0])).double(), torch.tensor([0.0, 3.0]).double()
        >>> quadratic_bounds(H, g, 0.5, lanczos(H))
        (tensor([1.3750], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    radii = _radii(radius)
    g = _checked_gradient(op, gradient)
    norm = float(sums.norm(g))
    u = g / norm if norm > 0 else g
    curvature = float(u.double() @ (op @ u).double())
    value, share = float(top.values[0]), abs(float(g.double() @ top.vectors[:, 0].double()))
    along_gradient = radii * norm + radii**2 * curvature / 2
    along_top = radii * share + radii**2 * value / 2
    upper = radii * norm + radii**2 * max(value, 0.0) / 2
    return torch.maximum(along_gradient, along_top), upper


@dataclass(frozen=True)
class LossSharpness:
    """Rises of the true loss that ascents found within balls: lower bounds on the largest rise.

    Attributes:
        radii: ``(m,)``.
        values: ``(m,)`` best rise over the starts, never below 0, the rise at ``d = 0``.
        directions: ``(D, m)`` where it was found.
        by_start: ``(m, k)`` best rise from each start; a wide spread says that the ascents end in
            different local maxima.
        paths: ``(m, k, steps + 1)`` best rise so far: at the start, then after each step. An ascent
            whose last steps still rise had not converged.
        gradients: Gradients over all the data that were computed.
    """

    radii: Tensor  # (m,)
    values: Tensor  # (m,)
    directions: Tensor  # (D, m)
    by_start: Tensor  # (m, k)
    paths: Tensor  # (m, k, steps + 1)
    gradients: int


def loss_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    radius: float | Sequence[float] | Tensor,
    *,
    steps: int = 30,
    starts: Tensor | None = None,
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
) -> LossSharpness:
    """The largest rise of the loss within a radius, by projected gradient ascent.

    A step goes along the gradient and back to the ball. A step that does not rise is taken back and
    the next is half as long; after one that does, the next is twice as long. A very long step is
    the direction of the gradient, scaled to the ball, as in the power method.
    The ascents start on the sphere. The maximum of a loss that is no quadratic may lie elsewhere,
    so the result is a lower bound.

    Args:
        model, loss_fn, data, params, chunk_size: As for
            :class:`~losslandscape.operators.HessianOperator`; ``float64`` for small radii, where
            the rise is a difference of nearly equal numbers.
        radius: One radius or several, positive.
        steps: Steps of each ascent; one costs a gradient over all the data.
        starts: ``(D, k)`` directions of any length; by default plus and minus the gradient and
            plus and minus the top eigenvector of the Hessian.

    Raises:
        ValueError: An argument out of range or of the wrong shape, a start of length zero, or a
            loss that is not finite within the ball.

    Example:
        ``L(w) = w^2`` at ``w = 1`` rises by ``(1 + eps)^2 - 1``.

        >>> model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> _ = nn.init.ones_(model.weight)
        >>> data = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
        >>> loss_sharpness(model, nn.functional.mse_loss, data, [1.0, 2.0]).values.tolist()
        [3.0, 8.0]
    """
    radii = _radii(radius)
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}")
    objective = MeanLoss(model, loss_fn, data, params=params, chunk_size=chunk_size)
    counted = 0

    def at(offset: Tensor) -> tuple[float, Tensor]:
        nonlocal counted
        counted += 1
        with _moved(objective, offset):
            return gradient(
                model, loss_fn, objective.batches, params=objective.params, chunk_size=chunk_size
            )

    here, slope = at(objective.weights().zero_())
    if starts is None:
        top = lambda_max(
            model, loss_fn, objective.batches, params=objective.params, chunk_size=chunk_size
        )
        found = [slope, -slope] if slope.any() else []
        starts = torch.stack([*found, top.vectors[:, 0], -top.vectors[:, 0]], dim=1)
    starts = starts.detach().to(slope)
    if starts.ndim != 2 or len(starts) != objective.size:
        raise ValueError(f"starts must have shape ({objective.size}, k), got {tuple(starts.shape)}")
    if not (sums.norm(starts) > 0).all():
        raise ValueError("starts must not hold a zero vector")

    directions, paths = [], []
    for eps in radii.tolist():
        ascents = [_ascend(at, start, eps, steps) for start in starts.T]
        rises = torch.tensor([heights for heights, _ in ascents], dtype=torch.float64) - here
        best = int(rises[:, -1].argmax())
        directions.append(ascents[best][1] if rises[best, -1] > 0 else torch.zeros_like(slope))
        paths.append(rises)
    every = torch.stack(paths)
    table = every[:, :, -1]
    return LossSharpness(
        radii=radii,
        values=table.max(dim=1).values.clamp(min=0.0),
        directions=torch.stack(directions, dim=1),
        by_start=table,
        paths=every,
        gradients=counted,
    )


def sam_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    radius: float | Sequence[float] | Tensor,
    *,
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
) -> Tensor:
    r"""The rise of the loss after one step of length ``radius`` along the gradient.

    .. math:: L\bigl(w + \epsilon\, g / \lVert g \rVert\bigr) - L(w)

    Source: Foret, Kleiner, Mobahi, Neyshabur, *Sharpness-Aware Minimization*, ICLR 2021, eq. 2.

    Args:
        model, loss_fn, data, params, chunk_size: As for
            :class:`~losslandscape.operators.HessianOperator`.
        radius: One radius or several, positive.

    Returns:
        ``(m,)`` in ``float64``: a lower bound on the largest rise.

    Raises:
        ValueError: The gradient is zero, or a radius is not positive.
    """
    radii = _radii(radius)
    objective = MeanLoss(model, loss_fn, data, params=params, chunk_size=chunk_size)
    _, slope = gradient(
        model, loss_fn, objective.batches, params=objective.params, chunk_size=chunk_size
    )
    norm = sums.norm(slope)
    if norm == 0:
        raise ValueError("the gradient is zero, so SAM has no direction: use loss_sharpness")
    return objective.values_at(eps * slope / norm for eps in radii.tolist()) - objective.value()


def hessian_variation(op: HessianOperator, direction: Tensor, steps: Tensor) -> Tensor:
    r"""How fast the Hessian changes along a line: lower bounds on its Lipschitz constant.

    .. math:: \frac{\lVert (H(w + t u) - H(w))\, u \rVert}{|t|} \le \rho
        \qquad \text{if } \lVert H(a) - H(b) \rVert \le \rho \lVert a - b \rVert
        \text{ for all } a, b

    Args:
        op: At the weights ``w``.
        direction: ``u`` up to its length, ``(D,)``.
        steps: ``(m,)`` values of ``t``, none of them zero.

    Returns:
        ``(m,)`` in ``float64``. For ReLU networks the ratio has no limit as ``t`` goes to 0 where
        a kink lies at the weights.

    Raises:
        ValueError: A zero direction or a zero step.
    """
    t = torch.as_tensor(steps, dtype=torch.float64).reshape(-1)
    norm = sums.norm(direction)
    if not norm > 0 or not (t != 0).all():
        raise ValueError("the direction and the steps must not be zero")
    u = direction / norm
    before = op @ u
    ratios = []
    for step in t.tolist():
        with _moved(op.objective, step * u):
            change = op @ u - before
        ratios.append(float(sums.norm(change)) / abs(step))
    return torch.tensor(ratios, dtype=torch.float64)


@contextmanager
def _moved(objective: MeanLoss, offset: Tensor) -> Iterator[None]:
    """The model with its weights moved by ``offset`` (D,), put back afterwards."""
    before = [p.detach().clone() for p in objective.params]
    try:
        for p, w, d in zip(objective.params, before, objective.split(offset), strict=True):
            p.data.copy_(w + d)
        yield
    finally:
        for p, w in zip(objective.params, before, strict=True):
            p.data.copy_(w)


def _ascend(
    at: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, radius: float, steps: int
) -> tuple[list[float], Tensor]:
    """The largest value met so far, at the start and after each step, and where the last was."""
    offset = start * (radius / sums.norm(start))
    value, slope = at(offset)
    heights = [value]
    length = 1.0  # in radii
    for _ in range(steps):
        norm = sums.norm(slope)
        if norm == 0:
            heights += [value] * (steps + 1 - len(heights))
            break
        trial = offset + length * radius / norm * slope
        trial = trial * (radius / sums.norm(trial)).clamp(max=1.0)
        higher, there = at(trial)
        if higher > value:
            offset, value, slope = trial, higher, there
            length *= 2
        else:
            length /= 2
        heights.append(value)
    return heights, offset


def _maximum(theta: np.ndarray, slopes: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """Maximiser and multiplier of ``slopes' y + y' diag(theta) y / 2`` over a ball.

    ``theta`` ascends. The multiplier is ``base + s`` with ``base = max(theta[-1], 0)``; working
    with ``s`` keeps its digits where it is far smaller than ``base``.
    """
    base = max(float(theta[-1]), 0.0)
    gaps = base - theta

    def stationary(s: float) -> np.ndarray:
        shifted = gaps + s
        y: np.ndarray = np.divide(slopes, shifted, out=np.zeros_like(slopes), where=shifted > 0)
        return y

    def long(s: float) -> float:
        return radius / float(np.linalg.norm(stationary(s))) - 1

    lowest = max(float((np.abs(slopes) / radius - gaps).max()), 0.0)
    y = stationary(lowest)
    if np.linalg.norm(y) <= radius:
        if lowest == 0 and theta[-1] > 0:  # hard case: up to the sphere along the top eigenvector
            y[-1] += np.sqrt(radius**2 - float(y @ y))
        return y, base + lowest
    highest = float(np.linalg.norm(slopes)) / radius * (1 + 1e-12)
    tiny = np.finfo(np.float64)
    s = brentq(long, lowest, highest, xtol=tiny.tiny, rtol=4 * tiny.eps, maxiter=1000)
    y = stationary(s)
    return y * (radius / np.linalg.norm(y)), base + s


def _radii(radius: float | Sequence[float] | Tensor) -> Tensor:
    radii = torch.as_tensor(radius, dtype=torch.float64).detach().cpu().reshape(-1)
    if not len(radii) or not (torch.isfinite(radii) & (radii > 0)).all():
        raise ValueError(f"every radius must be positive and finite, got {radius!r}")
    return radii


def _checked_gradient(op: SymmetricMatrix, gradient: Any) -> Tensor:
    size = op.shape[0]
    if not isinstance(gradient, Tensor) or tuple(gradient.shape) != (size,):
        shape = tuple(gradient.shape) if isinstance(gradient, Tensor) else type(gradient).__name__
        raise ValueError(f"the gradient must be a tensor of shape ({size},), got {shape}")
    if not torch.isfinite(gradient).all():
        raise ValueError("the gradient must be finite")
    g = gradient.detach().to(
        dtype=getattr(op, "dtype", gradient.dtype), device=getattr(op, "device", gradient.device)
    )
    return g
