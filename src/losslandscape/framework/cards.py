"""Findings as plain data, in a terminal and in a notebook."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import Tensor

from losslandscape.framework.findings import MEASURES, Assessment, Comparison, Measure

_NAMES = {name: words for name, (words, _) in MEASURES.items()}
_KEEPS = {"none": "no scaling", "layers": "layer scaling", "units": "unit scaling"}


def plain(found: Any) -> Any:
    """Dataclasses and tensors as dicts and lists; numbers that are not finite become None."""
    if dataclasses.is_dataclass(found):
        return {f.name: plain(getattr(found, f.name)) for f in dataclasses.fields(found)}
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [plain(value) for value in found]
    if isinstance(found, Tensor):
        return plain(found.tolist())
    if isinstance(found, float) and not math.isfinite(found):
        return None
    return found


def as_text(found: Assessment | Comparison) -> str:
    """The terminal's report without colours."""
    out = io.StringIO()
    # In a notebook rich would show the report instead of writing it.
    Console(file=out, width=88, color_system=None, force_jupyter=False).print(found)
    return out.getvalue().rstrip()


def terminal(found: Assessment) -> Panel:
    """A short report for :func:`rich.print`."""
    gate = Table.grid(padding=(0, 2))
    for check in found.checks:
        mark = {True: "pass", False: "FAIL", None: "-"}[check.passed]
        gate.add_row(mark, check.name, check.text)
    table = Table("measure", "value", "95 % interval", "unchanged by", box=None)
    for name, m in found.measures.items():
        table.add_row(_NAMES[name], *_numbers(m), _keeps(found, m))
    parts: list[Any] = [Text(found.reasons[0]), Text(""), gate, Text(""), table, Text("")]
    parts += [Text(found.stability.text), Text(found.orbit.text), Text(_losses(found))]
    parts += [Text(f"note: {note}") for note in found.notes]
    parts.append(Text(_cost(found), style="dim"))
    return Panel(Group(*parts), title=f"verdict: {found.verdict}", title_align="left")


def terminal_comparison(found: Comparison) -> Panel:
    """A short report for :func:`rich.print`."""
    table = Table("measure", "a / b", "95 % interval", "flatter", box=None)
    for name, c in found.contrasts.items():
        table.add_row(_NAMES[name], *_ratio(c), c.vote or "undecided")
    parts: list[Any] = [*(Text(reason) for reason in found.reasons), Text(""), table]
    return Panel(Group(*parts), title=f"verdict: {found.verdict}", title_align="left")


def html(found: Assessment) -> str:
    """A card for notebooks; it takes colours and fonts of the page."""
    gate = _table(
        ("result", "condition of the gate", "finding"),
        [
            ({True: "pass", False: "fail", None: "no level"}[c.passed], c.name, c.text)
            for c in found.checks
        ],
    )
    rows = [(_NAMES[name], *_numbers(m), _keeps(found, m)) for name, m in found.measures.items()]
    measures = _table(("measure", "value", "95 % interval", "unchanged by"), rows)
    lines = [found.stability.text, found.orbit.text, _losses(found)]
    lines += [f"Note: {note}" for note in found.notes]
    lines.append(_cost(found))
    body = gate + measures + "".join(f"<p>{escape(line)}</p>" for line in lines)
    return _card(found.verdict, found.reasons[0], body)


def html_comparison(found: Comparison) -> str:
    """A card for notebooks."""
    rows = [
        (_NAMES[name], *_ratio(c), c.vote or "undecided") for name, c in found.contrasts.items()
    ]
    table = _table(("measure", "a / b", "95 % interval", "flatter"), rows)
    more = "".join(f"<p>{escape(reason)}</p>" for reason in found.reasons[1:])
    return _card(found.verdict, found.reasons[0] if found.reasons else "", table + more)


def _numbers(measure: Measure) -> tuple[str, str]:
    """Value and interval; some ratios have none, such as the isotropy of a zero matrix."""
    if not math.isfinite(measure.value):
        return "undefined", ""
    ends = (measure.low, measure.high)
    return f"{measure.value:.4g}", f"{ends[0]:.3g} to {ends[1]:.3g}" if all(
        map(math.isfinite, ends)
    ) else "undefined"


def _keeps(found: Assessment, measure: Measure) -> str:
    """What leaves a measure alone; of no use where the network has no rescalings that are known."""
    if measure.invariant != "none" and found.orbit.survives is None:
        return "not checked"
    return _KEEPS[measure.invariant]


def _ratio(contrast: Any) -> tuple[str, str]:
    low, high = math.exp(contrast.low), math.exp(contrast.high)
    return f"{math.exp(contrast.log_ratio):.3g}", f"{low:.3g} to {high:.3g}"


def _losses(found: Assessment) -> str:
    text = f"training loss {found.train_loss:.4g}"
    if found.val_loss is not None:
        gap = found.val_loss - found.train_loss
        text += f", validation loss {found.val_loss:.4g} (gap {gap:.3g}, not used)"
    text += f"; gradient norm {found.gradient_norm:.3g}"
    if found.penalty_norm:
        text += f", of which a weight penalty could balance {found.penalty_norm:.3g}"
    return text


def _cost(found: Assessment) -> str:
    return (
        f"{found.parameters:,} parameters, {found.examples:,} training examples, curvature on "
        f"{found.hessian_examples:,}; {found.products} products, {found.seconds:.0f} s"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    style = 'style="text-align:left;padding:0.15em 0.6em;vertical-align:top"'
    columns = "".join(f'<th scope="col" {style}>{escape(h)}</th>' for h in head)
    lines = "".join(
        "<tr>" + "".join(f"<td {style}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        '<div style="overflow-x:auto;margin-bottom:1em" tabindex="0"><table class="dataframe">'
        f"<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _card(verdict: str, reason: str, body: str) -> str:
    return (
        '<div style="border:1px solid currentColor;border-radius:6px;padding:0.5em 1em">'
        f"<p><strong>Verdict: {escape(verdict)}</strong></p><p>{escape(reason)}</p>{body}</div>"
    )
