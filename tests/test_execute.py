"""Running a chapter: whole notebook or none, honest about its parameters, stale when it should."""

import json
import subprocess
import sys

import nbformat
import pytest

from losslandscape.report import execute

CHAPTER = """\
---
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---

# A chapter

```{code-cell} python3
:tags: [parameters]

dataset = "digits"
seeds = 2
```

```{code-cell} python3
from losslandscape.lab.source import normalised_source
print(dataset, seeds)
```
"""


@pytest.fixture
def chapter(tmp_path):
    """Return the text of a chapter in a tree like the repository's."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "constraints.txt").write_text("numpy==2\n")
    study = tmp_path / "book/records/some_study"
    study.mkdir(parents=True)
    (study / "run.json").write_text("{}")
    (tmp_path / "book/claims.yml").write_text("version: 1\n")
    text = tmp_path / "notebooks/01_short.md"
    text.write_text(CHAPTER)
    return text


def printed(path):
    return nbformat.read(path, as_version=4).cells[-1].outputs[0].text


def test_execution_stamps_the_notebook(chapter, tmp_path):
    out = tmp_path / "out/01_short.ipynb"
    execute.execute(chapter, out)
    notebook = nbformat.read(out, as_version=4)
    stamp = notebook.metadata["losslandscape"]
    assert stamp["inputs"] == execute.fingerprint(chapter)
    assert stamp["parameters"] == {"dataset": "digits", "seeds": 2}
    assert stamp["defaults"]
    assert [cell.id for cell in notebook.cells] == [f"01-short-00{n}" for n in range(3)]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]
    assert "papermill" not in json.dumps(notebook)
    assert execute.why_stale(chapter, out) == ""
    assert printed(out) == "digits 2\n"

    before = out.read_text()
    execute.execute(chapter, out)
    seconds = f'"seconds": {stamp["seconds"]}'
    again = nbformat.read(out, as_version=4).metadata["losslandscape"]["seconds"]
    assert out.read_text() == before.replace(seconds, f'"seconds": {again}')


def test_other_parameters_are_shown_and_their_defaults_hidden(chapter, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "losslandscape.report.execute", str(chapter), str(out)]
    subprocess.run([*command, "-p", "dataset", "mnist", "-p", "seeds", "2"], check=True)
    assert printed(out) == "mnist 2\n"
    notebook = nbformat.read(out, as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert tags == [[], ["parameters", "remove-input"], ["injected-parameters"], []]
    stamp = notebook.metadata["losslandscape"]
    assert stamp["parameters"] == {"dataset": "mnist", "seeds": 2}
    assert not stamp["defaults"]


def test_an_unknown_parameter_is_named_before_anything_runs(chapter, tmp_path):
    with pytest.raises(
        execute.ExecutionError, match="no parameter 'sedes'; it has: dataset, seeds"
    ):
        execute.execute(chapter, tmp_path / "out.ipynb", {"sedes": 3})


def test_defaults_are_read_without_running_the_chapter(chapter):
    chapter.write_text(CHAPTER.replace("seeds = 2", "seeds: int = 2\nrates = list(range(3))"))
    assert execute.default_parameters(chapter) == {
        "dataset": "digits",
        "seeds": 2,
        "rates": "list(range(3))",
    }


def test_a_cell_that_does_not_parse_is_reported_by_the_run(chapter, tmp_path):
    chapter.write_text(CHAPTER + "\n```{code-cell} python3\n1 +\n```\n")
    with pytest.raises(execute.ExecutionError, match=r"^01_short: cell 3 .* SyntaxError: "):
        execute.execute(chapter, tmp_path / "out.ipynb")


def test_a_failing_cell_is_one_line_and_leaves_the_old_file(chapter, tmp_path):
    chapter.write_text(CHAPTER + "\n```{code-cell} python3\n1 / 0\n```\n")
    out = tmp_path / "out.ipynb"
    out.write_text("old")
    command = [sys.executable, "-m", "losslandscape.report.execute", str(chapter), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "Error: 01_short: cell 3 (In [3]) failed: ZeroDivisionError: division by zero"
    assert "Traceback" not in done.stderr
    assert out.read_text() == "old"
    assert list(tmp_path.glob("**/*.part")) == []


def test_inputs_are_the_text_its_modules_and_the_pins(chapter):
    found = execute.inputs(chapter)
    package = {p.relative_to(execute.PACKAGE).as_posix() for p in found if p.suffix == ".py"}
    assert found[0] == chapter
    assert found[-1] == chapter.parents[1] / "constraints.txt"
    assert {"__init__.py", "lab/__init__.py", "lab/source.py"} <= package
    assert not any(name.startswith("report/") for name in package)


def test_records_and_claims_count_where_the_text_names_them(chapter):
    assert not [p for p in execute.inputs(chapter) if p.suffix == ".json"]
    chapter.write_text(CHAPTER + "\nThe study `some_study` and `claims.yml`.\n")
    names = [path.name for path in execute.inputs(chapter)]
    assert {"run.json", "claims.yml"} <= set(names)


def test_imports_are_followed_through_the_package(chapter):
    chapter.write_text(CHAPTER + "\n```{code-cell} python3\nimport losslandscape.eigen as e\n```\n")
    names = {path.name for path in execute.inputs(chapter)}
    assert {"eigen.py", "operators.py"} <= names


def test_prose_does_not_change_the_fingerprint_but_code_data_and_pins_do(chapter):
    root = chapter.parents[1]
    prints = [execute.fingerprint(chapter)]
    chapter.write_text(CHAPTER.replace("# A chapter", "# A better chapter"))
    assert execute.fingerprint(chapter) == prints[0]
    for change in (
        lambda: chapter.write_text(CHAPTER.replace("seeds = 2", "seeds = 3")),
        lambda: (root / "constraints.txt").write_text("numpy==3\n"),
        lambda: chapter.write_text(CHAPTER + "\nsome_study\n"),
        lambda: (root / "book/records/some_study/run.json").write_text("[]"),
        lambda: (root / "book/records/some_study/new.json").write_text("{}"),
    ):
        change()
        prints.append(execute.fingerprint(chapter))
    assert len(set(prints)) == len(prints)


def test_staleness_says_why(chapter, tmp_path):
    out = tmp_path / "out.ipynb"
    assert execute.why_stale(chapter, out) == "never executed"
    execute.execute(chapter, out)
    (tmp_path / "constraints.txt").write_text("numpy==3\n")
    assert "pins" in execute.why_stale(chapter, out)
    chapter.write_text(CHAPTER + "\nMore prose.\n")
    assert execute.why_stale(chapter, out) == "its text has changed"


def test_a_comment_in_a_module_does_not_make_a_notebook_stale(chapter, monkeypatch, tmp_path):
    """On a copy of the package, so that nothing of the real one is touched."""
    copy = tmp_path / "losslandscape"
    for path in execute.PACKAGE.rglob("*.py"):
        target = copy / path.relative_to(execute.PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    original = execute.fingerprint(chapter)
    monkeypatch.setattr(execute, "PACKAGE", copy)
    module = copy / "lab/source.py"
    assert execute.fingerprint(chapter) == original
    module.write_text("# a remark\n" + module.read_text(encoding="utf-8"), encoding="utf-8")
    assert execute.fingerprint(chapter) == original
    module.write_text(module.read_text(encoding="utf-8") + "X = 1\n", encoding="utf-8")
    assert execute.fingerprint(chapter) != original
