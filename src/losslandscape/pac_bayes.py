"""Average-case sharpness, and what it proves about unseen data.

Where :mod:`~losslandscape.eigen` asks for the worst direction, this room asks for the mean: how
much does the loss rise when Gaussian noise is added to the weights?
That mean needs forward passes only, exists for losses without derivatives (the share of errors),
and is what PAC-Bayes theorems bound the loss on unseen data by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from scipy.special import rel_entr
from torch import Tensor, nn

from losslandscape.estimates import Estimate, Estimates
from losslandscape.objective import Batch, LossFunction, MeanLoss
from losslandscape.operators import HessianOperator

FORMS = ("kl", "root")

# Examples per forward pass.
_CHUNK = 1024
# Networks drawn per scale to find the best scale; the bound itself rests on fresh ones.
_PILOT_SAMPLES = 64


def error_rate(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of wrong decisions, the 0-1 loss: outputs ``(n, classes)``, targets ``(n,)``.

    Its derivative is zero almost everywhere, so its Hessian says nothing.

    Example:
        >>> error_rate(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).item()
        0.5
    """
    return (outputs.argmax(dim=1) != targets).double().mean()


def perturbed_losses(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    scale: float,
    *,
    samples: int = 64,
    seed: int = 0,
    antithetic: bool = True,
    adaptive: bool = False,
) -> Tensor:
    r"""The mean loss at ``w + d`` for random ``d``, :math:`d \sim N(0, \text{scale}^2 I)`.

    The noise depends on ``seed`` only: two scales, or two networks of one shape, see the same
    directions (common random numbers).

    Args:
        model, loss_fn, data: As for :class:`~losslandscape.operators.HessianOperator`; no
            derivative is taken, so any mean loss will do, also :func:`error_rate`.
        scale: Standard deviation of the noise on each weight; with ``adaptive`` the ratio of
            that to the size of the weight.
        samples: How many networks, each one pass over the data.
        antithetic: Draw pairs ``d, -d``, which cancels all odd orders of ``d``.
            Neighbours in the result are then pairs, and only the pairs are independent.
        adaptive: Noise of deviation ``scale * |w_i|`` on weight ``i``, which leaves the result as
            it is when a ReLU network is rescaled (Andriushchenko et al., *A Modern Look at the
            Relationship between Sharpness and Generalization*, ICML 2023).

    Returns:
        ``(samples,)`` in ``float64``.

    Raises:
        ValueError: ``scale`` is not positive, too few samples, an odd number of antithetic ones,
            a loss that is not finite, or data or a model that the Hessian would refuse.
    """
    _check_scale(scale)
    if samples < 1 or (antithetic and samples % 2):
        kind = "a positive even number for pairs d, -d" if antithetic else "at least 1"
        raise ValueError(f"samples must be {kind}, got {samples}")
    objective = MeanLoss(model, loss_fn, data, chunk_size=_CHUNK)
    unit = objective.weights().abs().double() if adaptive else 1.0
    signs = (1, -1) if antithetic else (1,)
    draws = _draws(objective, samples // len(signs), seed)
    return _losses(objective, (sign * scale * unit * z for z in draws for sign in signs))


def expected_increase(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    scale: float,
    *,
    samples: int = 64,
    seed: int = 0,
    antithetic: bool = True,
    adaptive: bool = False,
) -> Estimate:
    r"""Average-case sharpness: how much noise on the weights raises the mean loss.

    .. math:: \mathbb E_d\, L(w + d) - L(w), \qquad d \sim N(0, s^2 I)

    For a loss with a bounded fourth derivative this is
    :math:`\frac{s^2}{2} \operatorname{tr} H + O(s^4)`.

    Args:
        model, loss_fn, data, scale, samples, seed, antithetic, adaptive: As for
            :func:`perturbed_losses`.

    Returns:
        The mean over the noise and its standard error; with pairs, from the means of the pairs.

    Raises:
        ValueError: As for :func:`perturbed_losses`, or fewer than two independent draws.

    Example:
        >>> model = nn.Linear(3, 1, bias=False, dtype=torch.float64)  # L = |w|^2, so H = 2 I
        >>> data = (torch.eye(3).double() * 3**0.5, torch.zeros(3, 1).double())
        >>> found = expected_increase(model, nn.functional.mse_loss, data, 0.1, samples=4000)
        >>> abs(found.value - 0.03) < 4 * found.stderr
        True
    """
    draws = samples // 2 if antithetic else samples
    if draws < 2:
        raise ValueError(f"{samples} samples have no standard error: give at least 4")
    losses = perturbed_losses(
        model,
        loss_fn,
        data,
        scale,
        samples=samples,
        seed=seed,
        antithetic=antithetic,
        adaptive=adaptive,
    )
    here = MeanLoss(model, loss_fn, data, chunk_size=_CHUNK).value()
    rises = (losses - here).view(draws, -1).mean(dim=1)
    return Estimate(float(rises.mean()), float(rises.std()) / draws**0.5)


def expected_remainder(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    scales: Sequence[float],
    *,
    samples: int = 64,
    seed: int = 0,
) -> Estimates:
    r"""How far average-case sharpness is from its quadratic model, at several scales.

    .. math:: \mathbb E_d\, L(w + d) - L(w) - \frac{s^2}{2} \operatorname{tr} H
        = \mathbb E_d \Bigl[ \frac{L(w + d) + L(w - d)}{2} - L(w) - \frac12 d^\top H d \Bigr]

    The right-hand side is what is averaged: each pair has its own quadratic part taken out, which
    leaves a far smaller spread than two separate estimates would.

    Args:
        model, loss_fn, data: As for :class:`~losslandscape.operators.HessianOperator`, with
            parameters in ``float64`` if the scales are small.
        scales: ``(m,)`` values of ``s``; all see the same directions.
        samples: Even number of networks per scale; half as many Hessian-vector products.
        seed: Of the noise.

    Raises:
        ValueError: As for :func:`perturbed_losses`, or fewer than two pairs.

    Example:
        >>> model = nn.Linear(3, 1, dtype=torch.float64)  # a quadratic leaves nothing over
        >>> data = (torch.randn(9, 3).double(), torch.zeros(9, 1).double())
        >>> found = expected_remainder(model, nn.functional.mse_loss, data, [0.1], samples=8)
        >>> abs(found[0].value) < 1e-14
        True
    """
    for scale in scales:
        _check_scale(scale)
    if samples < 4 or samples % 2:
        raise ValueError(f"samples must be an even number, 4 or more, got {samples}")
    op = HessianOperator(model, loss_fn, data, chunk_size=_CHUNK)
    here = op.objective.value()
    steps = torch.as_tensor(scales, dtype=torch.float64)
    rows = []
    for z in _draws(op.objective, samples // 2, seed):
        losses = _losses(op.objective, (sign * s * z for s in scales for sign in (1, -1)))
        bend = float(z @ (op @ z).double())
        rows.append(losses.view(-1, 2).mean(dim=1) - here - steps**2 * bend / 2)
    left = torch.stack(rows)
    return Estimates(left.mean(dim=0), left.std(dim=0) / len(rows) ** 0.5)


def relu_kink_increase(
    model: nn.Sequential, loss_fn: LossFunction, data: Batch, scale: float
) -> float:
    r"""What the kinks of ReLU add to :math:`\frac{s^2}{2} \operatorname{tr} H`, to order ``s^2``.

    The noise moves the input :math:`z_{ij}` of hidden unit ``j`` for image ``i`` by a Gaussian
    of deviation :math:`\sigma_i = s \sqrt{\|x_i\|^2 + 1}`.
    Where that crosses zero the unit's mean activation rises by
    :math:`\sigma_i\, k(z_{ij} / \sigma_i)`, with :math:`k(u) = \phi(u) - |u|\, \Phi(-|u|)` for the
    density and distribution function of a standard Gaussian, and the loss by this times its
    derivative with respect to the activation.
    The Hessian that automatic differentiation returns knows nothing of it.

    Args:
        model: ``Linear - ReLU - Linear``, a ``Flatten`` before it allowed.
        loss_fn: Mean loss of a batch, differentiable with respect to the outputs.
        data: ``(X, y)``.
        scale: ``s``.

    Raises:
        ValueError: Another kind of network, or ``scale`` not positive.
    """
    _check_scale(scale)
    layers = [layer for layer in model if not isinstance(layer, nn.Flatten)]
    kinds = [type(layer) for layer in layers]
    if kinds != [nn.Linear, nn.ReLU, nn.Linear]:
        raise ValueError(
            f"expected Linear - ReLU - Linear, got {' - '.join(kind.__name__ for kind in kinds)}"
        )
    first, relu, last = layers
    images, targets = data[0].flatten(1), data[1]
    with torch.no_grad():
        inputs = first(images)
    with torch.enable_grad():
        hidden = relu(inputs).requires_grad_()
        (slope,) = torch.autograd.grad(loss_fn(last(hidden), targets), hidden)
    bias = 0.0 if first.bias is None else 1.0
    sigma = scale * (images.square().sum(dim=1, keepdim=True) + bias).sqrt()
    u = (inputs / sigma).abs()
    density = torch.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
    rise = sigma * (density - u * torch.special.ndtr(-u))
    return float((slope * rise).sum())


# What it proves: PAC-Bayes


def binary_kl(q: float, p: float) -> float:
    r"""Relative entropy of a coin with probability ``q`` from one with probability ``p``, in nats.

    .. math:: \mathrm{kl}(q \| p) = q \ln \frac qp + (1 - q) \ln \frac{1 - q}{1 - p}

    Raises:
        ValueError: A probability outside [0, 1].

    Example:
        >>> binary_kl(0.5, 0.5), binary_kl(0.0, 0.5) == math.log(2), binary_kl(0.5, 0.0)
        (0.0, True, inf)
    """
    for value in (q, p):
        if not 0 <= value <= 1:
            raise ValueError(f"a probability lies between 0 and 1, got {value}")
    return max(float(rel_entr(q, p) + rel_entr(1 - q, 1 - p)), 0.0)


def kl_inverse(q: float, budget: float) -> float:
    """The largest ``p`` with ``binary_kl(q, p) <= budget``.

    Source: Langford, *Tutorial on Practical Prediction Theory for Classification*, JMLR 6, 2005.

    Raises:
        ValueError: ``q`` outside [0, 1], or a negative budget.

    Example:
        >>> round(kl_inverse(0.0, 1.0), 6) == round(1 - math.exp(-1), 6), kl_inverse(0.3, 0.0)
        (True, 0.3)
    """
    binary_kl(q, q)  # refuses what is no probability
    if not budget >= 0:
        raise ValueError(f"the budget of a relative entropy is not negative, got {budget}")
    if budget == 0 or q == 1:
        return q
    # kl(q || p) grows from 0 at p = q to infinity at p = 1, but slowly: there may be no float left.
    top = math.nextafter(1.0, 0.0)
    if binary_kl(q, top) <= budget:
        return 1.0
    return float(brentq(lambda p: binary_kl(q, p) - budget, q, top, xtol=1e-15, rtol=1e-14))


def pac_bayes_bound(
    risk: float,
    distance_squared: float,
    scale: float,
    n: int,
    *,
    delta: float = 0.05,
    grid: int = 1,
    form: str = "kl",
) -> float:
    r"""Upper bound on the mean loss over unseen data of the noisy network ``w + d``.

    With probability at least ``1 - delta`` over the ``n`` training examples, for all weights ``w``
    at once and each of ``grid`` scales fixed beforehand,

    .. math:: \mathrm{kl}\bigl(\mathbb E_d L_S(w + d) \,\|\, \mathbb E_d L_D(w + d)\bigr) \le
        \frac1n \Bigl( \frac{\|w - w_0\|^2}{2 s^2} + \ln \frac{2 \sqrt n\, J}{\delta} \Bigr),

    where :math:`d \sim N(0, s^2 I)`, the loss lies in [0, 1] and :math:`w_0` does not depend on
    the examples.

    Source: Seeger, *PAC-Bayesian Generalisation Error Bounds for Gaussian Process Classification*,
    JMLR 3, 2002, with the constant of Maurer, *A Note on the PAC Bayesian Theorem*, 2004
    (arXiv cs/0411099), theorem 5.

    Args:
        risk: :math:`\mathbb E_d L_S(w + d)`, in [0, 1].
        distance_squared: :math:`\|w - w_0\|^2`.
        scale: ``s``.
        n: Number of training examples, drawn independently.
        delta: Probability with which the bound may fail.
        grid: ``J``, the number of scales among which ``s`` was chosen.
        form: ``"kl"`` solves the inequality for :math:`\mathbb E_d L_D`; ``"root"`` is the weaker
            sum of ``risk`` and ``sqrt(right-hand side / 2)``, which may exceed 1 (McAllester,
            *PAC-Bayesian Model Averaging*, COLT 1999).

    Raises:
        ValueError: An argument out of its range.

    Example:
        >>> pac_bayes_bound(0.1, 4.0, 0.5, 1000) < pac_bayes_bound(0.1, 4.0, 0.5, 1000, form="root")
        True
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk must lie in [0, 1], got {risk}: clip or rescale the loss")
    if not 0 <= distance_squared < math.inf:
        raise ValueError(f"distance_squared must be at least 0, got {distance_squared}")
    _check_scale(scale)
    if n < 1 or grid < 1:
        raise ValueError(f"n and grid must be at least 1, got {n} and {grid}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: choose one of {', '.join(FORMS)}")
    complexity = distance_squared / (2 * scale**2)
    budget = (complexity + math.log(2 * math.sqrt(n) * grid / delta)) / n
    return kl_inverse(risk, budget) if form == "kl" else risk + math.sqrt(budget / 2)


@dataclass(frozen=True)
class Bound:
    """A bound that holds with probability ``1 - delta``, and what it is made of.

    Attributes:
        value: Upper bound on the mean error of the noisy network on unseen data.
        root: The same in McAllester's form.
        scale: Deviation of the noise, the best of those tried.
        risk: Mean training error of the networks drawn at that scale.
        risk_bound: Upper bound on its mean over all noise.
        distance_squared: Of the weights from those of the prior.
        examples: Number of training examples.
        delta: Probability with which ``value`` may fail, over training set and noise.
        profile: ``(scales, 3)``: scale, mean training error and bound of the search, before the
            correction for the finite number of networks.
    """

    value: float
    root: float
    scale: float
    risk: float
    risk_bound: float
    distance_squared: float
    examples: int
    delta: float
    profile: Tensor


def best_bound(
    model: nn.Module,
    data: Batch | Iterable[Batch],
    prior: Tensor,
    scales: Sequence[float],
    *,
    loss_fn: LossFunction = error_rate,
    delta: float = 0.05,
    samples: int = 1000,
    seed: int = 0,
) -> Bound:
    r"""The best :func:`pac_bayes_bound` over a list of scales that was fixed beforehand.

    The mean training error of the noisy network is itself an estimate.
    The scale is chosen with a few networks; ``samples`` fresh ones at that scale then bound the
    mean by :math:`\mathrm{kl}^{-1}(\hat e, \ln(2/\delta) / \text{samples})` (Chernoff; Langford &
    Caruana, *(Not) Bounding the True Error*, NIPS 14, 2001), which may fail with probability
    ``delta / 2``, as may the theorem.

    Args:
        model: The trained network.
        data: The training set: independent draws that ``prior`` and ``scales`` do not depend on.
        prior: ``(D,)`` weights, for instance the initial ones.
        scales: Deviations of the noise.
        loss_fn: Mean of a loss in [0, 1].
        delta, samples, seed: See above.

    Raises:
        ValueError: No scale, a prior of another length, a loss outside [0, 1], or an argument
            that :func:`pac_bayes_bound` or :func:`perturbed_losses` refuses.
    """
    if not scales:
        raise ValueError("no scale to choose from: give at least one")
    objective = MeanLoss(model, loss_fn, data, chunk_size=_CHUNK)
    weights, examples = objective.weights(), objective.examples
    if prior.shape != weights.shape:
        raise ValueError(f"expected a prior of shape ({len(weights)},), got {tuple(prior.shape)}")
    distance = float((weights - prior.to(weights)).double().square().sum())

    def mean_risk(scale: float, samples: int, seed: int) -> float:
        losses = perturbed_losses(
            model, loss_fn, objective.batches, scale, samples=samples, seed=seed, antithetic=False
        )
        if not ((losses >= 0) & (losses <= 1)).all():
            raise ValueError(f"a loss of {float(losses.max()):g} is outside [0, 1]: clip it")
        return float(losses.mean())

    def bound(risk: float, scale: float, form: str = "kl") -> float:
        return pac_bayes_bound(
            risk, distance, scale, examples, delta=delta / 2, grid=len(scales), form=form
        )

    profile = []
    for scale in scales:
        risk = mean_risk(scale, _PILOT_SAMPLES, seed + 1)
        profile.append([scale, risk, bound(risk, scale)])
    best = min(profile, key=lambda row: row[2])[0]
    risk = mean_risk(best, samples, seed)
    risk_bound = kl_inverse(risk, math.log(2 / delta) / samples)
    return Bound(
        value=bound(risk_bound, best),
        root=bound(risk_bound, best, "root"),
        scale=best,
        risk=risk,
        risk_bound=risk_bound,
        distance_squared=distance,
        examples=examples,
        delta=delta,
        profile=torch.tensor(profile, dtype=torch.float64),
    )


def _check_scale(scale: float) -> None:
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")


def _draws(objective: MeanLoss, count: int, seed: int) -> Iterator[Tensor]:
    """``count`` standard Gaussian vectors ``(D,)``; a seed means the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        draw = torch.randn(objective.size, generator=generator, dtype=torch.float64)
        yield draw.to(objective.device)


def _losses(objective: MeanLoss, offsets: Iterable[Tensor]) -> Tensor:
    losses = objective.values_at(offsets)
    if not torch.isfinite(losses).all():
        raise ValueError("the loss is not finite under this noise: take a smaller scale")
    return losses
