"""Runs of a study on a Dask cluster: the workers compute, the client keeps the records.

A worker may see neither the files nor the code of the client. It returns the record, with its own
environment, and refuses a run for which its code has another fingerprint than the client's.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from losslandscape.lab import records
from losslandscape.lab.records import Record, RecordError
from losslandscape.lab.runs import Failure, Study, WorkerError, attempt, compute

if TYPE_CHECKING:
    from distributed import Client, Future

SECONDS_TO_CONNECT = 10

# Runs in one process would share its threads and its CPU clock, whatever --nthreads says.
_one_at_a_time = threading.Lock()


def results(
    study: Study,
    runs: list[tuple[Any, int]],
    fingerprints: dict[str, str],
    folder: Path,
    address: str,
) -> Iterator[Path | Failure]:
    """Compute ``runs`` on a cluster; save each record in ``folder`` when it arrives.

    Args:
        study: The study, pickled with each run; its experiment goes by name where it has one.
        runs: Recipes and seeds, the most urgent first.
        fingerprints: What the record of each recipe must carry, as the client sees it.
        folder: Where records go, on this side.
        address: Of the scheduler, such as ``tcp://127.0.0.1:8786``.

    Raises:
        WorkerError: Dask is not installed, no scheduler answers, or it was lost; what was finished
            is kept.
        RecordError: Nothing can be written in ``folder``.
    """
    records.check_room(folder)
    with _connected(address) as client:
        import cloudpickle  # Dask brings it

        if not client.scheduler_info()["workers"]:
            tqdm.write(f"{address} has no workers yet: waiting for one", file=sys.stderr)
        # Not joblib's dask backend: a run whose worker died too often never comes back from it.
        waiting = {
            client.submit(
                pickle.loads,
                cloudpickle.dumps(
                    _Call(_attempt_on_worker, (study, recipe, seed, fingerprints[recipe.name]))
                ),
                pure=False,
                priority=-place,
            ): (recipe, seed)
            for place, (recipe, seed) in enumerate(runs)
        }
        for future, result in _arrivals(client, list(waiting)):
            recipe, seed = waiting.pop(future)
            if isinstance(result, Record):
                yield _save(result, folder)
            elif isinstance(result, Failure):
                yield result
            else:  # type, exception, traceback
                yield Failure(recipe.name, seed, _reason(result[1]))
        if waiting:
            raise WorkerError(
                f"{study.name}: lost the scheduler at {address}; finished runs are kept, "
                "run the study again for the rest"
            )


def _arrivals(client: Client, futures: list[Future[Any]]) -> Iterator[tuple[Future[Any], Any]]:
    """What has ended and what came of it, until all has or the scheduler is lost."""
    from distributed import as_completed

    ended = as_completed(futures, loop=client.loop, with_results=True, raise_errors=False)
    while not ended.is_empty():
        if ended.has_ready():
            future, result = next(ended)
            # By the result: a run may be cancelled, with its scheduler, after its record came.
            if not isinstance(result, CancelledError):
                yield future, result
        elif client.status == "running":
            time.sleep(0.1)
        else:  # a result that was on its way never ends
            return


@dataclass(frozen=True)
class _Call:
    """A call that is made by unpickling it.

    Sent as a task in Dask's own way, a function that a worker cannot import breaks the worker's
    connection and the client waits for ever; and the scheduler has to import it too.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    """A client of the scheduler, which says what goes wrong in exceptions and not in a log."""
    try:
        import distributed
    except ImportError as error:
        raise WorkerError(
            "a scheduler needs Dask distributed: pip install 'losslandscape[cluster]'"
        ) from error
    # Dask gives its client a level of its own, below that of the rest.
    logs = map(logging.getLogger, ("distributed", "distributed.client"))
    levels = {log: log.level for log in logs}
    for log in levels:
        log.setLevel(logging.CRITICAL)
    try:
        try:
            client = distributed.Client(address, timeout=SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise WorkerError(
                f"no scheduler answers at {address} within {SECONDS_TO_CONNECT} s: start one "
                "with 'dask scheduler', or correct the address"
            ) from error
        with client:
            yield client
    finally:
        for log, level in levels.items():
            log.setLevel(level)


def _reason(error: BaseException) -> str:
    """Why a run came back without a word of our own code."""
    if type(error).__name__ == "KilledWorker":
        return "its workers were killed again and again (out of memory?): give them more"
    if isinstance(error, ImportError | AttributeError):  # our own code never lets one out
        return (
            f"its worker cannot import the code of the run ({error}): install the same there, "
            "and restart the workers"
        )
    return f"its worker could not start it ({type(error).__name__}: {error})"


def _save(record: Record, folder: Path) -> Path | Failure:
    try:
        return records.save(record, folder)
    except RecordError as error:
        return Failure(record.configuration, record.seed, str(error))


def _attempt_on_worker(study: Study, recipe: Any, seed: int, fingerprint: str) -> Record | Failure:
    """One run, in a process of the cluster."""

    def work() -> Record:
        known, environment = _taken_at_first_sight(study)
        if known[recipe.name] != fingerprint:
            raise WorkerError(
                f"its worker has other code than this client (fingerprint "
                f"{known[recipe.name][:8]} instead of {fingerprint[:8]}): install the same there, "
                "and restart the workers"
            )
        return compute(study, recipe, seed, fingerprint, environment)

    with _one_at_a_time:
        return attempt(recipe, seed, work)


_seen: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}


def _taken_at_first_sight(study: Study) -> tuple[dict[str, str], dict[str, Any]]:
    """Fingerprints and environment of this process for a study, taken once.

    A worker may live for days, and its source files may be edited meanwhile: what counts is the
    code it has imported.

    Raises:
        WorkerError: Files have changed since they were imported.
    """
    parts = (study.recipes, study.settings, study.dataset)
    key = f"{study.experiment.__module__}.{study.experiment.__qualname__} {parts!r}"
    if key not in _seen:
        if _sources() != _at_import:
            raise WorkerError(
                "the code of its worker was edited after the worker had imported it: "
                "restart the workers"
            )
        fingerprints = {recipe.name: study.fingerprint(recipe) for recipe in study.recipes}
        _seen[key] = fingerprints, {**records.environment(), "threads": 1}
    return _seen[key]


def _sources() -> dict[str, str]:
    """Checksums of the files of the lab as they are now."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(__file__).parent.rglob("*.py"))
    }


_at_import = _sources()
