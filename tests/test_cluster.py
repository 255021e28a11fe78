"""Studies on a Dask cluster: same records as here, and what is left when something dies."""

import asyncio
import dataclasses
import errno
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_studies import TINY, names, tiny_study

from losslandscape.lab import cluster, records, runs, studies
from losslandscape.lab.experiments import three_configurations
from losslandscape.lab.runs import Failure, WorkerError

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")

# Seconds on a quiet machine; on a busy one every worker's first import takes long.
PATIENCE = 120
pytestmark = pytest.mark.timeout(180)


def until(seen):
    """Wait until ``seen()`` is true, but not for ever."""
    end = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What befalls configuration b, seed 0, and where the runs leave word that they started."""

    kind: str
    folder: str


def troubled(recipe, dataset, seed, trouble):
    """An experiment that trains, and meets trouble in one run."""
    folder = Path(trouble.folder)
    with (folder / "started").open("a") as file:
        file.write(f"{recipe.name}{seed}\n")
    if (recipe.name, seed) == ("b", 0) and trouble.kind == "wait":
        until((folder / "gone").exists)
    elif (recipe.name, seed) == ("b", 0) and not (folder / "gone").exists():
        if trouble.kind == "die once":
            (folder / "gone").touch()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while True:  # it would train for long
            three_configurations.measure_training(recipe, dataset, seed, TINY)
    return three_configurations.measure_training(recipe, dataset, seed, TINY)


def troubled_study(kind, folder, **changes):
    return dataclasses.replace(
        tiny_study(), experiment=troubled, settings=Trouble(kind, str(folder)), **changes
    )


def quick_study():
    """Four runs of a part of a second."""
    return dataclasses.replace(tiny_study(), experiment=three_configurations.measure_training)


def results(root):
    return {record.filename: record.results for record in records.load_study("tiny", root)}


def look_first_in(folder):
    sys.path.insert(0, folder)


def set_variable(name, value):
    os.environ[name] = value


MEASURE = "def measure(recipe, dataset, seed, settings):\n    return {{'x': {}}}\n"
CANNOT_IMPORT = "its worker cannot import the code of the run "
ALL = ["a-seed0.json", "a-seed1.json", "b-seed0.json", "b-seed1.json"]


@pytest.fixture(scope="module")
def two_workers():
    """A scheduler and two worker processes on this machine."""
    quick = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "1s"}
    with (
        dask.config.set(quick),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as found,
    ):
        yield found


@pytest.fixture
def on_the_workers(two_workers):
    """Call a function on every worker."""
    with distributed.Client(two_workers, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=PATIENCE)
        yield client.run


class TestTwoWorkers:
    def test_same_records_as_here(self, two_workers, tmp_path, capfd):
        study = quick_study()
        outcome = studies.run_study(
            study, tmp_path / "there", scheduler=two_workers.scheduler_address
        )
        progress = capfd.readouterr().err
        assert (len(outcome.written), outcome.failures) == (4, [])
        assert "tiny: 100%" in progress
        assert "4/4" in progress
        studies.run_study(study, tmp_path / "here")
        assert names(tmp_path / "there" / "tiny") == ALL
        assert results(tmp_path / "there") == results(tmp_path / "here")
        for there, here in zip(
            *(records.load_study("tiny", tmp_path / side) for side in ("there", "here")),
            strict=True,
        ):
            assert there.fingerprint == here.fingerprint
            assert there.environment == here.environment
            assert there.dataset == here.dataset
            assert there.timing["cpu_seconds"] > 0
        # Nothing is left to do, for this kind of run and for the other.
        assert not any(runs for state, runs in study_states(study, tmp_path) if state != "done")

    @pytest.mark.parametrize(
        ("module", "there", "reason"),
        [
            ("other_there", MEASURE.format(2), "its worker has other code than this client (fin"),
            ("empty_there", "", CANNOT_IMPORT + "(Can't get attribute 'measure'"),
            ("only_here", None, CANNOT_IMPORT + "(No module named 'only_here'): install the same"),
        ],
        ids=["other", "older", "none"],
    )
    def test_other_code_on_the_workers_is_refused(
        self, two_workers, on_the_workers, tmp_path, monkeypatch, module, there, reason
    ):
        for side, text in (("here", MEASURE.format(1)), ("there", there)):
            (tmp_path / side).mkdir()
            if text is not None:
                (tmp_path / side / f"{module}.py").write_text(text)
        on_the_workers(look_first_in, str(tmp_path / "there"))
        monkeypatch.syspath_prepend(tmp_path / "here")
        study = dataclasses.replace(
            tiny_study(seeds=1), experiment=importlib.import_module(module).measure, name="other"
        )
        outcome = studies.run_study(study, tmp_path, scheduler=two_workers.scheduler_address)
        assert not outcome.written
        assert {(f.configuration, f.seed) for f in outcome.failures} == {("a", 0), ("b", 0)}
        for failure in outcome.failures:
            assert failure.reason.startswith(reason)
            assert failure.reason.endswith("install the same there, and restart the workers")
        assert names(tmp_path / "other") == []

    def test_no_data_on_the_workers(self, two_workers, on_the_workers, tmp_path):
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        (raw / "train-images-idx3-ubyte").write_bytes(b"cut off")
        on_the_workers(set_variable, "LOSSLANDSCAPE_DATA", str(tmp_path))
        study = dataclasses.replace(tiny_study(seeds=1), dataset="mnist")
        outcome = studies.run_study(study, tmp_path, scheduler=two_workers.scheduler_address)
        assert not outcome.written
        assert len(outcome.failures) == 2
        for failure in outcome.failures:
            assert str(raw) in failure.reason
            assert "Error" not in failure.reason

    def test_a_disk_that_fills_while_a_record_is_written(self, two_workers, tmp_path, monkeypatch):
        genuine, calls = os.fsync, []

        def full(handle):
            calls.append(handle)
            if len(calls) == 3:  # the first finds room, the second writes a record
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            genuine(handle)

        monkeypatch.setattr(os, "fsync", full)
        outcome = studies.run_study(
            quick_study(), tmp_path, scheduler=two_workers.scheduler_address
        )
        (failure,) = outcome.failures
        assert "cannot be written (No space left on device): make room" in failure.reason
        missing = f"{failure.configuration}-seed{failure.seed}.json"
        assert names(tmp_path / "tiny") == [name for name in ALL if name != missing]
        assert len(records.load_study("tiny", tmp_path)) == 3

    def test_a_run_whose_worker_is_killed_is_repeated(self, two_workers, tmp_path):
        study = troubled_study("die once", tmp_path)
        outcome = studies.run_study(study, tmp_path, scheduler=two_workers.scheduler_address)
        assert (len(outcome.written), outcome.failures) == (4, [])
        assert names(tmp_path / "tiny") == ALL
        assert (tmp_path / "started").read_text().split().count("b0") == 2
        # The fault is gone now, so the same study runs here undisturbed.
        studies.run_study(study, tmp_path / "here")
        assert results(tmp_path) == results(tmp_path / "here")

    def test_a_run_that_kills_its_workers_is_given_up(self, two_workers, tmp_path, monkeypatch):
        monkeypatch.setattr(two_workers.scheduler, "allowed_failures", 0)
        study = troubled_study("die", tmp_path, seeds=(0,))
        study = dataclasses.replace(study, recipes=study.recipes[1:])
        outcome = studies.run_study(study, tmp_path, scheduler=two_workers.scheduler_address)
        (failure,) = outcome.failures
        assert (failure.configuration, failure.seed, outcome.written) == ("b", 0, [])
        assert failure.reason.startswith("its workers were killed again and again (out of memory?)")
        assert names(tmp_path / "tiny") == []


def study_states(study, root):
    return [pair for side in root.iterdir() for pair in studies.status(study, side).items()]


def start(folder, *words, path=Path(__file__).parent):
    """One of Dask's commands, which finds modules in ``path`` first."""
    options = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file")
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *words, *options, folder / "scheduler.json"],
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def start_worker(folder, **options):
    return start(folder, "worker", "--nthreads=1", "--no-nanny", **options)


@pytest.fixture
def nothing_installed(tmp_path):
    """A folder; a process with it on its path cannot import this package."""
    folder = tmp_path / "nothing"
    folder.mkdir()
    (folder / "losslandscape.py").write_text("raise ModuleNotFoundError('nothing installed')\n")
    return folder


@pytest.fixture
def scheduler(tmp_path, nothing_installed):
    """A scheduler in a process of its own, and its address; it needs Dask only."""
    process = start(tmp_path, "scheduler", "--port", "0", path=nothing_installed)
    file = tmp_path / "scheduler.json"
    try:
        until(lambda: process.poll() is not None or (file.exists() and file.read_text()))
        yield process, json.loads(file.read_text())["address"]
    finally:
        end(process)


def end(process):
    process.kill()
    process.wait()


def when(seen, act):
    """Act once ``seen`` is true, in another thread."""

    def look():
        until(seen)
        act()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread


def test_workers_without_this_package(scheduler, nothing_installed, tmp_path):
    worker = start_worker(tmp_path, path=nothing_installed)
    try:
        outcome = studies.run_study(tiny_study(seeds=1), tmp_path, scheduler=scheduler[1])
    finally:
        end(worker)
    assert not outcome.written
    assert [failure.reason for failure in outcome.failures] == 2 * [
        CANNOT_IMPORT + "(nothing installed): install the same there, and restart the workers"
    ]


class TestTheSchedulerIsLost:
    def test_killed_during_a_run(self, scheduler, tmp_path, caplog):
        process, address = scheduler
        worker = start_worker(tmp_path)
        study = troubled_study("wait", tmp_path)
        first = tmp_path / "tiny" / "a-seed0.json"
        try:
            thread = when(first.exists, process.kill)
            with pytest.raises(WorkerError, match="tiny: lost the scheduler at tcp://") as caught:
                studies.run_study(study, tmp_path, scheduler=address)
            thread.join()
        finally:
            end(worker)
        assert str(caught.value).endswith(
            "finished runs are kept, run the study again for the rest"
        )
        assert "\n" not in str(caught.value)
        time.sleep(0.5)
        assert not [log for log in caplog.records if log.levelno >= logging.ERROR]
        kept = {path.name: path.read_bytes() for path in (tmp_path / "tiny").iterdir()}
        assert "a-seed0.json" in kept
        assert kept.keys() < set(ALL)
        (tmp_path / "gone").touch()
        outcome = studies.run_study(study, tmp_path)
        assert (len(outcome.written), outcome.failures) == (4 - len(kept), [])
        assert names(tmp_path / "tiny") == ALL
        assert (
            kept.items() <= {p.name: p.read_bytes() for p in (tmp_path / "tiny").iterdir()}.items()
        )

    @pytest.mark.parametrize("on_their_way", [False, True])
    def test_stopped_before_a_worker_came(
        self, scheduler, tmp_path, capfd, monkeypatch, on_their_way
    ):
        async def never(*_arguments, **_options):
            await asyncio.Event().wait()

        if on_their_way:  # results that will not arrive
            monkeypatch.setattr(distributed.Future, "_result", never)
        process, address = scheduler
        waiting = ""

        def waits():
            nonlocal waiting
            waiting += capfd.readouterr().err
            return "has no workers yet: waiting for one" in waiting

        thread = when(waits, process.terminate)
        with pytest.raises(WorkerError, match="tiny: lost the scheduler"):
            studies.run_study(tiny_study(), tmp_path, scheduler=address)
        thread.join()
        assert names(tmp_path / "tiny") == []


class TestRefusals:
    def test_no_scheduler_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 1)
        began = time.monotonic()
        with pytest.raises(WorkerError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1 with"):
            studies.run_study(tiny_study(), tmp_path, scheduler="tcp://127.0.0.1:1")
        assert time.monotonic() - began < 20

    @pytest.mark.parametrize("address", ["nonsense://x", "tcp://127.0.0.1:port", ""])
    def test_no_address(self, tmp_path, monkeypatch, address):
        monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 1)
        with pytest.raises(WorkerError, match="no scheduler answers at"):
            studies.run_study(tiny_study(), tmp_path, scheduler=address)

    def test_dask_is_not_installed(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(WorkerError, match=r"pip install 'losslandscape\[cluster\]'"):
            studies.run_study(tiny_study(), tmp_path, scheduler="tcp://127.0.0.1:8786")


def test_a_worker_with_threads_computes_one_run_at_a_time():
    running, together = [], []

    def note(*_):
        running.append(1)
        time.sleep(0.1)
        together.append(len(running))
        running.pop()
        return {}

    study = dataclasses.replace(tiny_study(seeds=1), experiment=note)
    runs = [(recipe, 0, study.fingerprint(recipe)) for recipe in study.recipes]
    with ThreadPoolExecutor() as pool:
        assert all(pool.map(lambda run: cluster._attempt_on_worker(study, *run), runs))
    assert together == [1, 1]


class TestCodeEditedUnderAWorker:
    def test_what_was_seen_before_goes_on(self, monkeypatch):
        monkeypatch.setattr(cluster, "_seen", {})
        study = dataclasses.replace(
            tiny_study(seeds=1), experiment=three_configurations.measure_training
        )
        recipe = study.recipes[1]
        fingerprint = study.fingerprint(recipe)
        before = cluster._attempt_on_worker(study, recipe, 0, fingerprint)
        monkeypatch.setattr(cluster, "_sources", lambda: {"models.py": "edited"})
        monkeypatch.setattr(runs.Study, "fingerprint", lambda *_: "edited")
        after = cluster._attempt_on_worker(study, recipe, 0, fingerprint)
        assert after.results == before.results
        assert after.fingerprint == fingerprint

    def test_what_was_not_is_refused(self, monkeypatch):
        monkeypatch.setattr(cluster, "_seen", {})
        monkeypatch.setattr(cluster, "_sources", lambda: {"models.py": "edited"})
        study = tiny_study(seeds=1)
        recipe = study.recipes[1]
        refused = cluster._attempt_on_worker(study, recipe, 0, study.fingerprint(recipe))
        assert isinstance(refused, Failure)
        assert "restart the workers" in refused.reason
