"""The command line: what it prints, and one line for every mistake."""

import dataclasses

import pytest
from click.testing import CliRunner
from test_studies import fragile_study, tiny_study

from losslandscape.cli import main
from losslandscape.lab import diffs, records, studies
from losslandscape.lab.experiments import three_configurations
from losslandscape.lab.runs import WorkerError
from losslandscape.lab.studies import STUDIES


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setitem(STUDIES, "tiny", tiny_study(seeds=1))
    return lambda *words: CliRunner().invoke(main, [str(w) for w in words])


def test_list_names_every_study(run):
    result = run("study", "list")
    assert result.exit_code == 0
    assert "three_configurations: Table 1" in result.output


def test_version(run):
    from losslandscape import __version__

    assert run("--version").output.strip().endswith(__version__)


def test_run_status_and_diff(run, tmp_path):
    assert "missing: 2" in run("study", "status", "tiny", "--records", tmp_path).output
    result = run("study", "run", "tiny", "--records", tmp_path)
    assert result.exit_code == 0, result.output
    assert "tiny: 2 runs computed" in result.output
    assert "done: 2" in run("study", "status", "tiny", "--records", tmp_path).output
    all_studies = run("study", "status", "--records", tmp_path).output
    assert "tiny: 2 of 2 runs done" in all_studies
    assert "three_configurations: 0 of 30 runs done" in all_studies
    result = run("study", "diff", "tiny", "--records", tmp_path, "--save")
    assert result.exit_code == 0, result.output
    assert "a seed 0\n  same train_loss, epoch 1" in result.stdout
    assert "b seed 0" in result.output
    assert result.stderr == "  repeating the first 1 epochs of it ...\n" * 2
    # The first epoch of each, and lambda_max before it; after it only where it was the last one.
    assert "13 numbers: 13 the same to the last bit, 0 within" in result.output
    saved = records.read(tmp_path / "diffs" / "tiny.json")
    assert saved["command"] == "losslandscape study diff tiny"
    assert [entry["part"] for entry in saved["runs"]] == [{"epochs": 1}, {"epochs": 1}]


def test_diff_takes_what_is_asked_for(run, tmp_path):
    run("study", "run", "tiny", "--records", tmp_path)
    words = ["--configuration", "a", "--seed", 0, "--all", "--label", "here"]
    result = run("study", "diff", "tiny", "--records", tmp_path, *words)
    assert result.exit_code == 0, result.output
    assert "train_loss, epoch 2" in result.output
    assert "b seed 0" not in result.output
    saved = records.read(tmp_path / "diffs" / "tiny-here.json")
    assert saved["command"] == "losslandscape study diff tiny --configuration a --seed 0 --all"
    assert [entry["part"] for entry in saved["runs"]] == [{}]


def test_diff_says_when_there_is_nothing_to_compare(run, tmp_path, monkeypatch):
    run("study", "run", "tiny", "--records", tmp_path)
    monkeypatch.setattr(diffs, "repeat", lambda *_, **__: [])
    result = run("study", "diff", "tiny", "--records", tmp_path)
    assert result.exit_code == 1
    assert "no recorded number lies in the part repeated" in result.output


def test_diff_fails_when_a_number_moved(run, tmp_path, monkeypatch):
    run("study", "run", "tiny", "--records", tmp_path)
    genuine = three_configurations.follow

    def shifted(*arguments):
        outcome, path = genuine(*arguments)
        outcome.history[0]["train_loss"] *= 1.5
        return outcome, path

    monkeypatch.setattr(three_configurations, "follow", shifted)
    result = run("study", "diff", "tiny", "--configuration", "b", "--records", tmp_path)
    assert result.exit_code == 1
    assert "OUT  train_loss, epoch 1" in result.output
    assert "7 numbers: 6 the same to the last bit, 0 within their tolerance, 1 outside" in (
        result.output
    )


def test_a_run_that_fails_is_told_at_the_end(run, tmp_path, monkeypatch):
    study = dataclasses.replace(fragile_study("diverge"), seeds=(0,))
    monkeypatch.setitem(STUDIES, "tiny", study)
    result = run("study", "run", "tiny", "--records", tmp_path)
    assert result.exit_code == 1
    assert "tiny: 1 runs computed" in result.output
    assert "tiny: 1 runs without a record\n  b seed 0: training diverged: " in result.output
    assert "Traceback" not in result.output


def test_a_killed_worker_is_one_line(run, tmp_path, monkeypatch):
    def break_down(*_arguments, **_options):
        raise WorkerError("tiny: a worker process was killed")

    monkeypatch.setattr(studies, "run_study", break_down)
    result = run("study", "run", "tiny", "--records", tmp_path)
    assert result.exit_code == 1
    assert result.output == "Error: tiny: a worker process was killed\n"


@pytest.mark.parametrize(
    ("words", "jobs", "scheduler"),
    [
        ([], 1, None),
        (["--workers", "2"], 2, None),
        (["--jobs", "2"], 2, None),
        (["--scheduler", "tcp://127.0.0.1:8786"], 1, "tcp://127.0.0.1:8786"),
    ],
)
def test_who_computes(run, tmp_path, monkeypatch, words, jobs, scheduler):
    asked = {}

    def note(_study, _root, **options):
        asked.update(options)
        return studies.Outcome()

    monkeypatch.setattr(studies, "run_study", note)
    result = run("study", "run", "tiny", "--records", tmp_path, *words)
    assert result.exit_code == 0, result.output
    assert asked == {"seeds": None, "jobs": jobs, "scheduler": scheduler}


def test_a_record_of_the_future_is_not_touched(run, tmp_path):
    path = tmp_path / "tiny" / "a-seed0.json"
    path.parent.mkdir()
    path.write_text('{"schema": 2}')
    assert (
        "unreadable: 1\n  a seed 0" in run("study", "status", "tiny", "--records", tmp_path).output
    )
    result = run("study", "run", "tiny", "--records", tmp_path)
    assert result.exit_code == 1
    assert "tiny: 1 runs computed" in result.output
    assert "written by a newer version of losslandscape (format 2, this one reads 1)" in (
        result.output
    )
    assert path.read_text() == '{"schema": 2}'


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "run", "nope"], "unknown study 'nope': choose one of"),
        (["study", "status", "nope"], "unknown study 'nope'"),
        (["study", "diff", "tiny", "--records", "{}"], "no record of tiny matches"),
        (["study", "diff", "tiny", "--configuration", "c"], "no configuration 'c'"),
        (["study", "diff", "tiny", "--seed", "x"], "'x' is not a valid integer"),
        (["study", "run", "tiny", "--jobs", "0"], "0 is not in the range"),
        (["study", "run", "tiny", "--workers", "0"], "0 is not in the range"),
        (["study", "run", "tiny", "--workers", "2", "--scheduler", "x"], "give one of them"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, words, message):
    result = run(*(word.format(tmp_path) for word in words))
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
