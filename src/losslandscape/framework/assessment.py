"""One network, judged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from losslandscape.framework.cost import Meter, make_plan
from losslandscape.framework.findings import (
    MEASURES,
    Assessment,
    Check,
    Measure,
    OrbitCheck,
    Stability,
    Thresholds,
)
from losslandscape.framework.gate import (
    canonical,
    fit_check,
    index_check,
    operator_check,
    polish_checks,
)
from losslandscape.framework.hessian_set import (
    HessianSet,
    check_loss_of_copy,
    copy_of,
    digest,
    hessian_size,
    joined,
    subset_of,
)
from losslandscape.framework.measures import both_ends, eigen_measure, probed, relative_measures
from losslandscape.framework.orbit import orbit_check, rescalable_units
from losslandscape.framework.stability import check_optimizer, decays_of, stability_of
from losslandscape.objective import (
    Batch,
    LossFunction,
    MeanLoss,
    check_derivatives,
    check_order,
    gradient,
)


def assess(
    model: nn.Module,
    loss_fn: LossFunction,
    train_data: Batch | Iterable[Batch],
    val_data: Batch | Iterable[Batch] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    thresholds: Thresholds | None = None,
    hessian_examples: int | None = None,
    probes: int = 32,
    rescalings: int = 5,
    time_budget: float | None = None,
    chunk_size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Assessment:
    r"""Judge the end point of a training run: gate, sharpness, relative flatness, verdict.

    The first of these that applies is the verdict:

    ``not-a-minimum``
        Training is not done: the loss is above ``thresholds.loss``, or the polish test (a copy, one
        epoch of Adam at 1e-3, then 100 steps of plain SGD, on the same objective) gains too much or
        changes :math:`\lambda_{\max}` too much.
    ``saddle-like``
        :math:`\lambda_{\min} < -0.1\, \lambda_{\max}`.
    ``lr-limited``
        The curvature is at the stability limit of the optimiser, or beyond: the learning rate holds
        it where it is, and another one would give another value. This word is about these weights
        and this optimiser; the other words survive rescalings that keep the function.
    ``comparable``
        None of these; :func:`compare` can set it against another one.

    The caller's model, its mode, gradients, buffers and random state stay as they are; it is run
    twice, on two examples each, to see what the loss reads. All measurements happen on copies in
    ``eval`` mode, so batch normalisation uses its running statistics, dropout is off, and the
    polish trains with both so; only the stability ratio takes the statistics of batches, as the
    optimiser did. (A normalisation that was fixed during training is taken so if its scale and
    shift are frozen, or if the model comes in the modes of training.)
    Parameters that require no gradient stay fixed.

    Args:
        model: Any differentiable module. For networks whose rescalings are known (see
            :func:`~losslandscape.rescaling.rescale_relu`) the gate is applied to the balanced
            network and the verdict is checked under rescaling.
        loss_fn, train_data: As for :class:`~losslandscape.operators.HessianOperator`.
        val_data: Held-out data; their loss is reported and decides nothing.
        optimizer: The one that trained the model: its learning rate, momentum, weight decay and,
            for Adam, its state give the stability ratio and the penalty of the objective.
        thresholds: Where the words change. The report's own gate on MNIST is
            ``Thresholds(loss=0.05, fall=0.02)``.
        hessian_examples: Size of the set that curvature is measured on; by default all of up to
            8,192 training examples, else 4,096, each class in proportion.
        probes: Random vectors for traces.
        rescalings: How many random rescalings gate and relative measures have to survive; 0 leaves
            the check out.
        time_budget: Seconds; a smaller Hessian set, fewer rescalings and a shorter polish keep
            to it as far as possible, and ``notes`` says so.
        chunk_size: Largest number of examples in one pass; batches stay whole where their
            statistics are taken.
        seed: Of subsets, probes, start vectors, rescalings and the polish.
        progress: Announce the cost and show a bar.

    Raises:
        ValueError: As for :class:`~losslandscape.operators.HessianOperator`; arguments out of
            range; a model that cannot be copied; an optimizer of other parameters; a loss that
            reads the weights of ``model``, or what it keeps of its last pass, instead of the
            outputs it is given.
        TypeError: ``optimizer`` or ``thresholds`` is none.
        ArithmeticError: An eigenvalue did not converge, or the products are not symmetric.

    Example:
        Least squares at its minimum.

        >>> model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> _ = nn.init.constant_(model.weight, 1.5)
        >>> X = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
        >>> y = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        >>> found = assess(model, nn.functional.mse_loss, (X, y), progress=False)
        >>> found.verdict, round(found.measures["lambda_max"].value, 6)
        ('comparable', 2.0)
    """
    began = time.perf_counter()
    check_order(model, loss_fn)
    limits = thresholds or Thresholds()
    if not isinstance(limits, Thresholds):
        kind = type(limits).__name__
        raise TypeError(f"thresholds must be losslandscape.Thresholds(...), got {kind}")
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    if rescalings < 0:
        raise ValueError(f"rescalings must be 0 or more, got {rescalings}")
    if time_budget is not None and not time_budget > 0:
        raise ValueError(f"time_budget must be positive seconds, got {time_budget}")
    if isinstance(val_data, torch.optim.Optimizer):
        raise TypeError("val_data comes fourth: give the optimizer by its name, optimizer=")
    if optimizer is not None:
        check_optimizer(model, optimizer)
    check_derivatives(model)
    own = copy_of(model)
    whole = MeanLoss(own, loss_fn, train_data, chunk_size=chunk_size)
    everything = joined(whole)
    check_loss_of_copy(model, own, loss_fn, everything)
    wanted = hessian_size(hessian_examples, whole.examples)
    notes: list[str] = []
    draws = rescalings if rescalable_units(own) else 0
    plan = make_plan(own, loss_fn, everything, wanted, probes, draws, time_budget, chunk_size)
    notes += plan.notes
    subset = subset_of(everything, plan.examples, seed)
    examined = HessianSet(loss_fn, subset, chunk_size)
    with Meter(plan, progress) as meter:
        train_loss, slope = gradient(own, loss_fn, whole.batches, chunk_size=chunk_size)
        val_loss = None
        if val_data is not None:
            try:
                val_loss = MeanLoss(own, loss_fn, val_data, chunk_size=chunk_size).value()
            except ValueError as error:
                raise ValueError(f"validation data: {error}") from error
        decays = decays_of(model, optimizer)
        gate_model, note = canonical(own)
        notes += note

        checks = [operator_check(examined, own, seed), fit_check(train_loss, limits)]
        checks += polish_checks(
            *(gate_model, everything, examined, train_loss, limits),
            decays=decays,
            steps=plan.polish_steps,
            seed=seed,
            meter=meter,
            whose="" if gate_model is own else " of the balanced network",
        )
        checks.append(index_check(examined, gate_model, limits, meter))

        measures: dict[str, Measure] = {}
        for name, pair in zip(
            ("lambda_max", "lambda_min"), both_ends(examined, own, meter), strict=True
        ):
            measures[name] = eigen_measure(name, examined, own, pair, None, meter)
        stability = stability_of(
            *(model, own, optimizer, examined, limits, meter),
            batch=_batch_size(train_data, whole),
        )
        measures["trace"] = probed(examined, own, None, probes, seed, meter)["trace"]
        relative, note = relative_measures(examined, own, probes, seed, meter)
        measures |= relative
        notes += note
        orbit = orbit_check(own, examined, limits, plan.rescalings, probes, seed, meter)
    verdict, reasons = verdict_of(checks, stability, orbit, limits)
    seconds = time.perf_counter() - began
    if time_budget is not None and seconds > time_budget:
        notes.append(f"it took {seconds:.0f} s, more than the time budget of {time_budget:g} s")
    return Assessment(
        verdict=verdict,
        reasons=tuple(reasons),
        checks=tuple(checks),
        measures={name: measures[name] for name in MEASURES if name in measures},
        stability=stability,
        orbit=orbit,
        train_loss=train_loss,
        val_loss=val_loss,
        gradient_norm=float(torch.linalg.vector_norm(slope)),
        penalty_norm=math.hypot(
            *(d * float(p.detach().norm()) for p, d in zip(whole.params, decays, strict=True))
        ),
        examples=whole.examples,
        hessian_examples=len(subset[1]),
        parameters=whole.size,
        data_digest=digest(subset),
        products=meter.products,
        seconds=seconds,
        notes=tuple(notes),
        thresholds=limits,
    )


def _batch_size(data: Batch | Iterable[Batch], whole: MeanLoss) -> int:
    """Examples in a batch of the data; those of a pair ``(X, y)`` have to be cut."""
    pair = isinstance(data, (tuple, list)) and isinstance(data[0], torch.Tensor)
    return min(whole.chunk_size, whole.examples) if pair else whole.largest_batch


def verdict_of(
    checks: Sequence[Check], stability: Stability, orbit: OrbitCheck, limits: Thresholds
) -> tuple[str, list[str]]:
    """The first word that applies, and the reasons, the deciding ones first."""
    failed = [check for check in checks if check.passed is False]
    texts = [check.text for check in failed]
    if any(check.name != "index" for check in failed):
        verdict, reasons = "not-a-minimum", [f"training is not done: {texts[0]}", *texts[1:]]
    elif failed:
        verdict, reasons = "saddle-like", [f"the loss also curves down: {texts[0]}"]
    elif stability.ratio is not None and stability.ratio >= limits.edge:
        verdict, reasons = "lr-limited", [stability.text]
    else:
        verdict, reasons = "comparable", ["training is done, as far as these checks can tell"]
    reasons += [check.text for check in checks if check.passed is not False]
    if verdict != "lr-limited":
        reasons.append(stability.text)
    return verdict, [*reasons, orbit.text]
