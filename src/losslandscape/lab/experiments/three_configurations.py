"""The paper's experiment: train by three recipes, measure lambda_max along the way and at the end.

:func:`measure` is the same function for a recorded MNIST run and for the live run on digits inside
a chapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import joblib
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from losslandscape.eigen import EigenResult, lambda_max, lanczos
from losslandscape.lab.data import Dataset, load_dataset
from losslandscape.lab.models import cnn
from losslandscape.lab.training import RECIPES, Recipe, Run, fit, recipe_for
from losslandscape.operators import HessianOperator


@dataclass(frozen=True)
class Settings:
    """How a run is measured.

    Attributes:
        channels, hidden: Width of the network.
        dtype: ``"float32"`` or ``"float64"``.
        hessian_images: Size of the fixed stratified training subset for lambda_max along training.
        path_points: Number of such measurements after epoch 0, evenly spread over the epochs.
        path_tol: Relative residual along training.
        end_tol: Relative residual of the final lambda_max on all training images.
        batch_sizes: Pairs (size, number) of single random batches measured at the end.
        batch_tol: Relative residual on single batches.
    """

    channels: tuple[int, int] = (32, 64)
    hidden: int = 128
    dtype: str = "float32"
    hessian_images: int = 2048
    path_points: int = 5
    path_tol: float = 1e-2
    end_tol: float = 1e-3
    batch_sizes: tuple[tuple[int, int], ...] = ((64, 100),)
    batch_tol: float = 1e-2


# How a chapter measures its own live run: the same network and recipes, fewer measurements.
LIVE = {
    "digits": Settings(hessian_images=300, path_points=1, batch_sizes=((64, 6),)),
    "mnist": Settings(hessian_images=1024, path_points=1, batch_sizes=((64, 10),)),
}


def measure(recipe: Recipe, dataset: Dataset, seed: int, settings: Settings) -> dict[str, Any]:
    """Train once and measure: JSON-ready results of one run.

    Returns:
        ``history`` (see :class:`~losslandscape.lab.training.Run`), ``lambda_path`` (lambda_max on
        the fixed subset, by epoch), ``lambda_max`` (on all training images) and
        ``batch_lambda_max`` (size -> values on single batches).
    """
    run, path = follow(recipe, dataset, seed, settings)
    return {
        "history": run.history,
        "lambda_path": path,
        **measure_end(run.model, dataset, settings),
    }


def measure_training(
    recipe: Recipe, dataset: Dataset, seed: int, settings: Settings
) -> dict[str, Any]:
    """The part of :func:`measure` along training."""
    run, path = follow(recipe, dataset, seed, settings)
    return {"history": run.history, "lambda_path": path}


def measure_live(
    dataset_name: str, seeds: int, *, jobs: int = 2
) -> dict[str, list[dict[str, Any]]]:
    """Run the three recipes now, on the first ``seeds`` seeds: recipe name -> results per seed.

    Args:
        dataset_name: ``"digits"`` (about a minute for three seeds) or ``"mnist"`` (an hour).
        seeds: Number of seeds.
        jobs: Processes, one thread each.

    Raises:
        ValueError: ``seeds`` is not positive.
        DataError: The data set is unknown or not to be had.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    dataset = load_dataset(dataset_name)
    recipes = [recipe_for(name, dataset) for name in RECIPES]
    # The longest run first, so that no process idles at the end.
    runs = sorted(
        ((recipe, seed) for recipe in recipes for seed in range(seeds)),
        key=lambda run: -run[0].epochs,
    )
    with joblib.parallel_config(inner_max_num_threads=1, backend="loky"):
        found = joblib.Parallel(n_jobs=jobs)(
            joblib.delayed(_measure_on_one_thread)(recipe, dataset_name, seed)
            for recipe, seed in runs
        )
    results: dict[str, list[dict[str, Any]]] = {recipe.name: [] for recipe in recipes}
    for (recipe, _), result in zip(runs, found, strict=True):
        results[recipe.name].append(result)
    return results


def _measure_on_one_thread(recipe: Recipe, dataset_name: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return measure(recipe, load_dataset(dataset_name), seed, LIVE[dataset_name])


def follow(
    recipe: Recipe, dataset: Dataset, seed: int, settings: Settings
) -> tuple[Run, list[dict[str, Any]]]:
    """Train, measuring lambda_max on the fixed subset along the way."""
    dataset = dataset.to(getattr(torch, settings.dtype))
    model = cnn(
        dataset,
        seed=seed,
        channels=settings.channels,
        hidden=settings.hidden,
        dtype=dataset.x_train.dtype,
    )
    subset = dataset.stratified_subset(min(settings.hessian_images, len(dataset.y_train)))
    points = {
        round(recipe.epochs * part / settings.path_points)
        for part in range(settings.path_points + 1)
    }
    path: list[dict[str, Any]] = []

    def watch(epoch: int, network: nn.Module) -> None:
        if epoch not in points:
            return
        top = lanczos(HessianOperator(network, cross_entropy, subset), tol=settings.path_tol)
        path.append({"epoch": epoch, **summary(top, len(subset[1]))})

    run = fit(model, recipe, dataset, seed=seed, progress=False, on_epoch=watch)
    return run, path


def measure_end(model: nn.Module, dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """lambda_max on all training images, and on single batches as the paper may have used."""
    dataset = dataset.to(getattr(torch, settings.dtype))
    everything = (dataset.x_train, dataset.y_train)
    top = lambda_max(model, cross_entropy, everything, tol=settings.end_tol)
    batches: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    for size, number in settings.batch_sizes:
        values = []
        for _ in range(number):
            rows = torch.randperm(len(dataset.y_train), generator=generator)[:size]
            batch = (dataset.x_train[rows], dataset.y_train[rows])
            result = lanczos(HessianOperator(model, cross_entropy, batch), tol=settings.batch_tol)
            if not result.converged.all():
                raise ArithmeticError(f"lambda_max of a batch of {size} did not converge")
            values.append(float(result.values[0]))
        batches[str(size)] = values
    return {"lambda_max": summary(top, len(dataset.y_train)), "batch_lambda_max": batches}


def summary(top: EigenResult, images: int) -> dict[str, Any]:
    """The leading pair of a result with its certificate, JSON-ready."""
    return {
        "value": float(top.values[0]),
        "residual": float(top.residuals[0]),
        "converged": bool(top.converged[0]),
        "products": top.products,
        "images": images,
    }
