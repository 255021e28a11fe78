"""The build graph (pydoit) of `make book` and `make notebooks`: contents decide, not times."""

import filecmp
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from doit import get_var
from doit.exceptions import InvalidDodoFile, TaskFailed
from doit.tools import config_changed

from losslandscape.doctor import find_browser
from losslandscape.lab.data import DATASETS
from losslandscape.report import execute, outputs, paper, picture

Task = dict[str, Any]

BUILD = Path("_build")
SITE = BUILD / "site"  # the book's sources, with freshly executed notebooks
HTML = BUILD / "html"
PDF = BUILD / "book.pdf"
RECORDS = Path("book/records")
PICTURE = Path("book/figures/landing.png")
CHAPTERS = sorted(Path("notebooks").glob("[0-9]*.md"))
STARTED = time.monotonic()

BUILD.mkdir(exist_ok=True)
DOIT_CONFIG = {
    "default_tasks": ["book"],
    "dep_file": str(BUILD / "doit.json"),
    "backend": "json",
    "verbosity": 2,
}


def end_in_a_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """End on Ctrl-C or `kill` with one line in place of a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped; what is finished is kept, the next call goes on", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = end_in_a_line
# `kill` ends the workers too, as Ctrl-C does.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def asked_for(text: Path) -> dict[str, Any]:
    """Return those parameters of the command line that this chapter defines.

    Raises:
        InvalidDodoFile: A value is of another type than the chapter's default, or no data set.
    """
    known = execute.default_parameters(text)
    given = {name: get_var(name, "") for name in ("dataset", "seeds")}
    chosen = {name: execute.parse_value(v) for name, v in given.items() if v and name in known}
    for name, value in chosen.items():
        if type(value) is not type(known[name]):
            raise InvalidDodoFile(
                f"{name.upper()}={given[name]} is not of the kind of {text.stem}'s own value, "
                f"{known[name]!r}"
            )
        if name == "dataset" and value not in DATASETS:
            raise InvalidDodoFile(f"DATASET={value}: choose one of {', '.join(DATASETS)}")
    return chosen


def executed() -> set[Path]:
    """Return the chapters to execute: those that ``chapters=`` names by their first letters.

    Raises:
        InvalidDodoFile: No chapter, or more than one, begins like that.
    """
    names = get_var("chapters", "all").split()
    if names in (["all"], ["none"]):
        return set(CHAPTERS) if names == ["all"] else set()
    chosen = set()
    for name in names:
        found = [text for text in CHAPTERS if text.stem.startswith(name)]
        if len(found) != 1:
            raise InvalidDodoFile(
                f"CHAPTERS: {len(found) or 'no'} chapters begin with {name!r}; write all, none, or "
                f"numbers such as '{CHAPTERS[0].stem[:2]} {CHAPTERS[-1].stem[:2]}'"
            )
        chosen |= {*found}
    return chosen


def run(text: Path, out: Path, parameters: dict[str, Any]) -> TaskFailed | None:
    """Execute one chapter; a failure is one line, not a traceback."""
    try:
        execute.execute(text, out, parameters)
    except execute.ExecutionError as error:
        return TaskFailed(str(error))
    return None


def take(stored: Path, out: Path) -> TaskFailed | None:
    """Take a stored notebook into the site, if it is its text executed by today's code."""
    why = execute.why_stale(stored.with_suffix(".md"), stored)
    if why:
        return TaskFailed(f"{stored} is not to be taken as it is: {why}. Execute this chapter.")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(stored, out)
    print(f"{stored.stem}: as stored", flush=True)
    return None


def task_execute() -> Iterator[Task]:
    """Execute each chapter whose text, code, records or parameters changed."""
    chosen = executed()
    for text in CHAPTERS:
        stored, out = text.with_suffix(".ipynb"), SITE / "notebooks" / f"{text.stem}.ipynb"
        parameters = asked_for(text)
        task: Task = {
            "name": text.stem,
            "file_dep": execute.inputs(text),
            "uptodate": [config_changed(execute.changed_parameters(text, parameters))],
            "targets": [out],
            "actions": [(run, [text, out, parameters])],
        }
        if text not in chosen:
            task["file_dep"].append(stored)
            task |= {"uptodate": [config_changed("as stored")], "actions": [(take, [stored, out])]}
        yield task


def site_files() -> dict[Path, Path]:
    """Return {path in the site: its source} of all that the book needs beside the notebooks."""
    sources = [Path("_config.yml"), Path("_toc.yml"), *Path("book").rglob("*")]
    return {SITE / path: path for path in sources if path.is_file() and not skipped(path)}


def skipped(path: Path) -> bool:
    """Say whether this is a cache or a hidden file."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def stage() -> None:
    """Make _build/site a copy of the book's sources: changed files in, files that are gone out."""
    wanted = site_files()
    notebooks = {SITE / "notebooks" / f"{text.stem}.ipynb" for text in CHAPTERS}
    for path in SITE.rglob("*"):
        if path.is_file() and path not in wanted and path not in notebooks:
            path.unlink()
    for path, source in wanted.items():
        if not path.exists() or not filecmp.cmp(source, path, shallow=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)


def task_stage() -> Task:
    """Copy pages, configuration and records to _build/site."""
    return {"actions": [stage], "uptodate": [False]}


def pages() -> str:
    """Return a hash of the built pages: `jupyter-book build .` writes to the same folder."""
    digest = hashlib.sha256()
    for path in sorted(HTML.rglob("*.html")):
        digest.update(path.relative_to(HTML).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def pages_are_ours(task: Any, values: dict[str, str]) -> bool:
    """Say whether the pages are those that the last `build_html` made."""
    return values.get("pages") == pages()


def build_html() -> TaskFailed | dict[str, str]:
    """Build all pages anew: an incremental build would not repeat its warnings."""
    shutil.rmtree(HTML, ignore_errors=True)
    shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
    print("Building the HTML book; warnings are errors.", flush=True)
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    command = [
        jupyter_book,
        "build",
        str(SITE),
        "--path-output",
        ".",
        "-W",
        "-n",
        "--keep-going",
        "-q",
    ]
    done = subprocess.run(command, check=False)
    if done.returncode:
        return TaskFailed("the book does not build: see the warnings above")
    return {"pages": pages()}


def task_html() -> Task:
    """Build the HTML book from _build/site."""
    return {
        "actions": [build_html],
        "task_dep": ["stage", "execute"],
        "file_dep": [
            *site_files().values(),
            *sorted(execute.PACKAGE.rglob("*.py")),  # the API pages are their docstrings
            *(SITE / "notebooks" / f"{text.stem}.ipynb" for text in CHAPTERS),
            *(text.with_suffix(".ipynb") for text in CHAPTERS),  # with which these are compared
        ],
        "uptodate": [pages_are_ours],
        "targets": [HTML / "index.html"],
    }


def say_where() -> None:
    """Print how the outputs compare with the stored ones, the total time and the page to open."""
    found = outputs.compare_folders(Path("notebooks"), SITE / "notebooks")
    print(f"{outputs.summary(found)}; {HTML / 'book' / 'diff.html'} says where.")
    minutes, seconds = divmod(round(time.monotonic() - STARTED), 60)
    print(f"Total time: {minutes} min {seconds} s. Open {HTML.resolve() / 'index.html'}")


def task_book() -> Task:
    """Execute, build, and say which page to open."""
    return {"actions": [say_where], "task_dep": ["stage", "execute", "html"], "uptodate": [False]}


def print_pdf() -> TaskFailed | dict[str, str]:
    """Print the built pages; a failure is one line."""
    print("Printing the book; with its thousands of formulas that takes minutes.", flush=True)
    try:
        count = paper.print_book(HTML, PDF, find_browser())
    except paper.PaperError as error:
        return TaskFailed(str(error))
    print(f"{count} pages: {PDF.resolve()}")
    return {"printed": pages()}


def pages_are_printed(task: Any, values: dict[str, str]) -> bool:
    """Say whether the PDF was made of the pages that are there."""
    return values.get("printed") == pages()


def task_pdf() -> Task:
    """Print the whole book to one PDF."""
    return {
        "actions": [print_pdf],
        "task_dep": ["html"],
        "file_dep": [execute.PACKAGE / "report" / "paper.py"],
        "uptodate": [pages_are_printed],
        "targets": [PDF],
    }


def task_notebooks() -> Iterator[Task]:
    """Execute stale chapters with their defaults and store them; draw the landing picture."""
    for text in CHAPTERS:
        stored = text.with_suffix(".ipynb")
        fresh = not get_var("force", "") and not execute.why_stale(text, stored)
        yield {
            "name": text.stem,
            "uptodate": [fresh],
            "actions": [(run, [text, stored, {}])],
        }
    yield {
        "name": PICTURE.stem,
        "uptodate": [picture.is_fresh(PICTURE, RECORDS)],
        "actions": [(picture.draw, [PICTURE, RECORDS])],
    }
