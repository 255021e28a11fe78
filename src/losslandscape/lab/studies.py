"""What is run and how often: a study is a set of recipes times a set of seeds.

What one run does is an experiment, a function in ``losslandscape.lab.experiments``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch
from tqdm import tqdm

from losslandscape.lab import records
from losslandscape.lab.data import Dataset, load_dataset
from losslandscape.lab.experiments import (
    between_minima,
    edge_of_stability,
    end_points,
    matched_loss,
    reconstruction,
    three_configurations,
    unfinished_training,
)
from losslandscape.lab.experiments.edge_of_stability import EdgeRecipe
from losslandscape.lab.experiments.three_configurations import Settings
from losslandscape.lab.records import Record
from losslandscape.lab.training import RECIPES, Recipe

# (recipe, dataset, seed, settings) -> JSON-ready results
Experiment = Callable[[Any, Dataset, int, Any], dict[str, Any]]


class StudyError(ValueError):
    """A study, configuration or seed is unknown; the message names the choices."""


@dataclass(frozen=True)
class Study:
    """A named set of runs.

    Attributes:
        name: Folder of its records.
        purpose: One sentence.
        dataset: Name of the data set.
        recipes: Configurations, frozen dataclasses as the experiment takes them; a record is named
            after ``recipe.name``.
        seeds: Run seeds, in the order in which they are run.
        settings: How each run is measured.
        experiment: ``experiment(recipe, dataset, seed, settings)``: JSON-ready results of a run.
        tolerances: Largest relative difference per quantity in ``study diff``.
        repeat: What ``study diff`` repeats, a cheaper part of ``experiment``; by default all of it.
    """

    name: str
    purpose: str
    dataset: str
    recipes: tuple[Any, ...]
    seeds: tuple[int, ...]
    settings: Any
    experiment: Experiment
    tolerances: Mapping[str, float]
    repeat: Experiment | None = None

    def runs(self, seeds: int | None = None) -> list[tuple[Any, int]]:
        """All (recipe, seed) pairs, seed by seed; ``seeds`` limits them to the first few seeds."""
        return [(recipe, seed) for seed in self.seeds[:seeds] for recipe in self.recipes]

    def recipe(self, name: str) -> Any:
        """The recipe of that name.

        Raises:
            StudyError: There is none.
        """
        for recipe in self.recipes:
            if recipe.name == name:
                return recipe
        known = ", ".join(recipe.name for recipe in self.recipes)
        raise StudyError(f"{self.name} has no configuration {name!r}: choose one of {known}")

    def fingerprint(self, recipe: Any) -> str:
        """What a record of ``recipe`` must carry not to be stale."""
        content = {
            "recipe": asdict(recipe),
            "settings": asdict(self.settings),
            "dataset": self.dataset,
        }
        return records.fingerprint(content, self.experiment)


_TOLERANCES = {
    "train_loss": 0.02,
    "train_accuracy": 0.01,
    "test_loss": 0.02,
    "test_accuracy": 0.01,
    "grad_norm": 0.1,
    "lambda_max": 0.05,
}

EDGE_RECIPES = (
    *(
        EdgeRecipe(f"gd_squared_error_{lr:g}", "squared_error", "gd", lr=lr, steps=steps)
        for lr, steps in ((0.1, 1500), (0.04, 2000), (0.02, 3000))
    ),
    *(
        EdgeRecipe(f"gd_cross_entropy_{lr:g}", "cross_entropy", "gd", lr=lr, steps=steps)
        for lr, steps in ((0.2, 600), (0.1, 1000), (0.05, 1500), (0.02, 2500))
    ),
    EdgeRecipe("momentum_squared_error", "squared_error", "gd", lr=0.04, momentum=0.9, steps=1500),
    EdgeRecipe("adam_squared_error", "squared_error", "adam", lr=1e-3, steps=2000),
    EdgeRecipe("adam_cross_entropy", "cross_entropy", "adam", lr=1e-3, steps=1000),
    EdgeRecipe("sgd_squared_error", "squared_error", "gd", lr=0.1, batch_size=32, steps=3000),
    EdgeRecipe("sgd_cross_entropy", "cross_entropy", "gd", lr=0.1, batch_size=32, steps=2000),
)

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
            experiment=three_configurations.measure,
            repeat=three_configurations.measure_training,
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
            experiment=three_configurations.measure,
            repeat=three_configurations.measure_training,
            tolerances=_TOLERANCES,
        ),
        Study(
            name="unfinished_training",
            purpose="The low learning rate followed for 60 epochs, and sharpness at equal loss.",
            dataset="mnist",
            recipes=(
                replace(RECIPES["Flat_SGD_LowLR"], epochs=60),
                Recipe("lr_0.1_wd_0", "sgd", lr=0.1, epochs=20),
                Recipe("lr_0.1_wd_0.01", "sgd", lr=0.1, weight_decay=1e-2, epochs=20),
                Recipe("lr_0.001_wd_0", "sgd", lr=1e-3, epochs=60),
            ),
            seeds=tuple(range(5)),
            settings=unfinished_training.Settings(),
            experiment=unfinished_training.measure,
            tolerances=_TOLERANCES,
        ),
        Study(
            name="end_points",
            purpose="The end points of Table 1: minima or not, rescaled, noise, methods compared.",
            dataset="mnist",
            recipes=tuple(RECIPES.values()),
            seeds=tuple(range(10)),
            settings=end_points.Settings(),
            experiment=end_points.measure,
            tolerances=_TOLERANCES,
        ),
        Study(
            name="matched_loss",
            purpose="Sharpness of the high learning rate and of Adam at equal training loss.",
            dataset="mnist",
            recipes=tuple(
                replace(RECIPES[name], epochs=20) for name in ("Sharp_SGD_HighLR", "Adam_Default")
            ),
            seeds=tuple(range(10)),
            settings=matched_loss.Settings(),
            experiment=matched_loss.measure,
            tolerances=_TOLERANCES,
        ),
        Study(
            name="table1_reconstruction",
            purpose="Which choices that the paper leaves open give its Table 1.",
            dataset="mnist",
            recipes=reconstruction.CANDIDATES,
            seeds=tuple(range(5)),
            settings=reconstruction.Settings(),
            experiment=reconstruction.measure,
            tolerances=_TOLERANCES,
        ),
        Study(
            name="between_minima",
            purpose="Planes around the end points of Table 1, paths between them, one through all.",
            dataset="mnist",
            recipes=between_minima.MINIMA_RECIPES,
            seeds=(0,),
            settings=between_minima.Settings(),
            experiment=between_minima.measure,
            repeat=between_minima.measure_ends,
            tolerances=_TOLERANCES,
        ),
        Study(
            name="edge_of_stability",
            purpose="Sharpness against the stability limit, for full batches, momentum, Adam, SGD.",
            dataset="mnist",
            recipes=EDGE_RECIPES,
            seeds=(0, 1),
            settings=edge_of_stability.Settings(),
            experiment=edge_of_stability.measure,
            tolerances=_TOLERANCES,
        ),
    )
}


def find_study(name: str) -> Study:
    """The study of that name.

    Raises:
        StudyError: There is none.
    """
    if name not in STUDIES:
        raise StudyError(f"unknown study {name!r}: choose one of {', '.join(STUDIES)}")
    return STUDIES[name]


def status(study: Study, root: Path, seeds: int | None = None) -> dict[str, list[tuple[Any, int]]]:
    """Sort the runs of a study into ``done``, ``stale``, ``damaged`` and ``missing``."""
    sorted_runs: dict[str, list[tuple[Any, int]]] = {
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
    recipe: Any,
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
        results = study.experiment(recipe, dataset, seed, study.settings)
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
    """Repeat a run, or the first ``epochs`` of its training, and compare what both measured.

    Compared are the quantities for which the study declares a tolerance, at the same epochs or
    steps.

    Raises:
        StudyError: ``epochs`` is not between 1 and the number recorded.
    """
    recipe = study.recipe(record.configuration)
    if epochs is not None:
        most = getattr(recipe, "epochs", 0)
        if not 1 <= epochs <= most:
            raise StudyError(f"epochs must lie between 1 and {most}, got {epochs}")
        recipe = replace(recipe, epochs=epochs)
    dataset = load_dataset(study.dataset)
    repeat = study.repeat or study.experiment
    fresh = dict(_numbers(repeat(recipe, dataset, record.seed, study.settings)))
    stored = dict(_numbers(record.results))
    return [
        Difference(f"{quantity}{place}", stored[quantity, place], value, study.tolerances[quantity])
        for (quantity, place), value in fresh.items()
        if quantity in study.tolerances and (quantity, place) in stored
    ]


def _numbers(
    results: Mapping[str, Any], place: str = "", parent: str = ""
) -> Iterator[tuple[tuple[str, str], float]]:
    """Every number of a run as ((quantity, place), value); a place is an epoch or a step.

    The ``value`` of an eigenvalue's summary goes by the name of the eigenvalue.
    """
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, place, name)
        elif isinstance(value, list):
            for row in value:
                if isinstance(row, Mapping):
                    axis = next((a for a in ("step", "epoch") if a in row), None)
                    where = f", {axis} {row[axis]:g}" if axis else place
                    yield from _numbers(row, where, name.replace("_path", "_max"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (parent if name == "value" else name, place), value
