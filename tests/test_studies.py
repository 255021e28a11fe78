"""Studies: what is run, resumed after a kill, stale, and compared again."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from losslandscape.lab import records, studies
from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import three_configurations
from losslandscape.lab.experiments.three_configurations import Settings
from losslandscape.lab.runs import Study, StudyError, WorkerError
from losslandscape.lab.studies import STUDIES, find_study
from losslandscape.lab.training import Recipe

TINY = Settings(channels=(2, 3), hidden=5, hessian_images=60, batch_sizes=((16, 2),), path_points=1)
TOLERANCES = STUDIES["three_configurations"].tolerances


def tiny_study(seeds=2):
    return Study(
        name="tiny",
        purpose="A study of seconds, for tests.",
        dataset="digits",
        recipes=(Recipe("a", "sgd", lr=0.1, epochs=2), Recipe("b", "adam", lr=1e-3, epochs=1)),
        seeds=tuple(range(seeds)),
        settings=TINY,
        experiment=three_configurations.measure,
        repeat=three_configurations.measure_training,
        tolerances=TOLERANCES,
    )


def quick_study():
    """Many runs of a tenth of a second."""
    return dataclasses.replace(
        tiny_study(seeds=20),
        name="quick",
        recipes=(Recipe("a", "sgd", lr=0.1, epochs=1), Recipe("b", "adam", lr=1e-3, epochs=1)),
        experiment=three_configurations.measure_training,
    )


@pytest.fixture
def tiny(monkeypatch):
    study = tiny_study()
    monkeypatch.setitem(STUDIES, "tiny", study)
    return study


def test_a_study_is_run_once_and_resumed(tiny, tmp_path):
    paths = studies.run_study(tiny, tmp_path, seeds=1).written
    assert sorted(p.name for p in paths) == ["a-seed0.json", "b-seed0.json"]
    first = [p.read_bytes() for p in paths]
    assert studies.run_study(tiny, tmp_path, seeds=1) == studies.Outcome()
    more = studies.run_study(tiny, tmp_path).written
    assert sorted(p.name for p in more) == ["a-seed1.json", "b-seed1.json"]
    assert [p.read_bytes() for p in paths] == first


def test_a_record_holds_what_was_run_and_measured(tiny, tmp_path):
    studies.run_study(tiny, tmp_path, seeds=1)
    record = records.load(tmp_path / "tiny" / "a-seed0.json")
    assert record.fingerprint == tiny.fingerprint(tiny.recipe("a"))
    assert record.recipe["lr"] == 0.1
    assert record.dataset["sha256"] == load_dataset("digits").checksum
    assert record.environment["threads"] == 1
    assert record.timing["cpu_seconds"] > 0
    assert 2**26 < record.timing["peak_memory"] < 2**34
    assert [row["epoch"] for row in record.results["history"]] == [1, 2]
    assert [row["epoch"] for row in record.results["lambda_path"]] == [0, 2]
    top = record.results["lambda_max"]
    assert top["converged"]
    assert top["residual"] <= 1e-3 * top["value"]
    assert top["images"] == 1437
    assert len(record.results["batch_lambda_max"]["16"]) == 2


def test_stale_damaged_and_missing_runs_are_run_again(tiny, tmp_path):
    studies.run_study(tiny, tmp_path)
    folder = tmp_path / "tiny"
    old = dataclasses.replace(records.load(folder / "a-seed0.json"), fingerprint="0" * 64)
    records.save(old, folder)
    (folder / "b-seed0.json").write_text("{")
    (folder / "a-seed1.json").unlink()
    found = studies.status(tiny, tmp_path)
    names = {state: [(r.name, s) for r, s in runs] for state, runs in found.items()}
    assert names == {
        "done": [("b", 1)],
        "stale": [("a", 0)],
        "damaged": [("b", 0)],
        "missing": [("a", 1)],
        "unreadable": [],
    }
    assert len(studies.run_study(tiny, tmp_path).written) == 3
    assert len(studies.status(tiny, tmp_path)["done"]) == 4


def test_two_processes_give_what_one_gives(tmp_path):
    script = Path(__file__).with_name("run_tiny_study.py")
    subprocess.run([sys.executable, script, tmp_path / "two", "2"], check=True, capture_output=True)
    studies.run_study(tiny_study(), tmp_path / "one")
    one, two = (
        [(r.filename, r.results) for r in records.load_study("tiny", tmp_path / name)]
        for name in ("one", "two")
    )
    assert len(one) == 4
    assert one == two


def test_runs_go_seed_by_seed_the_longest_first(tmp_path):
    lengths = {"short": 1, "long": 9, "middle": 4}
    order = []

    def note(recipe, _dataset, seed, _settings):
        order.append((seed, recipe.name))
        return {}

    study = dataclasses.replace(
        tiny_study(),
        recipes=tuple(Recipe(name, "sgd", lr=0.1, epochs=e) for name, e in lengths.items()),
        experiment=note,
    )
    studies.run_study(study, tmp_path)
    assert order == [(seed, name) for seed in (0, 1) for name in ("long", "middle", "short")]


def test_the_fingerprint_is_that_of_the_start(tiny, tmp_path, monkeypatch):
    # A study runs for hours, and its source files may be edited meanwhile.
    at_start = tiny.fingerprint(tiny.recipe("a"))

    def edited_meanwhile(*arguments):
        monkeypatch.setattr(Study, "fingerprint", lambda *_: "edited")
        return three_configurations.measure(*arguments)

    monkeypatch.setattr(Study, "fingerprint", lambda *_: at_start)
    edited = dataclasses.replace(tiny, recipes=tiny.recipes[:1], experiment=edited_meanwhile)
    studies.run_study(edited, tmp_path, seeds=1)
    assert records.load(tmp_path / "tiny" / "a-seed0.json").fingerprint == at_start


def test_the_settings_are_part_of_the_fingerprint(tiny):
    recipe = tiny.recipe("a")
    other = dataclasses.replace(tiny, settings=dataclasses.replace(TINY, hessian_images=61))
    assert tiny.fingerprint(recipe) != other.fingerprint(recipe)
    assert tiny.fingerprint(recipe) != tiny.fingerprint(dataclasses.replace(recipe, lr=0.2))


class TestRefusals:
    def test_unknown_study(self):
        with pytest.raises(StudyError, match="unknown study 'x': choose one of three_config"):
            find_study("x")

    def test_unknown_configuration(self, tiny):
        with pytest.raises(StudyError, match="no configuration 'c': choose one of a, b"):
            tiny.recipe("c")


@dataclasses.dataclass(frozen=True)
class Fault:
    """How a fragile run fails: it may diverge, have a bug or die."""

    kind: str
    seconds: float = 0.0
    gone: str = ""  # a file; where it exists, the fault is gone


def fragile(recipe, dataset, seed, fault):
    """An experiment that trains, and fails for configuration b, seed 0."""
    if (recipe.name, seed) == ("b", 0) and not os.path.exists(fault.gone):
        if fault.kind == "diverge":
            recipe = dataclasses.replace(recipe, optimizer="sgd", lr=1e30)
        elif fault.kind == "bug":
            raise KeyError("typo")
        elif fault.kind == "die":
            threading.Timer(fault.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
            while True:  # it would train for long
                three_configurations.measure_training(recipe, dataset, seed, TINY)
    return three_configurations.measure_training(recipe, dataset, seed, TINY)


def fragile_study(kind, *options):
    return dataclasses.replace(
        tiny_study(seeds=3), experiment=fragile, settings=Fault(kind, *options)
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


ALL = [f"{name}-seed{seed}.json" for name in "ab" for seed in range(3)]
OTHERS = [name for name in ALL if name != "b-seed0.json"]


class TestFaults:
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
    @pytest.mark.timeout(180)
    def test_twenty_kills_lose_nothing_and_change_nothing(self, tmp_path):
        script = Path(__file__).with_name("run_tiny_study.py")
        done = subprocess.run(
            [sys.executable, script, tmp_path / "killed", "kills", "0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "killed 20 times" in done.stdout
        assert not list(tmp_path.rglob("*.tmp"))
        studies.run_study(quick_study(), tmp_path / "undisturbed")
        killed, undisturbed = (
            [(r.filename, r.results) for r in records.load_study("quick", tmp_path / name)]
            for name in ("killed", "undisturbed")
        )
        assert killed == undisturbed

    @pytest.mark.timeout(180)
    def test_a_killed_worker_is_one_line_and_the_study_goes_on(self, tmp_path):
        gone = tmp_path / "gone"
        study = fragile_study("die", random.Random(0).uniform(0, 1), str(gone))
        with pytest.raises(WorkerError, match="tiny: a worker process was killed") as caught:
            studies.run_study(study, tmp_path, jobs=2)
        assert "\n" not in str(caught.value)
        kept = {p.name: p.read_bytes() for p in tmp_path.glob("tiny/*.json")}
        assert kept.keys() <= set(OTHERS)
        # The same command goes on with the rest, here without the fault.
        gone.write_text("")
        outcome = studies.run_study(study, tmp_path)
        assert len(outcome.written) == len(ALL) - len(kept)
        assert not outcome.failures
        assert kept.items() <= {p.name: p.read_bytes() for p in tmp_path.glob("tiny/*")}.items()

    def test_a_run_that_diverges_is_named_and_the_others_go_on(self, tmp_path, capfd):
        study = fragile_study("diverge")
        outcome = studies.run_study(study, tmp_path)
        (failure,) = outcome.failures
        assert (failure.configuration, failure.seed) == ("b", 0)
        assert failure.reason.startswith("training diverged: ")
        assert names(tmp_path / "tiny") == OTHERS
        assert "b seed 0: failed: training diverged" in capfd.readouterr().err
        again = studies.run_study(study, tmp_path)
        assert (again.written, again.failures) == ([], [failure])

    def test_a_fault_in_the_code_shows_where_and_the_others_go_on(self, tmp_path, capfd):
        outcome = studies.run_study(fragile_study("bug"), tmp_path)
        assert [failure.reason for failure in outcome.failures] == ["KeyError: 'typo'"]
        assert names(tmp_path / "tiny") == OTHERS
        assert "in fragile" in capfd.readouterr().err

    def test_a_result_that_is_not_finite_is_a_failure(self, tmp_path):
        def nan(*_):
            return {"x": float("nan")}

        study = dataclasses.replace(tiny_study(seeds=1), experiment=nan)
        outcome = studies.run_study(study, tmp_path)
        assert [f.reason for f in outcome.failures] == [
            f"{name}-seed0.json: a result is not finite, nothing written" for name in "ab"
        ]
        assert names(tmp_path / "tiny") == []

    @pytest.mark.skipif(sys.platform == "win32", reason="a limit of Unix")
    def test_a_full_disk_stops_a_run_before_it_computes(self, tmp_path):
        import resource

        def compute(*_):
            pytest.fail("it computed")

        study = fragile_study("nothing")
        studies.run_study(study, tmp_path, seeds=1)
        kept = {p.name: p.read_bytes() for p in tmp_path.glob("tiny/*")}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            outcome = studies.run_study(dataclasses.replace(study, experiment=compute), tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not outcome.written
        assert len(outcome.failures) == 6  # another experiment: all are stale
        for failure in outcome.failures:
            assert "cannot be written (File too large): make room" in failure.reason
        assert {p.name: p.read_bytes() for p in tmp_path.glob("tiny/*")} == kept
        assert len(studies.run_study(study, tmp_path).written) == 4

    def test_a_disk_that_fills_while_a_record_is_written(self, tmp_path, monkeypatch):
        study = fragile_study("nothing")
        monkeypatch.setattr(records, "check_room", lambda _folder: None)
        genuine, calls = os.fsync, []

        def full(handle):
            calls.append(handle)
            if len(calls) == 2:
                raise OSError(28, os.strerror(28))
            genuine(handle)

        monkeypatch.setattr(os, "fsync", full)
        outcome = studies.run_study(study, tmp_path)
        (failure,) = outcome.failures
        assert "cannot be written (No space left on device): make room" in failure.reason
        missing = f"{failure.configuration}-seed{failure.seed}.json"
        assert names(tmp_path / "tiny") == [name for name in ALL if name != missing]
        assert len(records.load_study("tiny", tmp_path)) == 5

    def test_what_cannot_be_read_here_is_left_as_it_is(self, tmp_path):
        study = fragile_study("nothing")
        folder = tmp_path / "tiny"
        folder.mkdir()
        newer = {"schema": 2, "of": "the future"}
        (folder / "a-seed0.json").write_text(json.dumps(newer))
        (folder / "b-seed1.json").mkdir()  # stands for a file that may not be read, for root too
        found = studies.status(study, tmp_path)
        assert [(r.name, s) for r, s in found["unreadable"]] == [("a", 0), ("b", 1)]
        outcome = studies.run_study(study, tmp_path)
        reasons = [failure.reason for failure in outcome.failures]
        assert "written by a newer version of losslandscape (format 2" in reasons[0]
        assert "cannot be read (Is a directory)" in reasons[1]
        assert len(reasons) == 2, "they were computed in vain"
        assert len(outcome.written) == 4
        assert json.loads((folder / "a-seed0.json").read_text()) == newer

    @pytest.mark.parametrize("content", [b"", b"{", bytes(range(256)) * 9, b"\xff\xfe\x00", b"[1]"])
    def test_garbage_is_computed_again(self, tmp_path, content):
        study = fragile_study("nothing")
        folder = tmp_path / "tiny"
        folder.mkdir()
        (folder / "a-seed0.json").write_bytes(content)
        assert len(studies.status(study, tmp_path, seeds=1)["damaged"]) == 1
        assert len(studies.run_study(study, tmp_path, seeds=1).written) == 2
        assert len(records.load_study("tiny", tmp_path)) == 2


@pytest.mark.parametrize("name", STUDIES)
def test_no_committed_record_is_stale_or_damaged(name):
    root = Path(__file__).parent.parent / "book" / "records"
    found = studies.status(STUDIES[name], root)
    advice = f"run: losslandscape study run {name}"
    assert not found["stale"], advice
    assert not found["damaged"], advice
    known = {f"{recipe.name}-seed{seed}.json" for recipe, seed in STUDIES[name].runs()}
    assert {p.name for p in (root / name).glob("*")} <= known


def test_every_eigenvalue_in_the_records_is_certified():
    root = Path(__file__).parent.parent / "book" / "records"
    for record in records.load_study("three_configurations", root):
        top = record.results["lambda_max"]
        assert top["converged"]
        assert top["images"] == 60_000
        assert top["residual"] <= 1e-3 * top["value"]
        assert all(row["converged"] for row in record.results["lambda_path"])
