"""What a product costs on many processes: a model, its constants measured here, and a simulation.

Measured by ``benchmarks/ranks.py`` (one and two processes) and ``benchmarks/large.py`` (a
transformer of more than ten million weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from losslandscape.lab.records import Record
from losslandscape.report import running
from losslandscape.report.provenance import Table
from losslandscape.report.running import recorded

RANKS, LARGE = "ranks", "large"
FLOAT = 4  # bytes of a number in single precision
# Operations of one product per weight and token: three gradients of 6 each (chapter 2).
OPERATIONS = 18

# Limits set before the first measurement.
EFFICIENCY = 0.85  # of two processes, of ideal
OVERHEAD = 0.05  # of the group's path with one rank


@dataclass(frozen=True)
class Device:
    """One device of a cluster, and its links to the others.

    Attributes:
        operations: Per second, sustained.
        memory: Bytes.
        bandwidth: Bytes per second that an all-reduce moves through a device.
        latency: Seconds of one step of an all-reduce.
        loader: Bytes of data per second that reach a device.
    """

    operations: float
    memory: float
    bandwidth: float
    latency: float
    loader: float


@dataclass(frozen=True)
class Work:
    """A network and its data.

    Attributes:
        parameters: Weights.
        tokens: All the data.
        token_bytes: What one token takes on its way to a device.
    """

    parameters: float
    tokens: float
    token_bytes: float = 4.0


def seconds(work: Work, device: Device, devices: Any) -> dict[str, np.ndarray]:
    """Parts of the time of one product on ``devices`` devices.

    The data are shared out, the vector is on each; the sum is a ring all-reduce, in which every
    device sends and receives twice its vector, in ``2 (p - 1)`` steps.
    """
    p = np.asarray(devices, dtype=float)
    size = FLOAT * work.parameters
    return {
        "compute": OPERATIONS * work.parameters * work.tokens / (p * device.operations),
        "loader": work.tokens * work.token_bytes / (p * device.loader),
        "all-reduce": 2 * (p - 1) / p * size / device.bandwidth + 2 * (p - 1) * device.latency,
    }


def efficiency(work: Work, device: Device, devices: Any) -> np.ndarray:
    """Share of the time of a product that is computation; loading goes on beside it."""
    parts = seconds(work, device, devices)
    whole = np.maximum(parts["compute"], parts["loader"]) + parts["all-reduce"]
    share: np.ndarray = parts["compute"] / whole
    return share


def most_devices(work: Work, device: Device, least: float = 0.5) -> int:
    """The largest number of devices, a power of 2, that work at ``least`` of their speed."""
    powers = 2 ** np.arange(0, 21)
    fits = efficiency(work, device, powers) >= least
    return int(powers[fits].max()) if fits.any() else 0


def vectors_that_fit(work: Work, device: Device, others: int = 4) -> int:
    """Basis vectors in the memory of a device beside weights, gradient, product and their like."""
    return max(0, int(device.memory // (FLOAT * work.parameters)) - others)


# --- Against the measurements --------------------------------------------------------------------


@dataclass(frozen=True)
class Constants:
    """What one measurement on one process, and sums of bare vectors, say of this machine."""

    per_image: float  # seconds of a product
    all_reduce: Mapping[float, float]  # numbers -> seconds, between two processes
    checksum: float  # seconds per number


def constants(record: Record, network: str) -> Constants:
    """From the calibration runs, which no prediction is compared with."""
    found, images = record.results, record.settings["calibration"]
    rows = found["networks"][network]["seconds"]
    longest = max(found["checksum"], key=int)
    return Constants(
        per_image=median(rows[f"one process, {images}"]) / images,
        all_reduce={float(n): median(times) for n, times in found["all_reduce"].items()},
        checksum=median(found["checksum"][longest]) / int(longest),
    )


def predicted(known: Constants, parameters: int, images: int, ranks: int) -> float:
    """Seconds of one product on one or two processes."""
    compute = known.per_image * images / ranks
    if ranks == 1:
        return compute
    checks = 2 * known.checksum * parameters  # of the vector and of the weights
    lengths = sorted(known.all_reduce)
    times = [known.all_reduce[n] for n in lengths]
    return compute + checks + float(np.interp(parameters, lengths, times))


@dataclass(frozen=True)
class Compared:
    """One measured row beside its prediction."""

    network: str
    what: str
    predicted: float
    measured: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return median(self.measured) / self.predicted


def compared(record: Record) -> list[Compared]:
    """Every row but the calibration on one process."""
    found, calibration = [], record.settings["calibration"]
    first, sizes = record.settings["sizes"][0], record.settings["sizes"]
    for network, told in record.results["networks"].items():
        known, weights = constants(record, network), told["parameters"]
        cases = {
            **{f"one process, {n}": (n, 1) for n in sizes},
            "one rank": (first, 1),
            **{f"two ranks, {n}": (n, 2) for n in (calibration, *sizes)},
            "two ranks, weak": (2 * first, 2),
        }
        shown = {"one rank": f"one rank, {first}", "two ranks, weak": f"two ranks, {first} each"}
        for what, (images, ranks) in cases.items():
            value, seconds = predicted(known, weights, images, ranks), tuple(told["seconds"][what])
            found.append(Compared(network, shown.get(what, what), value, seconds))
    return found


def ratios(record: Record, network: str) -> dict[str, list[float]]:
    """Efficiencies of two ranks and the overhead of one, round by round."""
    rows = record.results["networks"][network]["seconds"]
    first, largest = min(record.settings["sizes"]), max(record.settings["sizes"])

    def pairs(a: str, b: str) -> list[float]:
        return [x / y for x, y in zip(rows[a], rows[b], strict=True)]

    return {
        "strong": [r / 2 for r in pairs(f"one process, {largest}", f"two ranks, {largest}")],
        "weak": pairs(f"one process, {first}", "two ranks, weak"),
        "overhead": [r - 1 for r in pairs("one rank", f"one process, {first}")],
    }


# --- Tables of the benchmark page ----------------------------------------------------------------

_WORDS = {
    "strong": "two ranks share the images: share of twice the speed",
    "weak": "two ranks with as many images each: share of the same time",
    "overhead": "one rank, beside no group: time added",
}


def goals_table(root: Path) -> Table:
    """Goals of the distributed product, each with its median over the rounds and their range."""
    record = recorded(root, RANKS)
    if record is None:
        return [], []
    lines = []
    for network, told in record.results["networks"].items():
        for what, found in ratios(record, network).items():
            middle = median(found)
            extra = what == "overhead"
            met = middle <= OVERHEAD if extra else middle >= EFFICIENCY
            lines.append(
                [
                    f"{network}, {told['parameters']:,} weights",
                    _WORDS[what],
                    f"at most {OVERHEAD:.0%}" if extra else f"at least {EFFICIENCY:.0%}",
                    f"{middle:.0%} [{min(found):.0%}, {max(found):.0%}]",
                    "met" if met else "missed",
                ]
            )
    return ["network", "what", "goal", "measured", "verdict"], lines


def compared_table(root: Path) -> Table:
    """Predicted and measured seconds of a product."""
    record = recorded(root, RANKS)
    if record is None:
        return [], []
    lines = [
        [
            row.network,
            row.what,
            f"{row.predicted:.2f}",
            f"{median(row.measured):.2f} [{min(row.measured):.2f}, {max(row.measured):.2f}]",
            f"{row.ratio:.2f}",
        ]
        for row in compared(record)
    ]
    return ["network", "processes, images", "predicted, s", "measured, s", "ratio"], lines


def large_table(root: Path) -> Table:
    """A product with the large network, with and without recomputed layers."""
    record = recorded(root, LARGE)
    if record is None:
        return [], []
    lines = []
    for part in ("plain", "recomputed"):
        told = record.results[part]
        gradient = median(told["gradient_seconds"])
        lines.append(
            [
                {"plain": "all activations kept", "recomputed": "layers recomputed"}[part],
                f"{(told['peak'] - told['before']) / 2**20:,.0f} MiB",
                f"{median(told['seconds']):.1f}",
                f"{median(told['seconds']) / gradient:.1f}",
            ]
        )
    return ["product", "memory added", "CPU s", "gradients"], lines


TABLES: dict[str, Callable[[Path], Table]] = {
    "benchmark-ranks": goals_table,
    "benchmark-model": compared_table,
    "benchmark-large": large_table,
    "benchmark-about-scale": lambda root: running.about(root, (RANKS, LARGE)),
}
