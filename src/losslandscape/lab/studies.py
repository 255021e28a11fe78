"""The studies of the book, and how their missing runs are computed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import joblib
from tqdm import tqdm

from losslandscape.lab import cluster, records
from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import (
    architecture,
    assessments,
    between_minima,
    climbs,
    edge_of_stability,
    end_points,
    matched_loss,
    reconstruction,
    three_configurations,
    unfinished_training,
    validation,
)
from losslandscape.lab.experiments.architecture import ArchitectureRecipe
from losslandscape.lab.experiments.edge_of_stability import EdgeRecipe
from losslandscape.lab.experiments.three_configurations import Settings
from losslandscape.lab.experiments.validation import ARMS, SweepRecipe
from losslandscape.lab.records import RecordError, UnreadableRecordError
from losslandscape.lab.runs import Failure, Study, StudyError, WorkerError, attempt, compute
from losslandscape.lab.training import RECIPES, Recipe

_TOLERANCES = {
    "train_loss": 0.02,
    "train_accuracy": 0.01,
    "test_loss": 0.02,
    "test_accuracy": 0.01,
    "grad_norm": 0.1,
    "lambda_max": 0.05,
}

# Two seeds give no spread; on another processor a run may end as another seed would.
_SWEEP_TOLERANCES = {"train_loss": 0.2, "heldout_loss": 0.3, "heldout_error": 0.3, "steps": 1.0}

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

_WIDTHS = (((8, 16), 32), ((12, 24), 48), ((16, 32), 64))


def _sweep() -> Iterator[SweepRecipe]:
    """All cells of the validation sweep, both arms of a cell one after the other."""
    cells = [
        *product(("sgd",), (0.03, 0.06, 0.12, 0.24), (16, 48, 128), (0.0, 1e-3)),
        *product(("adam",), (1e-3, 3e-3), (16, 128), (0.0,)),
    ]
    for (optimizer, lr, batch, decay), (channels, hidden), arm in product(cells, _WIDTHS, ARMS):
        name = f"{arm}_{optimizer}_lr{lr:g}_b{batch}_wd{decay:g}_w{channels[0]}"
        yield SweepRecipe(name, arm, optimizer, lr, batch, decay, channels, hidden)


SWEEP_RECIPES = tuple(_sweep())

ARCHITECTURE_RECIPES = tuple(
    ArchitectureRecipe(
        name=f"{kind}_{convolutions}",
        batchnorm=batchnorm,
        residual=residual,
        convolutions=convolutions,
        training=Recipe("training", "sgd", lr=0.1, epochs=60),
    )
    for convolutions in (8, 2)
    for kind, batchnorm, residual in (
        ("plain", False, False),
        ("bn", True, False),
        ("residual", False, True),
        ("both", True, True),
    )
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
            name="climbs",
            purpose="How far the loss rises within a radius of the end points of Table 1.",
            dataset="mnist",
            recipes=tuple(RECIPES.values()),
            seeds=tuple(range(10)),
            settings=climbs.Settings(),
            experiment=climbs.measure,
            repeat=climbs.measure_training,
            tolerances=_TOLERANCES,
        ),
        Study(
            name="table1_reconstruction",
            purpose="Which choices that the paper leaves open give its Table 1.",
            dataset="mnist",
            recipes=reconstruction.CANDIDATES,
            # With five seeds 17 recipes agreed, which use all candidates: each gets five more.
            seeds=tuple(range(10)),
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
            name="assessments",
            purpose="The end points of Table 1, judged by the refined framework.",
            dataset="mnist",
            recipes=tuple(RECIPES.values()),
            seeds=(0, 1, 2),
            settings=assessments.Settings(),
            experiment=assessments.measure,
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
        Study(
            name="validation_sweep",
            purpose="Which measures predict the gap, over many recipes stopped at one loss.",
            dataset="mnist",
            recipes=SWEEP_RECIPES,
            seeds=(0, 1),
            settings=validation.Settings(),
            experiment=validation.measure,
            repeat=validation.measure_training,
            tolerances=_SWEEP_TOLERANCES,
        ),
        Study(
            name="architecture",
            purpose="Batch normalisation and residual connections at equal training loss.",
            dataset="mnist",
            recipes=ARCHITECTURE_RECIPES,
            seeds=tuple(range(5)),
            settings=architecture.Settings(),
            experiment=architecture.measure,
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


@dataclass(frozen=True)
class Outcome:
    """What :func:`run_study` did: the records it wrote, and the runs that gave none."""

    written: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def status(study: Study, root: Path, seeds: int | None = None) -> dict[str, list[tuple[Any, int]]]:
    """Sort the runs of a study: ``done``, ``stale``, ``damaged``, ``missing``, ``unreadable``.

    Unreadable are records of a newer version, or without permission to read: they may be whole.
    """
    sorted_runs: dict[str, list[tuple[Any, int]]] = {
        state: [] for state in ("done", "stale", "damaged", "missing", "unreadable")
    }
    current = {recipe.name: study.fingerprint(recipe) for recipe in study.recipes}
    for recipe, seed in study.runs(seeds):
        path = _path(study, recipe, seed, root)
        if not path.exists():
            state = "missing"
        else:
            try:
                fresh = records.load(path).fingerprint == current[recipe.name]
                state = "done" if fresh else "stale"
            except UnreadableRecordError:
                state = "unreadable"
            except RecordError:
                state = "damaged"
        sorted_runs[state].append((recipe, seed))
    return sorted_runs


def _path(study: Study, recipe: Any, seed: int, root: Path) -> Path:
    return root / study.name / f"{recipe.name}-seed{seed}.json"


def run_study(
    study: Study,
    root: Path,
    *,
    seeds: int | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
) -> Outcome:
    """Compute the missing, stale or damaged runs, ``jobs`` at a time, one thread each.

    Each record is written when its run ends, so the study can be stopped at any moment and goes
    on where it was. A run that fails does not stop the others; a record that cannot be read here
    is left as it is and counts as a failure.

    Args:
        study: The study.
        root: Folder of the records of all studies.
        seeds: Only the first so many.
        jobs: Processes on this machine.
        scheduler: Address of a Dask scheduler, whose workers compute instead (``lab.cluster``).

    Raises:
        WorkerError: A process died, or the scheduler cannot be reached; what was finished is kept.
    """
    states = status(study, root, seeds)
    todo = states["stale"] + states["damaged"] + states["missing"]
    # Seed by seed, so that a study stopped early has some of everything; the longest first, so
    # that no process idles for long at the end.
    todo.sort(key=lambda run: (study.seeds.index(run[1]), -_length(run[0])))
    left = [_left_alone(study, recipe, seed, root) for recipe, seed in states["unreadable"]]
    # Left behind by a run that was killed while it wrote.
    for leftover in (root / study.name).glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    if not todo:
        return Outcome(failures=left)
    # Taken now, while the files are those that were imported: they may be edited during the run.
    fingerprints = {recipe.name: study.fingerprint(recipe) for recipe in study.recipes}
    if scheduler is None:
        runs = _on_this_machine(study, todo, fingerprints, root / study.name, jobs)
    else:
        runs = cluster.results(study, todo, fingerprints, root / study.name, scheduler)
    results = list(tqdm(runs, total=len(todo), desc=study.name, unit="run"))
    return Outcome(
        written=[result for result in results if isinstance(result, Path)],
        failures=left + [result for result in results if isinstance(result, Failure)],
    )


def _length(recipe: Any) -> int:
    """How long a run takes beside other runs of its study: by its epochs or steps."""
    return int(getattr(recipe, "epochs", 0) or getattr(recipe, "steps", 0))


def _left_alone(study: Study, recipe: Any, seed: int, root: Path) -> Failure:
    try:
        records.load(_path(study, recipe, seed, root))
        reason = "its record could not be read a moment ago"
    except RecordError as error:
        reason = str(error)
    return Failure(recipe.name, seed, reason)


def _on_this_machine(
    study: Study,
    runs: list[tuple[Any, int]],
    fingerprints: dict[str, str],
    folder: Path,
    jobs: int,
) -> Iterator[Path | Failure]:
    """Compute ``runs`` in processes of this machine, each of which saves its records."""
    load_dataset(study.dataset)  # fail here, in one line, rather than in every worker
    environment = {**records.environment(), "threads": 1}
    # One run at a time: joblib would hand short ones over in batches, and a process would idle.
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
    tasks = (
        joblib.delayed(_attempt)(
            *(study, recipe, seed, folder, fingerprints[recipe.name], environment)
        )
        for recipe, seed in runs
    )
    try:
        yield from parallel(tasks)
    except BrokenExecutor as error:
        raise WorkerError(
            f"{study.name}: a worker process was killed (out of memory?); finished runs are kept, "
            "run the study again for the rest"
        ) from error


def _attempt(
    study: Study,
    recipe: Any,
    seed: int,
    folder: Path,
    fingerprint: str,
    environment: dict[str, Any],
) -> Path | Failure:
    def work() -> Path:
        records.check_room(folder)
        return records.save(compute(study, recipe, seed, fingerprint, environment), folder)

    return attempt(recipe, seed, work)
