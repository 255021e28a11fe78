"""How far the loss rises within a ball around the end points of Table 1.

The networks are those of ``three_configurations``, trained again from the same seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos
from losslandscape.lab.data import Dataset
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import cnn
from losslandscape.lab.training import Recipe, fit
from losslandscape.objective import gradient
from losslandscape.operators import HessianOperator
from losslandscape.sharpness import loss_sharpness


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
        ``lambda_max``; ``grad_norm`` and ``slope``, the gradient along the top eigenvector;
        ``loss``; ``radii``; ``rises``: per radius the rise found from plus and minus the gradient
        and plus and minus the top eigenvector, see
        :func:`~losslandscape.sharpness.loss_sharpness`.
    """
    model = cnn(dataset, seed=seed, channels=settings.channels, hidden=settings.hidden)
    fit(model, recipe, dataset, seed=seed, progress=False, on_epoch=None)
    images, labels = dataset.stratified_subset(min(settings.images, len(dataset.y_train)))
    model, batch = model.double(), (images.double(), labels)
    top = lanczos(HessianOperator(model, cross_entropy, batch), tol=settings.tol)
    loss, slope = gradient(model, cross_entropy, batch)
    v = top.vectors[:, 0]
    climbs = loss_sharpness(
        model,
        cross_entropy,
        batch,
        settings.radii,
        steps=settings.steps,
        starts=torch.stack([slope, -slope, v, -v], dim=1),
    )
    return {
        "loss": loss,
        "grad_norm": float(slope.norm()),
        "slope": float(slope @ v),
        "lambda_max": summary(top, len(labels)),
        "radii": list(settings.radii),
        "rises": climbs.by_start.tolist(),
    }
