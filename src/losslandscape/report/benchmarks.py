"""Tables of the benchmark page, made from the one record that ``make bench`` writes.

The record holds every single measurement; medians, ratios and the verdict on each goal are computed
here, so that no number on the page is typed.
Ratios of times are taken within a round, where the two runs stood next to each other, and the
median over the rounds is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

import pandas as pd

from losslandscape.lab import records
from losslandscape.lab.records import Record
from losslandscape.report import running, scale
from losslandscape.report.provenance import SHORT, UNKNOWN, Table

Row = Mapping[str, Any]  # one call of one tool, with its rounds

STUDY = "benchmarks"
OURS = "losslandscape"
ON_OURS = "SciPy on our operator"  # half of it is this library, so it is no peer
WITHIN = 1e-3  # the relative error of a value that every task asks for

# Limits set before the first measurement.
MOST_PRODUCTS = 10
SHARE_OF_FASTEST_PEER = 0.25
GRADIENTS_PER_PRODUCT = 2.0
PASSES_TO_VALUE = 2
PASSES_TO_CERTIFICATE = 4
PASSES_OF_ALL_WORK = 5.5
GROWTH = 1.2  # of time per image and of memory, from the smallest to the largest data set
DENSITY_SHARE = 0.5
WARM_PRODUCTS = 3
# The configuration of the record that profiles one product.
PROFILE = "profile"


def load(root: Path | None = None) -> Record | None:
    """The record, MNIST's where there are several; ``None`` before the first benchmark.

    Args:
        root: Folder that holds ``book/``.

    Raises:
        RecordError: A record is damaged.
    """
    folder = root / "book" / "records" if root is not None else records.records_root()
    others = (PROFILE, running.TRAINING, running.SCHEDULER, scale.RANKS, scale.LARGE)
    found = {
        record.configuration: record
        for record in records.load_study(STUDY, folder)
        if record.configuration not in others
    }
    return found.get("mnist") or next(iter(found.values()), None)


def profile_table(root: Path) -> Table:
    """Where the time of a product and of a gradient goes, in milliseconds by kind of operation."""
    record = running.recorded(root, PROFILE)
    if record is None:
        return [], []
    product, slope = record.results["product"], record.results["gradient"]
    lines = [
        [
            kind,
            f"{product[kind]:.0f}",
            f"{slope[kind]:.0f}",
            f"{product[kind] / slope[kind]:.1f}",
        ]
        for kind in product
        if slope[kind] > 0
    ]
    total, base = sum(product.values()), sum(slope.values())
    lines.append(["together", f"{total:.0f}", f"{base:.0f}", f"{total / base:.1f}"])
    return ["operation", "product, ms", "gradient, ms", "ratio"], lines


def rows(record: Record, task: str) -> list[Row]:
    """All calls at one task, ours first, each tool's in the order of the benchmark."""
    found = [row for row in record.results["rows"] if row["task"] == task]
    return sorted(found, key=lambda row: row["tool"] != OURS)


def ratio(row: Row, baseline: Row) -> float | None:
    """How many times the baseline's time a call takes: the median over the rounds."""
    pairs = list(zip(row["rounds"], baseline["rounds"], strict=False))
    return float(median(a["seconds"] / b["seconds"] for a, b in pairs)) if pairs else None


def meets(row: Row) -> bool:
    """Whether every round's error is within 1e-3."""
    return bool(row["rounds"]) and worst(row, "error") <= WITHIN


def worst(row: Row, name: str) -> float:
    """The largest value of a measurement over the rounds."""
    return float(max(entry[name] for entry in row["rounds"]))


def eigen_table(record: Record, task: str = "lambda_max") -> pd.DataFrame:
    """Tools at one eigenvalue task: cost, error, what they say of themselves, and if it is true."""
    found = rows(record, task)
    baseline = next((row for row in found if row["tool"] == OURS and row["rounds"]), None)
    columns = {
        "products": lambda row: _spread(row, "products", "{:.0f}"),
        "CPU s": lambda row: _spread(row, "seconds", "{:.1f}"),
        "times ours": lambda row: _text(ratio(row, baseline) if baseline else None, "{:.2g}"),
        "largest error": lambda row: (
            _text(worst(row, "error"), "{:.0e}") + ("" if meets(row) else ", too large")
        ),
        "it says; is it true": says,
        "true residual": lambda row: _text(worst(row, "true_residual"), "{:.0e}"),
    }
    return _frame(found, columns)


def says(row: Row) -> str:
    """What a tool says of its own result, over the rounds, and whether it is true."""
    words = {True: "converged to {:.0e}", False: "not converged to {:.0e}", None: "nothing"}
    told = {words[entry["says"]].format(entry["tol"] or 0) for entry in row["rounds"]}
    verdict = truthful(row)
    return " / ".join(sorted(told)) + ("" if verdict == UNKNOWN else f"; {verdict}")


def truthful(row: Row) -> str:
    """Whether the float64 residual agrees with what the tool says: the rounds' worst case."""
    verdicts = {entry["verdict"] for entry in row["rounds"]}
    for verdict, text in (("false", "no"), ("too modest", "too modest"), ("true", "yes")):
        if verdict in verdicts:
            return text
    return UNKNOWN


def product_table(record: Record) -> pd.DataFrame:
    """One product by every route, in gradients of the same round."""
    return _frame(
        rows(record, "product"),
        {
            "CPU s": lambda row: _spread(row, "seconds", "{:.2f}"),
            "gradients": lambda row: _text(gradients(row), "{:.2f}"),
            "relative error": lambda row: _text(row["error"], "{:.0e}"),
        },
    )


def gradients(row: Row) -> float:
    """Cost in gradients: the median over the rounds of the ratio within a round."""
    return float(median(entry["seconds"] / entry["gradient_seconds"] for entry in row["rounds"]))


def density_table(record: Record) -> pd.DataFrame:
    """Spectral densities: cost, mass, and the first two moments as multiples of the true ones."""

    def node(name: str, row: Row) -> str:
        return _text(row["rounds"][0].get(name), "{:.2f}")

    found = rows(record, "density")
    return _frame(
        found,
        {
            "products": lambda row: _spread(row, "products", "{:.0f}"),
            "CPU s": lambda row: _spread(row, "seconds", "{:.0f}"),
            "mass": lambda row: node("mass", row),
            "first moment": lambda row: node("mean", row),
            "second moment": lambda row: node("square", row),
            "second, smoothing taken off": lambda row: node("square_sharp", row),
            "second, from its nodes": lambda row: node("node_square", row),
            "curve right": lambda row: _yes(row["rounds"][0]["density_right"]),
            "quadrature right": lambda row: _yes(row["rounds"][0]["quadrature_right"]),
        },
    )


def trace_table(record: Record) -> pd.DataFrame:
    """Trace estimates: cost, error, and the standard error that the tool states."""
    truth = record.results["reference"]["trace"]

    def stated(row: Row) -> str:
        errors = [entry["stderr"] for entry in row["rounds"]]
        return UNKNOWN if None in errors else f"{100 * max(errors) / truth:.1f} %"

    return _frame(
        rows(record, "trace"),
        {
            "products": lambda row: _spread(row, "products", "{:.0f}"),
            "CPU s": lambda row: _spread(row, "seconds", "{:.1f}"),
            "estimate": lambda row: ", ".join(f"{e['values'][0]:.1f}" for e in row["rounds"]),
            "largest error": lambda row: f"{100 * worst(row, 'error'):.1f} %",
            "stated standard error": stated,
        },
    )


def warm_table(record: Record) -> pd.DataFrame:
    """The largest eigenvalue after one more optimizer step, cold and from the old pairs."""
    return _frame(
        rows(record, "warm"),
        {
            "products": lambda row: ", ".join(str(entry["products"]) for entry in row["rounds"]),
            "CPU s": lambda row: _spread(row, "seconds", "{:.1f}"),
            "it says; is it true": says,
            "true residual": lambda row: _text(worst(row, "true_residual"), "{:.0e}"),
        },
    )


def scaling_table(record: Record) -> pd.DataFrame:
    """``lambda_max`` on more and more training images."""
    table = {
        f"{run['images']:,}": {
            "full passes": str(run["counted_products"]),
            "all work, in passes": f"{run['passes']:.1f}",
            "relative residual, pass by pass": _history(run),
            "true residual": f"{run['true_residual']:.0e}",
            "CPU ms per image": f"{1e3 * run['seconds'] / run['images']:.2f}",
            "memory without data": f"{_memory(run) / 2**20:.0f} MiB",
            "of which solving": f"{(run['memory_peak'] - run['memory_before']) / 2**20:.0f} MiB",
        }
        for run in record.results.get("scaling", [])
    }
    frame = pd.DataFrame.from_dict(table, orient="index")
    frame.index.name = "images"
    return frame


def _history(run: Row) -> str:
    return ", ".join(f"{entry[2] / abs(entry[1]):.0e}" for entry in run["history"])


def _memory(run: Row) -> float:
    return float(run["memory_peak"] - run["data_bytes"])


def finding(record: Record) -> str:
    """The page in three sentences."""
    ours, share = _first(record, "lambda_max", OURS), goals(record)[1][2]
    products = _certified_products(ours)
    said = []
    if products is not None:
        said.append(f"lambda_max is certified after at most {products:.0f} products")
    if share is not None:
        said.append(
            f"it takes {share:.2g} times the CPU time of the fastest public call that comes "
            f"within {WITHIN:.1%} of the value"
        )
    others = [row for row in rows(record, "lambda_max") if row["tool"] != OURS and row["rounds"]]
    wrong = sum(truthful(row) == "no" for row in others)
    silent = sum(truthful(row) == UNKNOWN for row in others)
    verdicts = Counter(goals_table(record)["verdict"])
    return (
        f"In this library {' and '.join(said) or 'lambda_max is not certified'}. "
        f"Of {len(others)} calls of other tools for the same eigenvalue, {silent} say nothing of "
        f"their own accuracy and {wrong} claim one that they do not have. "
        f"Of {verdicts.total()} goals that were set before the first measurement, "
        f"{verdicts['met']} are met and {verdicts['missed']} missed."
    )


def goals_table(record: Record) -> pd.DataFrame:
    """Each goal, the measurement beside it, and whether it is met."""
    table = {}
    for name, limit, measured, unit in goals(record):
        table[name] = {
            "goal": f"at most {limit:g}{unit}",
            "measured": UNKNOWN if measured is None else f"{measured:.3g}{unit}",
            "verdict": "not measured"
            if measured is None
            else ("met" if measured <= limit else "missed"),
        }
    frame = pd.DataFrame.from_dict(table, orient="index")
    frame.index.name = "what"
    return frame


def goals(record: Record) -> list[tuple[str, float, float | None, str]]:
    """Name, limit, measurement (``None`` when it is missing) and unit of every goal."""
    ours = _first(record, "lambda_max", OURS)
    kept = _first(record, "product", OURS)
    warm_rows = [
        row for row in rows(record, "warm") if row["call"].endswith("warm") and row["rounds"]
    ]
    warm = min(warm_rows, key=lambda row: worst(row, "products"), default=None)
    runs = record.results.get("scaling", [])
    large, small = (runs[-1], runs[0]) if len(runs) > 1 else (None, None)
    return [
        (
            "products of lambda_max until it is certified to 1e-3",
            MOST_PRODUCTS,
            _certified_products(ours),
            "",
        ),
        (
            "its CPU time, as a share of the fastest peer run within 1e-3",
            SHARE_OF_FASTEST_PEER,
            share_of_fastest_peer(record, "lambda_max", lambda entry: entry["error"] <= WITHIN),
            "",
        ),
        (
            "one product, graph kept",
            GRADIENTS_PER_PRODUCT,
            gradients(kept) if kept else None,
            " gradients",
        ),
        (
            "all images: passes until the value is within 1e-3",
            PASSES_TO_VALUE,
            _passes_to_value(large),
            "",
        ),
        (
            "all images: passes until it is certified to 1e-3",
            PASSES_TO_CERTIFICATE,
            _certified_passes(large),
            "",
        ),
        (
            "all images: all work, subsamples included",
            PASSES_OF_ALL_WORK,
            large["passes"] if large else None,
            " passes",
        ),
        (
            "CPU time per image, most images against fewest",
            GROWTH,
            (large["seconds"] / large["images"]) / (small["seconds"] / small["images"])
            if large and small
            else None,
            "",
        ),
        (
            "peak memory without the data, most images against fewest",
            GROWTH,
            _memory(large) / _memory(small) if large and small else None,
            "",
        ),
        (
            "time of the density, as a share of the fastest correct peer",
            DENSITY_SHARE,
            share_of_fastest_peer(record, "density", lambda entry: entry["quadrature_right"]),
            "",
        ),
        (
            "products after one more optimizer step, warm start",
            WARM_PRODUCTS,
            _certified_products(warm),
            "",
        ),
    ]


def share_of_fastest_peer(
    record: Record, task: str, correct: Callable[[Row], bool]
) -> float | None:
    """Our first call's time over that of each round's fastest correct peer; the rounds' median.

    ``None`` when our answer is not correct in every round, or no peer's is in some round.
    """
    ours = _first(record, task, OURS)
    peers = [row for row in rows(record, task) if row["tool"] not in (OURS, ON_OURS)]
    if ours is None or not all(map(correct, ours["rounds"])):
        return None
    shares = []
    for number, entry in enumerate(ours["rounds"]):
        times = [
            row["rounds"][number]["seconds"]
            for row in peers
            if len(row["rounds"]) > number and correct(row["rounds"][number])
        ]
        if not times:
            return None
        shares.append(entry["seconds"] / min(times))
    return float(median(shares))


def _certified_products(row: Row | None) -> float | None:
    """Most products of a round; none where a certificate is missing or not true."""
    if row is None or any(
        entry["says"] is not True or entry["verdict"] != "true" for entry in row["rounds"]
    ):
        return None
    return worst(row, "products")


def _passes_to_value(run: Row | None) -> float | None:
    """The first pass after which the value stays within 1e-3 of the final one."""
    if run is None:
        return None
    final = run["value"]
    passes = 0.0
    for entry in reversed(run["history"]):
        if abs(entry[1] - final) > WITHIN * abs(final):
            break
        passes = entry[0]
    return float(passes)


def _certified_passes(run: Row | None) -> float | None:
    if run is None or not run["says"] or run["verdict"] != "true":
        return None
    return float(run["counted_products"])


def _first(record: Record, task: str, tool: str) -> Row | None:
    found = [row for row in rows(record, task) if row["tool"] == tool and row["rounds"]]
    return found[0] if found else None


def about(record: Record) -> Table:
    """Return where, when and with what the record was made."""
    where, when, what = record.environment, record.timing, record.settings
    packages = {"torch": where["torch"], "numpy": where["numpy"], **where["packages"]}
    return ["Part", "Value"], [
        ["Data", f"{record.dataset['name']}, first {what['images']:,} training images"],
        ["Network", f"{what['parameters']:,} parameters, {what['dtype']}"],
        ["Loss on these images", f"{record.results['reference']['loss']:.3f}"],
        ["Leading eigenvalues", _numbers(record.results["reference"]["values"])],
        ["Smallest eigenvalue", f"{record.results['reference']['smallest']:.4f}"],
        ["Exact trace", f"{record.results['reference']['trace']:.3f}"],
        ["Processor", f"{where['processor']} ({where['machine']})"],
        ["Threads", str(where["threads"])],
        ["Memory allocator", where["allocator"]],
        ["Software", ", ".join(f"{name} {number}" for name, number in packages.items())],
        ["Commit", where["commit"][:SHORT] + ("+" if where["commit"].endswith("+") else "")],
        ["Recorded", when["finished"][:10]],
        ["CPU time of the whole run", f"{when['cpu_seconds'] / 60:.0f} min"],
        [
            "Load of the machine",
            f"{when['load_before']:.1f} before, {when['load_after']:.1f} after",
        ],
    ]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _frame(found: list[Row], columns: Mapping[str, Callable[[Row], str]]) -> pd.DataFrame:
    """One line per call; a call without a round shows why in its first column."""
    table = {}
    for row in found:
        if row["rounds"]:
            line = {name: show(row) for name, show in columns.items()}
        else:
            line = dict.fromkeys(columns, UNKNOWN)
            line[next(iter(columns))] = shorten(row.get("message", row["status"]), 40)
        table[row["tool"], row["call"]] = line
    frame = pd.DataFrame.from_dict(table, orient="index", columns=list(columns))
    if table:
        frame.index = pd.MultiIndex.from_tuples(frame.index, names=["tool", "call"])
    return frame


def _spread(row: Row, name: str, form: str) -> str:
    """``median [smallest, largest]``, or the one value that they share."""
    values = [entry[name] for entry in row["rounds"]]
    low, middle, high = (form.format(f(values)) for f in (min, median, max))
    return middle if low == high else f"{middle} [{low}, {high}]"


def _text(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(make: Callable[[Record], pd.DataFrame]) -> Callable[[Path], Table]:
    """The directive's form of a table: headings and rows of text."""

    def text(root: Path) -> Table:
        record = load(root)
        frame = make(record) if record is not None else pd.DataFrame()
        if frame.empty:
            return [], []
        flat = frame.reset_index()
        return list(map(str, flat.columns)), [list(map(str, line)) for line in flat.to_numpy()]

    return text


def _finding(root: Path) -> str:
    record = load(root)
    return finding(record) if record is not None else ""


def _about(root: Path) -> Table:
    record = load(root)
    return about(record) if record is not None else ([], [])


TABLES: dict[str, Callable[[Path], Table]] = {
    "benchmark-goals": _table(goals_table),
    "benchmark-lambda-max": _table(eigen_table),
    "benchmark-top-5": _table(lambda record: eigen_table(record, "top_5")),
    "benchmark-product": _table(product_table),
    "benchmark-density": _table(density_table),
    "benchmark-trace": _table(trace_table),
    "benchmark-warm": _table(warm_table),
    "benchmark-scaling": _table(scaling_table),
    "benchmark-about": _about,
    "benchmark-profile": profile_table,
    **running.TABLES,
    **scale.TABLES,
}

SENTENCES: dict[str, Callable[[Path], str]] = {"benchmark-finding": _finding}
