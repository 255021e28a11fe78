"""Does what was found survive rescalings that keep the function?"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from losslandscape.framework.cost import Meter
from losslandscape.framework.findings import OrbitCheck, Thresholds
from losslandscape.framework.hessian_set import HessianSet
from losslandscape.framework.measures import (
    COARSE,
    FINE,
    TERMS,
    probed,
    relative_scale,
    top_eigenpair,
)
from losslandscape.objective import flat
from losslandscape.operators import ScaledOperator
from losslandscape.rescaling import balanced, hidden_layers, rescale_relu


def rescalable_units(model: nn.Module) -> dict[str, int]:
    """Units of the hidden layers that can be rescaled; none where no rescaling is known."""
    try:
        return hidden_layers(model)
    except ValueError:
        return {}


def orbit_check(
    model: nn.Module,
    examined: HessianSet,
    limits: Thresholds,
    rescalings: int,
    probes: int,
    seed: int,
    meter: Meter,
) -> OrbitCheck:
    """Rescale at random, measure again, and see what moved."""
    meter.say("rescalings")
    nothing = OrbitCheck(0, {}, math.nan, math.nan, None, "no rescaling was tried")
    units = rescalable_units(model)
    if not units:
        return replace(nothing, text="no rescaling that keeps this network's function is known")
    if not rescalings:
        return nothing
    few = examined.first(min(1024, len(examined.data[1])))
    share = len(few.data[1]) / len(examined.data[1])
    generator = torch.Generator().manual_seed(seed)
    networks = [model, *(_rescaled(model, units, generator) for _ in range(rescalings))]
    probes = min(probes, 4)  # the same ones for all: their numbers must not move
    rows, tops, forms = [], [], []
    for network in networks:
        scale = relative_scale(network)
        hessian = few.hessian(network)
        tops.append(float(top_eigenpair(hessian, meter, tol=COARSE, share=share).values[0]))
        top = top_eigenpair(ScaledOperator(hessian, scale), meter, tol=FINE / 10, share=share)
        row = {"adaptive_lambda_max": float(top.values[0])}
        traced = probed(few, network, scale, probes, seed, meter, share=share)
        row["adaptive_trace"] = traced["adaptive_trace"].value
        for name, terms in TERMS.items():
            try:
                row[name] = float(terms(network, few).mean())
            except ValueError:
                continue
        rows.append(row)
        forms.append(flat(balanced(network).double().parameters()))
    changes = {name: max(_change(row[name], rows[0][name]) for row in rows[1:]) for name in rows[0]}
    moved = max(float((form - forms[0]).norm() / forms[0].norm()) for form in forms[1:])
    positive = min(tops) > 0
    spread = max(tops) / min(tops) if positive else math.nan
    survives = moved <= limits.moved and all(change <= limits.moved for change in changes.values())
    largest = max(changes.values())
    ranged = f", while lambda_max ranges over a factor of {spread:.3g}" if positive else ""
    text = (
        f"{rescalings} random rescalings of the same function move the relative measures by at "
        f"most {largest:.2g}{ranged}"
    )
    if not survives:
        text = f"FAILED, the verdict depends on how the function is written: {text}"
    return OrbitCheck(rescalings, changes, spread, moved, survives, text)


def _rescaled(model: nn.Module, units: dict[str, int], generator: torch.Generator) -> nn.Module:
    """Unit by unit with ``log10 alpha`` uniform in [-1, 1]; layer by layer where units merge."""
    draws = [
        10 ** (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)
        for count in units.values()
    ]
    try:
        return rescale_relu(model, draws)
    except ValueError:
        return rescale_relu(model, [float(draw[0]) for draw in draws])


def _change(new: float, old: float) -> float:
    return abs(new / old - 1) if old else (0.0 if not new else math.inf)
