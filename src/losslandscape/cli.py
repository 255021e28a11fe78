"""The one door for the shell: ``losslandscape assess``, ``compare`` and ``study ...``."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import rich

from losslandscape.framework import Assessment
from losslandscape.framework import assess as assess_model
from losslandscape.framework import compare as compare_assessments
from losslandscape.lab import diffs, records, studies
from losslandscape.lab.data import DataError
from losslandscape.lab.runs import StudyError, WorkerError
from losslandscape.lab.training import RecipeError

_EXPECTED = (
    *(DataError, RecipeError, records.RecordError, ArithmeticError),
    *(StudyError, WorkerError),
)


class _Group(click.Group):
    """Turns the errors a user can mend into one line."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except _EXPECTED as error:
            raise click.ClickException(str(error)) from error


_records = click.option(
    "--records",
    "root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the records [default: book/records of this clone].",
)
_seeds = click.option("--seeds", type=click.IntRange(min=1), help="Only the first N seeds.")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="losslandscape")
def main() -> None:
    """Loss landscapes: assess your own network; run and check the studies of the report."""


_hessian_examples = click.option(
    "--hessian-examples", type=click.IntRange(min=1), help="Examples that curvature is measured on."
)
_time_budget = click.option(
    "--time-budget", type=click.FloatRange(min=0, min_open=True), help="Seconds for each network."
)
_seed = click.option("--seed", type=int, help="Of all that is drawn [default: 0].")


def _writable(_: click.Context, __: click.Parameter, out: Path | None) -> Path | None:
    """Refuse a place before the work, not after it."""
    if out is not None and not out.parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}")
    return out


_json = click.option(
    "--json",
    "out",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=_writable,
    help="Write it here as JSON.",
)


@main.command("assess")
@click.argument("source")
@_json
@_hessian_examples
@_time_budget
@_seed
def assess(source: str, out: Path | None, **options: Any) -> None:
    """Judge a trained network: is training done, how sharp is it, how flat for its weights?

    SOURCE is path/to/file.py:function, or a file that --json wrote. The function takes no
    arguments and returns what losslandscape.assess takes: a dict with model, loss_fn, train_data
    and, where there are any, val_data, optimizer and others, such as probes or thresholds; or a
    tuple of the first five in that order. The file is executed.
    """
    _write(_assessment(source, options), out)


@main.command("compare")
@click.argument("a")
@click.argument("b")
@_json
@_hessian_examples
@_time_budget
@_seed
def compare(a: str, b: str, out: Path | None, **options: Any) -> None:
    """Say which of two networks is flatter relative to its weights, or that this is undecided.

    A and B are path/to/file.py:function as for assess, or files that assess --json wrote.
    """
    asked = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if asked and a.endswith(".json") and b.endswith(".json"):
        raise click.UsageError(f"{asked[0]} changes nothing: both networks are measured already")
    sides = [_assessment(source, options) for source in (a, b)]
    try:
        found = compare_assessments(*sides)
    except ValueError as error:
        raise click.ClickException(f"{a} and {b}: {error}") from error
    _write(found, out, a=a, b=b)


def _write(found: Any, out: Path | None, **sources: str) -> None:
    for name, source in sources.items():
        click.echo(f"{name} = {source}")
    rich.print(found)
    if out is not None:
        content = {**sources, **found.to_dict()}
        out.write_text(json.dumps(content, allow_nan=False, indent=1) + "\n")
        click.echo(f"written: {out}")


def _assessment(source: str, options: dict[str, Any]) -> Assessment:
    """The assessment that a file holds, or of what a function returns."""
    if source.endswith(".json"):
        try:
            return Assessment.from_dict(json.loads(Path(source).read_text()))
        except json.JSONDecodeError as error:
            raise click.ClickException(f"{source} holds no JSON: {error}") from error
        except OSError as error:
            raise click.ClickException(f"{source}: {error.strerror}") from error
        except ValueError as error:
            raise click.ClickException(f"{source}: {error}") from error
    given = _call(source)
    names = ("model", "loss_fn", "train_data", "val_data", "optimizer")
    if isinstance(given, tuple) and len(given) > len(names):
        raise click.ClickException(f"{source} returns {len(given)} things: give {', '.join(names)}")
    if isinstance(given, tuple):
        given = dict(zip(names, given, strict=False))
    if not isinstance(given, dict):
        raise click.ClickException(
            f"{source} must return a dict with model, loss_fn and train_data, "
            f"got {type(given).__name__}"
        )
    known = set(inspect.signature(assess_model).parameters)
    for fault, wrong in (("lacks", set(names[:3]) - set(given)), ("has", set(given) - known)):
        if wrong:
            raise click.ClickException(
                f"what {source} returns {fault} {', '.join(sorted(map(str, wrong)))}: "
                f"give {', '.join(names[:3])} and, where there are any, {', '.join(names[3:])} "
                "or others that losslandscape.assess takes"
            )
    try:
        asked = {name: value for name, value in options.items() if value is not None}
        return assess_model(**{**given, **asked})
    except (ValueError, TypeError, ArithmeticError) as error:
        raise click.ClickException(f"{source}: {error}") from error


def _call(source: str) -> Any:
    """Execute a file and call one of its functions."""
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not file:
        raise click.ClickException(f"{source!r} does not name path/to/file.py:function")
    if not path.is_file():
        raise click.ClickException(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise click.ClickException(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # as if the file were run
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        read = error.filename or file
        if not Path(read).is_file():  # text that the user's code compiles
            raise
        where = read if error.lineno is None else f"{read}:{error.lineno}"
        raise click.ClickException(f"{where} is no Python: {error.msg}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise click.ClickException(f"{file} has no function {name!r}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise click.ClickException(f"{source} must take no arguments: {error}") from error
    return function()


@main.group(cls=_Group)
def study() -> None:
    """Recorded studies: many seeds, run once, kept with their provenance."""


@study.command("list")
def list_studies() -> None:
    """Name every study."""
    for item in studies.STUDIES.values():
        click.echo(f"{item.name}: {item.purpose}")


@study.command("status")
@click.argument("name", required=False)
@_seeds
@_records
def show_status(name: str | None, seeds: int | None, root: Path | None) -> None:
    """Say which runs of study NAME are done, stale, damaged, missing or unreadable.

    Without a name: how many runs of each study are done.
    """
    root = root or records.records_root()
    if name is None:
        for item in studies.STUDIES.values():
            done = len(studies.status(item, root, seeds)["done"])
            click.echo(f"{item.name}: {done} of {len(item.runs(seeds))} runs done")
        return
    found = studies.status(studies.find_study(name), root, seeds)
    for state, runs in found.items():
        click.echo(f"{state}: {len(runs)}")
        for recipe, seed in runs if state != "done" else []:
            click.echo(f"  {recipe.name} seed {seed}")


@study.command("run")
@click.argument("name")
@click.option(
    *("--workers", "--jobs", "workers"),
    type=click.IntRange(min=1),
    help="Processes on this machine, one thread each [default: 1].",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Let the workers of this Dask scheduler compute, for instance tcp://127.0.0.1:8786.",
)
@_seeds
@_records
def run_study(
    name: str, workers: int | None, scheduler: str | None, seeds: int | None, root: Path | None
) -> None:
    """Compute the missing, stale or damaged runs of study NAME; stop and go on at any time.

    A run that fails does not stop the others; status 1 then tells of it at the end.
    """
    if workers is not None and scheduler is not None:
        raise click.UsageError(
            "--workers starts processes here, --scheduler uses those of a cluster: give one of them"
        )
    item = studies.find_study(name)
    outcome = studies.run_study(
        item, root or records.records_root(), seeds=seeds, jobs=workers or 1, scheduler=scheduler
    )
    click.echo(f"{name}: {len(outcome.written)} runs computed")
    if outcome.failures:
        click.echo(f"{name}: {len(outcome.failures)} runs without a record", err=True)
        for failure in outcome.failures:
            click.echo(f"  {failure.configuration} seed {failure.seed}: {failure.reason}", err=True)
        sys.exit(1)


@study.command("diff")
@click.argument("name")
@click.option("--configuration", help="Only this configuration.")
@click.option("--seed", type=int, help="This seed [default: the first one recorded].")
@click.option("--epochs", type=int, help="So many epochs of each run [default: 1].")
@click.option("--steps", type=int, help="So many steps, where a run is counted in steps.")
@click.option("--all", "everything", is_flag=True, help="All seeds recorded, each run to its end.")
@click.option("--save", is_flag=True, help="Keep the result for the book, in diffs/NAME.json.")
@click.option("--label", default="", help="Keep it as diffs/NAME-LABEL.json, beside the other.")
@_records
def diff_study(
    name: str,
    configuration: str | None,
    seed: int | None,
    epochs: int | None,
    steps: int | None,
    everything: bool,
    save: bool,
    label: str,
    root: Path | None,
) -> None:
    """Repeat recorded runs of study NAME and compare number by number.

    By default a cheap part: one seed of each configuration, its first epoch or 100 steps.
    Tolerances come from the spread over the recorded seeds.
    Ends with status 1 when a number lies outside.
    """
    item = studies.find_study(name)
    if configuration is not None:
        item.recipe(configuration)
    root = root or records.records_root()
    recorded = records.load_study(name, root)
    chosen = diffs.choose(recorded, configuration=configuration, seed=seed, everything=everything)
    if not chosen:
        raise StudyError(f"no record of {name} matches: see 'losslandscape study status'")
    asked = {"epochs": epochs, "steps": steps}
    given = {key: number for key, number in asked.items() if number is not None}
    runs, began = [], time.process_time()
    for record in chosen:
        recipe = item.recipe(record.configuration)
        part = given if given or everything else diffs.cheap_part(recipe)
        click.echo(f"{record.configuration} seed {record.seed}")
        click.echo(f"  repeating {_part(part)} of it ...", err=True)
        rows = diffs.repeat(item, record, recorded, **part)
        for row in rows:
            click.echo(f"  {_line(row)}")
        runs.append(diffs.Run(record, part, record.fingerprint != item.fingerprint(recipe), rows))
    counts = Counter(row.outcome for run in runs for row in run.differences)
    if not counts:
        raise StudyError(
            "no recorded number lies in the part repeated: take more, with --epochs, --steps or "
            "--all"
        )
    click.echo(
        f"{counts.total()} numbers: {counts['same']} the same to the last bit, "
        f"{counts['within']} within their tolerance, {counts['outside']} outside"
    )
    if save or label:
        chosen_by = {"configuration": configuration, "seed": seed, **given}
        options = [w for key, v in chosen_by.items() if v is not None for w in (f"--{key}", str(v))]
        path = diffs.save(
            item,
            runs,
            root,
            options=options + ["--all"] * everything,
            seconds=time.process_time() - began,
            label=label,
        )
        click.echo(f"saved: {path}")
    if counts["outside"]:
        sys.exit(1)


def _part(part: dict[str, int]) -> str:
    """How much of a run is repeated, for a terminal."""
    return " and ".join(f"the first {n} {kind}" for kind, n in part.items()) or "all"


def _line(row: diffs.Difference) -> str:
    """One compared number, for a terminal."""
    mark = {"same": "same", "within": "ok  ", "outside": "OUT "}[row.outcome]
    name = f"{row.quantity}, {row.place}" if row.place else row.quantity
    fresh = "none" if row.fresh is None else f"{row.fresh:.6g}"
    source = f"from {row.seeds} seeds" if row.seeds else "declared"
    return (
        f"{mark} {name:28s} recorded {row.recorded:<12.6g} fresh {fresh:<12s} "
        f"may move {row.tolerance:.2g} ({source})"
    )


if __name__ == "__main__":
    main()
