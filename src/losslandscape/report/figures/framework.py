"""Figures of the chapter on the refined framework."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from losslandscape.framework import VOTING, Comparison, Thresholds
from losslandscape.report.figures.style import ORDERS, REFERENCE, legend_above, panels, plain_ticks

INK, QUIET = "black", "0.45"
SHORT = {
    "adaptive_lambda_max": r"$\lambda_{\max}$ of $|w| H |w|$",
    "adaptive_trace": r"trace of $|w| H |w|$",
    "fisher_rao": "Fisher-Rao norm",
    "relative_flatness": "relative flatness",
}
_WIDE, _EXIT = (0.0, 3.3), (3.65, 1.35)  # left edge and width of the two columns, inches


def decision(limits: Thresholds) -> Figure:
    """The four stages as a flow chart: conditions on the left, ways out on the right.

    Args:
        limits: The thresholds that stand in the boxes; ``loss`` and ``fall`` must be set.

    Raises:
        ValueError: A threshold that the chart shows is not set.
    """
    if limits.loss is None or limits.fall is None:
        raise ValueError("the chart shows both levels: set loss and fall of the thresholds")
    gate = "1  Gate, on the balanced network"
    stages = (
        ("Trained network, loss, training data", "", ""),
        (
            gate,
            f"fit: $L_S \\leq {limits.loss:g}$\n"
            f"polish: $L_S$ falls by less than {limits.fall:g}\n"
            f"settled: $\\lambda_{{\\max}}$ changes less than {math.exp(limits.log_ratio):g}-fold",
            "not-a-\nminimum",
        ),
        (
            gate,
            f"index: $\\lambda_{{\\min}} \\geq -{limits.index:g}\\,\\lambda_{{\\max}}$",
            "saddle-like",
        ),
        (
            "2  Absolute sharpness",
            f"$\\lambda_{{\\max}}$, trace; share of the\nstability limit below {limits.edge:g}",
            "lr-limited",
        ),
        (
            "3  Relative flatness, isotropy",
            "four measures with intervals,\nand the participation ratio",
            "",
        ),
        (
            "4  Verdict: comparable",
            f"orbit check: random rescalings move\nno measure by more than {limits.moved:.0%}",
            "",
        ),
        (
            "Compare two comparable networks",
            f"$L_S$ within {limits.matched:.0%} of a common value;\n"
            f"{limits.votes} of {len(VOTING)} votes, none against",
            "undecided",
        ),
        ("Verdict: a-flatter or b-flatter", "", ""),
    )
    heights = [
        0.3 + (0.07 + 0.18 * len(words.splitlines())) * bool(words) for _, words, _ in stages
    ]
    gap = 0.28
    total = sum(heights) + gap * (len(stages) - 1)
    figure, axis = panels(height=total + 0.1)
    axis.set(xlim=(-0.03, 5.03), ylim=(-0.05, total + 0.05), aspect="equal")
    axis.axis("off")
    top = total
    for place, ((title, words, way_out), height) in enumerate(zip(stages, heights, strict=True)):
        bottom = top - height
        _box(axis, _WIDE, bottom, height, dashed=False)
        left = _WIDE[0] + 0.1
        axis.text(left, top - 0.15, title, va="center", fontsize=9.5, fontweight="bold", color=INK)
        for line, text in enumerate(words.splitlines()):
            axis.text(left, top - 0.365 - 0.18 * line, text, va="center", fontsize=9.5, color=INK)
        if place:
            before = "yes" if stages[place - 1][2] else ""
            _arrow(axis, (0.5, top + gap), (0.5, top), before)
        if way_out:
            middle = bottom + height / 2
            _box(axis, _EXIT, middle - 0.22, 0.44, dashed=True)
            centre = _EXIT[0] + _EXIT[1] / 2
            axis.text(centre, middle, way_out, ha="center", va="center", fontsize=9.5, color=INK)
            _arrow(axis, (sum(_WIDE), middle), (_EXIT[0], middle), "no")
        top = bottom - gap
    return figure


def _box(
    axis: Any, column: tuple[float, float], bottom: float, height: float, *, dashed: bool
) -> None:
    left, width = column
    look: dict[str, Any] = {"linestyle": "--"} if dashed else {}
    axis.add_patch(
        FancyBboxPatch(
            (left, bottom),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor="none",
            edgecolor=ORDERS[1]["color"] if dashed else ORDERS[0]["color"],
            linewidth=1.2,
            **look,
        )
    )


def _arrow(axis: Any, start: tuple[float, float], end: tuple[float, float], word: str) -> None:
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0}
    )
    if word and start[0] == end[0]:
        axis.text(start[0] + 0.08, (start[1] + end[1]) / 2, word, va="center", fontsize=9)
    elif word:
        axis.text((start[0] + end[0]) / 2, start[1] + 0.04, word, ha="center", fontsize=9)


def gate_along(paths: Mapping[str, Sequence[Mapping[str, float]]], limits: Thresholds) -> Figure:
    """What the polish test finds along training runs, over the training loss reached.

    Args:
        paths: Per run its moments, each with ``train_loss``, ``fall`` and ``log_ratio``.
        limits: Thresholds drawn as dotted lines; ``fall`` must be set.
    """
    figure, (upper, lower) = panels(2, 1, height=4.4, sharex=True)
    for (name, moments), look in zip(paths.items(), ORDERS, strict=False):
        losses = [moment["train_loss"] for moment in moments]
        upper.loglog(losses, [moment["fall"] for moment in moments], **look, label=name)
        lower.semilogx(losses, [moment["log_ratio"] for moment in moments], **look)
    every = [moment["train_loss"] for moments in paths.values() for moment in moments]
    ends = [min(every), max(every)]
    upper.loglog(ends, ends, color=QUIET, linewidth=0.8)
    upper.text(
        *(0.98, 0.88, "thin line: all of $L_S$, the most that can fall"),
        transform=upper.transAxes,
        fontsize=8,
        ha="right",
    )
    upper.axhline(limits.fall, **REFERENCE)
    lower.axhline(limits.log_ratio, **REFERENCE)
    lower.set_ylim(bottom=0)
    upper.set_ylabel("fall of $L_S$, nats")
    lower.set_ylabel(r"$|\ln$ ratio of $\lambda_{\max}|$")
    lower.set_xlabel("training loss $L_S$ before the polish, nats (training goes right)")
    upper.invert_xaxis()
    ticks = (0.2, 0.1, 0.05, 0.02, 0.01)
    lower.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    lower.minorticks_off()
    legend_above(figure, upper)
    return figure


def votes(comparisons: Mapping[str, Comparison], limits: Thresholds) -> Figure:
    """Ratios of the voting measures of two networks, one panel for each pair.

    Args:
        comparisons: Per pair what :func:`~losslandscape.framework.compare` found.
        limits: Their tolerance is the band around 1.
    """
    figure, axes = panels(
        len(comparisons), 1, height=0.5 + 1.25 * len(comparisons), sharex=True, squeeze=False
    )
    for axis, (title, found) in zip(axes[:, 0], comparisons.items(), strict=True):
        for place, name in enumerate(reversed(VOTING)):
            contrast = found.contrasts[name]
            look = ORDERS[0] if contrast.vote else ORDERS[1]
            ends = [math.exp(contrast.low), math.exp(contrast.high)]
            axis.plot(ends, [place, place], "-", color=look["color"], solid_capstyle="butt")
            axis.plot(
                math.exp(contrast.log_ratio),
                place,
                "o" if contrast.vote else "s",
                color=look["color"],
                markerfacecolor=look["color"] if contrast.vote else "white",
            )
        axis.axvspan(1 / (1 + limits.moved), 1 + limits.moved, color="0.5", alpha=0.5, linewidth=0)
        axis.set_yticks(range(len(VOTING)), labels=[SHORT[name] for name in reversed(VOTING)])
        axis.set_ylim(-0.6, len(VOTING) - 0.4)
        axis.set_title(f"{title}: {found.verdict}", fontsize=8.5, loc="left")
        axis.set_xscale("log")
        plain_ticks(axis.xaxis)
    axes[-1, 0].set_xlabel("measure of a / measure of b")
    return figure
