"""Run a chapter: MyST text in, executed notebook out, stamped with what decided its outputs.

``notebooks/NN_name.md`` is the source of truth; the notebook written here is that text, run from
top to bottom by papermill in the folder of the text. Its metadata key ``losslandscape`` holds the
fingerprint of everything the outputs depend on, so that a stale notebook is found without
running anything.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import grimp
import jupytext
import nbformat
import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

import losslandscape
from losslandscape.lab import records
from losslandscape.lab.source import normalised_source

PACKAGE = Path(losslandscape.__file__).parent
KEY = "losslandscape"  # where a notebook's metadata keeps our stamp
DATA_FILES = ("book/claims.yml", "book/reported.yml")  # count where a chapter names them
CELL_METADATA = ("tags", "mystnb")  # all that a text pair carries


class ExecutionError(RuntimeError):
    """A chapter that cannot be run to its end; the message is one line."""


def execute(text_path: Path, out_path: Path, parameters: Mapping[str, Any] | None = None) -> None:
    """Run the chapter ``text_path`` and write the executed notebook to ``out_path``.

    ``parameters`` replace defaults of the cell tagged ``parameters``. The file appears at once
    and whole: after an error or an interrupt, ``out_path`` is what it was before.
    """
    text_path, out_path = Path(text_path), Path(out_path)
    changed = changed_parameters(text_path, parameters or {})
    stamp: dict[str, Any] = {
        "inputs": fingerprint(text_path)
    }  # of what was there when the run began
    began = time.perf_counter()
    notebook = _run(text_path, changed)
    stamp |= {
        "seconds": round(time.perf_counter() - began, 1),
        "parameters": {**default_parameters(text_path), **changed},
        "defaults": not changed,
        "environment": _environment(),
    }
    _write(normalise(notebook, text_path.stem, stamp), out_path)


def _run(text_path: Path, parameters: Mapping[str, Any]) -> NotebookNode:
    with tempfile.TemporaryDirectory() as scratch:
        source, result = Path(scratch, "source.ipynb"), Path(scratch, "result.ipynb")
        nbformat.write(jupytext.read(text_path), source)

        def execute_once() -> None:
            papermill.execute_notebook(
                source,
                result,
                parameters=dict(parameters),
                progress_bar={"desc": text_path.stem},
                cwd=text_path.parent,
                # Neither advice on local sockets nor what an interrupt breaks.
                extra_arguments=["--IPKernelApp.log_level=50"],
            )

        try:
            try:
                execute_once()
            except RuntimeError as error:
                # Of two kernels that start at one moment, one may find its port taken.
                if "Kernel didn't respond" not in str(error):
                    raise
                execute_once()
        except PapermillExecutionError as error:
            message = str(error.evalue).strip().split("\n")[0]
            raise ExecutionError(
                f"{text_path.stem}: cell {error.cell_index} (In [{error.exec_count}]) failed: "
                f"{error.ename}: {message}"
            ) from error
        except (RuntimeError, KeyError, OSError) as error:  # dead kernel, time-out, no kernel
            message = str(error).strip().split("\n")[0]
            raise ExecutionError(
                f"{text_path.stem}: not executed: {type(error).__name__}: {message}"
            ) from error
        notebook: NotebookNode = nbformat.read(result, as_version=4)
        return notebook


def _write(notebook: NotebookNode, out_path: Path) -> None:
    out_path.parent.mkdir(parents=True, exist_ok=True)
    part = out_path.with_name(f".{out_path.name}.{os.getpid()}.part")
    try:
        part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        part.replace(out_path)
    finally:
        part.unlink(missing_ok=True)


def normalise(notebook: NotebookNode, name: str, stamp: Mapping[str, Any]) -> NotebookNode:
    """Keep of an executed notebook what its text, its code and its outputs say; add ``stamp``.

    Clock readings and random ids go, so two runs of one text differ in their stamp only. After a
    run with other parameters the page shows the values used: the cell with the defaults is hidden
    behind the injected one.
    """
    kernel = notebook.metadata.get("kernelspec", {})
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": kernel.get("name", "python3"),
            },
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
            KEY: dict(stamp),
        }
    )
    injected = any("injected-parameters" in _tags(cell) for cell in notebook.cells)
    for number, cell in enumerate(notebook.cells):
        tags = _tags(cell)
        if injected and "parameters" in tags:
            tags = [*tags, "remove-input"]
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)}
        )
        if tags:
            cell.metadata["tags"] = tags
        cell["id"] = f"{name}-{number:03d}".replace("_", "-")
        if cell.cell_type == "code":
            cell.outputs = _merged_streams(cell.outputs)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _merged_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of one stream: where the kernel cut it is a matter of timing."""
    merged: list[NotebookNode] = []
    for output in outputs:
        before = merged[-1] if merged else None
        if (
            before is not None
            and before.output_type == output.output_type == "stream"
            and before.name == output.name
        ):
            before.text += output.text
        else:
            merged.append(output)
    return merged


def default_parameters(text_path: Path) -> dict[str, Any]:
    """Return the names and values of the chapter's cell tagged ``parameters``."""
    found: dict[str, Any] = {}
    for cell in _code_cells(text_path):
        if "parameters" not in _tags(cell):
            continue
        for node in ast.parse(cell.source).body:
            targets: list[ast.expr] = []
            if isinstance(node, ast.Assign):
                targets = node.targets
            elif isinstance(node, ast.AnnAssign):
                targets = [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = _literal(node.value)
    return found


def _literal(value: ast.expr) -> Any:
    """Return the value of a literal, and the source of anything else."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)


def changed_parameters(text_path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``parameters`` that differ from the defaults; refuse unknown names."""
    defaults = default_parameters(text_path)
    for name in parameters:
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ExecutionError(f"{text_path.name}: no parameter {name!r}; it has: {known}")
    return {name: value for name, value in parameters.items() if value != defaults[name]}


def inputs(text_path: Path) -> list[Path]:
    """Return the files that decide the chapter's outputs, the text itself first."""
    text_path = Path(text_path)
    root = text_path.parent.parent
    text = text_path.read_text(encoding="utf-8")
    modules = _modules(text_path)
    sources = text + "".join(path.read_text(encoding="utf-8") for path in modules)
    named = [root / name for name in DATA_FILES if Path(name).name in sources]
    records = [
        path
        for study in sorted(root.glob("book/records/*/"))
        if study.name in text
        for path in sorted(study.rglob("*"))
        if path.is_file()
    ]
    candidates = [*named, *records, root / "constraints.txt"]
    return [text_path, *modules, *(path for path in candidates if path.is_file())]


def fingerprint(text_path: Path) -> str:
    """Return a sha256 of the names and of the content that counts of all ``inputs``."""
    text_path = Path(text_path)
    root = text_path.parent.parent
    digest = hashlib.sha256()
    for path in inputs(text_path):
        base = PACKAGE.parent if path.is_relative_to(PACKAGE) else root
        content = _content(path)
        digest.update(f"{path.relative_to(base).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def why_stale(text_path: Path, notebook_path: Path) -> str:
    """Say why the stored notebook is not its text executed by today's code; "" when it is."""
    if not Path(notebook_path).is_file():
        return "never executed"
    notebook = nbformat.read(notebook_path, as_version=4)
    if pairs(jupytext.read(text_path)) != pairs(notebook):
        return "its text has changed"
    if notebook.metadata.get(KEY, {}).get("inputs") != fingerprint(text_path):
        return "the code, records or pins that it uses have changed"
    return ""


def pairs(notebook: NotebookNode) -> list[tuple[str, str, dict[str, Any]]]:
    """Return type, source and metadata of each cell: what a text and its notebook share."""
    return [
        (
            cell.cell_type,
            cell.source,
            {key: cell.metadata[key] for key in CELL_METADATA if cell.metadata.get(key)},
        )
        for cell in notebook.cells
    ]


def _code_cells(text_path: Path) -> list[NotebookNode]:
    return [cell for cell in jupytext.read(text_path).cells if cell.cell_type == "code"]


def _content(path: Path) -> bytes:
    if path.suffix == ".py":
        return normalised_source(path.read_text(encoding="utf-8")).encode()
    if path.suffix == ".md":
        return "\n\n".join(cell.source for cell in _code_cells(path)).encode()
    return path.read_bytes()


def _modules(text_path: Path) -> list[Path]:
    """Return the package's modules that the chapter's cells import, transitively, sorted."""
    graph = _graph()
    reached: set[str] = set()
    for name in _imported_names(text_path):
        parts = name.split(".")
        # importing a.b.c runs a, a.b and, where it is a module, a.b.c
        chain = {".".join(parts[:end]) for end in range(1, len(parts) + 1)} & graph.modules
        for module in chain:
            reached |= {module} | graph.find_upstream_modules(module)
    # the same for what the modules import: their parent packages run first
    reached |= {
        ".".join(module.split(".")[:end])
        for module in reached
        for end in range(1, module.count(".") + 1)
    }
    return sorted(map(_module_file, reached))


def _imported_names(text_path: Path) -> set[str]:
    """Return the dotted names of this package that the chapter's code cells import."""
    names: set[str] = set()
    for cell in _code_cells(text_path):
        plain = [line for line in cell.source.splitlines() if line.lstrip()[:1] not in ("%", "!")]
        try:
            tree = ast.parse("\n".join(plain))
        except SyntaxError:
            continue  # running the chapter will name the cell and the error
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == PACKAGE.name}


@functools.cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph(PACKAGE.name, exclude_type_checking_imports=True, cache_dir=None)


def _module_file(module: str) -> Path:
    stem = PACKAGE.joinpath(*module.split(".")[1:])
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


def _environment() -> dict[str, str]:
    """Return what a reader needs to judge a difference in the last digits."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        **{part: str(records.environment()[part]) for part in ("processor", "instructions")},
    }
    for package in ("torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def parse_value(text: str) -> Any:
    """Read a parameter from the shell: a Python literal, or else the word itself.

    >>> parse_value("3"), parse_value("mnist"), parse_value("1e-3"), parse_value("true")
    (3, 'mnist', 0.001, True)
    """
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "-p", "parameters", type=(str, str), multiple=True, help="Parameter: its name and its value."
)
def main(text: Path, out: Path, parameters: tuple[tuple[str, str], ...]) -> None:
    """Run the chapter TEXT (MyST) and write the executed notebook OUT."""
    try:
        execute(text, out, {name: parse_value(value) for name, value in parameters})
    except ExecutionError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
