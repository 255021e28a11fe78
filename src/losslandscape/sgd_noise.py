r"""The noise of SGD near a minimum: stationary covariance, stability, and gradient noise of a net.

Near a minimum the loss is :math:`\tfrac12 w^\top H w`, and SGD with a random batch takes the steps

.. math:: v_{k+1} = \mu v_k + H w_k + \xi_k, \qquad w_{k+1} = w_k - \eta v_{k+1}

(PyTorch's convention), with gradient noise :math:`\xi` of covariance :math:`C`.
The paper's eq. 6 says :math:`\operatorname{Cov} w = T H^{-1}`; this module has what holds instead.
Everything here about quadratics is dense and in ``float64``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losslandscape.estimates import Estimates
from losslandscape.objective import (
    Batch,
    LossFunction,
    MeanLoss,
    derivatives,
    pull_back,
    untouched,
)

# Gradient noise at given weights: (chains, D) weights and a generator in, (chains, D) noise out.
Sampler = Callable[[Tensor, torch.Generator], Tensor]

# A curvature below this share of the largest one, times D, is zero up to rounding.
_EPS = torch.finfo(torch.float64).eps


# --- The stationary covariance --------------------------------------------------------------------


def stationary_covariance(
    hessian: Tensor, noise: Tensor, lr: float, *, momentum: float = 0.0
) -> Tensor:
    r"""The stationary covariance of SGD on a quadratic, for any gradient noise and finite steps.

    Without momentum it solves the discrete Lyapunov equation

    .. math:: H S + S H - \eta H S H = \eta C

    (Liu, Ziyin & Ueda, *Noise and Fluctuation of Finite Learning Rate SGD*, ICML 2021).
    In the eigenbasis of :math:`H`, with curvatures :math:`h_i`, the solution with momentum is

    .. math:: S_{ij} = \frac{\eta (1 - \mu^2) \, C_{ij}}
        {(1 - \mu^2)(1 - \mu)(h_i + h_j) - \eta (h_i - \mu h_j)(h_j - \mu h_i)} .

    Args:
        hessian: Symmetric and positive definite, ``(D, D)``.
        noise: Covariance of the gradient of a batch, ``(D, D)``, independent of the weights.
        lr: Learning rate.
        momentum: Heavy-ball momentum in ``[0, 1)``.

    Returns:
        ``(D, D)`` in ``float64``.

    Raises:
        ValueError: No stationary state: a curvature that is not positive, or not below
            :func:`stability_limit`; matrices that are not symmetric and finite or do not fit.

    Example:
        >>> H = torch.diag(torch.tensor([1., 4.]))
        >>> stationary_covariance(H, torch.eye(2), lr=0.1)
        tensor([[0.0526, 0.0000],
                [0.0000, 0.0156]], dtype=torch.float64)
    """
    curvatures, basis, rotated = _eigenbasis(hessian, noise, lr, momentum)
    _check_stable(curvatures, lr, momentum)
    h, g = curvatures[:, None], curvatures
    square = 1 - momentum**2
    below = square * (1 - momentum) * (h + g) - lr * (h - momentum * g) * (g - momentum * h)
    return _symmetric_part(basis @ (lr * square * rotated / below) @ basis.T)


def langevin_covariance(
    hessian: Tensor, noise: Tensor, lr: float, *, momentum: float = 0.0
) -> Tensor:
    r"""The covariance in the limit of small steps, where SGD is a Langevin equation.

    It solves :math:`H S + S H = \frac{\eta}{1 - \mu} C` (Mandt, Hoffman & Blei, *Stochastic
    Gradient Descent as Approximate Bayesian Inference*, JMLR 18, 2017, eq. 13).
    The paper's eq. 6, :math:`T H^{-1}`, is the case of isotropic noise.

    Arguments, value and errors are those of :func:`stationary_covariance`; no learning rate is too
    large for this limit.

    Example:
        >>> H = torch.diag(torch.tensor([1., 4.]))
        >>> langevin_covariance(H, torch.eye(2), lr=0.1)
        tensor([[0.0500, 0.0000],
                [0.0000, 0.0125]], dtype=torch.float64)
    """
    curvatures, basis, rotated = _eigenbasis(hessian, noise, lr, momentum)
    scale = lr / (1 - momentum)
    return _symmetric_part(basis @ (scale * rotated / (curvatures[:, None] + curvatures)) @ basis.T)


def stability_limit(lr: float, *, momentum: float = 0.0, averaged: bool = False) -> float:
    r"""The largest curvature at which gradient descent does not diverge.

    :math:`2 (1 + \mu) / \eta` for heavy ball (Cohen et al., *Gradient Descent on Neural Networks
    Typically Occurs at the Edge of Stability*, ICLR 2021).

    Args:
        lr: Learning rate.
        momentum: ``mu``, or Adam's ``beta_1``.
        averaged: The buffer is a running mean, :math:`v \leftarrow \mu v + (1 - \mu) g`, as in
            Adam: then :math:`2 (1 + \mu) / ((1 - \mu) \eta)`, to be compared with the largest
            eigenvalue of the preconditioned Hessian (Cohen et al., *Adaptive Gradient Methods at
            the Edge of Stability*, 2022).

    Raises:
        ValueError: ``lr`` or ``momentum`` out of range.

    Example:
        >>> stability_limit(0.1), round(stability_limit(0.1, momentum=0.9), 6)
        (20.0, 38.0)
        >>> round(stability_limit(1e-3, momentum=0.9, averaged=True))
        38000
    """
    _check_step(lr, momentum)
    limit = 2 * (1 + momentum) / lr
    return limit / (1 - momentum) if averaged else limit


def temperature(
    lr: float, batch_size: int, noise_variance: float, *, momentum: float = 0.0
) -> float:
    r"""The ``T`` of eq. 6 under isotropic noise: :math:`\eta \sigma_1^2 / (2 B (1 - \mu))`.

    The paper does not define it; this is the limit of small steps of
    :func:`stationary_covariance`.

    Args:
        lr: Learning rate.
        batch_size: ``B``.
        noise_variance: Variance of the gradient of a single example, per coordinate.
        momentum: ``mu``.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> temperature(0.1, 10, 4.0)
        0.02
    """
    _check_step(lr, momentum)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= noise_variance < math.inf:
        raise ValueError(f"noise_variance must be finite and not negative, got {noise_variance}")
    return lr * noise_variance / (2 * batch_size * (1 - momentum))


@dataclass(frozen=True)
class CovarianceEstimate:
    """A simulated covariance and its standard errors, from the spread over chains."""

    covariance: Tensor  # (D, D)
    stderr: Tensor  # (D, D)


def simulate_quadratic(
    hessian: Tensor,
    noise: Tensor | Sampler,
    lr: float,
    *,
    momentum: float = 0.0,
    steps: int,
    chains: int = 100,
    seed: int = 0,
) -> CovarianceEstimate:
    """Run SGD on a quadratic and average ``w w'`` over time and over independent chains.

    Chains start at the minimum; before counting they run until the start is forgotten, five times
    the relaxation time of the slowest direction.

    Args:
        hessian, lr, momentum: As for :func:`stationary_covariance`.
        noise: Covariance ``(D, D)`` of Gaussian noise, or a function that draws noise of mean zero
            at given weights: ``noise(weights, generator)``, ``(chains, D)`` in and out.
        steps: Steps that count, per chain.
        chains: At least two, for the standard errors.
        seed: Seed of the noise.

    Raises:
        ValueError: As for :func:`stationary_covariance`, a covariance with a negative eigenvalue,
            fewer than one step or two chains.

    Example:
        >>> one = torch.eye(1)
        >>> result = simulate_quadratic(one, one, lr=0.5, steps=2000)
        >>> bool(abs(result.covariance - 1 / 3) < 5 * result.stderr)
        True
    """
    if steps < 1 or chains < 2:
        raise ValueError(f"need steps >= 1 and chains >= 2, got {steps} and {chains}")
    H = _symmetric(hessian, "hessian")
    _check_step(lr, momentum)
    curvatures = torch.linalg.eigvalsh(H)
    _check_stable(curvatures, lr, momentum)
    draw = noise if callable(noise) else _gaussian(noise, len(H))
    generator = torch.Generator().manual_seed(seed)
    burn_in = math.ceil(5 / (1 - _contraction(curvatures, lr, momentum)))
    w = torch.zeros(chains, len(H), dtype=torch.float64)
    v = torch.zeros_like(w)
    total = torch.zeros(chains, len(H), len(H), dtype=torch.float64)
    for step in range(burn_in + steps):
        v = momentum * v + w @ H + draw(w, generator)
        w = w - lr * v
        if step >= burn_in:
            total += w[:, :, None] * w[:, None, :]
    total /= steps
    return CovarianceEstimate(
        covariance=total.mean(dim=0), stderr=total.std(dim=0) / math.sqrt(chains)
    )


# --- Epochs that shuffle --------------------------------------------------------------------------


def shuffled_factor(x: float) -> float:
    r"""What shuffling epochs does to the variance: :math:`R(x) = 1 - 2 (x - 1 + e^{-x}) / x^2`.

    With batches drawn without replacement the noise of an epoch adds up to zero.
    The factor is relative to the Langevin value :math:`\eta c / (2h)`, averaged over all steps of
    an epoch, in the limit of small :math:`\eta h`; :func:`shuffled_profile` has the exact values,
    also those at the ends of epochs, which are smaller.

    Args:
        x: ``lr * curvature * (batches per epoch)``, not negative.

    Raises:
        ValueError: ``x`` is negative or not finite.

    Example:
        >>> [round(shuffled_factor(x), 3) for x in (0.1, 1, 10)]
        [0.033, 0.264, 0.82]
    """
    if not 0 <= x < math.inf:
        raise ValueError(f"x must be finite and not negative, got {x}")
    if x < 0.1:  # the differences cancel: sum 2 (-1)^(k+1) x^k / (k + 2)!
        return sum(-2 * (-x) ** k / math.factorial(k + 2) for k in range(1, 12))
    return 1 - 2 * (x + math.expm1(-x)) / x**2


def shuffled_profile(shrink: float, batches: int) -> Tensor:
    r"""Exact stationary variance after each batch of a shuffled epoch, over :math:`\eta c / (2h)`.

    One direction of curvature :math:`h`; :math:`c` is the variance of the gradient of a batch.
    Any two batches of an epoch have the covariance :math:`-c / (n - 1)`.

    Args:
        shrink: ``lr * curvature``, between 0 and 2.
        batches: ``n``, batches per epoch, at least two.

    Returns:
        ``(n,)``; the last entry is the end of the epoch, the mean tends to
        ``shuffled_factor(shrink * n)`` for small ``shrink``.

    Raises:
        ValueError: An argument out of range.

    Example:
        >>> profile = shuffled_profile(0.01, 100)
        >>> round(float(profile.mean()), 3), round(float(profile[-1]), 3)
        (0.269, 0.078)
    """
    if not 0 < shrink < 2:
        raise ValueError(f"shrink = lr * curvature must lie between 0 and 2, got {shrink}")
    if batches < 2:
        raise ValueError(f"an epoch needs at least 2 batches, got {batches}")
    keep = 1 - shrink
    decay = keep ** torch.arange(1, batches + 1, dtype=torch.float64)
    weights = keep ** torch.arange(batches, dtype=torch.float64)
    # The variance of the noise so far, over lr^2 c.
    fresh = batches * weights.square().cumsum(0) - weights.cumsum(0).square()
    fresh[-1] = batches * (weights - weights.mean()).square().sum()  # the same, without cancelling
    fresh /= batches - 1
    start = fresh[-1] / (1 - decay[-1] ** 2)
    return 2 * shrink * (decay**2 * start + fresh)


# --- The gradient noise of a network --------------------------------------------------------------


@dataclass(frozen=True)
class GradientNoise:
    """Slopes of each example's loss along some directions, and what follows from them.

    Attributes:
        slopes: ``(N, k)``, ``v_j' grad l_i`` for example ``i`` and direction ``j``.
    """

    slopes: Tensor

    @property
    def mean(self) -> Tensor:
        """``(k,)``, the slope of the mean loss."""
        return self.slopes.mean(dim=0)

    @property
    def covariance(self) -> Tensor:
        """``(k, k)``, ``v_i' C_1 v_j``, with the divisor ``N - 1``."""
        centred = self.slopes - self.mean
        return centred.T @ centred / (len(centred) - 1)

    @property
    def variances(self) -> Estimates:
        """``(k,)``, ``c_j = v_j' C_1 v_j``, with jackknife standard errors over examples.

        The examples count as a random sample; the directions must not depend on them.
        """
        squares = (self.slopes - self.mean).square()
        count = len(squares)
        # Leaving example i out changes the variance by -N/((N-1)(N-2)) (its square - their mean).
        spread = squares.var(dim=0, correction=0) * count**2 / ((count - 1) * (count - 2) ** 2)
        return Estimates(squares.sum(dim=0) / (count - 1), spread.sqrt())

    def of_batch(self, batch_size: int, *, replacement: bool = True) -> Tensor:
        """``(k, k)``, the covariance of the gradient of a batch drawn from these examples."""
        return self.covariance * batch_factor(batch_size, len(self.slopes), replacement=replacement)


def batch_factor(batch_size: int, examples: int, *, replacement: bool = True) -> float:
    r"""``C / C_1``: covariance of a batch's gradient over that of one example's.

    :math:`C_1` has the divisor :math:`N - 1`. With replacement the factor is
    :math:`(1 - 1/N) / B`, without it :math:`(1 - B/N) / B`; both are exact.

    Raises:
        ValueError: ``batch_size`` or ``examples`` out of range.

    Example:
        >>> batch_factor(4, 10), batch_factor(10, 10, replacement=False)
        (0.225, 0.0)
    """
    most = math.inf if replacement else examples
    if examples < 2 or not 1 <= batch_size <= most:
        raise ValueError(f"no batch of {batch_size} can be drawn from {examples} examples")
    return (1 - (1 if replacement else batch_size) / examples) / batch_size


def gradient_noise(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    vectors: Tensor,
    *,
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
) -> GradientNoise:
    r"""How the gradients of single examples scatter along given directions.

    The slopes :math:`v^\top \nabla \ell_i` of all examples are one product of their Jacobian with
    :math:`v`, so no gradient of a single example is ever formed (C = the covariance of which
    Thomas et al., *On the interplay between noise and curvature*, AISTATS 2020, tell apart
    Hessian and Fisher matrix).
    ``loss_fn`` is a mean over a batch; the loss of one example is its value on a batch of one,
    by ``torch.func.vmap`` over the outputs, or one by one where ``vmap`` cannot follow it or the
    outputs are not a tensor.

    Args:
        model, loss_fn, data, params, chunk_size: As for
            :class:`~losslandscape.operators.HessianOperator`; weights, buffers, modes, gradients
            and random state are left as they are.
        vectors: ``(D, k)``, or ``(D,)`` for one direction.

    Raises:
        ValueError: As for :class:`~losslandscape.operators.HessianOperator`, vectors of the wrong
            shape, or fewer than three examples.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> X = torch.tensor([[1.], [2.], [3.]])
        >>> noise = gradient_noise(model, nn.functional.mse_loss, (X, 0 * X), torch.ones(1, 1))
        >>> noise.slopes.T, noise.variances.values
        (tensor([[ 2.,  8., 18.]]), tensor([65.3333]))
    """
    loss = MeanLoss(model, loss_fn, data, params=params, chunk_size=chunk_size)
    size = loss.size
    if vectors.ndim not in (1, 2) or vectors.shape[0] != size:
        raise ValueError(
            f"expected vectors of shape ({size},) or ({size}, k), got {tuple(vectors.shape)}"
        )
    if loss.examples < 3:
        raise ValueError(f"the scatter of {loss.examples} examples is not known: give at least 3")
    columns = vectors.detach().to(device=loss.device, dtype=loss.dtype).reshape(size, -1)
    directions = [loss.split(column) for column in columns.T]
    rows = []
    with untouched(model), torch.enable_grad():
        for inputs, targets in loss.batches:
            losses = _example_losses(
                model, loss_fn, inputs.to(loss.device), targets.to(loss.device)
            )
            # J' u is linear in u, so its derivative with respect to u, along v, is J v.
            dummy = torch.zeros_like(losses, requires_grad=True)
            pulled = derivatives(losses, loss.params, dummy)
            rows.append(torch.stack([pull_back(pulled, [dummy], d)[0] for d in directions], dim=1))
    slopes = torch.cat(rows).detach()
    if not torch.isfinite(slopes).all():
        raise ValueError("the slope of an example's loss is not finite: check data and weights")
    return GradientNoise(slopes)


def _example_losses(
    model: nn.Module, loss_fn: LossFunction, inputs: Tensor, targets: Tensor
) -> Tensor:
    """The loss of each example of a batch, ``(len(targets),)``."""
    outputs = model(inputs)
    if isinstance(outputs, Tensor) and len(outputs) == len(targets):
        try:
            losses: Tensor = torch.func.vmap(
                lambda output, target: loss_fn(output[None], target[None]).reshape(())
            )(outputs, targets)
            return losses
        except RuntimeError:  # the loss branches on values, or an operation has no batching rule
            pass
    return torch.stack(
        [
            loss_fn(model(inputs[i : i + 1]), targets[i : i + 1]).reshape(())
            for i in range(len(targets))
        ]
    )


# --- Checks ---------------------------------------------------------------------------------------


def _symmetric(matrix: Tensor, name: str) -> Tensor:
    """``matrix`` in ``float64``, if it is square, finite and symmetric up to rounding."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise ValueError(f"{name} holds NaN or infinity")
    slack = 1e3 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max())
    if float((matrix - matrix.T).abs().max()) > slack:
        raise ValueError(f"{name} is not symmetric: give (A + A.T) / 2")
    return _symmetric_part(matrix.detach().double())


def _symmetric_part(matrix: Tensor) -> Tensor:
    half: Tensor = (matrix + matrix.T) / 2
    return half


def _eigenbasis(
    hessian: Tensor, noise: Tensor, lr: float, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Curvatures (D,), their eigenvectors (D, D), and the noise in this basis (D, D)."""
    H, C = _symmetric(hessian, "hessian"), _symmetric(noise, "noise")
    if H.shape != C.shape:
        raise ValueError(f"hessian is {tuple(H.shape)}, noise {tuple(C.shape)}: they must agree")
    _check_step(lr, momentum)
    curvatures, basis = torch.linalg.eigh(H)
    _check_positive(curvatures)
    return curvatures, basis, basis.T @ C @ basis


def _check_step(lr: float, momentum: float) -> None:
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")


def _check_positive(curvatures: Tensor) -> None:
    smallest, largest = float(curvatures[0]), float(curvatures[-1])
    if not smallest > len(curvatures) * _EPS * abs(largest):
        raise ValueError(
            f"the smallest curvature {smallest:.3g} is not positive, so nothing holds the weights "
            "along it: restrict H to its positive eigenvectors or add a weight penalty"
        )


def _check_stable(curvatures: Tensor, lr: float, momentum: float) -> None:
    _check_positive(curvatures)
    largest, limit = float(curvatures[-1]), stability_limit(lr, momentum=momentum)
    if not largest < limit:
        raise ValueError(
            f"the largest curvature {largest:.6g} is not below the stability limit {limit:.6g} "
            f"(lr {lr:g}, momentum {momentum:g}): lower lr below {lr * limit / largest:.3g}"
        )


def _contraction(curvatures: Tensor, lr: float, momentum: float) -> float:
    """Largest modulus of an eigenvalue of one step of heavy ball."""
    half = (1 + momentum - lr * curvatures) / 2
    root = (half.square() - momentum).clamp(min=0).sqrt()  # complex pairs have modulus sqrt(mu)
    return float(torch.maximum(half.abs() + root, torch.tensor(math.sqrt(momentum))).max())


def _gaussian(noise: Tensor, size: int) -> Sampler:
    C = _symmetric(noise, "noise")
    if len(C) != size:
        raise ValueError(f"hessian is {(size, size)}, noise {tuple(C.shape)}: they must agree")
    variances, basis = torch.linalg.eigh(C)
    if float(variances[0]) < -size * _EPS * float(variances.abs().max()):
        raise ValueError(
            f"noise has the negative eigenvalue {float(variances[0]):.3g}: it is no covariance"
        )
    root = basis * variances.clamp(min=0).sqrt()

    def draw(weights: Tensor, generator: torch.Generator) -> Tensor:
        normal = torch.randn(weights.shape, generator=generator, dtype=torch.float64)
        return torch.matmul(normal, root.T)

    return draw
