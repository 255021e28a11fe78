"""Where finished runs are kept: one JSON file per run, readable without running any code.

A record says what was run (recipe, settings, seed, data checksum), with which code (fingerprint),
where and when, and what came out.
It is written in one step, and a checksum over its content tells a whole file from a damaged one.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from losslandscape.lab.source import normalised_source

SCHEMA = 1
_CONSTANTS = (bool, int, float, str, tuple, list, dict, frozenset)


# More than any record needs, and small beside any disk.
_ROOM = 1 << 22


class RecordError(RuntimeError):
    """A record is missing, damaged or cannot be written; the message names the file."""


class UnreadableRecordError(RecordError):
    """A record may be whole but cannot be read here, so nothing may be written over it."""


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        study, configuration, seed: Which run.
        fingerprint: Hash of recipe, settings and the code that shapes the numbers.
        recipe, settings: The values themselves.
        dataset: Name and checksum of the data.
        environment: Versions, device, threads, commit.
        timing: When it finished (UTC), wall and CPU seconds.
        results: The measurements.
    """

    study: str
    configuration: str
    seed: int
    fingerprint: str
    recipe: dict[str, Any]
    settings: dict[str, Any]
    dataset: dict[str, Any]
    environment: dict[str, Any]
    timing: dict[str, Any]
    results: dict[str, Any]

    @property
    def filename(self) -> str:
        """Name of the record's file inside its study's folder."""
        return f"{self.configuration}-seed{self.seed}.json"


def save(record: Record, folder: Path) -> Path:
    """Write ``record`` into ``folder`` so that a reader sees the whole file or none.

    Raises:
        RecordError: A number in it is NaN or infinite, or the file cannot be written.
        UnreadableRecordError: What it would replace cannot be read here.
    """
    path = folder / record.filename
    try:
        load(path)
    except UnreadableRecordError:
        raise
    except RecordError:
        pass  # missing or damaged
    return write(asdict(record), path)


def write(content: dict[str, Any], path: Path) -> Path:
    """Write a JSON object with its checksum in one step, so that no part of it is ever read.

    Raises:
        RecordError: A number in it is NaN or infinite, or the file cannot be written.
    """
    body = {"schema": SCHEMA, **content}
    try:
        text = json.dumps({**body, "sha256": _checksum(body)}, indent=1, allow_nan=False)
    except ValueError as error:
        raise RecordError(f"{path.name}: a result is not finite, nothing written") from error
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise RecordError(_not_written(path, error)) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def check_room(folder: Path) -> None:
    """Fail before a run of hours rather than after it: write and remove a file.

    Raises:
        RecordError: There is no room, or nothing may be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" " * _ROOM)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecordError(_not_written(folder, error)) from error


def load(path: str | os.PathLike[str]) -> Record:
    """Read one record.

    Raises:
        RecordError: The file is missing, truncated, altered, or holds something else.
        UnreadableRecordError: It is written in a newer format, or the system refuses to read it.
    """
    try:
        record = Record(**read(path))
    except TypeError as error:
        raise RecordError(f"{path}: fields are missing or unknown ({error})") from error
    for field in fields(Record):
        kind = {"str": str, "int": int}.get(str(field.type), dict)
        if not isinstance(getattr(record, field.name), kind):
            raise RecordError(f"{path}: {field.name!r} is of the wrong kind")
    return record


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON object that :func:`write` wrote.

    Raises:
        RecordError: As for :func:`load`.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(f"{path}: no such record") from error
    except OSError as error:
        raise UnreadableRecordError(
            f"{path}: cannot be read ({error.strerror or error}): check its permissions; "
            "it is left as it is"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{path}: not a whole record, delete it and run the study again"
        ) from error
    if not isinstance(content, dict):
        raise RecordError(f"{path}: not a record (no JSON object)")
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UnreadableRecordError(
            f"{path}: written by a newer version of losslandscape (format {schema}, this one "
            f"reads {SCHEMA}): update losslandscape, or move the file away; it is left as it is"
        )
    stored = content.pop("sha256", None)
    if stored != _checksum(content):
        raise RecordError(f"{path}: content and checksum disagree, run the study again")
    if content.pop("schema", None) != SCHEMA:
        raise RecordError(f"{path}: written in another format, run the study again")
    return content


def load_study(name: str, root: Path | None = None) -> list[Record]:
    """All records of a study, sorted by configuration and seed.

    Raises:
        RecordError: One of them is damaged, or its file name does not match its content.
    """
    folder = (root or records_root()) / name
    found = []
    for path in folder.glob("*.json"):
        record = load(path)
        if record.filename != path.name or record.study != name:
            raise RecordError(f"{path}: holds {record.study}/{record.filename}")
        found.append(record)
    return sorted(found, key=lambda record: (record.configuration, record.seed))


def records_root() -> Path:
    """The committed records: ``book/records`` in this folder or one above it.

    Raises:
        RecordError: There is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "book" / "records").is_dir():
            return folder / "book" / "records"
    raise RecordError(f"no book/records in {here} or above: run inside a clone of the report")


def fingerprint(content: dict[str, Any], function: Callable[..., Any]) -> str:
    """Hash of plain values and of the code of ``function``, as far as it lies in the lab.

    Instruments (operators, eigenvalues) are left out on purpose: what they return carries its own
    certificate, so a faster routine does not age a record.
    """
    digest = hashlib.sha256(_canonical(content))
    for code in sorted(shaping_code(function).values()):  # wherever it lives
        digest.update(f"\n{code}".encode())
    return digest.hexdigest()


def shaping_code(
    function: Callable[..., Any], package: str = "losslandscape.lab"
) -> dict[str, str]:
    """Normalised source of ``function`` and of all it names in ``package``, transitively."""
    found: dict[str, str] = {}
    queue: list[Any] = [function]
    while queue:
        item = queue.pop()
        key = f"{item.__module__}.{item.__qualname__}"
        if key in found:
            continue
        found[key], names = _code_and_names(item)
        namespace = vars(sys.modules[item.__module__])
        for name in names:
            target = namespace.get(name)
            if str(getattr(target, "__module__", "")).startswith(package):
                if inspect.isfunction(target) or inspect.isclass(target):
                    queue.append(target)
            elif isinstance(target, _CONSTANTS):
                # A function inside a constant counts by its code, not by its place in memory.
                text = re.sub(r" at 0x[0-9a-f]+", "", repr(target))
                found[f"{item.__module__}.{name}"] = f"{name} = {text}"
                inside = target.values() if isinstance(target, dict) else [target]
                queue += [f for f in inside if _is_function_of(f, package)]
    return found


def _is_function_of(item: Any, package: str) -> bool:
    return inspect.isfunction(item) and str(item.__module__).startswith(package)


def environment() -> dict[str, Any]:
    """Versions, machine and commit, as far as they can move a number."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes.

    On Linux the system call would also count the parent's memory at the time of the fork, so the
    process's own mark is read.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        mark = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(mark.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def _code_and_names(item: Any) -> tuple[str, tuple[str, ...]]:
    """Normalised source of a function or class, and the names in it."""
    source = textwrap.dedent(inspect.getsource(item))
    found = [node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return normalised_source(source), tuple(dict.fromkeys(found))


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _not_written(path: Path, error: OSError) -> str:
    return (
        f"{path}: cannot be written ({error.strerror or error}): make room or set its "
        "permissions, then run the study again"
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _commit() -> str:
    """The commit of the checkout that holds this file, marked ``+`` when code differs from it."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "."],
            cwd=here.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
