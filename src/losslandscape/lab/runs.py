"""A study, and one run of it: a recipe and a seed in, a record or the reason why there is none out.

What a run does is an experiment, a function in ``losslandscape.lab.experiments``.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from losslandscape.lab import records
from losslandscape.lab.data import DataError, Dataset, load_dataset
from losslandscape.lab.records import Record, RecordError

# (recipe, dataset, seed, settings) -> JSON-ready results
Experiment = Callable[[Any, Dataset, int, Any], dict[str, Any]]
T = TypeVar("T")


class StudyError(ValueError):
    """A study, configuration or seed is unknown; the message names the choices."""


class WorkerError(RuntimeError):
    """A process that computed a run has died, none can be reached, or its code is not ours."""


# What can go wrong in one run without a fault in the code: divergence, a result that is not
# finite, a disk that is full, data that are gone, a worker that has other code.
_EXPECTED = (ArithmeticError, RecordError, DataError, WorkerError)


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
        tolerances: What ``study diff`` compares, and the largest relative difference where too few
            seeds are recorded to tell (see ``lab.diffs``).
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


@dataclass(frozen=True)
class Failure:
    """A run without a record, and why, in one line."""

    configuration: str
    seed: int
    reason: str


def attempt(recipe: Any, seed: int, work: Callable[[], T]) -> T | Failure:
    """What ``work`` returns, or its failure as a value: the other runs go on."""
    print(f"{recipe.name} seed {seed}: started", file=sys.stderr)
    try:
        return work()
    except _EXPECTED as error:
        reason = str(error)
    except Exception as error:  # a fault in the code, which has to be found
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    print(f"{recipe.name} seed {seed}: failed: {reason}", file=sys.stderr)
    return Failure(recipe.name, seed, reason)


def compute(
    study: Study, recipe: Any, seed: int, fingerprint: str, environment: dict[str, Any]
) -> Record:
    """One run and the record of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    dataset = load_dataset(study.dataset)
    with threads(1):
        results = study.experiment(recipe, dataset, seed, study.settings)
    return Record(
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
            "peak_memory": records.peak_memory(),
        },
        results=results,
    )


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads inside, as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
