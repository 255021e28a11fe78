"""Sharpness where two runs have the same training loss, plain and relative to the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos
from losslandscape.lab.data import Dataset
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import cnn
from losslandscape.lab.training import Recipe, predict, steps
from losslandscape.operators import HessianOperator, ScaledOperator, weight_scale


@dataclass(frozen=True)
class Settings:
    """How a run is measured.

    Attributes:
        channels, hidden: Width of the network.
        hessian_images: Size of the fixed stratified training subset for eigenvalues.
        tol: Their relative residual.
        level: Training loss at which runs are compared.
        level_images: Training images on which that loss is read.
        every: Steps between two readings.
        checkpoints, gap: The first checkpoint is the first reading at or below the level; so many
            in all, so many steps apart.
    """

    channels: tuple[int, int] = (32, 64)
    hidden: int = 128
    hessian_images: int = 2048
    tol: float = 1e-2
    level: float = 0.03
    level_images: int = 4096
    every: int = 50
    checkpoints: int = 5
    gap: int = 100


def measure(recipe: Recipe, dataset: Dataset, seed: int, settings: Settings) -> dict[str, Any]:
    """Train until the last checkpoint or the end: JSON-ready results of one run.

    Returns:
        ``level``: per checkpoint: step, ``train_loss`` on the reading images, ``lambda_max`` and
        ``adaptive_lambda_max`` (of ``|w| H |w|``); empty if the loss never got there.
    """
    model = cnn(dataset, seed=seed, channels=settings.channels, hidden=settings.hidden)
    images, labels = dataset.stratified_subset(min(settings.level_images, len(dataset.y_train)))
    subset = dataset.stratified_subset(min(settings.hessian_images, len(dataset.y_train)))
    last = recipe.epochs * math.ceil(len(dataset.y_train) / recipe.batch_size)
    level: list[dict[str, Any]] = []
    due = 0
    for step in steps(model, recipe, dataset, seed=seed):
        if step == due:
            loss = float(cross_entropy(predict(model, images), labels))
            reached = bool(level) or loss <= settings.level
            due += settings.gap if reached else settings.every
            if reached:
                hessian = HessianOperator(model, cross_entropy, subset)
                level.append({"step": step, "train_loss": loss})
                for name, op in (
                    ("lambda_max", hessian),
                    ("adaptive_lambda_max", ScaledOperator(hessian, weight_scale(model))),
                ):
                    level[-1][name] = summary(lanczos(op, tol=settings.tol), len(subset[1]))
        if step == last or len(level) == settings.checkpoints:
            break
    return {"level": level}
