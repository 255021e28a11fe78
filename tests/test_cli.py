"""The command line: what it prints, and one line for every mistake."""

import pytest
from click.testing import CliRunner
from test_studies import tiny_study

from losslandscape.cli import main
from losslandscape.lab.experiments import three_configurations
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
    result = run(
        "study", "diff", "tiny", "--configuration", "b", "--epochs", 1, "--records", tmp_path
    )
    assert result.exit_code == 0, result.output
    assert "b seed 0" in result.output
    assert "OUT" not in result.output


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
    assert "OUT train_loss, epoch 1" in result.output
    assert "1 numbers lie outside" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "run", "nope"], "unknown study 'nope': choose one of"),
        (["study", "status", "nope"], "unknown study 'nope'"),
        (["study", "diff", "tiny", "--records", "{}"], "no record of tiny matches"),
        (["study", "diff", "tiny", "--configuration", "c"], "no configuration 'c'"),
        (["study", "run", "tiny", "--jobs", "0"], "0 is not in the range"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, words, message):
    result = run(*(word.format(tmp_path) for word in words))
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output
