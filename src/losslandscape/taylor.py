"""Taylor polynomials of the loss along a line, what they leave over, and the kinks of ReLU.

Everything here is exact up to rounding and wants ``float64``: a remainder of third order at step
``1e-3`` is nine orders of magnitude below the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from losslandscape.objective import Batch, LossFunction, gradient
from losslandscape.operators import HessianOperator


def losses_along(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    direction: Tensor,
    radii: Tensor | Sequence[float],
) -> Tensor:
    """The mean loss at ``w + t d`` for each ``t`` in ``radii``; the weights are put back.

    Args:
        model, loss_fn, data: As for :class:`~losslandscape.operators.HessianOperator`.
        direction: ``d``, ``(D,)`` in the order of ``model.parameters()``.
        radii: ``(m,)`` values of ``t``, of either sign.

    Returns:
        ``(m,)`` losses in ``float64``.

    Raises:
        ValueError: Parameters not in ``float64``, or a direction of the wrong shape or not finite.

    Example:
        >>> model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> _ = nn.init.ones_(model.weight)
        >>> data = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
        >>> losses_along(model, nn.functional.mse_loss, data, torch.ones(1), [0.0, 1.0]).tolist()
        [1.0, 4.0]
    """
    op = _operator(model, loss_fn, data)
    return _losses(op, _directions(direction, op)[:, 0], torch.as_tensor(radii))


def second_differences(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    directions: Tensor,
    step: float,
) -> Tensor:
    r"""The curvature along directions from three losses each, without any derivative.

    .. math:: \frac{L(w + h d) - 2 L(w) + L(w - h d)}{h^2} = d^\top H d + O(h^2)

    Args:
        model, loss_fn, data: As for :class:`~losslandscape.operators.HessianOperator`.
        directions: ``(D,)``, or ``(D, k)`` for ``k`` directions; not normalised here.
        step: ``h``, not 0, in units of the length of the direction.

    Returns:
        ``(k,)`` curvatures in ``float64``; one for ``(D,)``.

    Raises:
        ValueError: Parameters not in ``float64``, a direction of the wrong shape or not finite, or
            a step that is 0 or not finite.

    Example:
        >>> model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
        >>> data = (torch.tensor([[1.0, 3.0]]).double(), torch.zeros(1, 1, dtype=torch.float64))
        >>> found = second_differences(model, nn.functional.mse_loss, data, torch.eye(2), 1e-2)
        >>> [round(value, 6) for value in found.tolist()]
        [2.0, 18.0]
    """
    if not (step and math.isfinite(step)):
        raise ValueError(f"expected a step that is finite and not 0, got {step}")
    op = _operator(model, loss_fn, data)
    steps = torch.tensor([step, 0.0, -step], dtype=torch.float64)
    curvatures = []
    for d in _directions(directions, op).T:
        after, here, before = _losses(op, d, steps)
        curvatures.append((after - 2 * here + before) / step**2)
    return torch.stack(curvatures)


def remainders(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    direction: Tensor,
    radii: Tensor | Sequence[float],
) -> Tensor:
    r"""What the Taylor polynomials of order 0, 1 and 2 leave over along a direction.

    .. math:: R_k(t) = L(w + t d) - \sum_{j \le k} \frac{t^j}{j!}
        \Bigl(\frac{d}{ds}\Bigr)^j L(w + s d) \Big|_{s=0}

    Source: eq. 1 of the paper is :math:`R_2 \approx 0`.

    Args:
        model, loss_fn, data: As for :class:`~losslandscape.operators.HessianOperator`.
        direction: ``(D,)``, or ``(D, k)`` for ``k`` directions; not normalised here.
        radii: ``(m,)`` values of ``t``, in units of the length of the direction.

    Returns:
        ``(3, m)``, row ``k`` for order ``k``; ``(3, m, k)`` for ``k`` directions.

    Raises:
        ValueError: Parameters not in ``float64``, or a direction of the wrong shape or not finite.
    """
    op = _operator(model, loss_fn, data)
    directions = _directions(direction, op)
    steps = torch.as_tensor(radii, dtype=torch.float64)
    _, grad = gradient(model, loss_fn, data)
    here = _losses(op, torch.zeros_like(grad), torch.zeros(1))
    columns = []
    for d, curvature in zip(directions.T, (op @ directions).T, strict=True):
        change = _losses(op, d, steps) - here
        linear = steps * torch.dot(grad, d)
        quadratic = steps**2 * torch.dot(d, curvature) / 2
        columns.append(torch.stack([change, change - linear, change - linear - quadratic]))
    stacked = torch.stack(columns, dim=-1)
    return stacked[..., 0] if direction.ndim == 1 else stacked


def loglog_slope(radii: Tensor, values: Tensor, *, dim: int = 0) -> Tensor:
    """Least-squares slope of ``ln |values|`` against ``ln radii`` along ``dim``.

    Args:
        radii: ``(m,)``, positive.
        values: ``m`` entries along ``dim``, none of them zero.

    Example:
        >>> t = torch.tensor([0.1, 0.2, 0.4])
        >>> round(float(loglog_slope(t, -5 * t**3)), 4)
        3.0
    """
    x = radii.log() - radii.log().mean()
    logs = values.abs().log().movedim(dim, -1)
    return (logs @ x) / torch.dot(x, x)


@dataclass(frozen=True)
class Kinks:
    """The points of a line where a derivative of the loss jumps, in increasing order.

    Attributes:
        positions: ``(m,)`` values of ``t`` in ``(0, limit)``.
        slope_jumps: ``(m,)`` jumps of the first derivative along the line.
        curvature_jumps: ``(m,)`` jumps of the second derivative along the line.
    """

    positions: Tensor
    slope_jumps: Tensor
    curvature_jumps: Tensor

    def first_order(self, radii: Tensor) -> Tensor:
        """``(len(radii),)`` sums of ``slope_jump * (t - position)`` over the kinks passed."""
        return self._beyond(radii) @ self.slope_jumps

    def second_order(self, radii: Tensor) -> Tensor:
        """The same with ``curvature_jump * (t - position)^2 / 2``."""
        return self._beyond(radii) ** 2 @ self.curvature_jumps / 2

    def bound(self, radii: Tensor) -> Tensor:
        """:meth:`first_order` with every jump taken positive: no sign can make it larger."""
        return self._beyond(radii) @ self.slope_jumps.abs()

    def _beyond(self, radii: Tensor) -> Tensor:
        return (radii[:, None] - self.positions).clamp(min=0.0)


def relu_kinks(model: nn.Sequential, data: Batch, direction: Tensor, limit: float) -> Kinks:
    """All kinks of the mean cross-entropy of a one-hidden-layer ReLU network along a line.

    The hidden pre-activations of an image are affine in ``t`` along ``w + t d``, so each pair of a
    hidden unit and an image has at most one kink, and its place and its jumps have closed forms.

    Args:
        model: ``Linear - ReLU - Linear``, a ``Flatten`` before it allowed; parameters in
            ``float64``.
        data: ``(X, y)``, labels as class numbers.
        direction: ``(D,)``.
        limit: Largest ``t`` of interest.

    Raises:
        ValueError: Another kind of network, or a direction of the wrong shape.
    """
    layers = [layer for layer in model if not isinstance(layer, nn.Flatten)]
    kinds = [type(layer) for layer in layers]
    if kinds != [nn.Linear, nn.ReLU, nn.Linear]:
        raise ValueError(
            f"expected Linear - ReLU - Linear, got {' - '.join(kind.__name__ for kind in kinds)}"
        )
    params = [p.detach() for p in model.parameters()]
    if len(params) != 4:
        raise ValueError("expected both linear layers to have a bias")
    sizes = [p.numel() for p in params]
    if direction.shape != (sum(sizes),):
        raise ValueError(f"expected a direction of shape ({sum(sizes)},), got {direction.shape}")
    w1, b1, w2, b2 = params
    d1, c1, d2, c2 = (
        piece.view_as(p) for piece, p in zip(direction.split(sizes), params, strict=True)
    )
    inputs, targets = data[0].flatten(1), data[1]
    start, speed = inputs @ w1.T + b1, inputs @ d1.T + c1
    crossing = -start / speed
    image, unit = ((speed != 0) & (crossing > 0) & (crossing < limit)).nonzero(as_tuple=True)
    order = crossing[image, unit].argsort()
    image, unit = image[order], unit[order]
    place = crossing[image, unit]
    t = place[:, None]
    rows = torch.arange(len(place))

    hidden = start[image] + t * speed[image]
    on = hidden > 0
    on[rows, unit] = False  # the unit at its kink is counted apart: "off" is the side without it
    hidden, hidden_velocity = hidden * on, speed[image] * on
    top = w2 + t[..., None] * d2
    logits = torch.einsum("mkh,mh->mk", top, hidden) + b2 + t * c2
    off = torch.einsum("mkh,mh->mk", top, hidden_velocity) + hidden @ d2.T + c2
    # Passing a kink adds |speed| to the rate of the activation, whichever way it is passed, and
    # ``jump`` to the velocity of the logits.
    rate = speed[image, unit].abs()[:, None]
    jump = rate * top[rows, :, unit]
    turns_on = speed[image, unit, None] > 0
    velocity_before = torch.where(turns_on, off, off - jump)
    p = logits.softmax(dim=1)
    error = p.clone()
    error[rows, targets[image]] -= 1

    def quadratic(v: Tensor) -> Tensor:
        """Second derivative of the cross-entropy along a velocity of the logits."""
        mean: Tensor = (p * v).sum(1)
        return torch.sum(p * v**2, 1) - mean**2

    count = len(targets)
    slope = (error * jump).sum(1) / count
    bend = quadratic(velocity_before + jump) - quadratic(velocity_before)
    bend = (bend + 2 * (error * rate * d2.T[unit]).sum(1)) / count
    return Kinks(positions=place, slope_jumps=slope, curvature_jumps=bend)


def stationary_point(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    *,
    weight_decay: float,
    tol: float = 1e-12,
    max_steps: int = 50,
) -> float:
    r"""Move ``model`` to the minimum of a convex loss plus ``(weight_decay / 2) ||w||^2``.

    Newton's method; each system is solved by conjugate gradients, each step halved until the
    penalised loss does not rise (Nocedal & Wright, *Numerical Optimization*, section 7.1).

    Args:
        model, loss_fn, data: As for :class:`~losslandscape.operators.HessianOperator`; the loss
            must be convex in the weights, as for softmax regression.
        weight_decay: Positive coefficient of the penalty on all parameters.
        tol: Norm of the penalised gradient asked for.
        max_steps: Upper bound on Newton steps.

    Returns:
        The norm of the penalised gradient reached, at most ``tol``.

    Raises:
        ValueError: ``weight_decay`` is not positive or the parameters are not in ``float64``.
        RuntimeError: ``tol`` was not reached.
    """
    if not weight_decay > 0:
        raise ValueError(f"weight_decay must be positive, got {weight_decay}")
    op = _operator(model, loss_fn, data)
    parameters = list(model.parameters())
    weights = parameters_to_vector(parameters).detach()

    def penalised(at: Tensor) -> tuple[float, Tensor]:
        vector_to_parameters(at, parameters)
        loss, grad = gradient(model, loss_fn, data)
        return loss + weight_decay / 2 * float(at @ at), grad + weight_decay * at

    value, slope = penalised(weights)
    for _ in range(max_steps):
        norm = float(torch.linalg.vector_norm(slope))
        if norm <= tol:
            return norm
        hessian, shift = op.to_scipy(), weight_decay
        matrix = LinearOperator(
            op.shape, matvec=lambda v, h=hessian, s=shift: h @ v + s * v, dtype=hessian.dtype
        )
        solution, _ = cg(matrix, slope.numpy(), rtol=1e-6, maxiter=2000)
        step = torch.as_tensor(solution)
        for _ in range(40):
            trial = weights - step
            new_value, new_slope = penalised(trial)
            if new_value <= value + 1e-14 * abs(value):
                break
            step = step / 2
        weights, value, slope = trial, new_value, new_slope
    raise RuntimeError(
        f"no point with a penalised gradient below {tol} in {max_steps} steps: raise max_steps"
    )


def _operator(
    model: nn.Module, loss_fn: LossFunction, data: Batch | Iterable[Batch]
) -> HessianOperator:
    op = HessianOperator(model, loss_fn, data)
    if op.dtype != torch.float64:
        raise ValueError(f"the parameters are {op.dtype}: turn them into float64, model.double()")
    if any(not p.requires_grad for p in model.parameters()):
        raise ValueError("a parameter has requires_grad=False: turn it on first")
    return op


def _directions(direction: Tensor, op: HessianOperator) -> Tensor:
    size = op.shape[0]
    if direction.ndim not in (1, 2) or direction.shape[0] != size:
        raise ValueError(
            f"expected directions of shape ({size},) or ({size}, k), got {tuple(direction.shape)}"
        )
    if not torch.isfinite(direction).all():
        raise ValueError("the direction holds NaN or infinity")
    return direction.detach().to(op.dtype).reshape(size, -1)


def _losses(op: HessianOperator, direction: Tensor, radii: Tensor) -> Tensor:
    return op.objective.values_at(t * direction for t in radii.to(op.dtype)).to(op.dtype)
