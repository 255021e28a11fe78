"""Figures of the chapter on batch normalisation and residual connections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from losslandscape.report.architecture import VARIANTS
from losslandscape.report.figures.style import ORDERS, REFERENCE, legend_above, panels, plain_ticks
from losslandscape.report.statistics import t_interval

KINDS = {"plain": "plain", "bn": "BN", "residual": "residual", "both": "both"}
_LOOKS: Mapping[str, Any] = dict(
    zip(KINDS, (*ORDERS, {"color": "#CC79A7", "marker": "D", "linestyle": ":"}), strict=True)
)


def decay(runs: Mapping[str, Mapping[str, Sequence[float]]], labels: Mapping[str, str]) -> Figure:
    """Quantities along training runs, one panel below the other.

    Args:
        runs: Per run ``step`` and the quantities of ``labels``, ``(m,)`` each.
        labels: Quantity -> label of its axis.
    """
    figure, axes = panels(len(labels), 1, height=1.7 * len(labels) + 0.4, sharex=True)
    for axis, (quantity, label) in zip(axes, labels.items(), strict=True):
        for (name, run), look in zip(runs.items(), ORDERS, strict=False):
            axis.plot(run["step"], run[quantity], **look, label=name)
        axis.set_ylabel(label)
        axis.set_ylim(0, 1.08 * max(max(run[quantity]) for run in runs.values()))
    axes[-1].set_xlabel("step")
    legend_above(figure, axes[0])
    return figure


def start(rows: Mapping[str, Mapping[int, tuple[float, float]]]) -> Figure:
    """Curvature before training and loss after some steps, over the depth.

    Args:
        rows: Per kind and number of convolutions, lambda_max before and loss after.
    """
    figure, (before, after) = panels(1, 2, height=3.0)
    for kind, found in rows.items():
        depths = list(found)
        for axis, place in ((before, 0), (after, 1)):
            numbers = [pair[place] for pair in found.values()]
            axis.loglog(depths, numbers, **_LOOKS[kind], label=KINDS[kind])
    for axis in (before, after):
        depths = list(next(iter(rows.values())))
        axis.set_xticks(depths, labels=[str(depth) for depth in depths])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("convolutions")
        _plain_numbers(axis)
    before.set_ylabel(r"$\lambda_{\max}$ before, relative")
    after.set_ylabel("training loss after, nats")
    _legend(figure, before)
    return figure


def lines(
    positions: Mapping[str, Sequence[float]], curves: Mapping[str, Mapping[str, Any]]
) -> Figure:
    """The loss along random lines through networks, one panel for each kind of direction.

    Args:
        positions: Per panel ``(m,)`` coordinates.
        curves: Per panel and kind ``(lines, m)`` losses; their median is drawn.
    """
    figure, axes = panels(1, len(curves), height=2.9, sharey=True, squeeze=False)
    for axis, (title, found) in zip(axes[0], curves.items(), strict=True):
        for kind, losses in found.items():
            look = {**_LOOKS[kind], "marker": ""}
            axis.semilogy(positions[title], np.median(losses, axis=0), **look, label=KINDS[kind])
        axis.set_xlabel(title, fontsize=8)
        _plain_numbers(axis)
    axes[0, 0].set_ylabel("$L$, nats")
    _legend(figure, axes[0, 0])
    return figure


def side_by_side(found: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]) -> Figure:
    """One panel per measure: all runs of each kind, with a bar at their geometric mean.

    Args:
        found: Per measure, kind and number of convolutions the values of the runs.
    """
    figure, axes = panels(1, len(found), height=3.2, squeeze=False)
    for axis, (title, kinds) in zip(axes[0], found.items(), strict=True):
        depths = sorted({depth for of_depth in kinds.values() for depth in of_depth})
        for depth, look, shift in zip(depths, ORDERS, (-0.18, 0.18, 0.0), strict=False):
            label = f"{depth} convolutions"
            for place, kind in enumerate(KINDS):
                values = kinds.get(kind, {}).get(depth, [])
                if not values:
                    continue
                middle, colour = math.exp(np.mean(np.log(values))), look["color"]
                bar: Any = {"color": colour, "linewidth": 1.2, "marker": ""}
                axis.semilogy([place + shift - 0.15, place + shift + 0.15], [middle] * 2, **bar)
                dots: Any = {"color": colour, "marker": look["marker"], "markersize": 4}
                places = [place + shift] * len(values)
                axis.semilogy(places, values, linestyle="", **dots, label=label)
                label = ""
        axis.set_xticks(range(len(KINDS)), labels=list(KINDS.values()), rotation=40, fontsize=8)
        axis.set_title(title, fontsize=8)
        _plain_numbers(axis)
    legend_above(figure, axes[0, 0])
    return figure


def ratios(
    found: Mapping[str, Mapping[str, Mapping[tuple[int, int], float]]], threshold: float
) -> Figure:
    """How much flatter than plain networks the variants are: pairs, and intervals for their mean.

    Args:
        found: Per measure what :func:`~losslandscape.report.architecture.log_ratios` returns; an
            interval is drawn where there are two pairs or more.
        threshold: Of the ratio, drawn as a dashed line.
    """
    figure, axis = panels(height=1.0 + 0.42 * len(found) * len(VARIANTS))
    depths = sorted({d for effects in found.values() for one in effects.values() for d, _ in one})
    labels: list[str] = []
    for variant, words in VARIANTS.items():
        for measure, effects in found.items():
            place = len(labels)
            labels.append(f"{words}\n{measure}")
            values = list(effects[variant].values())
            if len(values) > 1:
                interval = t_interval(values)
                ends = [math.exp(interval.low), math.exp(interval.high)]
                axis.plot(ends, [place] * 2, color="0.6", linewidth=6, alpha=0.6)
                axis.plot(math.exp(interval.mean), place, "|", color="black", markersize=12)
            for depth, look in zip(depths, ORDERS, strict=False):
                dots = [math.exp(r) for (d, _), r in effects[variant].items() if d == depth]
                style: Any = {"color": look["color"], "marker": look["marker"], "markersize": 4}
                name = f"{depth} convolutions" if place == 0 else None
                axis.plot(dots, [place] * len(dots), linestyle="", **style, label=name)
    axis.axvline(1, **REFERENCE)
    axis.axvline(threshold, color="0.3", linestyle="--", linewidth=1.0, zorder=0)
    axis.set_xscale("log")
    axis.set_yticks(range(len(labels)), labels=labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("plain / variant (right: the variant is flatter)")
    plain_ticks(axis.xaxis)
    legend_above(figure, axis)
    return figure


def _legend(figure: Figure, axis: Any) -> None:
    """One legend above the axes, for four lines."""
    handles, labels = axis.get_legend_handles_labels()
    place: Any = {"loc": "outside upper center", "ncols": 4, "handlelength": 2.0}
    figure.legend(handles, labels, fontsize=8, frameon=False, **place)


def _plain_numbers(axis: Any) -> None:
    """Numbers like 0.5 on a logarithmic axis, and none between them."""
    low, high = axis.get_ylim()
    subs = (1, 2, 5) if high / low < 300 else (1,)
    plain_ticks(axis.yaxis, subs)
