"""`make doctor`: each check can say no, and says what to do."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from losslandscape import doctor

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path):
    """A clone with one pin, and an environment whose Python lists what ``packages`` holds."""
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\nscikit_learn==1.9.0\n")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ncat {tmp_path}/packages\n")
    python.chmod(0o755)

    def with_packages(*packages):
        (tmp_path / "packages").write_text("\n".join(packages))
        return doctor.environment(tmp_path / "venv", tmp_path)

    return with_packages


def test_every_pin_can_be_installed_on_the_oldest_python():
    # pip refuses a pin whose own lower bound is above ours, and then installs nothing at all.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = re.fullmatch(r">=(3\.\d+)", project["requires-python"]).group(1) + ".0"
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    asked = {}
    for name in pins:
        try:
            asked[name] = importlib.metadata.metadata(name).get("Requires-Python") or ""
        except importlib.metadata.PackageNotFoundError:
            continue  # the extra for benchmarks is not always installed
    assert len(asked) > len(pins) / 2
    assert {n: bound for n, bound in asked.items() if oldest not in SpecifierSet(bound)} == {}


def test_it_runs_before_anything_is_installed(tmp_path):
    command = [sys.executable, "-S", "-I", ROOT / "src/losslandscape/doctor.py"]
    done = subprocess.run(
        [*command, "--venv", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0  # make book makes one
    assert f"no environment in {tmp_path} yet" in done.stdout
    assert "-> make setup" in done.stdout
    assert not done.stderr


def test_an_old_python_is_named():
    assert doctor.interpreter((3, 10, 2)).state == "missing"
    assert "3.10.2" in doctor.interpreter((3, 10, 2)).found
    assert doctor.interpreter((3, 11, 0)).state == "ok"


def test_missing_programs_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert [check.state for check in doctor.tools()] == ["missing", "missing"]
    assert doctor.browser().state == "optional"


def test_a_browser_named_by_hand_counts(monkeypatch):
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert doctor.browser() == doctor.Check("ok", f"browser: {sys.executable}")
    monkeypatch.setenv("CHROMIUM", "no-such-browser")
    assert doctor.browser().found == "no browser no-such-browser"


def test_a_full_disk_is_named(tmp_path):
    assert doctor.room(tmp_path, free=0.5).state == "missing"
    assert doctor.room(tmp_path, free=50.0).state == "ok"


def test_the_environment_holds_the_pins(clone, tmp_path):
    assert clone("torch 2.13.0+cpu", "scikit-learn 1.9.0", "losslandscape 0.1.0").state == "ok"
    assert clone("torch 2.13.0").found.endswith("has no losslandscape")
    other = clone("torch 2.12.0", "losslandscape 0.1.0")
    assert other.state == "missing"
    assert "torch 2.12.0 instead of 2.13.0" in other.found
    large = clone("torch 2.13.0", "losslandscape 0.1.0", "nvidia-cublas-cu12 12.9")
    assert (large.state, "1 CUDA" in large.found) == ("optional", True)
    none = doctor.environment(tmp_path / "none", tmp_path)
    assert (none.state, none.advice[:10]) == ("optional", "make setup")


def test_mnist_is_looked_for_where_the_variable_points(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSLANDSCAPE_DATA", str(tmp_path))
    assert doctor.mnist().state == "optional"
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in doctor.IDX:
        (raw / name).touch()
    assert doctor.mnist().state == "ok"
    monkeypatch.delenv("LOSSLANDSCAPE_DATA")
    assert "downloaded" in doctor.mnist().found


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
class TestMake:
    """A variable that make does not know is refused; those of the examples are taken."""

    def run(self, *words):
        command = ["make", "--dry-run", *words]
        plain = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)

    def test_a_misspelt_variable(self):
        result = self.run("book", "CHAPTER=2")
        assert result.returncode
        assert "no variable is called CHAPTER; there are CHAPTERS DATASET" in result.stderr

    @pytest.mark.parametrize(
        "words",
        [
            ["book", "CHAPTERS=1 2", "DATASET=mnist", "SEEDS=3", "JOBS=1"],
            ["test", "TESTS=", "NOTEBOOKS=notebooks/02_*.ipynb"],
            ["setup", "PYTHON=python3.12", "VENV=/tmp/a=b"],
        ],
    )
    def test_known_variables(self, words):
        assert self.run(*words).returncode == 0
