"""The paper's three training recipes, and a plain training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from losslandscape.lab.data import Dataset
from losslandscape.lab.models import cnn
from losslandscape.objective import gradient

OPTIMIZERS = ("sgd", "adam")


class RecipeError(ValueError):
    """A recipe is unknown or out of range; the message names the value and the choices."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        name: Name shown in tables and records.
        optimizer: ``"sgd"`` or ``"adam"``.
        lr: Learning rate.
        momentum: Heavy-ball momentum (SGD only).
        weight_decay: Coefficient ``wd`` of the penalty ``(wd/2) ||w||^2``, as in PyTorch.
        batch_size: Images per step; the last batch of an epoch may be smaller.
        epochs: Passes over the training set.
    """

    name: str
    optimizer: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 64
    epochs: int = 5

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(
                f"unknown optimizer {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}"
            )
        if not self.lr > 0:
            raise RecipeError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.weight_decay < 0:
            raise RecipeError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.batch_size < 1:
            raise RecipeError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.epochs < 1:
            raise RecipeError(f"epochs must be at least 1, got {self.epochs}")


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("Sharp_SGD_HighLR", "sgd", lr=0.1),
        Recipe("Flat_SGD_LowLR", "sgd", lr=1e-3, weight_decay=1e-2),
        Recipe("Adam_Default", "adam", lr=1e-3),
    )
}
# An epoch of digits is 23 steps, one of MNIST 938. On digits the low learning rate gets the 4,600
# steps that five epochs of MNIST are; the other two recipes are done long before that.
DIGITS_EPOCHS = {"Sharp_SGD_HighLR": 20, "Flat_SGD_LowLR": 200, "Adam_Default": 20}


def recipe_for(name: str, dataset: Dataset) -> Recipe:
    """One of the three recipes, with the number of epochs that ``dataset`` needs.

    Raises:
        RecipeError: The name is unknown.
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    return replace(recipe, epochs=DIGITS_EPOCHS[name]) if dataset.name == "digits" else recipe


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        model: The trained network, in ``eval`` mode.
        history: One dict per epoch: epoch (from 1), train_loss, train_accuracy, test_loss,
            test_accuracy (fractions of 1), grad_norm (of the data loss on all training images,
            without the penalty). All are measured after the epoch's last step.
        wall_seconds, cpu_seconds: Time spent in :func:`train`, callbacks included.
    """

    model: nn.Module
    history: list[dict[str, float]]
    wall_seconds: float
    cpu_seconds: float


def train(
    recipe: Recipe | str,
    dataset: Dataset,
    *,
    seed: int,
    model: nn.Module | None = None,
    progress: bool = True,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> Run:
    """Train the CNN of the report, or a given model, on in-memory batches.

    Args:
        recipe: A recipe, used as it is, or the name of one of the three, with as many epochs as
            the data set needs.
        dataset: Its floating type is the type of the network.
        seed: Seed of the initialisation and of the order of the batches.
        model: Trained in place instead of a new :func:`~losslandscape.lab.models.cnn`.
        progress: Show a bar over the epochs.
        on_epoch: Called as ``on_epoch(epoch, model)`` with the model in ``eval`` mode, at epoch 0
            (before the first step) and after every epoch; it must leave the model as it is.

    Raises:
        RecipeError: Unknown recipe.
        FloatingPointError: The loss is no longer finite.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset must be a Dataset, got {dataset!r}: call load_dataset first")
    if isinstance(recipe, str):
        recipe = recipe_for(recipe, dataset)
    if model is None:
        model = cnn(dataset, seed=seed, dtype=dataset.x_train.dtype)
    return fit(model, recipe, dataset, seed=seed, progress=progress, on_epoch=on_epoch)


def fit(
    model: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int,
    progress: bool,
    on_epoch: Callable[[int, nn.Module], None] | None,
) -> Run:
    """The loop of :func:`train`, for a given model and recipe."""
    wall, cpu = time.perf_counter(), time.process_time()
    optimizer = _optimizer(recipe, model)
    order = torch.Generator().manual_seed(seed)
    history: list[dict[str, float]] = []
    model.eval()
    if on_epoch:
        on_epoch(0, model)
    for epoch in tqdm(range(1, recipe.epochs + 1), desc=recipe.name, disable=not progress):
        model.train()
        for rows in torch.randperm(len(dataset.y_train), generator=order).split(recipe.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(model(dataset.x_train[rows]), dataset.y_train[rows])
            loss.backward()
            optimizer.step()
        model.eval()
        history.append({"epoch": epoch, **evaluate(model, dataset)})
        if on_epoch:
            on_epoch(epoch, model)
    return Run(
        model=model,
        history=history,
        wall_seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
    )


def steps(model: nn.Module, recipe: Recipe, dataset: Dataset, *, seed: int) -> Iterator[int]:
    """Train step by step, without end: yields the number of steps done, 0 first.

    The same weights as :func:`fit` step for step, for experiments that measure inside an epoch;
    ``recipe.epochs`` is not read. The model is in ``eval`` mode whenever a number is yielded.
    """
    optimizer = _optimizer(recipe, model)
    order = torch.Generator().manual_seed(seed)
    model.eval()
    done = 0
    yield done
    while True:
        for rows in torch.randperm(len(dataset.y_train), generator=order).split(recipe.batch_size):
            model.train()
            optimizer.zero_grad()
            cross_entropy(model(dataset.x_train[rows]), dataset.y_train[rows]).backward()
            optimizer.step()
            model.eval()
            done += 1
            yield done


def evaluate(model: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Loss and accuracy on both sets, and the norm of the full training gradient.

    Raises:
        FloatingPointError: The training loss or its gradient is not finite.
    """
    seen: list[Tensor] = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.detach())
        return cross_entropy(outputs, targets)

    try:
        train_loss, grad = gradient(model, loss_fn, (dataset.x_train, dataset.y_train))
    except ValueError as error:
        raise FloatingPointError(f"training diverged: {error}") from error
    test_outputs = predict(model, dataset.x_test)
    return {
        "train_loss": train_loss,
        "train_accuracy": accuracy(torch.cat(seen), dataset.y_train),
        "test_loss": float(cross_entropy(test_outputs, dataset.y_test)),
        "test_accuracy": accuracy(test_outputs, dataset.y_test),
        "grad_norm": float(torch.linalg.vector_norm(grad)),
    }


def predict(model: nn.Module, images: Tensor, *, chunk_size: int = 500) -> Tensor:
    """Outputs for all images, in chunks, without gradients."""
    with torch.no_grad():
        return torch.cat([model(chunk) for chunk in images.split(chunk_size)])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """Share of images whose largest output is the label's."""
    return float((outputs.argmax(dim=1) == labels).double().mean())


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
