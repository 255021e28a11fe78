"""The build graph: which chapters are executed, and which are taken as they are stored."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from doit.exceptions import InvalidDodoFile, TaskFailed

ROOT = Path(__file__).parents[1]
NAMES = ("01_one", "02_two", "12_twelve")


@pytest.fixture
def dodo(tmp_path, monkeypatch):
    """``dodo.py`` in a folder with three empty chapters."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.md").touch()
        (folder / f"{name}.ipynb").write_text(name)
    spec = importlib.util.spec_from_file_location("dodo_under_test", ROOT / "dodo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("all", NAMES),
        ("none", ()),
        ("02", ["02_two"]),
        ("01 12", ["01_one", "12_twelve"]),
        ("1", ["12_twelve"]),
    ],
)
def test_chapters_are_named_by_their_first_letters(dodo, monkeypatch, asked, names):
    monkeypatch.setattr(dodo, "get_var", lambda name, default: asked)
    assert sorted(text.stem for text in dodo.executed()) == sorted(names)


@pytest.mark.parametrize(("asked", "count"), [("0", "2"), ("77", "no"), ("all", "no")])
def test_a_name_of_no_chapter_or_of_several_is_refused(dodo, monkeypatch, asked, count):
    monkeypatch.setattr(dodo, "get_var", lambda name, default: f"02 {asked}")
    with pytest.raises(InvalidDodoFile, match=f"{count} chapters begin with '{asked}'; .*none"):
        dodo.executed()


def test_a_stored_chapter_is_taken_only_if_it_is_of_today(dodo, monkeypatch):
    stored, out = Path("notebooks/01_one.ipynb"), Path("_build/site/notebooks/01_one.ipynb")
    monkeypatch.setattr(dodo.execute, "why_stale", lambda text, notebook: "its text has changed")
    refused = dodo.take(stored, out)
    assert isinstance(refused, TaskFailed)
    assert "its text has changed. Execute this chapter." in str(refused)
    assert not out.exists()
    monkeypatch.setattr(dodo.execute, "why_stale", lambda text, notebook: "")
    assert dodo.take(stored, out) is None
    assert out.read_text() == "01_one"


def test_chapters_that_are_not_asked_for_are_taken(dodo, monkeypatch):
    chosen = {"chapters": "02"}
    monkeypatch.setattr(dodo, "get_var", lambda name, default: chosen.get(name, default))
    monkeypatch.setattr(dodo.execute, "inputs", lambda text: [text])
    monkeypatch.setattr(dodo.execute, "default_parameters", lambda text: {})
    actions = {task["name"]: task["actions"][0][0].__name__ for task in dodo.task_execute()}
    assert actions == {"01_one": "take", "02_two": "run", "12_twelve": "take"}
