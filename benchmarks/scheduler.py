"""How busy a study keeps two processes, and how much memory one needs: needs Linux and MNIST.

    python benchmarks/scheduler.py

A small study of runs of different length is run by two processes. The kernel tells how long each
of them ran and how long it was ready to run but waited for a core (``/proc/self/schedstat``): a
process that is ready is not idle, also where other work shares the machine.
Memory is that of a process which runs the large network of the studies on all images.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch
from run import Clock, about_data, environment, publish, record_of

from losslandscape.lab import records, runs, studies
from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import three_configurations
from losslandscape.lab.experiments.three_configurations import Settings
from losslandscape.lab.training import RECIPES, Recipe

JOBS = 2
SMALL = Settings(channels=(8, 16), hidden=32, path_points=1)
# One eigenvalue of all 60,000 images at a loose tolerance: memory is full after one product.
LARGE = Settings(path_points=1, end_tol=0.5, batch_sizes=())
RECIPES_BY_LENGTH = tuple(
    Recipe(f"epochs_{epochs}", "sgd", lr=0.05, epochs=epochs) for epochs in (1, 2, 3)
)


def watched(recipe: Recipe, dataset: Any, seed: int, settings: Settings) -> dict[str, Any]:
    """Train, and say what the kernel knows of this process."""
    three_configurations.measure_training(recipe, dataset, seed, settings)
    ran, waited, _ = map(int, Path("/proc/self/schedstat").read_text().split())
    return {"process": os.getpid(), "ran": ran / 1e9, "waited": waited / 1e9}


def small_study(seeds: int) -> runs.Study:
    """Runs of one, two and three epochs."""
    return runs.Study(
        name="scheduler",
        purpose="How busy two processes are.",
        dataset="mnist",
        recipes=RECIPES_BY_LENGTH,
        seeds=tuple(range(seeds)),
        settings=SMALL,
        experiment=watched,
        tolerances={},
    )


def busy(seeds: int) -> dict[str, Any]:
    """Wall time of the study, and how long each process ran and waited for a core."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        began = time.perf_counter()
        outcome = studies.run_study(small_study(seeds), root, jobs=JOBS)
        wall = time.perf_counter() - began
        runs = [records.load(path) for path in outcome.written]
    processes: dict[int, dict[str, float]] = {}
    for record in sorted(runs, key=lambda record: record.results["ran"]):
        told = dict(record.results)
        told["memory"] = record.timing["peak_memory"]
        processes[told.pop("process")] = told  # the last word of each
    return {
        "runs": len(runs),
        "wall_seconds": wall,
        "processes": list(processes.values()),
    }


def memory() -> dict[str, Any]:
    """Peak memory of one run with the large network, in a process of its own."""
    study = runs.Study(
        name="memory",
        purpose="How much memory a run needs.",
        dataset="mnist",
        recipes=(replace(RECIPES["Sharp_SGD_HighLR"], epochs=1),),
        seeds=(0,),
        settings=LARGE,
        experiment=three_configurations.measure,
        tolerances={},
    )
    with tempfile.TemporaryDirectory() as folder:
        (path,) = studies.run_study(study, Path(folder), jobs=JOBS).written
        record = records.load(path)
    return {"peak": record.timing["peak_memory"], "lambda_max": record.results["lambda_max"]}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", default=4, show_default=True)
def main(seeds: int) -> None:
    """Measure and write ``book/records/benchmarks/scheduler-seed0.json``."""
    torch.set_num_threads(1)
    began, about = Clock(), environment(("joblib",))
    data = load_dataset("mnist")
    results = {"busy": busy(seeds), "memory": memory()}
    record = record_of(
        "scheduler",
        began,
        about,
        results,
        recipe={"recipes": [asdict(recipe) for recipe in RECIPES_BY_LENGTH]},
        settings={"small": asdict(SMALL), "large": asdict(LARGE), "seeds": seeds},
        dataset=about_data(data),
    )
    publish(record)


if __name__ == "__main__":
    main()
