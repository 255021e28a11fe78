"""How sharpness moves while training goes on, and what is left to gain at each stage.

A recipe named in ``settings.followed`` is trained for all its epochs and measured at checkpoints;
every recipe is measured when it crosses a common training loss, and stops there if it is not
followed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos
from losslandscape.lab.data import Dataset
from losslandscape.lab.experiments.polish import polish
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import cnn
from losslandscape.lab.training import Recipe, evaluate, predict, steps
from losslandscape.operators import HessianOperator


@dataclass(frozen=True)
class Settings:
    """How a run is measured.

    Attributes:
        channels, hidden: Width of the network.
        followed: Names of the recipes that are trained to their last epoch.
        early_steps: Checkpoints of a followed run inside the first epoch, in steps.
        epochs: Its later checkpoints, ends of epochs.
        polished: Those of ``epochs`` at which a copy is polished and lambda_min is taken.
        hessian_images: Size of the fixed stratified training subset for eigenvalues.
        tol: Their relative residual.
        level: Training loss at which runs are compared.
        level_images: Training images on which that loss is read.
        level_every: Steps between two readings.
        level_checkpoints, level_gap: lambda_max is averaged over so many checkpoints, the first at
            the crossing, so many steps apart.
    """

    channels: tuple[int, int] = (32, 64)
    hidden: int = 128
    followed: tuple[str, ...] = ("Flat_SGD_LowLR",)
    early_steps: tuple[int, ...] = (0, 50, 100, 200, 400)
    epochs: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28, 36, 47, 60)
    polished: tuple[int, ...] = (1, 3, 5, 13, 28, 60)
    hessian_images: int = 2048
    tol: float = 1e-2
    level: float = 0.15
    level_images: int = 4096
    level_every: int = 50
    level_checkpoints: int = 5
    level_gap: int = 100


def measure(recipe: Recipe, dataset: Dataset, seed: int, settings: Settings) -> dict[str, Any]:
    """Train once and measure: JSON-ready results of one run.

    Returns:
        ``checkpoints``: per checkpoint of a followed run: step, epoch, losses and accuracies as in
        :class:`~losslandscape.lab.training.Run`, ``lambda_max``; at polished ones also
        ``lambda_min`` and ``polish``.
        ``level``: per checkpoint from the crossing on: step, ``train_loss`` on the reading images
        and ``lambda_max``; empty if the loss never got there.
    """
    model = cnn(dataset, seed=seed, channels=settings.channels, hidden=settings.hidden)
    subset = dataset.stratified_subset(min(settings.hessian_images, len(dataset.y_train)))
    reading = dataset.stratified_subset(min(settings.level_images, len(dataset.y_train)))
    epoch = math.ceil(len(dataset.y_train) / recipe.batch_size)
    followed = recipe.name in settings.followed
    points = {*settings.early_steps, *(epoch * number for number in settings.epochs)}
    last = epoch * recipe.epochs
    checkpoints: list[dict[str, Any]] = []
    level: list[dict[str, Any]] = []
    for step in steps(model, recipe, dataset, seed=seed):
        if _due(step, level, settings):
            loss = _loss(model, reading)
            if level or loss <= settings.level:
                level.append({"step": step, "train_loss": loss, **_top(model, subset, settings)})
        if followed and step in points:
            row: dict[str, Any] = {"step": step, "epoch": step / epoch, **evaluate(model, dataset)}
            row |= _top(model, subset, settings)
            if step in {epoch * number for number in settings.polished}:
                lowest = lanczos(_hessian(model, subset), which="SA", tol=settings.tol)
                row["lambda_min"] = summary(lowest, len(subset[1]))
                row["polish"] = polish(model, recipe, dataset, subset, seed=seed, tol=settings.tol)
            checkpoints.append(row)
        if step == last or (not followed and len(level) == settings.level_checkpoints):
            break
    return {"checkpoints": checkpoints, "level": level}


def _due(step: int, level: list[dict[str, Any]], settings: Settings) -> bool:
    """Whether the loss is to be read now: regularly before the crossing, then for averaging."""
    if not level:
        return step % settings.level_every == 0
    ahead = step - level[0]["step"]
    return len(level) < settings.level_checkpoints and ahead == settings.level_gap * len(level)


def _hessian(model: nn.Module, subset: tuple[Tensor, Tensor]) -> HessianOperator:
    return HessianOperator(model, cross_entropy, subset)


def _top(model: nn.Module, subset: tuple[Tensor, Tensor], settings: Settings) -> dict[str, Any]:
    top = lanczos(_hessian(model, subset), tol=settings.tol)
    return {"lambda_max": summary(top, len(subset[1]))}


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float(cross_entropy(predict(model, batch[0]), batch[1]))
