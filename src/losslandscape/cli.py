"""The one door for the shell: ``losslandscape study ...``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import click

from losslandscape.lab import diffs, records, studies
from losslandscape.lab.data import DataError
from losslandscape.lab.training import RecipeError

_EXPECTED = (
    *(DataError, RecipeError, records.RecordError, ArithmeticError),
    *(studies.StudyError, studies.WorkerError),
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
    """Loss landscapes: run and check the recorded studies of the report."""


@main.group(cls=_Group)
def study() -> None:
    """Recorded studies: many seeds, run once, kept with their provenance."""


@study.command("list")
def list_studies() -> None:
    """Name every study."""
    for item in studies.STUDIES.values():
        click.echo(f"{item.name}: {item.purpose}")


@study.command("status")
@click.argument("name")
@_seeds
@_records
def show_status(name: str, seeds: int | None, root: Path | None) -> None:
    """Say which runs of study NAME are done, stale, damaged, missing or unreadable."""
    found = studies.status(studies.find_study(name), root or records.records_root(), seeds)
    for state, runs in found.items():
        click.echo(f"{state}: {len(runs)}")
        for recipe, seed in runs if state != "done" else []:
            click.echo(f"  {recipe.name} seed {seed}")


@study.command("run")
@click.argument("name")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@_seeds
@_records
def run_study(name: str, jobs: int, seeds: int | None, root: Path | None) -> None:
    """Compute the missing, stale or damaged runs of study NAME; stop and go on at any time.

    A run that fails does not stop the others; status 1 then tells of it at the end.
    """
    item = studies.find_study(name)
    outcome = studies.run_study(item, root or records.records_root(), seeds=seeds, jobs=jobs)
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
        raise studies.StudyError(f"no record of {name} matches: see 'losslandscape study status'")
    asked = {"epochs": epochs, "steps": steps}
    given = {key: number for key, number in asked.items() if number is not None}
    runs, began = [], time.process_time()
    for record in chosen:
        recipe = item.recipe(record.configuration)
        part = given if given or everything else diffs.cheap_part(recipe)
        click.echo(f"{record.configuration} seed {record.seed}")
        rows = diffs.repeat(item, record, recorded, **part)
        for row in rows:
            click.echo(f"  {_line(row)}")
        runs.append(diffs.Run(record, part, record.fingerprint != item.fingerprint(recipe), rows))
    counts = Counter(row.outcome for run in runs for row in run.differences)
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
