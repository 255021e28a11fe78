"""Run the benchmark and write its record: ``make bench``.

All tools work on one problem (``problem.py``), in one process with one thread.
Their calls (``tools.py``, ``routes.py``) are interleaved: every round runs each of them once, in
another order, next to a timed gradient; times are process CPU seconds.
The record keeps every single measurement; medians, ratios and goals are computed where the book
shows them (``losslandscape.report.benchmarks``).
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import judge
import numpy as np
import routes
import tools
import torch
from problem import CACHE, CHANNELS, CHUNK, HIDDEN, LEADING, SEED, Problem, load_problem, save_array
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from tqdm import tqdm

import losslandscape as ll
from losslandscape.lab import records
from losslandscape.lab.data import Dataset
from losslandscape.lab.source import normalised_source

HERE = Path(__file__).parent
PARTIAL = HERE.parent / "_build" / "records"
BOOK = HERE.parent / "book" / "records"
ROUNDS = {"product": 5, "warm": 3, "lambda_max": 3, "top_5": 1, "trace": 1, "density": 1}
SIZES = (2000, 6000, 20_000, 60_000)
PARTS = ("scaling", *ROUNDS)
JUDGES = {
    "lambda_max": judge.eigenpairs,
    "top_5": judge.eigenpairs,
    "density": judge.density,
    "trace": judge.trace,
}
PACKAGES = ("scipy", "PyHessian", "hessian-eigenthings", "curvlinops-for-pytorch")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The value of a call and its process CPU seconds."""
    began = time.process_time()
    value = call()
    return value, time.process_time() - began


def interleaved(rows: Sequence[Any], rounds: int, desc: str) -> Any:
    """Yield (round, row) with the rows of each round in another order."""
    with tqdm(total=rounds * len(rows), desc=desc) as bar:
        for number in range(rounds):
            shift = number * len(rows) // rounds
            for row in (*rows[shift:], *rows[:shift]):
                bar.set_postfix_str(f"{row.tool}, {row.call}"[:50])
                yield number, row
                bar.update()


def compare(problem: Problem, task: str) -> list[dict[str, Any]]:
    """All rounds of all tools at one task."""
    found = {row: _row(task, row) for row in tools.TASKS[task]}
    slope = routes.gradient(problem, problem.fresh_model())
    for seed, row in interleaved(list(found), ROUNDS[task], task):
        told = found[row]
        if told["status"] != "ok":
            continue
        model = problem.fresh_model()
        gc.collect()
        _, gradient_seconds = timed(slope)
        try:
            with judge.counting(problem.images) as count:
                answer, seconds = timed(
                    lambda row=row, model=model, seed=seed: row.run(problem, model, seed)
                )
        except Exception as error:  # a peer may raise anything: that is its row
            told["status"] = "raises"
            told["message"] = f"{type(error).__name__}: {error}".split("\n")[0][:120]
            continue
        told["rounds"].append(
            {
                "seed": seed,
                "seconds": seconds,
                "gradient_seconds": gradient_seconds,
                "products": count.products,
                "passes": count.passes,
                **JUDGES[task](problem, answer),
            }
        )
    return list(found.values())


def _row(task: str, row: Any) -> dict[str, Any]:
    installed = judge.available(tools.MODULES.get(row.tool, "torch"))
    status = "ok" if installed else "not installed"
    return {"task": task, "tool": row.tool, "call": row.call, "status": status, "rounds": []}


def products(problem: Problem) -> list[dict[str, Any]]:
    """One product by every route, each next to one gradient."""
    vector = routes.probe_vector(problem)
    exact = problem.exact @ vector.double()
    slope = routes.gradient(problem, problem.fresh_model())
    ready: dict[Any, Any] = {}
    found = {row: _row("product", row) for row in routes.ROUTES}
    for row, told in found.items():
        if told["status"] == "ok":
            try:
                ready[row] = row.prepare(problem, problem.fresh_model())
                told["error"] = routes.relative_error(ready[row](vector), exact)
            except Exception as error:
                told["status"] = "raises"
                told["message"] = f"{type(error).__name__}: {error}".split("\n")[0][:120]
    for _, row in interleaved(list(ready), ROUNDS["product"], "product"):
        gc.collect()
        _, gradient_seconds = timed(slope)
        _, seconds = timed(lambda row=row: ready[row](vector))
        found[row]["rounds"].append(
            {"seconds": seconds / row.columns, "gradient_seconds": gradient_seconds}
        )
    return list(found.values())


def warm_starts(problem: Problem) -> list[dict[str, Any]]:
    """The largest eigenvalue after one more optimizer step, from the old pairs and from nothing."""
    near = ll.lanczos(tools.hessian(problem, problem.fresh_model()), LEADING, tol=1e-2, seed=0)
    rows = [tools.Contender(tools.OURS, call, solve) for call, solve in tools.WARM.items()]
    found = {row: _row("warm", row) for row in rows}
    for seed, row in interleaved(rows, ROUNDS["warm"], "warm start"):
        stepped = one_step(problem, seed)
        gc.collect()
        with judge.counting(problem.images) as count:
            result, seconds = timed(
                lambda row=row, stepped=stepped, seed=seed: row.run(
                    tools.hessian(problem, stepped), near, seed
                )
            )
        answer = tools.ours(result, 1e-3)
        inputs, targets = problem.data
        exact = ll.HessianOperator(stepped.double(), cross_entropy, (inputs.double(), targets))
        found[row]["rounds"].append(
            {
                "seed": seed,
                "seconds": seconds,
                "products": count.products,
                "passes": count.passes,
                "values": answer.values,
                "says": answer.converged,
                "tol": answer.tol,
                **judge.certificate(exact, answer),
            }
        )
    return list(found.values())


def one_step(problem: Problem, seed: int) -> torch.nn.Module:
    """The network after one more step of its own recipe, on a random batch."""
    model = problem.fresh_model()
    generator = torch.Generator().manual_seed(1000 + seed)
    dataset, recipe = problem.dataset, problem.recipe
    rows = torch.randperm(len(dataset.y_train), generator=generator)[: recipe.batch_size]
    loss = cross_entropy(model(dataset.x_train[rows]), dataset.y_train[rows])
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= recipe.lr * p.grad
            p.grad = None
    return model


def scaling(problem: Problem, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """``lambda_max`` on more and more images, each in a fresh process."""
    weights = CACHE / "scaling-weights.npy"
    save_array(weights, parameters_to_vector(problem.model.parameters()).detach().numpy())
    found = []
    bar = tqdm([n for n in sizes if n <= len(problem.dataset.y_train)], desc="scaling")
    for n in bar:
        bar.set_postfix_str(f"n = {n}")
        images, labels = CACHE / "scaling-images.npy", CACHE / "scaling-labels.npy"
        save_array(images, np.ascontiguousarray(problem.dataset.x_train[:n].numpy()))
        save_array(labels, problem.dataset.y_train[:n].numpy())
        command = [sys.executable, str(HERE / "scaling.py"), *map(str, (images, labels, weights))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"scaling, n = {n}: {done.stderr.strip()[-500:]}")
        found.append(json.loads(done.stdout))
    for path in (images, labels, weights):
        path.unlink()
    return found


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    return sum(os.times()[:4])


class Clock:
    """Wall time, CPU time and load when the run began."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.load = time.perf_counter(), cpu_seconds(), os.getloadavg()[0]

    def read(self) -> dict[str, Any]:
        """Time since then, and the load before and after."""
        return {
            "finished": records.now(),
            "wall_seconds": time.perf_counter() - self.wall,
            "cpu_seconds": cpu_seconds() - self.cpu,
            "load_before": self.load,
            "load_after": os.getloadavg()[0],
        }


def record_of(
    name: str,
    began: Clock,
    about: dict[str, Any],
    results: dict[str, Any],
    *,
    recipe: dict[str, Any],
    settings: dict[str, Any],
    dataset: dict[str, Any],
) -> records.Record:
    """One benchmark's record; ``about`` is :func:`environment` when it began."""
    return records.Record(
        study="benchmarks",
        configuration=name,
        seed=SEED,
        fingerprint=fingerprint(),
        recipe=recipe,
        settings=settings,
        dataset=dataset,
        environment=about,
        timing=began.read(),
        results=results,
    )


def publish(record: records.Record) -> None:
    """Write a finished record to the book, and say where."""
    click.echo(records.save(record, BOOK / "benchmarks"))


def about_data(data: Dataset) -> dict[str, Any]:
    """Name and checksum of a data set."""
    return {"name": data.name, "sha256": data.checksum}


def assemble(
    problem: Problem, about: dict[str, Any], began: Clock, results: dict[str, Any]
) -> records.Record:
    """The record of what is measured so far."""
    return record_of(
        problem.dataset.name,
        began,
        about,
        results,
        recipe=asdict(problem.recipe),
        settings={
            "channels": CHANNELS,
            "hidden": HIDDEN,
            "parameters": problem.size,
            "images": problem.images,
            "chunk": CHUNK,
            "dtype": "float32",
            "rounds": ROUNDS,
            "weights_sha256": problem.weights_hash,
        },
        dataset=about_data(problem.dataset),
    )


def fingerprint() -> str:
    """Hash of the benchmark's own code."""
    digest = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        digest.update(normalised_source(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def environment(names: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The usual facts, the versions of other packages, and whether the allocator is tuned."""
    packages = {}
    for name in names:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    tuned = sorted(name for name in os.environ if name.startswith("MALLOC_"))
    tuned += ["LD_PRELOAD"] if os.environ.get("LD_PRELOAD") else []
    return {
        **records.environment(),
        "packages": packages,
        "allocator": ", ".join(tuned) or "default",
        "cores": os.cpu_count(),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset", type=click.Choice(["mnist", "digits"]), help="[default: what is there]")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Some parts only.")
@click.option(
    "--records",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the records [default: book/records; with --only, _build/records].",
)
@click.option("--sizes", default=",".join(map(str, SIZES)), help="Images of the part 'scaling'.")
def main(dataset: str | None, only: tuple[str, ...], root: Path | None, sizes: str) -> None:
    """Measure all tools on one problem and write book/records/benchmarks/DATASET-seed0.json."""
    torch.set_num_threads(1)
    # PyHessian keeps graphs in .grad, and torch says so at every call.
    warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
    root = root or (PARTIAL if only else BOOK)
    began, about = Clock(), environment()
    problem = load_problem(dataset)
    results: dict[str, Any] = {
        "reference": problem.reference,
        "training": problem.training,
        "rows": [],
    }
    for part in PARTS:
        if only and part not in only:
            continue
        if part in tools.TASKS:
            results["rows"] += compare(problem, part)
        elif part == "product":
            results["rows"] += products(problem)
        elif part == "warm":
            results["rows"] += warm_starts(problem)
        elif problem.dataset.name == "mnist":
            results["scaling"] = scaling(problem, [int(n) for n in sizes.split(",")])
        # What is done survives a stop; only a whole run goes to the book.
        path = records.save(assemble(problem, about, began, results), PARTIAL / "benchmarks")
    if root != PARTIAL:
        path = records.save(records.load(path), root / "benchmarks")
    click.echo(path)


if __name__ == "__main__":
    main()
