r"""Recorded runs repeated: which numbers moved, and whether further than they may.

On the machine and with the versions of the record, a repeated training gives the same bits. On
another processor sums are rounded in another order, and training amplifies that. Nothing comes of
it at a small learning rate; where training is chaotic, a repeated run ends up as another draw from
what training can give, as if the seed had been another one. So a number may move as far as two
seeds lie apart in 99 of 100 cases:

.. math:: t \sqrt 2\, s + \sqrt \varepsilon\, |x| + 2 r

``s`` is the standard deviation (with ``n - 1``) of the same quantity at the same epoch or step,
over the recorded seeds of the same configuration made by the same code; ``t`` is the 99.5 %
quantile of Student's distribution with ``n - 1`` degrees of freedom, and two draws differ by
``sqrt(2)`` times as much as one scatters. The second term, with the machine epsilon of the type of
the numbers, is the floor for what all seeds agree on: half of the digits, 0.035 % in float32.
``r`` is the recorded residual of an eigenvalue, 0 for other quantities: the instruments that
compute eigenvalues may have changed since.
With fewer than three such seeds there is no spread to speak of, and the tolerance is the relative
one that the study declares.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
from scipy.stats import t as student

from losslandscape.lab import records
from losslandscape.lab.data import load_dataset
from losslandscape.lab.records import Record
from losslandscape.lab.runs import Study, StudyError, threads

CONFIDENCE = 0.99
LEAST_SEEDS = 3
FOLDER = "diffs"
# What is repeated when nothing is asked for: minutes instead of hours.
CHEAP = {"epochs": 1, "steps": 100}
# They make PyTorch, oneDNN and MKL compute as on a processor with fewer instructions.
KERNEL_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")

Key = tuple[str, str, str]  # list of the record that holds it, quantity, place (epoch or step)


@dataclass(frozen=True)
class Number:
    """One recorded number.

    Attributes:
        value: The number.
        residual: Of an eigenvalue: one lies within this distance.
    """

    value: float
    residual: float = 0.0


@dataclass(frozen=True)
class Difference:
    """One number of a fresh run beside the recorded one.

    Attributes:
        quantity: What.
        place: At which epoch or step; empty for the end of the run.
        recorded, fresh: The two numbers; ``fresh`` is ``None`` where the repeated run has none.
        tolerance: Largest difference allowed.
        deviation, seeds: Standard deviation over the recorded seeds, and their number, that the
            tolerance comes from; both 0 where it is the one that the study declares.
    """

    quantity: str
    place: str
    recorded: float
    fresh: float | None
    tolerance: float
    deviation: float
    seeds: int

    @property
    def outcome(self) -> str:
        """``same`` (to the last bit), ``within`` the tolerance, or ``outside``."""
        if self.fresh == self.recorded:
            return "same"
        if self.fresh is not None and abs(self.fresh - self.recorded) <= self.tolerance:
            return "within"
        return "outside"


def repeat(
    study: Study,
    record: Record,
    recorded: Sequence[Record],
    *,
    epochs: int | None = None,
    steps: int | None = None,
) -> list[Difference]:
    """Repeat a recorded run, or its first epochs or steps, with as many threads, and compare.

    Compared are the quantities for which the study declares a tolerance, at the same epochs or
    steps; those of the end only if all of the run is repeated.

    Args:
        study: The record's study.
        record: The run.
        recorded: All records of the study; the tolerances come from them (see the module).
        epochs, steps: How much of the run is repeated; by default all of it.

    Raises:
        StudyError: The run has no such number of epochs or steps.
        FloatingPointError: The repeated run diverged.
    """
    asked = study.recipe(record.configuration)
    recipe = shorten(asked, epochs=epochs, steps=steps)
    dataset = load_dataset(study.dataset)
    experiment = study.repeat or study.experiment
    with threads(record.environment["threads"]):
        results = experiment(recipe, dataset, record.seed, study.settings)
    fresh = dict(numbers(results))
    # A whole run must give a series in full; what is cheaper to repeat may lack other quantities.
    whole = recipe == asked
    series = {key[:2] for key in fresh} if whole else set()
    spreads = spread([other for other in recorded if _same_run(other, record)])
    floor = float(np.finfo(getattr(study.settings, "dtype", "float32")).eps) ** 0.5
    found = []
    for key, number in numbers(record.results):
        part, quantity, place = key
        if quantity not in study.tolerances or not (key in fresh or key[:2] in series):
            continue
        if not (whole or part):  # what is in no list is from the end, and a part ends elsewhere
            continue
        if key in spreads:
            deviation, seeds = spreads[key]
            apart = quantile(seeds) * deviation
            tolerance = apart + floor * abs(number.value) + 2 * number.residual
        else:
            deviation, seeds = 0.0, 0
            tolerance = study.tolerances[quantity] * abs(number.value)
        value = fresh[key].value if key in fresh else None
        found.append(Difference(quantity, place, number.value, value, tolerance, deviation, seeds))
    return found


def _same_run(other: Record, record: Record) -> bool:
    """Whether two records differ by their seed only."""
    return (other.configuration, other.fingerprint) == (record.configuration, record.fingerprint)


def choose(
    recorded: Sequence[Record],
    *,
    configuration: str | None = None,
    seed: int | None = None,
    everything: bool = False,
) -> list[Record]:
    """The records of that configuration and seed; by default the first seed of each."""
    found = [
        record
        for record in recorded
        if configuration in (None, record.configuration) and seed in (None, record.seed)
    ]
    if everything:
        return found
    first: dict[str, Record] = {}
    for record in found:
        first.setdefault(record.configuration, record)
    return list(first.values())


def shorten(recipe: Any, *, epochs: int | None = None, steps: int | None = None) -> Any:
    """The recipe with fewer epochs or steps.

    Raises:
        StudyError: It has no such number of them.
    """
    for name, asked in (("epochs", epochs), ("steps", steps)):
        if asked is not None:
            most = getattr(recipe, name, None)
            if most is None:
                raise StudyError(f"{recipe.name} has no {name} to shorten")
            if not 1 <= asked <= most:
                raise StudyError(f"{name} must lie between 1 and {most}, got {asked}")
            recipe = replace(recipe, **{name: asked})
    return recipe


def cheap_part(recipe: Any) -> dict[str, int]:
    """How much of a run is repeated by default: its first epoch, or 100 steps."""
    return {
        name: min(number, getattr(recipe, name))
        for name, number in CHEAP.items()
        if hasattr(recipe, name)
    }


def spread(recorded: Sequence[Record]) -> dict[Key, tuple[float, int]]:
    """Standard deviation over the seeds, and their number, of each number with enough of them."""
    values: dict[Key, list[float]] = {}
    for record in recorded:
        for key, number in dict(numbers(record.results)).items():
            values.setdefault(key, []).append(number.value)
    return {
        key: (stdev(found), len(found))
        for key, found in values.items()
        if len(found) >= LEAST_SEEDS
    }


def quantile(seeds: int) -> float:
    """How many standard deviations of ``seeds`` draws two further draws lie apart, at most.

    >>> round(quantile(3), 1), round(quantile(10), 1)
    (14.0, 4.6)
    """
    return float(student.ppf((1 + CONFIDENCE) / 2, seeds - 1)) * 2**0.5


def numbers(
    results: Mapping[str, Any], part: str = "", place: str = ""
) -> Iterator[tuple[Key, Number]]:
    """Every number of a run, by the list that holds it, its name, and its place.

    A place is an epoch or step, and the names of what else the number lies in. An eigenvalue's
    summary is one number, its ``value``, and goes by the name of the summary.
    """
    for name, value in results.items():
        if isinstance(value, Mapping) and "value" in value:
            yield (part, name, place), Number(value["value"], value.get("residual", 0.0))
        elif isinstance(value, Mapping):
            yield from numbers(value, part, ", ".join(filter(None, (place, name))))
        elif isinstance(value, list):
            for row in value:
                if isinstance(row, Mapping):
                    yield from _row(name, row, place)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (part, name, place), Number(value)


def _row(name: str, row: Mapping[str, Any], place: str) -> Iterator[tuple[Key, Number]]:
    axis = next((axis for axis in ("step", "epoch") if axis in row), None)
    if axis is not None:
        place = f"{axis} {row[axis]:g}"
    if "value" in row:  # a row that is an eigenvalue's summary itself
        row = {name.replace("_path", "_max"): row}
    yield from numbers(row, name, place)


@dataclass(frozen=True)
class Run:
    """A recorded run and what its repetition gave.

    Attributes:
        record: What was repeated.
        part: The ``epochs`` or ``steps`` that were; empty for all of it.
        stale: Whether the code that shapes the numbers has changed since.
        differences: All that was compared.
    """

    record: Record
    part: dict[str, int]
    stale: bool
    differences: list[Difference]


def save(
    study: Study,
    runs: Sequence[Run],
    root: Path,
    *,
    options: Sequence[str],
    seconds: float,
    label: str = "",
) -> Path:
    """Keep a comparison for the book: ``diffs/STUDY.json`` below ``root``, or STUDY-LABEL.

    Args:
        study: What was repeated.
        runs: Its runs.
        root: Folder of the records.
        options: Those of ``study diff`` that repeat it.
        seconds: CPU seconds of the repetition.
        label: Keeps it beside another comparison of the same study.

    Raises:
        RecordError: It cannot be written.
    """
    variables = {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ}
    words = [f"{name}={value}" for name, value in variables.items()]
    words += ["losslandscape", "study", "diff", study.name, *options]
    content = {
        "study": study.name,
        "label": label,
        "command": shlex.join(words),
        "finished": records.now(),
        "cpu_seconds": round(seconds, 1),
        "environment": {**records.environment(), "variables": variables},
        "runs": [
            {
                "configuration": run.record.configuration,
                "seed": run.record.seed,
                "part": run.part,
                "recorded": run.record.timing["finished"],
                "environment": run.record.environment,
                "stale": run.stale,
                "differences": [{**asdict(row), "outcome": row.outcome} for row in run.differences],
            }
            for run in runs
        ],
    }
    name = f"{study.name}-{label}" if label else study.name
    return records.write(content, root / FOLDER / f"{name}.json")
