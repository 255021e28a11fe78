"""Sharpness against the stability limit, step by step, on a set small enough for full batches.

Gradient descent with a constant learning rate ``lr`` is stable on a quadratic as long as its
largest curvature stays below ``2/lr``; training raises the curvature until it meets that limit
(Cohen et al., *Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability*,
ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from losslandscape.eigen import lanczos
from losslandscape.lab.data import Dataset
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import cnn
from losslandscape.lab.training import accuracy
from losslandscape.objective import LossFunction, gradient
from losslandscape.operators import CurvatureOperator, HessianOperator, ScaledOperator


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance to the one-hot label, mean over the images."""
    labels = one_hot(targets, outputs.shape[1]).to(outputs)
    return 0.5 * outputs.shape[1] * mse_loss(outputs, labels)


LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}


@dataclass(frozen=True)
class EdgeRecipe:
    """How a small network is trained.

    Attributes:
        name: Name of the configuration.
        loss: A key of :data:`LOSSES`.
        optimizer: ``"gd"``, with ``momentum``, or ``"adam"``.
        lr: Learning rate.
        momentum: Heavy-ball momentum.
        batch_size: Images per step, drawn with replacement; ``None`` takes all of them.
        steps: Number of steps.
    """

    name: str
    loss: str
    optimizer: str
    lr: float
    momentum: float = 0.0
    batch_size: int | None = None
    steps: int = 4000


@dataclass(frozen=True)
class Settings:
    """How a run is measured.

    Attributes:
        channels, hidden: Width of the network.
        images: Size of the training set, a stratified subset; curvature is taken on all of it.
        every: Steps between two measurements.
        tol: Relative residual of eigenvalues.
        batches: Random batches on which batch sharpness is averaged, where batches are used.
    """

    channels: tuple[int, int] = (8, 16)
    hidden: int = 32
    images: int = 1000
    every: int = 25
    tol: float = 1e-2
    batches: int = 32


def measure(recipe: EdgeRecipe, dataset: Dataset, seed: int, settings: Settings) -> dict[str, Any]:
    """Train once and measure: JSON-ready results of one run.

    Returns:
        ``limit``: the largest stable curvature of the method, of the preconditioned Hessian for
        Adam. ``path``: rows of step, train_loss, train_accuracy, ``lambda_max``; for Adam also
        ``preconditioned``, with batches also ``batch_sharpness``. ``diverged``: whether the loss
        ceased to be finite.
    """
    model = cnn(dataset, seed=seed, channels=settings.channels, hidden=settings.hidden).eval()
    data = dataset.stratified_subset(min(settings.images, len(dataset.y_train)))
    loss_fn = LOSSES[recipe.loss]
    optimizer = _optimizer(recipe, model)
    path: list[dict[str, Any]] = []
    start: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for step, batch in enumerate(_batches(recipe, data, generator)):
        if step % settings.every == 0:
            with torch.no_grad():
                outputs = model(data[0])
            loss = float(loss_fn(outputs, data[1]))
            if not loss < float("inf"):
                return {"limit": limit(recipe), "path": path, "diverged": True}
            hessian = HessianOperator(model, loss_fn, data)
            right = accuracy(outputs, data[1])
            row: dict[str, Any] = {"step": step, "train_loss": loss, "train_accuracy": right}
            row["lambda_max"] = _top(hessian, start, "lambda_max", settings)
            if recipe.optimizer == "adam" and step:
                scale = preconditioner(optimizer, recipe).rsqrt()
                scaled = ScaledOperator(hessian, scale)
                row["preconditioned"] = _top(scaled, start, "preconditioned", settings)
            if recipe.batch_size is not None:
                row["batch_sharpness"] = batch_sharpness(
                    model, loss_fn, data, recipe.batch_size, settings.batches, seed=seed
                )
            path.append(row)
        optimizer.zero_grad()
        loss_fn(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return {"limit": limit(recipe), "path": path, "diverged": False}


def limit(recipe: EdgeRecipe) -> float:
    r"""Largest stable curvature of the method on a quadratic.

    :math:`2(1+\mu)/\eta` for heavy ball; for Adam with :math:`\beta_1 = 0.9`, of the Hessian seen
    through its preconditioner, :math:`2(1+\beta_1)/((1-\beta_1)\eta)` (Cohen et al.,
    *Adaptive Gradient Methods at the Edge of Stability*, 2022).
    """
    if recipe.optimizer == "adam":
        return 2 * (1 + 0.9) / ((1 - 0.9) * recipe.lr)
    return 2 * (1 + recipe.momentum) / recipe.lr


def preconditioner(optimizer: torch.optim.Optimizer, recipe: EdgeRecipe) -> Tensor:
    """The diagonal ``P`` of Adam's step ``w - lr P^-1 m``, ``m`` its running mean of gradients."""
    parts = []
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for weights in group["params"]:
            state = optimizer.state[weights]
            steps = float(state["step"])
            root = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt() + group["eps"]
            parts.append(((1 - beta1**steps) * root).reshape(-1))
    return torch.cat(parts)


def batch_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: tuple[Tensor, Tensor],
    size: int,
    count: int,
    *,
    seed: int,
) -> dict[str, float]:
    """Curvature of a batch along its own gradient, averaged over batches.

    Andreyev & Beneventano, *Edge of Stochastic Stability*, 2024: this quantity, not lambda_max of
    the full loss, settles near ``2/lr`` for SGD. Mean of ratios and ratio of means are both given.
    """
    generator = torch.Generator().manual_seed(seed)
    curvatures, squares = [], []
    for _ in range(count):
        rows = torch.randint(len(data[1]), (size,), generator=generator)
        batch = (data[0][rows], data[1][rows])
        _, slope = gradient(model, loss_fn, batch)
        product = HessianOperator(model, loss_fn, batch) @ slope
        curvatures.append(float(slope @ product))
        squares.append(float(slope @ slope))
    ratios = [c / s for c, s in zip(curvatures, squares, strict=True)]
    return {"mean_of_ratios": sum(ratios) / count, "ratio_of_means": sum(curvatures) / sum(squares)}


def _batches(
    recipe: EdgeRecipe, data: tuple[Tensor, Tensor], generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(recipe.steps + 1):
        if recipe.batch_size is None:
            yield data
        else:
            rows = torch.randint(len(data[1]), (recipe.batch_size,), generator=generator)
            yield data[0][rows], data[1][rows]


def _top(
    op: CurvatureOperator, start: dict[str, Tensor], name: str, settings: Settings
) -> dict[str, Any]:
    """The largest eigenvalue, from the vector of the last measurement."""
    top = lanczos(op, tol=settings.tol, v0=start.get(name))
    start[name] = top.vectors[:, 0]
    return summary(top, settings.images)


def _optimizer(recipe: EdgeRecipe, model: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr)
    return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
