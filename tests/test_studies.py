"""Studies: what is run, resumed after a kill, stale, and compared again."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from losslandscape.lab import records, studies
from losslandscape.lab.data import load_dataset
from losslandscape.lab.experiments import three_configurations
from losslandscape.lab.experiments.three_configurations import Settings
from losslandscape.lab.studies import STUDIES, Study, StudyError, find_study
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


@pytest.fixture
def tiny(monkeypatch):
    study = tiny_study()
    monkeypatch.setitem(STUDIES, "tiny", study)
    return study


def test_a_study_is_run_once_and_resumed(tiny, tmp_path):
    paths = studies.run_study(tiny, tmp_path, seeds=1)
    assert sorted(p.name for p in paths) == ["a-seed0.json", "b-seed0.json"]
    first = [p.read_bytes() for p in paths]
    assert studies.run_study(tiny, tmp_path, seeds=1) == []
    more = studies.run_study(tiny, tmp_path)
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
    }
    assert len(studies.run_study(tiny, tmp_path)) == 3
    assert len(studies.status(tiny, tmp_path)["done"]) == 4


def test_two_processes_give_what_one_gives(tmp_path):
    script = Path(__file__).with_name("run_tiny_study.py")
    results = []
    for jobs in ("1", "2"):
        root = tmp_path / jobs
        subprocess.run([sys.executable, script, root, jobs], check=True, capture_output=True)
        results.append([r.results for r in records.load_study("tiny", root)])
    assert results[0] == results[1]


def test_a_killed_study_loses_nothing_and_goes_on(tmp_path):
    script = Path(__file__).with_name("run_tiny_study.py")
    process = subprocess.Popen(
        [sys.executable, script, tmp_path, "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("tiny/*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p.name: p.read_bytes() for p in tmp_path.glob("tiny/*.json")}
    assert 1 <= len(kept) < 4
    (tmp_path / "tiny" / "a-seed1abc.tmp").write_text('{"half')  # as a kill while writing leaves
    subprocess.run([sys.executable, script, tmp_path, "1"], check=True, capture_output=True)
    assert len(records.load_study("tiny", tmp_path)) == 4
    assert {name: (tmp_path / "tiny" / name).read_bytes() for name in kept} == kept
    assert list(tmp_path.glob("tiny/*.tmp")) == []


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


def test_diff_names_numbers_by_step_where_there_are_steps():
    results = {
        "checkpoints": [
            {"step": 50, "epoch": 0.5, "train_loss": 1.0, "lambda_max": {"value": 2.0, "images": 9}}
        ],
        "lambda_path": [{"epoch": 3, "value": 4.0, "converged": True}],
        "lambda_max": {"value": 5.0},
        "batch_lambda_max": {"64": [1.0, 2.0]},
    }
    found = dict(studies._numbers(results))
    assert found["train_loss", ", step 50"] == 1.0
    assert found["lambda_max", ", step 50"] == 2.0
    assert found["lambda_max", ", epoch 3"] == 4.0
    assert found["lambda_max", ""] == 5.0


def test_diff_finds_what_moved(tiny, tmp_path):
    studies.run_study(tiny, tmp_path, seeds=1)
    record = records.load(tmp_path / "tiny" / "a-seed0.json")
    same = studies.diff(tiny, record)
    assert all(row.agrees for row in same)
    assert len(same) == 2 * 5 + 2
    short = studies.diff(tiny, record, epochs=1)
    assert {row.quantity.split(", ")[1] for row in short} == {"epoch 0", "epoch 1"}

    record.results["history"][0]["train_loss"] *= 1.03
    moved = [row for row in studies.diff(tiny, record, epochs=1) if not row.agrees]
    assert [row.quantity for row in moved] == ["train_loss, epoch 1"]


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

    @pytest.mark.parametrize("epochs", [0, 3])
    def test_epochs_out_of_range(self, tiny, tmp_path, epochs):
        studies.run_study(tiny, tmp_path, seeds=1)
        record = records.load(tmp_path / "tiny" / "a-seed0.json")
        with pytest.raises(StudyError, match="between 1 and 2"):
            studies.diff(tiny, record, epochs=epochs)


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
