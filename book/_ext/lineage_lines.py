"""A line under every figure and table of a chapter: what it rests on, and where that is.

The line opens: the cells that led to the numbers, what executed them, how many runs are recorded.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from sphinx.application import Sphinx

from losslandscape.lab.studies import STUDIES
from losslandscape.report import registration
from losslandscape.report.execute import KEY
from losslandscape.report.lineage import Lineage, lineage


def add_lines(app: Sphinx, doctree: nodes.document) -> None:
    """Give the code cells of an executed notebook anchors, and their results a line each."""
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    notebook = nbformat.read(path, as_version=4)
    stamp = notebook.metadata.get(KEY, {})
    cells = {
        cell["cell_index"]: cell
        for cell in doctree.findall(nodes.container)
        if cell.get("nb_element") == "cell_code"
    }
    claims = registration.load(path.parents[1] / "book")["claims"]
    judged = {claim["id"]: [d for d in claim["data"] if d in STUDIES] for claim in claims}
    for place, cell in cells.items():
        cell["ids"].append(f"cell-{place}")
    for place, cell in cells.items():
        if not any(_is_result(node) for node in cell.findall()):
            continue
        found = lineage(notebook, place, stamp.get("parameters", {}), judged)
        shown = [p for p in found.cells if p in cells and _has_input(cells[p])]
        cell.append(nodes.raw("", _line(found, shown, stamp, path.parents[1]), format="html"))


def _is_result(node: nodes.Node) -> bool:
    if isinstance(node, nodes.raw):
        return "<table" in node.astext()
    return isinstance(node, nodes.figure)


def _has_input(cell: nodes.container) -> bool:
    return any(child.get("nb_element") == "cell_code_source" for child in cell.children)


def _line(found: Lineage, cells: list[int], stamp: dict[str, Any], root: Path) -> str:
    links = ", ".join(f'<a href="#cell-{p}">{n}</a>' for n, p in enumerate(cells, start=1))
    rows = [f"Code: {'cells ' if len(cells) > 1 else 'cell '}{links}"] if cells else []
    rows += [_recorded(study, root) for study in found.studies]
    environment = stamp.get("environment", {})
    parts = [f"{name} {environment[name]}" for name in ("python", "torch") if name in environment]
    if parts:
        rows.append(f"Executed with {escape(', '.join(parts))}")
    rows.append('<a href="../book/provenance.html">All versions, machines and checksums</a>')
    items = "".join(f"<li>{row}</li>" for row in rows)
    return (
        f'<details class="lineage"><summary>{escape(str(found))}</summary>'
        f"<ul>{items}</ul></details>"
    )


def _recorded(study: str, root: Path) -> str:
    """How many of its runs are there, and the commits that made them."""
    records = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((root / "book" / "records" / study).glob("*.json"))
    ]
    commits = sorted({str(record["environment"].get("commit", "?"))[:7] for record in records})
    made = f", made at commit {', '.join(commits)}" if commits else ""
    asked = f" of {len(STUDIES[study].runs())}" if study in STUDIES else ""
    return escape(f"{study}: {len(records)}{asked} runs{made}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Read each notebook once more, when its tree is complete."""
    app.connect("doctree-read", add_lines)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
