"""Which choices that the paper leaves open would give its Table 1?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos
from losslandscape.lab.data import MNIST_MEAN, MNIST_STD, Dataset
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import cnn
from losslandscape.lab.training import RECIPES, Recipe, accuracy, predict, steps
from losslandscape.operators import HessianOperator


@dataclass(frozen=True)
class Candidate:
    """One reading of one row of Table 1.

    Attributes:
        name: Name of the configuration.
        row: Row of Table 1.
        training: How the network is trained.
        channels: Width of its convolutions.
        standardised: Whether the inputs are standardised, or lie between 0 and 1.
    """

    name: str
    row: str
    training: Recipe
    channels: tuple[int, int]
    standardised: bool


def _candidates() -> tuple[Candidate, ...]:
    flat = RECIPES["Flat_SGD_LowLR"]
    readings = {
        **RECIPES,
        "Flat_SGD_LowLR_wd_0.001": replace(flat, weight_decay=1e-3),
        "Flat_SGD_LowLR_momentum": replace(flat, lr=1e-4, momentum=0.9),
    }
    return tuple(
        Candidate(
            name=f"{reading}_{channels[0]}_{'standardised' if standardised else 'raw'}",
            row=training.name,
            training=training,
            channels=channels,
            standardised=standardised,
        )
        for reading, training in readings.items()
        for channels in ((32, 64), (16, 32))
        for standardised in (True, False)
    )


CANDIDATES = _candidates()


@dataclass(frozen=True)
class Settings:
    """How a run is measured.

    Attributes:
        hidden: Width of the hidden fully connected layer.
        batches: Single random batches of the training's own size measured after every epoch.
        batch_tol: Relative residual on them.
        hessian_images: Size of the fixed stratified training subset measured at the end.
        tol: Relative residual there.
    """

    hidden: int = 128
    batches: int = 12
    batch_tol: float = 1e-2
    hessian_images: int = 2048
    tol: float = 1e-3


def measure(
    candidate: Candidate, dataset: Dataset, seed: int, settings: Settings
) -> dict[str, Any]:
    """Train once and measure after every epoch: JSON-ready results of one run.

    Returns:
        ``epochs``: rows of epoch, test_accuracy, test_loss and ``batch_lambda_max`` (a list);
        ``lambda_max`` on the fixed subset at the end.
    """
    if not candidate.standardised:
        dataset = _raw(dataset)
    model = cnn(dataset, seed=seed, channels=candidate.channels, hidden=settings.hidden)
    recipe = candidate.training
    epoch = math.ceil(len(dataset.y_train) / recipe.batch_size)
    draws = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for step in steps(model, recipe, dataset, seed=seed):
        if step == 0 or step % epoch:
            continue
        outputs = predict(model, dataset.x_test)
        rows.append(
            {
                "epoch": step // epoch,
                "test_accuracy": accuracy(outputs, dataset.y_test),
                "test_loss": float(cross_entropy(outputs, dataset.y_test)),
                "batch_lambda_max": [
                    _batch_lambda_max(model, dataset, recipe.batch_size, draws, settings)
                    for _ in range(settings.batches)
                ],
            }
        )
        if len(rows) == recipe.epochs:
            break
    subset = dataset.stratified_subset(min(settings.hessian_images, len(dataset.y_train)))
    top = lanczos(HessianOperator(model, cross_entropy, subset), tol=settings.tol)
    return {"epochs": rows, "lambda_max": summary(top, len(subset[1]))}


def _batch_lambda_max(
    model: nn.Module, dataset: Dataset, size: int, draws: torch.Generator, settings: Settings
) -> float:
    rows = torch.randperm(len(dataset.y_train), generator=draws)[:size]
    batch = (dataset.x_train[rows], dataset.y_train[rows])
    top = lanczos(HessianOperator(model, cross_entropy, batch), tol=settings.batch_tol)
    if not top.converged.all():
        raise ArithmeticError(f"lambda_max of a batch of {size} did not converge")
    return float(top.values[0])


def _raw(dataset: Dataset) -> Dataset:
    """MNIST with its pixels between 0 and 1."""
    return replace(
        dataset,
        x_train=dataset.x_train * MNIST_STD + MNIST_MEAN,
        x_test=dataset.x_test * MNIST_STD + MNIST_MEAN,
    )
