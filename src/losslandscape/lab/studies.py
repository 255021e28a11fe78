"""What is run, how often, and how it is measured.

A study is a set of recipes times a set of seeds.
Each run is measured by :func:`measure`, the same function for a recorded MNIST study and for the
live run on digits inside a chapter.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from losslandscape.eigen import EigenResult, lambda_max, lanczos
from losslandscape.lab import records
from losslandscape.lab.data import Dataset, load_dataset
from losslandscape.lab.models import cnn
from losslandscape.lab.records import Record
from losslandscape.lab.training import RECIPES, Recipe, Run, fit, recipe_for
from losslandscape.operators import HessianOperator


class StudyError(ValueError):
    """A study, configuration or seed is unknown; the message names the choices."""


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


@dataclass(frozen=True)
class Study:
    """A named set of runs.

    Attributes:
        name: Folder of its records.
        purpose: One sentence.
        dataset: Name of the data set.
        recipes: Configurations; a record is named after ``recipe.name``.
        seeds: Run seeds, in the order in which they are run.
        settings: How each run is measured.
        tolerances: Largest relative difference per quantity in ``study diff``.
    """

    name: str
    purpose: str
    dataset: str
    recipes: tuple[Recipe, ...]
    seeds: tuple[int, ...]
    settings: Settings
    tolerances: Mapping[str, float]

    def runs(self, seeds: int | None = None) -> list[tuple[Recipe, int]]:
        """All (recipe, seed) pairs, seed by seed; ``seeds`` limits them to the first few seeds."""
        return [(recipe, seed) for seed in self.seeds[:seeds] for recipe in self.recipes]

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name.

        Raises:
            StudyError: There is none.
        """
        for recipe in self.recipes:
            if recipe.name == name:
                return recipe
        known = ", ".join(recipe.name for recipe in self.recipes)
        raise StudyError(f"{self.name} has no configuration {name!r}: choose one of {known}")

    def fingerprint(self, recipe: Recipe) -> str:
        """What a record of ``recipe`` must carry not to be stale."""
        content = {
            "recipe": asdict(recipe),
            "settings": asdict(self.settings),
            "dataset": self.dataset,
        }
        return records.fingerprint(content, measure)


_TOLERANCES = {
    "train_loss": 0.02,
    "train_accuracy": 0.01,
    "test_loss": 0.02,
    "test_accuracy": 0.01,
    "grad_norm": 0.1,
    "lambda_max": 0.05,
}

STUDIES = {
    study.name: study
    for study in (
        Study(
            name="three_configurations",
            purpose="Table 1 of the paper on all of MNIST, with seeds, intervals and certificates.",
            dataset="mnist",
            recipes=tuple(RECIPES.values()),
            seeds=tuple(range(10)),
            settings=Settings(),
            tolerances=_TOLERANCES,
        ),
        Study(
            name="batch_size_bias",
            purpose="lambda_max of single batches by batch size, for a small CNN on MNIST.",
            dataset="mnist",
            recipes=tuple(RECIPES.values()),
            seeds=(0, 1, 2),
            settings=Settings(
                channels=(8, 16),
                hidden=32,
                batch_sizes=(
                    (16, 200),
                    (64, 100),
                    (256, 50),
                    (1024, 20),
                    (4096, 10),
                    (16384, 4),
                ),
            ),
            tolerances=_TOLERANCES,
        ),
    )
}


# How a chapter measures its own live run: the same network and recipes, fewer measurements.
LIVE = {
    "digits": Settings(hessian_images=300, path_points=1, batch_sizes=((64, 6),)),
    "mnist": Settings(hessian_images=1024, path_points=1, batch_sizes=((64, 10),)),
}


def find_study(name: str) -> Study:
    """The study of that name.

    Raises:
        StudyError: There is none.
    """
    if name not in STUDIES:
        raise StudyError(f"unknown study {name!r}: choose one of {', '.join(STUDIES)}")
    return STUDIES[name]


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


def measure_live(
    dataset_name: str, seeds: int, *, jobs: int = 2
) -> dict[str, list[dict[str, Any]]]:
    """Run the three recipes now, on the first ``seeds`` seeds: recipe name -> results per seed.

    Args:
        dataset_name: ``"digits"`` (about a minute for three seeds) or ``"mnist"`` (an hour).
        seeds: Number of seeds.
        jobs: Processes, one thread each.

    Raises:
        StudyError: ``seeds`` is not positive.
        DataError: The data set is unknown or not to be had.
    """
    if seeds < 1:
        raise StudyError(f"seeds must be at least 1, got {seeds}")
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
        path.append({"epoch": epoch, **_summary(top, len(subset[1]))})

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
    return {"lambda_max": _summary(top, len(dataset.y_train)), "batch_lambda_max": batches}


def status(
    study: Study, root: Path, seeds: int | None = None
) -> dict[str, list[tuple[Recipe, int]]]:
    """Sort the runs of a study into ``done``, ``stale``, ``damaged`` and ``missing``."""
    sorted_runs: dict[str, list[tuple[Recipe, int]]] = {
        state: [] for state in ("done", "stale", "damaged", "missing")
    }
    current = {recipe.name: study.fingerprint(recipe) for recipe in study.recipes}
    for recipe, seed in study.runs(seeds):
        path = root / study.name / f"{recipe.name}-seed{seed}.json"
        if not path.exists():
            state = "missing"
        else:
            try:
                fresh = records.load(path).fingerprint == current[recipe.name]
                state = "done" if fresh else "stale"
            except records.RecordError:
                state = "damaged"
        sorted_runs[state].append((recipe, seed))
    return sorted_runs


def run_study(study: Study, root: Path, *, seeds: int | None = None, jobs: int = 1) -> list[Path]:
    """Compute the missing, stale or damaged runs, ``jobs`` at a time, one thread each.

    Each record is written when its run ends, so the study can be stopped at any moment and goes
    on where it was.
    """
    states = status(study, root, seeds)
    todo = [run for run in study.runs(seeds) if run not in states["done"]]
    # Left behind by a run that was killed while it wrote.
    for leftover in (root / study.name).glob("*.tmp"):
        leftover.unlink()
    if not todo:
        return []
    load_dataset(study.dataset)  # fail here, in one line, rather than in every worker
    # Taken now, while the files are those that were imported: they may be edited during the run.
    fingerprints = {recipe.name: study.fingerprint(recipe) for recipe in study.recipes}
    environment = {**records.environment(), "threads": 1}
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    tasks = (
        joblib.delayed(_run_and_save)(
            study, recipe, seed, root, fingerprints[recipe.name], environment
        )
        for recipe, seed in todo
    )
    return list(tqdm(parallel(tasks), total=len(todo), desc=study.name, unit="run"))


def _run_and_save(
    study: Study,
    recipe: Recipe,
    seed: int,
    root: Path,
    fingerprint: str,
    environment: dict[str, Any],
) -> Path:
    print(f"{recipe.name} seed {seed}: started", file=sys.stderr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        dataset = load_dataset(study.dataset)
        results = measure(recipe, dataset, seed, study.settings)
    finally:
        torch.set_num_threads(threads)
    record = Record(
        study=study.name,
        configuration=recipe.name,
        seed=seed,
        fingerprint=fingerprint,
        recipe=asdict(recipe),
        settings=asdict(study.settings),
        dataset={"name": dataset.name, "sha256": dataset.checksum},
        environment=environment,
        timing={
            "finished": records.now(),
            "wall_seconds": round(time.perf_counter() - wall, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        },
        results=results,
    )
    return records.save(record, root / study.name)


@dataclass(frozen=True)
class Difference:
    """One number of a fresh run beside the recorded one.

    Attributes:
        quantity: What, and at which epoch.
        recorded, fresh: The two numbers.
        tolerance: Largest relative difference allowed.
    """

    quantity: str
    recorded: float
    fresh: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the numbers lie within the tolerance."""
        return abs(self.fresh - self.recorded) <= self.tolerance * abs(self.recorded)


def diff(study: Study, record: Record, *, epochs: int | None = None) -> list[Difference]:
    """Repeat the training of a record, or its first ``epochs``, and compare what both measured.

    Raises:
        StudyError: ``epochs`` is not between 1 and the number recorded.
    """
    recipe = study.recipe(record.configuration)
    epochs = recipe.epochs if epochs is None else epochs
    if not 1 <= epochs <= recipe.epochs:
        raise StudyError(f"epochs must lie between 1 and {recipe.epochs}, got {epochs}")
    dataset = load_dataset(study.dataset)
    run, path = follow(replace(recipe, epochs=epochs), dataset, record.seed, study.settings)
    fresh = dict(_numbers(run.history, path))
    stored = dict(_numbers(record.results["history"], record.results["lambda_path"]))
    return [
        Difference(
            f"{quantity}, epoch {epoch}", stored[epoch, quantity], value, study.tolerances[quantity]
        )
        for (epoch, quantity), value in fresh.items()
        if (epoch, quantity) in stored  # lambda_max is not measured at every epoch
    ]


def _numbers(
    history: list[dict[str, Any]], path: list[dict[str, Any]]
) -> Iterator[tuple[tuple[int, str], float]]:
    for row in history:
        for quantity, value in row.items():
            if quantity != "epoch":
                yield (int(row["epoch"]), quantity), value
    for row in path:
        yield (row["epoch"], "lambda_max"), row["value"]


def _summary(top: EigenResult, images: int) -> dict[str, Any]:
    return {
        "value": float(top.values[0]),
        "residual": float(top.residuals[0]),
        "converged": bool(top.converged[0]),
        "products": top.products,
        "images": images,
    }
