"""Every stored notebook is its text, executed by today's code, and fit to be a page."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from losslandscape.report import execute

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = sorted({path.stem for end in ("md", "ipynb") for path in FOLDER.glob(f"[0-9]*.{end}")})
HOME = re.compile(r"(?:/home/|/Users/|/root/|/tmp/|[A-Z]:\\)\w")
REMEDY = "run: make notebooks"

each_notebook = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def output_texts(notebook):
    """Yield all text that the outputs hold, however deep."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield from output.get("text", "").splitlines()
            for mime, content in output.get("data", {}).items():
                if not mime.startswith("image/"):
                    yield from str(content).splitlines()


@each_notebook
def test_text_and_notebook_come_in_pairs(name):
    assert (FOLDER / f"{name}.md").is_file(), f"notebooks/{name}.ipynb has no text: write or remove"
    assert (FOLDER / f"{name}.ipynb").is_file(), f"notebooks/{name}.md never executed; {REMEDY}"


@each_notebook
def test_text_and_notebook_agree_cell_by_cell(name, notebook):
    text = execute.pairs(jupytext.read(FOLDER / f"{name}.md"))
    stored = execute.pairs(notebook)
    for number, (written, executed) in enumerate(zip(text, stored, strict=False)):
        assert written == executed, f"notebooks/{name}: cell {number} differs; {REMEDY}"
    assert len(text) == len(stored), f"notebooks/{name}: cells were added or removed; {REMEDY}"


@each_notebook
def test_the_time_for_reading_is_that_of_its_words(name):
    """As the landing page says: 130 words a minute, without code and solutions."""
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    read = re.sub(r"`{3,}\{solution-start\}.*?\{solution-end\}", "", text, flags=re.S)
    read = re.sub(r"```\{code-cell\}.*?\n```", "", read, flags=re.S)
    (stated,) = re.findall(r"\*\*Time\*\* (\d+) minutes", text)
    assert abs(int(stated) - len(read.split()) / 130) <= 5


@each_notebook
def test_notebook_is_not_older_than_what_it_uses(name):
    reason = execute.why_stale(FOLDER / f"{name}.md", FOLDER / f"{name}.ipynb")
    assert not reason, f"notebooks/{name}.ipynb: {reason}; {REMEDY}"


@each_notebook
def test_notebook_ran_once_from_top_to_bottom_with_its_defaults(name, notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"notebooks/{name}: ran {counts}; {REMEDY}"
    assert notebook.metadata[execute.KEY]["defaults"] is True, f"notebooks/{name}; {REMEDY}"
    assert execute.default_parameters(FOLDER / f"{name}.md"), f"{name}: no cell tagged parameters"


@each_notebook
def test_no_warning_or_error_is_stored(name, notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", f"notebooks/{name} {cell.id}: {output.evalue}"
            assert output.get("name") != "stderr", f"notebooks/{name} {cell.id}: {output.text}"


@each_notebook
def test_no_path_of_one_machine_is_stored(name, notebook):
    for line in output_texts(notebook):
        found = str(ROOT) in line or HOME.search(line)
        assert not found, f"notebooks/{name}: {line[:200]}"


@each_notebook
def test_no_line_ends_with_a_semicolon(name, notebook):
    """Nbval would see an output that the page hides: write ``_ = ...`` instead."""
    for cell in code_cells(notebook):
        for line in cell.source.splitlines():
            assert not line.rstrip().endswith(";"), f"notebooks/{name} {cell.id}: {line}"


@each_notebook
def test_every_figure_has_a_caption_or_alternative_text(name, notebook):
    for cell in code_cells(notebook):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) >= 20, f"notebooks/{name} {cell.id}: mystnb image alt {alt!r} too short"


@each_notebook
def test_the_first_cell_prepares_colab(name):
    first = next(c for c in jupytext.read(FOLDER / f"{name}.md").cells if c.cell_type == "code")
    assert first.source == colab_cell()


def colab_cell():
    """The first code cell of the first chapter, on which all chapters agree."""
    cells = jupytext.read(FOLDER / f"{NAMES[0]}.md").cells
    return next(c.source for c in cells if c.cell_type == "code")


@pytest.mark.parametrize(("there", "commands"), [(False, 2), (True, 0)])
def test_on_colab_the_report_is_fetched_once(monkeypatch, there, commands):
    ran, went = [], []
    monkeypatch.setitem(sys.modules, "google.colab", None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr("os.path.isdir", lambda path: there)
    monkeypatch.setattr("os.chdir", went.append)
    monkeypatch.setattr("subprocess.run", lambda command, check: ran.append(command))
    exec(colab_cell(), {})
    assert len(ran) == commands
    assert sys.path == ["/content/report/src"]
    assert went == ["/content/report/notebooks"]
    urls = [word for command in ran for word in command if word.startswith("https:")]
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    assert all(f"url: {url}" in config for url in urls)


def test_elsewhere_nothing_is_fetched(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a command was run"))
    monkeypatch.setattr("os.chdir", lambda _: pytest.fail("the folder was changed"))
    exec(colab_cell(), {})


def test_there_are_chapters():
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    listed = sorted(re.findall(r"notebooks/(\w+)", toc))
    assert listed == NAMES, "_toc.yml and notebooks/ differ"


# The tolerance of nbval: notebooks/conftest.py, tried on a notebook of one cell.


@pytest.mark.parametrize(
    ("stored", "tags", "passes"),
    [
        ("x = 1.0000 in 3 runs\n", ["rtol-1e-3"], True),
        ("x = 1.0005 in 3 runs\n", ["rtol-1e-3"], True),
        ("x = 10.0 in 3 runs\n", ["rtol-20"], True),
        ("x = 1.2000 in 3 runs\n", ["rtol-1e-3"], False),
        ("x = 1.2000 in 3 runs\n", ["rtol-0.2"], True),
        ("y = 1.0000 in 3 runs\n", ["rtol-0.2"], False),
        ("x = 1.0000 in 3 runs, 2\n", ["rtol-0.2"], False),
        ("x = 1.0005 in 3 runs\n", [], False),
        ("x = 1.0000 in 3 runs\n", [], True),
    ],
)
def test_nbval_tolerance(tolerant_nbval, stored, tags, passes):
    ok, report = tolerant_nbval
    label = f"{stored.strip()} {tags}"
    assert ok[label] is passes, report


CASES = test_nbval_tolerance.pytestmark[0].args[1]
RICH = [  # (source, stored mime bundle, passes): the other places where numbers stand
    ("html", "<td>0.95</td>", "<td>0.9501</td>", True),
    ("html", "<td>0.95</td>", "<td>0.97</td>", False),
    ("papermill.record", "9.87", "9.871", True),
    ("papermill.record", "9.87", "9.99", False),
]


@pytest.mark.parametrize(("mime", "printed", "stored", "passes"), RICH)
def test_nbval_tolerance_of_rich_outputs(tolerant_nbval, mime, printed, stored, passes):
    ok, report = tolerant_nbval
    assert ok[f"{mime} {stored}"] is passes, report


@pytest.fixture(scope="module")
def tolerant_nbval(tmp_path_factory):
    """Run nbval once on one notebook with a cell for each case; return {case: passed}, report."""
    folder = tmp_path_factory.mktemp("nbval")
    shutil.copy(FOLDER / "conftest.py", folder)
    cells, labels = [], []
    for stored, tags, _ in CASES:
        cell = new_code_cell('print("x = 1.0000 in 3 runs")', metadata={"tags": tags})
        cell.outputs = [new_output("stream", name="stdout", text=stored)]
        cells.append(cell)
        labels.append(f"{stored.strip()} {tags}")
    mimes = {"html": "text/html", "papermill.record": "application/papermill.record/text/plain"}
    for mime, printed, stored, _ in RICH:
        bundle = {mimes[mime]: printed}
        source = f"from IPython.display import display\ndisplay({bundle!r}, raw=True)"
        cell = new_code_cell(source, metadata={"tags": ["rtol-1e-3"]})
        cell.outputs = [new_output("display_data", {mimes[mime]: stored})]
        cells.append(cell)
        labels.append(f"{mime} {stored}")
    for count, cell in enumerate(cells, 1):
        cell.execution_count = count
    nbformat.write(new_notebook(cells=cells), folder / "cases.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-rA", "-q"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "cases.ipynb"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    passed = {int(n) for n in re.findall(r"^PASSED .*Cell (\d+)", done.stdout, re.MULTILINE)}
    return {label: n in passed for n, label in enumerate(labels)}, done.stdout + done.stderr
