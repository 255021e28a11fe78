"""Tables of the provenance page: versions, hardware, data, notebooks, studies.

Each function takes the folder that holds ``book/`` and ``notebooks/`` and returns headings and
rows of text. What a file does not say is shown as "-", never guessed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nbformat

Table = tuple[list[str], list[list[str]]]

UNKNOWN = "-"
DIFFS = "diffs"  # comparisons of records, no study
SHORT = 12  # characters of a hash that a page shows
PACKAGES = (
    *("losslandscape", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib"),
    *("pandas", "joblib", "papermill", "jupytext", "nbval", "jupyter-book", "Sphinx", "myst-nb"),
)


def packages(root: Path) -> Table:
    """Return the versions that built this book."""
    rows = [["Python", platform.python_version()]]
    for name in PACKAGES:
        try:
            rows.append([name, version(name)])
        except PackageNotFoundError:
            rows.append([name, UNKNOWN])
    return ["Package", "Version"], rows


def hardware(root: Path) -> Table:
    """Return the machine that built this book."""
    return ["Part", "Here"], [
        ["Processor", _processor()],
        ["Cores", str(os.cpu_count() or UNKNOWN)],
        ["Memory", _memory()],
        ["System", f"{platform.system()} {platform.release()} ({platform.machine()})"],
        ["Threads of each process", os.environ.get("OMP_NUM_THREADS", "not set")],
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or UNKNOWN


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return UNKNOWN
    return f"{size / 2**30:.1f} GiB"


def data(root: Path) -> Table:
    """Return size and checksum of the embedded digits' tensors and of MNIST's files."""
    from losslandscape.lab import data as lab_data  # loads torch: only the page that asks waits

    digits = lab_data.load_dataset("digits")
    images = f"{len(digits.y_train)} training and {len(digits.y_test)} test images"
    rows = [["digits", images, digits.checksum[:SHORT]]]
    for file, (size, checksum) in lab_data.MNIST_FILES.items():
        rows.append([f"mnist: {file}", f"{size:,} bytes", checksum[:SHORT]])
    return ["Data", "Size", "SHA-256 (start)"], rows


def notebooks(root: Path) -> Table:
    """Return what each executed notebook says of its own run."""
    rows = []
    for path in sorted(root.glob("notebooks/[0-9]*.ipynb")):
        stamp = nbformat.read(path, as_version=4).metadata.get("losslandscape", {})
        parameters = stamp.get("parameters", {})
        machine = stamp.get("environment", {})
        rows.append(
            [
                path.stem,
                _number(stamp.get("seconds"), "{:.1f} s"),
                str(stamp.get("inputs", UNKNOWN))[:SHORT],
                ", ".join(f"{name} = {value!r}" for name, value in parameters.items()) or "none",
                {True: "yes", False: "no"}.get(stamp.get("defaults"), UNKNOWN),
                ", ".join(_run_with(machine)) or UNKNOWN,
            ]
        )
    return ["Notebook", "Time", "Inputs", "Parameters", "Defaults", "Run with"], rows


def _run_with(machine: dict[str, str]) -> Iterator[str]:
    """Versions by their names, then the processor and its instruction set."""
    for part in ("python", "torch"):
        if part in machine:
            yield f"{part} {machine[part]}"
    for part in ("processor", "instructions"):
        if part in machine:
            yield machine[part]


def studies(root: Path) -> Table:
    """Return for each recorded study: runs, commits, dates and processor time."""
    rows = []
    for folder in sorted(root.glob("book/records/*/")):
        runs = list(_records(folder))
        if not runs or folder.name == DIFFS:
            continue
        dates = _values(runs, "date", "created", "finished", "started", "time")
        rows.append(
            [
                folder.name,
                str(len(runs)),
                ", ".join(sorted({str(c)[:SHORT] for c in _values(runs, "commit")})) or UNKNOWN,
                " to ".join(sorted({min(dates)[:10], max(dates)[:10]})) if dates else UNKNOWN,
                _hours(_values(runs, "cpu_seconds", "cpu_time", "cpu")),
                ", ".join(sorted(set(map(str, _values(runs, "device"))))) or UNKNOWN,
            ]
        )
    return ["Study", "Runs", "Commit", "Recorded", "CPU time", "Device"], rows


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict):
            yield record


def _values(records: list[dict[str, Any]], *names: str) -> list[Any]:
    """Return from each record the value of the first of these keys that it has, at any depth."""
    found = (_find(record, names) for record in records)
    return [value for value in found if value is not None]


def _find(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if isinstance(record.get(name), str | int | float):
            return record[name]
    for value in record.values():
        if isinstance(value, dict):
            found = _find(value, names)
            if found is not None:
                return found
    return None


def _hours(seconds: list[Any]) -> str:
    total = sum(value for value in seconds if isinstance(value, int | float))
    if not total:
        return UNKNOWN
    return f"{total / 3600:.1f} h" if total >= 3600 else f"{total / 60:.1f} min"


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else UNKNOWN


TABLES: dict[str, Callable[[Path], Table]] = {
    "packages": packages,
    "hardware": hardware,
    "data": data,
    "notebooks": notebooks,
    "studies": studies,
}
