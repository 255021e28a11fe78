"""The quality gate: is training done, and is this a minimum?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losslandscape.framework.constant_outputs import loss_and_constant_loss
from losslandscape.framework.cost import LAST_STEPS, Meter, batch_size
from losslandscape.framework.findings import Check, Thresholds
from losslandscape.framework.hessian_set import HessianSet
from losslandscape.framework.measures import COARSE, both_ends, top_eigenpair
from losslandscape.objective import Batch, LossFunction, MeanLoss, select_parameters
from losslandscape.rescaling import balanced, hidden_layers

_LR = 1e-3
_ASYMMETRY = 1e-5


def canonical(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The balanced network, or the network itself where no rescalings are known."""
    try:
        hidden = hidden_layers(model)
        return (balanced(model) if hidden else model), []
    except ValueError as error:
        return model, [f"no rescalings known, so the gate takes the weights as they are: {error}"]


def operator_check(examined: HessianSet, model: nn.Module, seed: int) -> Check:
    """Whether ``u' H v = v' H u`` for random ``u`` and ``v``.

    Raises:
        ArithmeticError: It is not, up to rounding.
    """
    op = examined.first(256).hessian(model)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(op.shape[0], 2, generator=generator, dtype=torch.float64).to(
        dtype=op.dtype, device=op.device
    )
    u, v = draws.unbind(dim=1)
    images = op @ draws
    size = float(images.norm() * draws.norm())
    error = abs(float(u @ images[:, 1] - v @ images[:, 0])) / size if size else 0.0
    if error > _ASYMMETRY:
        raise ArithmeticError(
            f"Hessian products are not symmetric: relative error {error:.2g} (autocast or another "
            "reduced precision in the model? measure in float32 or float64)"
        )
    text = f"products are symmetric to {error:.1g}"
    if op.replaced:
        text += "; they use plain attention, for the model's fused kernel has no second derivative"
    return Check("operator", True, error, _ASYMMETRY, text)


def fit_check(train_loss: float, limits: Thresholds) -> Check:
    """Whether the network is fitted, where a level is set."""
    if limits.loss is None:
        return Check("fit", None, train_loss, None, f"training loss {train_loss:.4g}")
    passed = train_loss <= limits.loss
    word = "within" if passed else "above"
    text = f"training loss {train_loss:.4g}, {word} the level of {limits.loss:.4g}"
    return Check("fit", passed, train_loss, limits.loss, text)


def polish_checks(
    model: nn.Module,
    data: Batch,
    examined: HessianSet,
    train_loss: float,
    limits: Thresholds,
    *,
    decays: Sequence[float],
    steps: int,
    seed: int,
    meter: Meter,
    whose: str = "",
) -> list[Check]:
    """Train a copy on: what the loss gains, and what it does to ``lambda_max``.

    Args:
        model, data, examined, train_loss, limits: As for the assessment.
        decays: Per trained parameter the ``wd`` of its penalty ``(wd/2) |p|^2``.
        steps: Of Adam; those of SGD follow.
        seed: Order of the examples.
        meter: Counts and shows.
        whose: Behind ``lambda_max`` in the text of the check.
    """
    meter.say("polish")
    loss_fn, chunk_size = examined.loss_fn, examined.chunk_size
    allowed, aside = limits.fall, ""
    if allowed is None:
        allowed, aside = _default_fall(model, loss_fn, data, train_loss)
    rate = _LR
    while True:
        polished, after = _polished(model, loss_fn, data, rate, decays, steps, chunk_size, seed)
        # A rate at which the loss rises tests nothing.
        if after <= train_loss + allowed or rate < 1e-5:
            break
        rate /= 10
    fall = train_loss - after
    passed = fall < allowed or fall <= 0  # at a loss of exactly 0 nothing is allowed, nor gained
    said = "less" if passed else "more"
    text = (
        f"further training gains {fall:.4g} of training loss, {said} than the {allowed:.4g} "
        f"allowed{aside}"
    )
    if fall == 0:
        text = "further training gains nothing: the training loss stays"
    elif fall < 0:
        text = f"further training gains nothing: it raises the training loss by {-fall:.4g}"
    checks = [Check("polish", passed, fall, allowed, text)]
    tops = [top_eigenpair(examined.hessian(m), meter, tol=COARSE) for m in (model, polished)]
    before, later = (float(top.values[0]) for top in tops)
    if before > 0 and later > 0:
        change = abs(math.log(later / before))
    else:
        change = 0.0 if before == later else math.inf
    settled = change <= limits.log_ratio
    text = f"lambda_max{whose} goes from {before:.4g} to {later:.4g} in the polish"
    return [*checks, Check("sharpness settled", settled, change, limits.log_ratio, text)]


def _polished(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch,
    rate: float,
    decays: Sequence[float],
    steps: int,
    chunk_size: int,
    seed: int,
) -> tuple[nn.Module, float]:
    """A copy trained on from where ``model`` stands, and its training loss."""
    trained = copy.deepcopy(model)
    chosen = select_parameters(trained, None)
    for p in chosen:
        p.grad = None
    rows = _endless(len(data[1]), batch_size(data), seed)

    def groups() -> list[dict[str, Any]]:
        """Parameters of one decay together; anew for each optimiser, which writes into them."""
        together: dict[float, list[nn.Parameter]] = {}
        for p, decay in zip(chosen, decays, strict=True):
            together.setdefault(decay, []).append(p)
        return [{"params": ps, "weight_decay": decay} for decay, ps in together.items()]

    for optimizer, count in (
        (torch.optim.Adam(groups(), lr=rate), steps),
        (torch.optim.SGD(groups(), lr=rate), LAST_STEPS),
    ):
        for _ in range(count):
            batch = next(rows)
            inputs, targets = (part[batch.to(part.device)].to(chosen[0].device) for part in data)
            with torch.enable_grad():
                loss = loss_fn(trained(inputs), targets)
            slopes = torch.autograd.grad(loss, chosen, allow_unused=True)
            for p, slope in zip(chosen, slopes, strict=True):
                p.grad = slope
            optimizer.step()
    optimizer.zero_grad()
    try:
        after = MeanLoss(trained, loss_fn, data, chunk_size=chunk_size).value()
    except ValueError:  # it diverged
        after = math.inf
    return trained, after


def _endless(examples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(examples, generator=generator).split(batch_size)


def _default_fall(
    model: nn.Module, loss_fn: LossFunction, data: Batch, train_loss: float
) -> tuple[float, str]:
    """One per cent of what the network gained over constant outputs, what is rounding, and a word.

    A constant that is added to the loss changes neither it nor the fall, but for rounding. Where
    there are no constant outputs to compare with, it is one per cent of the training loss.
    """
    losses = loss_and_constant_loss(model, loss_fn, data)
    if losses is None:
        return 0.01 * abs(train_loss), ""
    own, constant = losses
    aside = "" if own < constant else " (the network is no better than a constant output)"
    rounding = 1e-6 * max(abs(constant), abs(train_loss))
    return 0.01 * max(constant - own, 0.0) + rounding, aside


def index_check(examined: HessianSet, model: nn.Module, limits: Thresholds, meter: Meter) -> Check:
    """Whether the curvature is that of a minimum, up to a share."""
    meter.say("index")
    top, bottom = (float(end.values[0]) for end in both_ends(examined, model, meter))
    ratio = bottom / top if top > 0 else (-math.inf if bottom < 0 else 0.0)
    text = f"lambda_min / lambda_max = {ratio:.2g}"
    return Check("index", ratio >= -limits.index, ratio, -limits.index, text)
