"""The one door for the shell: ``losslandscape study ...``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from losslandscape.lab import records, studies
from losslandscape.lab.data import DataError
from losslandscape.lab.training import RecipeError

_EXPECTED = (DataError, RecipeError, records.RecordError, studies.StudyError, FloatingPointError)


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
    """Say which runs of study NAME are done, stale, damaged or missing."""
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
    """Compute the missing, stale or damaged runs of study NAME; stop and go on at any time."""
    item = studies.find_study(name)
    paths = studies.run_study(item, root or records.records_root(), seeds=seeds, jobs=jobs)
    click.echo(f"{name}: {len(paths)} runs computed")


@study.command("diff")
@click.argument("name")
@click.option("--configuration", help="Only this configuration.")
@click.option("--seed", type=int, help="Only this seed.")
@click.option("--epochs", type=int, help="Repeat only the first epochs of each run.")
@_records
def diff_study(
    name: str, configuration: str | None, seed: int | None, epochs: int | None, root: Path | None
) -> None:
    """Repeat recorded runs of study NAME and compare number by number.

    Ends with status 1 when a number lies outside the study's tolerances.
    """
    item = studies.find_study(name)
    if configuration is not None:
        item.recipe(configuration)
    chosen = [
        record
        for record in records.load_study(name, root)
        if configuration in (None, record.configuration) and seed in (None, record.seed)
    ]
    if not chosen:
        raise studies.StudyError(f"no record of {name} matches: see 'losslandscape study status'")
    outside = 0
    for record in chosen:
        click.echo(f"{record.configuration} seed {record.seed}")
        for row in studies.diff(item, record, epochs=epochs):
            outside += not row.agrees
            mark = "ok " if row.agrees else "OUT"
            numbers = f"recorded {row.recorded:<12.6g} fresh {row.fresh:<12.6g}"
            click.echo(f"  {mark} {row.quantity:28s} {numbers} tolerance {row.tolerance:.0%}")
    if outside:
        click.echo(f"{outside} numbers lie outside their tolerance", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
