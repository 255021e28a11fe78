"""What a figure or table of a chapter rests on, read off the code that led to it.

The statements of the chapter are followed backwards by the names they read and bind: a slice in
the sense of Weiser, *Program slicing*, ICSE 1981. A statement too many may be in it, hardly one too
few.
"""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from nbformat import NotebookNode

from losslandscape.lab.studies import STUDIES
from losslandscape.report import (
    claims,
    falsifiers,
    live_claims,
    running,
    sweep,
    sweep_claims,
    tables,
)

_READERS = {
    module.__name__.rpartition(".")[2]: module
    for module in (claims, falsifiers, live_claims, sweep, sweep_claims, tables)
}
_RECORDED = (*STUDIES, running.STUDY)
_CHANGING = ("append", "add", "extend", "update", "setdefault")
_SHOWING = ("print", "glue", "put", "display")


@dataclass(frozen=True)
class Lineage:
    """What one cell rests on.

    Attributes:
        cells: Positions of the code cells that led to it, in order, itself last; cells that only
            import are left out.
        studies: Names of the recorded studies that these read.
        datasets: Data sets that are loaded and computed on when the chapter is executed.
        parameters: Those parameters of the chapter that matter, with their values.
    """

    cells: tuple[int, ...]
    studies: tuple[str, ...]
    datasets: tuple[str, ...]
    parameters: Mapping[str, Any]

    def __str__(self) -> str:
        found = []
        if self.studies:
            found.append("recorded: " + ", ".join(self.studies))
        if self.datasets:
            settings = [f"{k} = {v}" for k, v in self.parameters.items() if k != "dataset"]
            inside = f" ({', '.join(settings)})" if settings else ""
            found.append("live: " + ", ".join(self.datasets) + inside)
        words = "; ".join(found) or "computed here, without a data set"
        return words[0].upper() + words[1:]


def lineage(
    notebook: NotebookNode,
    index: int,
    parameters: Mapping[str, Any],
    judged: Mapping[str, Sequence[str]] | None = None,
) -> Lineage:
    """What the code cell at ``index`` rests on.

    Args:
        notebook: The chapter.
        index: Position among all its cells.
        parameters: The values it was executed with.
        judged: Per claim the data that its rule reads, as registered.
    """
    chosen: list[_Statement] = []
    wanted: set[str] = set()
    for one in reversed(list(_statements(notebook, index))):
        if one.cell == index or (one.bound | one.changed) & wanted:
            chosen.append(one)
            wanted = (wanted - one.bound if one.surely else wanted) | one.used
    nodes = [node for one in chosen for node in ast.walk(one.node)]
    names = {name for one in chosen for name in one.used}
    return Lineage(
        tuple(sorted({one.cell for one in chosen})),
        tuple(name for name in _RECORDED if name in set(_studies(nodes, judged or {}))),
        tuple(dict.fromkeys(_datasets(nodes, parameters))),
        {name: value for name, value in parameters.items() if name in names},
    )


@dataclass(frozen=True)
class _Statement:
    """A statement of a cell that is no import.

    Attributes:
        cell: Position of the cell.
        node: The statement.
        used, bound: Names of the chapter that it reads and binds.
        changed: Names whose objects it may change.
        surely: Whether it binds its names on every path.
    """

    cell: int
    node: ast.stmt
    used: frozenset[str]
    bound: frozenset[str]
    changed: frozenset[str]
    surely: bool


def _statements(notebook: NotebookNode, last: int) -> Iterator[_Statement]:
    for place, cell in enumerate(notebook.cells[: last + 1]):
        if cell.cell_type != "code":
            continue
        for node in ast.parse(cell.source).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            code = compile(ast.Module([node], []), "cell", "exec")
            reads, binds = _names(code)
            yield _Statement(
                place,
                node,
                frozenset(reads),
                frozenset(binds),
                frozenset(_changed(node)),
                not isinstance(node, (ast.If, ast.Try, ast.While)),
            )


def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """Names of the chapter that a statement reads before it binds them, and those it binds."""
    reads, binds = set[str](), set[str]()
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            binds.add(step.argval)
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and step.argval not in binds:
            reads.add(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            reads |= _names(inner)[0] - binds
    return reads, binds


def _changed(statement: ast.stmt) -> Iterator[str]:
    """Names whose objects are changed: an entry is set, a method changes it, a call gets it."""
    for node in ast.walk(statement):
        if isinstance(node, (ast.Subscript, ast.Attribute)) and (
            isinstance(node.ctx, ast.Store)
            or (isinstance(node, ast.Attribute) and node.attr in _CHANGING)
        ):
            yield from _root(node.value)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        if not (isinstance(call.func, ast.Name) and call.func.id in _SHOWING):
            for argument in call.args:
                yield from _root(argument)


def _root(node: ast.expr) -> Iterator[str]:
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id


def _studies(nodes: Sequence[ast.AST], judged: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Studies that are named, or that a function of ours which is called names, or a rule reads."""
    judges = any(isinstance(node, ast.Call) and _called(node) == "judge" for node in nodes)
    described = {
        id(argument)
        for node in nodes
        if isinstance(node, ast.Call) and _called(node) == "find_study"
        for argument in node.args
    }  # its recipes or settings are read, not its records
    for node in nodes:
        if isinstance(node, ast.Constant) and node.value in STUDIES and id(node) not in described:
            yield str(node.value)
        if judges and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from judged.get(node.value, ())
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) == ("running", "recorded"):
                yield running.STUDY
            function = getattr(_READERS.get(node.value.id), node.attr, None)
            if inspect.isfunction(function):
                source = ast.parse(textwrap.dedent(inspect.getsource(function)))
                constants = [n for n in ast.walk(source) if isinstance(n, ast.Constant)]
                yield from _studies(constants, {})
                named = {n.id for n in ast.walk(source) if isinstance(n, ast.Name)}
                found = [function.__globals__.get(name) for name in sorted(named)]
                yield from (text for text in found if isinstance(text, str) and text in STUDIES)


def _datasets(nodes: Sequence[ast.AST], parameters: Mapping[str, Any]) -> Iterator[str]:
    """Data sets given to ``load_dataset``, by name or by a parameter of the chapter."""
    for node in nodes:
        if isinstance(node, ast.Call) and node.args and _called(node) == "load_dataset":
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)
            elif isinstance(argument, ast.Name) and argument.id in parameters:
                yield str(parameters[argument.id])
            else:
                yield "data"


def _called(call: ast.Call) -> str:
    """The last part of the name of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""
