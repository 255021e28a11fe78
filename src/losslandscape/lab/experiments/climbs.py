"""How far the loss rises within a ball around the end points of Table 1.

The networks are those of ``three_configurations``, trained again from the same seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from losslandscape.lab.data import Dataset
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import cnn
from losslandscape.lab.training import Recipe, Run, fit
from losslandscape.objective import flat, gradient
from losslandscape.operators import HessianOperator
from losslandscape.sharpness import loss_sharpness, quadratic_sharpness


@dataclass(frozen=True)
class Settings:
    """How an end point is measured.

    Attributes:
        channels, hidden: Width of the network.
        images: Size of the fixed stratified training subset, for loss, gradient and lambda_max.
        tol: Relative residual of lambda_max.
        radii: Radii of the balls.
        steps: Steps of each ascent.
    """

    channels: tuple[int, int] = (32, 64)
    hidden: int = 128
    images: int = 1024
    tol: float = 1e-3
    radii: tuple[float, ...] = tuple(10 ** (k / 2) for k in range(-6, 1))
    steps: int = 10


def measure(recipe: Recipe, dataset: Dataset, seed: int, settings: Settings) -> dict[str, Any]:
    """Train once and climb from the end point, in ``float64``: JSON-ready results of one run.

    Returns:
        ``history`` (see :class:`~losslandscape.lab.training.Run`), by which the network can be
        known again; on the subset ``loss``, ``grad_norm``, ``lambda_max`` and ``slope``, the
        gradient along the top eigenvector; ``weight_norm``; ``radii``; ``rises``: per radius the
        rise found from plus and minus the gradient and plus and minus the top eigenvector, and
        ``paths``: the best rise so far, at the start and after each step, see
        :func:`~losslandscape.sharpness.loss_sharpness`; ``quadratic``: the exact maxima of the
        quadratic model, see :func:`~losslandscape.sharpness.quadratic_sharpness`.
    """
    run = _trained(recipe, dataset, seed, settings)
    images, labels = dataset.stratified_subset(min(settings.images, len(dataset.y_train)))
    model, batch = run.model.double(), (images.double(), labels)
    loss, slope = gradient(model, cross_entropy, batch)
    exact = quadratic_sharpness(
        HessianOperator(model, cross_entropy, batch), slope, settings.radii, tol=settings.tol
    )
    v = exact.top.vectors[:, 0]
    climbs = loss_sharpness(
        model,
        cross_entropy,
        batch,
        settings.radii,
        steps=settings.steps,
        starts=torch.stack([slope, -slope, v, -v], dim=1),
    )
    return {
        "history": run.history,
        "loss": loss,
        "grad_norm": float(slope.norm()),
        "slope": float(slope @ v),
        "weight_norm": float(flat(model.parameters()).norm()),
        "lambda_max": summary(exact.top, len(labels)),
        "radii": list(settings.radii),
        "rises": climbs.by_start.tolist(),
        "paths": climbs.paths.tolist(),
        "quadratic": {
            "rises": exact.values.tolist(),
            "multipliers": exact.multipliers.tolist(),
            "residuals": exact.residuals.tolist(),
            "cases": list(exact.cases),
            "converged": exact.converged.tolist(),
            "products": exact.products,
        },
    }


def measure_training(
    recipe: Recipe, dataset: Dataset, seed: int, settings: Settings
) -> dict[str, Any]:
    """The part of :func:`measure` along training."""
    return {"history": _trained(recipe, dataset, seed, settings).history}


def _trained(recipe: Recipe, dataset: Dataset, seed: int, settings: Settings) -> Run:
    model = cnn(dataset, seed=seed, channels=settings.channels, hidden=settings.hidden)
    return fit(model, recipe, dataset, seed=seed, progress=False, on_epoch=None)
