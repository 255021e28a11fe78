"""Tables of the benchmark page on training and on the scheduler of the studies.

Made from the records that ``benchmarks/training.py`` and ``benchmarks/scheduler.py`` write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import quantile_test

from losslandscape.lab import records
from losslandscape.lab.records import Record
from losslandscape.report.provenance import SHORT, UNKNOWN, Table

Row = Mapping[str, Any]  # one training loop with one network

STUDY = "benchmarks"
TRAINING, SCHEDULER = "training", "scheduler"
# Training loops, as benchmarks/training.py calls them.
OURS, TUTORIAL = "losslandscape", "DataLoader, torchvision transforms"
IN_MEMORY = ("DataLoader, tensors", "slices of tensors", "slices of tensors, channels last")

# Limits set before the first measurement.
TIMES_TUTORIAL = 5.0  # speed of our training loop in speeds of the tutorial's
TIMES_IN_MEMORY = 1.0  # and of a plain loop over tensors
BUSY = 0.9  # share of the time of a study for which its processes are ready to compute
MEMORY = 3 * 2**30  # bytes of one process


def recorded(root: Path, configuration: str) -> Record | None:
    """A record of the benchmarks below the folder that holds ``book/``, if it is there."""
    found = records.load_study(STUDY, root / "book" / "records")
    return next((record for record in found if record.configuration == configuration), None)


def throughput_table(root: Path) -> Table:
    """Training loops: images per second, time beside ours, and how much of it is loading."""
    record = recorded(root, TRAINING)
    if record is None:
        return [], []
    found = record.results["rows"]
    lines = []
    for row in found:
        name = row["network"]
        if row["parameters"] is not None:
            name += f" ({row['parameters']:,} parameters)"
        rates = [row["images"] / seconds for seconds in row["seconds"]]
        low, middle, high = (_thousands(f(rates)) for f in (min, median, max))
        lines.append(
            [
                name,
                row["loop"],
                f"{middle} [{low}, {high}]",
                _interval(times_ours(found, row)),
                _share(_loading_share(found, row)),
            ]
        )
    headings = ["network", "loop", "images per CPU second", "times our time", "of it, loading"]
    return headings, lines


def _thousands(rate: float) -> str:
    """Three significant digits."""
    return f"{float(f'{rate:.3g}'):,.0f}"


def times_ours(found: list[Row], row: Row) -> tuple[float, float, float] | None:
    """How many times our time a loop takes, in pairs of one round: median and 95 % interval.

    The interval for the median is that of the binomial distribution of ranks.
    """
    ours = _loop(found, row["network"], OURS)
    if ours is None or ours is row:
        return None
    pairs = [a / b for a, b in zip(row["seconds"], ours["seconds"], strict=True)]
    bounds = quantile_test(pairs, p=0.5).confidence_interval(0.95)
    return float(median(pairs)), float(bounds.low), float(bounds.high)


def _loading_share(found: list[Row], row: Row) -> float | None:
    """Time of a loop's batches without a network, as a share of the loop's whole time."""
    alone = next((r for r in found if r["parameters"] is None and r["loop"] == row["loop"]), None)
    if alone is None or alone is row:
        return None
    loading = median(alone["seconds"]) / alone["images"]
    return float(loading / (median(row["seconds"]) / row["images"]))


def _loop(found: list[Row], network: str, loop: str) -> Row | None:
    return next((r for r in found if (r["network"], r["loop"]) == (network, loop)), None)


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0%}"


def _interval(value: tuple[float, float, float] | None) -> str:
    return UNKNOWN if value is None else "{:.2f} [{:.2f}, {:.2f}]".format(*value)


def goals_table(root: Path) -> Table:
    """The goals of training and of the scheduler, each with its measurement and verdict."""
    lines = [_speed_goal(*goal) for goal in _speed_goals(root)]
    scheduled = recorded(root, SCHEDULER)
    if scheduled is not None:
        share = busy_share(scheduled)
        lines.append(
            [
                "two processes, ready or running",
                f"at least {BUSY:.0%}",
                f"{share:.1%}",
                _met(share >= BUSY),
            ]
        )
        peak = scheduled.results["memory"]["peak"]
        lines.append(
            ["memory of one process", f"less than {_gib(MEMORY)}", _gib(peak), _met(peak < MEMORY)]
        )
    return (["what", "goal", "measured", "verdict"], lines) if lines else ([], [])


def _speed_goals(root: Path) -> list[tuple[str, float, tuple[float, float, float]]]:
    """Our speed in speeds of each plain loop, with the large network."""
    record = recorded(root, TRAINING)
    if record is None:
        return []
    found = record.results["rows"]
    network = found[0]["network"]
    goals = [(TUTORIAL, TIMES_TUTORIAL), *((loop, TIMES_IN_MEMORY) for loop in IN_MEMORY)]
    told = []
    for loop, goal in goals:
        row = _loop(found, network, loop)
        value = times_ours(found, row) if row is not None else None
        if value is not None:
            told.append((f"{network}: our speed, in speeds of {loop}", goal, value))
    return told


def _speed_goal(name: str, goal: float, value: tuple[float, float, float]) -> list[str]:
    _, low, high = value
    decided = low >= goal or high < goal  # neither, too, where a bound is not a number
    verdict = _met(low >= goal) if decided else "undecided"
    return [name, f"at least {goal:g}", _interval(value), verdict]


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


def busy_share(record: Record) -> float:
    """Share of the study's wall time for which its processes ran or waited for a core."""
    told = record.results["busy"]
    ready = sum(process["ran"] + process["waited"] for process in told["processes"])
    return float(ready / (told["wall_seconds"] * len(told["processes"])))


def scheduler_table(root: Path) -> Table:
    """What each process of the study did with its time, and the memory it needed."""
    record = recorded(root, SCHEDULER)
    if record is None:
        return [], []
    told = record.results["busy"]
    wall = told["wall_seconds"]
    lines = [
        [
            str(number),
            f"{process['ran'] / wall:.0%}",
            f"{process['waited'] / wall:.0%}",
            f"{1 - (process['ran'] + process['waited']) / wall:.0%}",
            _gib(process["memory"]),
        ]
        for number, process in enumerate(told["processes"], start=1)
    ]
    return ["process", "computed", "waited for a core", "idle", "peak memory"], lines


def about(root: Path, configurations: Sequence[str] = (TRAINING, SCHEDULER)) -> Table:
    """Where and when parts of the benchmarks were measured."""
    lines = []
    for configuration in configurations:
        record = recorded(root, configuration)
        if record is not None:
            where, when = record.environment, record.timing
            lines.append(
                [
                    configuration,
                    when["finished"][:10],
                    where["processor"],
                    f"torch {where['torch']}",
                    where["commit"][:SHORT] + "+" * where["commit"].endswith("+"),
                    f"{when['load_before']:.1f} before, {when['load_after']:.1f} after",
                ]
            )
    headings = ["part", "recorded", "processor", "software", "commit", "load of the machine"]
    return (headings, lines) if lines else ([], [])


TABLES: dict[str, Callable[[Path], Table]] = {
    "benchmark-running": goals_table,
    "benchmark-throughput": throughput_table,
    "benchmark-scheduler": scheduler_table,
    "benchmark-about-running": about,
}
