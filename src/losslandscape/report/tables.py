"""Table 1 three times over: reported by the paper, recorded by our studies, live in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import yaml

from losslandscape.lab import records
from losslandscape.report.statistics import predict_run

Results = Mapping[str, Any]  # what experiments.three_configurations.measure returns

QUANTITIES = {
    "test_accuracy": "accuracy (%)",
    "test_loss": "test loss",
    "lambda_max": "λ, all images",
    "batch_lambda_max": "λ, batch of 64",
}


def reported(root: Path | None = None) -> dict[str, Any]:
    """The paper's numbers, from ``book/reported.yml``: configurations, and what is stated."""
    folder = (root or records.records_root()).parent
    content: dict[str, Any] = yaml.safe_load((folder / "reported.yml").read_text(encoding="utf-8"))
    return content


def recorded(study: str, root: Path | None = None) -> dict[str, list[Results]]:
    """Results of a recorded study by configuration, seed by seed."""
    found: dict[str, list[Results]] = {}
    for record in records.load_study(study, root):
        found.setdefault(record.configuration, []).append(record.results)
    return found


def negative_share(
    runs: Mapping[int, Results], ends: Mapping[int, Results]
) -> list[tuple[list[int], list[float]]]:
    """Per run seed, epochs and ``|lambda_min| / lambda_max`` on the same images and weights.

    Args:
        runs: Run seed -> results of ``three_configurations``, which hold lambda_max by epoch.
        ends: Run seed -> results of ``end_points``, which hold lambda_min by epoch; seeds with a
            single epoch are left out.
    """
    found = []
    for seed in sorted(set(runs) & set(ends)):
        top = {row["epoch"]: row["value"] for row in runs[seed]["lambda_path"]}
        path = [row for row in ends[seed]["lambda_min_path"] if row["epoch"] in top]
        if len(path) > 1:
            epochs = [row["epoch"] for row in path]
            found.append((epochs, [abs(row["value"]) / top[row["epoch"]] for row in path]))
    return found


def values(results: Iterable[Results], quantity: str) -> list[float]:
    """One number per run; for ``batch_lambda_max`` one per batch of 64, all runs together."""
    if quantity == "batch_lambda_max":
        return [value for run in results for value in run["batch_lambda_max"]["64"]]
    if quantity == "lambda_max":
        return [run["lambda_max"]["value"] for run in results]
    return [run["history"][-1][quantity] for run in results]


def spread(results: Iterable[Results], quantity: str) -> tuple[float, float, float]:
    """Median, smallest and largest value of a quantity."""
    found = values(results, quantity)
    return median(found), min(found), max(found)


def show(quantity: str, number: float) -> str:
    """A number as the tables print it."""
    if quantity == "test_accuracy":
        return f"{100 * number:.2f}"
    if quantity == "test_loss":
        return f"{number:.4f}"
    return f"{number:#.3g}" if number < 100 else f"{number:.0f}"


def show_spread(results: Iterable[Results], quantity: str) -> str:
    """``median [smallest, largest]``, or the one value of a single run."""
    middle, low, high = spread(results, quantity)
    text = show(quantity, middle)
    return text if low == high else f"{text} [{show(quantity, low)}, {show(quantity, high)}]"


def span(numbers: Sequence[float], digits: int = 3) -> str:
    """``median [smallest, largest]`` to so many digits, one number if they agree.

    >>> span([2.0, 246.19, 40.0]), span([0.5, 0.5], digits=2), span([])
    ('40.0 [2.00, 246]', '0.50', 'no run yet')
    """
    if not len(numbers):
        return "no run yet"
    low, middle, high = (
        f"{x:.0f}" if abs(x) >= 10**digits else f"{x:#.{digits}g}".rstrip(".")
        for x in np.quantile(numbers, (0, 0.5, 1))
    )
    return middle if low == high else f"{middle} [{low}, {high}]"


def table1(
    paper: Mapping[str, Any],
    recorded_runs: Mapping[str, list[Results]],
    live_runs: Mapping[str, list[Results]],
    quantities: Iterable[str] = tuple(QUANTITIES),
) -> pd.DataFrame:
    """Reported, recorded and live side by side: one row per configuration and quantity.

    Recorded: the median and where 95 % of further runs, or batches, are expected; ``lies at``: the
    percentile of the reported number among them. Live: median and range.
    A reported lambda_max stands in both lambda rows, because the paper does not say which it is.
    """
    rows = {}
    for name, numbers in paper["configurations"].items():
        for quantity in quantities:
            printed = numbers.get(quantity, numbers["lambda_max"])
            low, high, place = expected(recorded_runs[name], quantity, printed)
            middle = median(values(recorded_runs[name], quantity))
            rows[name, QUANTITIES[quantity]] = {
                "reported": f"{100 * printed:.2f}"
                if quantity == "test_accuracy"
                else f"{printed:g}",
                "recorded": f"{show(quantity, middle)} [{show(quantity, low)}, "
                f"{show(quantity, high)}]",
                "lies at": show_percentile(place),
                "live": show_spread(live_runs[name], quantity),
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index)
    return table


def show_percentile(place: float) -> str:
    """In whole per cent, never as if nothing or everything lay below; it stays on one line.

    >>> [" ".join(show_percentile(place).split()) for place in (0.1, 32.6, 99.8)]
    ['< 1 %', '33 %', '> 99 %']
    """
    text = "< 1 %" if place < 1 else "> 99 %" if place > 99 else f"{place:.0f} %"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def expected(results: Iterable[Results], quantity: str, value: float) -> tuple[float, float, float]:
    """Where 95 % of further values are expected, and the percentile of ``value`` among them.

    Over runs by the t law of a further run, on the logit scale for accuracy and the log scale
    otherwise; over single batches, which are many, by counting.
    """
    found = values(results, quantity)
    if quantity == "batch_lambda_max":
        low, high = np.quantile(found, [0.025, 0.975])
        return float(low), float(high), 100 * float(np.mean(np.array(found) <= value))
    law = predict_run(found, "logit" if quantity == "test_accuracy" else "log")
    return *law.interval(), law.percentile(value)
