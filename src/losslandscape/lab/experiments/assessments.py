"""The end points of the three configurations, judged by the framework."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from losslandscape.framework import Thresholds, assess
from losslandscape.lab.data import Dataset
from losslandscape.lab.models import cnn
from losslandscape.lab.training import Recipe, _optimizer


@dataclass(frozen=True)
class Settings:
    """How an end point is judged.

    Attributes:
        channels, hidden: Width of the network.
        hessian_images: Size of the stratified training subset for curvature.
        probes: Random vectors for traces.
        level: Training loss that counts as fitted.
        fall: Training loss that further training may gain.
    """

    channels: tuple[int, int] = (32, 64)
    hidden: int = 128
    hessian_images: int = 2048
    probes: int = 32
    level: float = 0.05
    fall: float = 0.02


def measure(recipe: Recipe, dataset: Dataset, seed: int, settings: Settings) -> dict[str, Any]:
    """Train once and assess: JSON-ready, as ``Assessment.from_dict`` reads it.

    The seconds are left out: they are no result.
    """
    model = cnn(dataset, seed=seed, channels=settings.channels, hidden=settings.hidden)
    optimizer = _optimizer(recipe, model)
    order = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(dataset.y_train), generator=order).split(recipe.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(model(dataset.x_train[rows]), dataset.y_train[rows])
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"training diverged: the loss is {loss.item()}")
            loss.backward()
            optimizer.step()
    found = assess(
        model,
        cross_entropy,
        (dataset.x_train, dataset.y_train),
        (dataset.x_test, dataset.y_test),
        optimizer=optimizer,
        thresholds=Thresholds(loss=settings.level, fall=settings.fall),
        hessian_examples=min(settings.hessian_images, len(dataset.y_train)),
        probes=settings.probes,
        progress=False,
    )
    return {**found.to_dict(), "seconds": 0.0}
