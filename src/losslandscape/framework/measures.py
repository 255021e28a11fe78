"""Curvature measures of one network on the Hessian set, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from losslandscape.eigen import EigenResult, SymmetricMatrix, lanczos
from losslandscape.estimates import Estimate, jackknife
from losslandscape.flatness import fisher_rao_terms, relative_flatness_terms
from losslandscape.framework.bootstrap import (
    RESAMPLES,
    contributions,
    percentiles,
    resample,
    resampled_means,
)
from losslandscape.framework.cost import Meter
from losslandscape.framework.findings import MEASURES, Measure
from losslandscape.framework.hessian_set import HessianSet
from losslandscape.objective import select_parameters
from losslandscape.operators import HessianOperator, ScaledOperator, weight_scale

# Relative residuals: of what is compared, and of what only passes a threshold.
FINE, COARSE = 1e-3, 1e-2
_BOTTOM_PRODUCTS = 60
_NUMBERS_AT_ONCE = 2**25  # of probes, some matrices of which are held at a time


def top_eigenpair(
    op: SymmetricMatrix, meter: Meter, *, tol: float, share: float = 1.0
) -> EigenResult:
    """The largest eigenvalue, converged; ``share`` of the Hessian set is what a product costs."""
    found = lanczos(op, tol=tol, max_products=300)
    meter.add(found.products * share)
    # The zero matrix has no relative accuracy and needs none.
    if not found.converged.all() and float(found.residuals[0]) > 0:
        raise ArithmeticError(_not_converged(found))
    return found


def _not_converged(found: EigenResult) -> str:
    return (
        f"an eigenvalue did not converge: {float(found.values[0]):.4g} with residual "
        f"{float(found.residuals[0]):.2g} after {found.products} products"
    )


def both_ends(
    examined: HessianSet, model: nn.Module, meter: Meter
) -> tuple[EigenResult, EigenResult]:
    """The largest and the smallest eigenvalue of the Hessian.

    The smallest may be zero, which no relative accuracy reaches: its residual is measured against
    the largest.
    """
    meter.say("Hessian")
    op = examined.hessian(model)
    top = top_eigenpair(op, meter, tol=FINE)
    bottom = lanczos(op, which="SA", tol=COARSE, max_products=_BOTTOM_PRODUCTS)
    meter.add(bottom.products)
    if float(bottom.residuals[0]) > COARSE * abs(float(top.values[0])):
        raise ArithmeticError(_not_converged(bottom))
    return top, bottom


def eigen_measure(
    name: str,
    examined: HessianSet,
    model: nn.Module,
    pair: EigenResult,
    scale: Tensor | None,
    meter: Meter,
) -> Measure:
    """An eigenvalue with the contributions of blocks: ``v' A_b v`` at its eigenvector."""
    v = pair.vectors[:, :1]
    direction = v if scale is None else scale[:, None] * v
    sizes = [len(targets) for _, targets in examined.block_data()]
    samples = along(direction, examined.blocks(model), sizes)
    meter.add(1)
    return with_interval(name, float(pair.values[0]), samples, float(pair.residuals[0]))


def along(direction: Tensor, blocks: Iterable[HessianOperator], sizes: Sequence[int]) -> Tensor:
    """Curvature along a direction ``(D, 1)`` as contributions of blocks of examples ``(K, 1)``."""
    forms = [float((direction * (op @ direction)).sum()) for op in blocks]
    return contributions(torch.tensor(forms, dtype=torch.float64)[:, None], sizes)


def probed(
    examined: HessianSet,
    model: nn.Module,
    scale: Tensor | None,
    probes: int,
    seed: int,
    meter: Meter,
    share: float = 1.0,
) -> dict[str, Measure]:
    """Trace and participation ratio of ``S H S`` from random signs (Hutchinson 1989)."""
    meter.say("trace")
    params = select_parameters(model, None)
    size = sum(p.numel() for p in params)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (size, probes), generator=generator, dtype=torch.int8)
    sizes = [len(targets) for _, targets in examined.block_data()]
    forms, lengths = [], []
    for some in signs.split(max(1, _NUMBERS_AT_ONCE // size), dim=1):  # many weights, few probes
        z = 2 * some.to(params[0]) - 1
        v = z if scale is None else scale[:, None] * z
        image = torch.zeros_like(v)
        of_blocks = []
        for op, count in zip(examined.blocks(model), sizes, strict=True):
            product = op @ v
            of_blocks.append((v * product).sum(dim=0).double().cpu())
            image += product * (count / sum(sizes))
            meter.add(share * z.shape[1] * count / sum(sizes))
        if scale is not None:
            image = scale[:, None] * image
        forms.append(torch.stack(of_blocks))
        lengths.append(image.square().sum(dim=0).double().cpu())
    samples = contributions(torch.cat(forms, dim=1), sizes)
    prefix = "" if scale is None else "adaptive_"
    found = {f"{prefix}trace": with_interval(f"{prefix}trace", float(samples.mean()), samples)}
    moments = torch.stack([samples.mean(dim=0), torch.cat(lengths)], dim=1)
    ratio = jackknife(moments, lambda m: m[..., 0] ** 2 / m[..., 1])
    found["isotropy"] = ratio_with_interval("isotropy", ratio)
    return found


def relative_measures(
    examined: HessianSet, model: nn.Module, probes: int, seed: int, meter: Meter
) -> tuple[dict[str, Measure], list[str]]:
    """The measures that no rescaling changes, and what the network does not allow."""
    meter.say("|w| H |w|")
    scale = relative_scale(model)
    pair = top_eigenpair(ScaledOperator(examined.hessian(model), scale), meter, tol=FINE)
    name = "adaptive_lambda_max"
    found = {name: eigen_measure(name, examined, model, pair, scale, meter)}
    found |= probed(examined, model, scale, probes, seed, meter)
    notes = []
    for name, terms in TERMS.items():
        try:
            samples = examined.per_block(terms(model, examined))
            found[name] = with_interval(name, float(samples.mean()), samples)
        except ValueError as error:
            notes.append(f"no {MEASURES[name][0]}: {error}")
    meter.add(1)
    return found, notes


def relative_scale(model: nn.Module) -> Tensor:
    """``|w|``, with 0 for scale and shift of batch normalisation, ``(D,)``.

    Their size is no scale of a layer that a rescaling could move.
    """
    batch_norm = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for p in module.parameters(recurse=False)
    }
    kept = [
        torch.full((p.numel(),), float(id(p) not in batch_norm), device=p.device)
        for p in select_parameters(model, None)
    ]
    scale = weight_scale(model)
    return scale * torch.cat(kept).to(scale)


def _fisher_rao(model: nn.Module, examined: HessianSet) -> Tensor:
    return fisher_rao_terms(model, examined.loss_fn, examined.data, chunk_size=examined.chunk_size)


def _relative_flatness(model: nn.Module, examined: HessianSet) -> Tensor:
    return relative_flatness_terms(
        model, examined.loss_fn, examined.data, normalise=True, chunk_size=examined.chunk_size
    )


TERMS: dict[str, Callable[[nn.Module, HessianSet], Tensor]] = {
    "fisher_rao": _fisher_rao,
    "relative_flatness": _relative_flatness,
}


def with_interval(
    name: str, value: float, samples: Tensor, residual: float | None = None
) -> Measure:
    """A mean of contributions with its bootstrap interval."""
    return Measure(value, *interval_of(value, samples), MEASURES[name][1], residual, samples)


def interval_of(value: float, samples: Tensor) -> tuple[float, float]:
    """Bootstrap interval of a value that is the mean of contributions ``(K, P)``."""
    generator = torch.Generator().manual_seed(0)
    draws = [resample(count, RESAMPLES, generator) for count in samples.shape]
    low, high = percentiles(resampled_means(samples, *draws))
    # The blocks share rounding and the residual of an eigenvector, the value does not.
    return min(low, value), max(high, value)


def ratio_with_interval(name: str, found: Estimate) -> Measure:
    """A positive function of probes with the interval of its jackknife error, on a log scale."""
    if not found.value > 0:
        return Measure(found.value, -math.inf, math.inf, MEASURES[name][1])
    factor = math.exp(1.96 * found.stderr / found.value)
    return Measure(found.value, found.value / factor, found.value * factor, MEASURES[name][1])
