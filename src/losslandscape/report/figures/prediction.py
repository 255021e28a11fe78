"""Figures of the chapter on what measures of flatness say about the gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from losslandscape.lab.experiments.validation import SweepRecipe
from losslandscape.report.figures.style import ORDERS, REFERENCE, legend_above, panels, plain_ticks
from losslandscape.report.statistics import Interval
from losslandscape.report.sweep import (
    AXES,
    AXIS_NAMES,
    Array,
    Power,
    Sweep,
    axis_pairs,
    kendall_tau,
)

_SHADES = colormaps["viridis"]  # its last part is too light on white
_ARMS = {"clean": ORDERS[0], "noisy": ORDERS[1]}


def along_training(stops: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Gap against sharpness of several networks, each at a few training losses.

    Args:
        stops: Per network its stops, the same number for all, each with ``level`` (the training
            loss aimed at), ``lambda_max`` and ``gap``.
    """
    figure, axis = panels(height=3.6)
    for path in stops.values():
        points = ([stop[name] for stop in path] for name in ("lambda_max", "gap"))
        axis.plot(*points, color="0.6", linewidth=0.8, zorder=1)
    for look, together in zip(ORDERS, zip(*stops.values(), strict=True), strict=False):
        axis.plot(
            [stop["lambda_max"] for stop in together],
            [stop["gap"] for stop in together],
            color=look["color"],
            marker=look["marker"],
            linestyle="",
            label=f"$L_S \\approx$ {together[0]['level']:g}",
        )
    _log_axis(axis)
    axis.set_xlabel(r"$\lambda_{\max}$, nats/weight$^2$")
    axis.set_ylabel("gap, nats")
    legend_above(figure, axis)
    return figure


def design(runs: Mapping[tuple[SweepRecipe, int], str]) -> Figure:
    """The grid of the sweep, one mark for each run.

    Args:
        runs: Per recipe and run seed ``"to come"``, ``"recorded"`` or ``"left out"``.

    Raises:
        ValueError: A word is none of the three.
    """
    if unknown := set(runs.values()) - {"to come", "recorded", "left out"}:
        raise ValueError(f"unknown state {min(unknown)!r} of a run")
    recipes = [recipe for recipe, _ in runs]
    columns = sorted({(r.optimizer != "sgd", r.lr) for r in recipes})
    rows = sorted({(-r.weight_decay, r.batch_size) for r in recipes})
    widths = sorted({recipe.channels for recipe, _ in runs})
    figure, axes = panels(1, len(widths), height=3.5, sharey=True, squeeze=False)
    for axis, channels in zip(axes[0], widths, strict=True):
        for (recipe, seed), state in runs.items():
            if recipe.channels != channels:
                continue
            look = _ARMS[recipe.arm]
            axis.plot(
                columns.index((recipe.optimizer != "sgd", recipe.lr))
                + 0.4 * (recipe.arm == "noisy")
                - 0.2,
                rows.index((-recipe.weight_decay, recipe.batch_size)) + 0.4 * seed - 0.2,
                "x" if state == "left out" else look["marker"],
                color=look["color"],
                markerfacecolor=look["color"] if state == "recorded" else "none",
                markersize=3.2,
                markeredgewidth=0.7,
            )
        axis.axvline(sum(not adam for adam, _ in columns) - 0.5, **REFERENCE)
        axis.axhline(sum(decay < 0 for decay, _ in rows) - 0.5, **REFERENCE)
        axis.set_xticks(range(len(columns)), labels=[f"{rate:g}" for _, rate in columns])
        axis.tick_params("x", rotation=90, labelsize=7.5)
        axis.set_title(f"width {channels[0]}-{channels[1]}", fontsize=9)
        axis.grid(visible=False)
    left = axes[0, 0]
    left.set_yticks(range(len(rows)), labels=[str(batch) for _, batch in rows])
    left.set_ylabel("batch size\nwith weight decay (below), without (above)", fontsize=8.5)
    axes[0, len(widths) // 2].set_xlabel("learning rate: SGD, then Adam", fontsize=9)
    states = [s for s in ("recorded", "to come", "left out") if s in runs.values()]
    for arm, look in _ARMS.items():
        for state in states:
            left.plot(
                *([], [], "x" if state == "left out" else look["marker"]),
                color=look["color"],
                markerfacecolor=look["color"] if state == "recorded" else "none",
                markersize=4,
                label=f"{arm}, {state}",
            )
    handles, labels = left.get_legend_handles_labels()
    place: Any = {"loc": "outside upper center", "ncols": len(states), "handlelength": 0.8}
    figure.legend(handles, labels, fontsize=7.5, frameon=False, columnspacing=1.0, **place)
    return figure


def pairs(sweep: Sweep, measure: str, target: str = "gap", *, label: str) -> Figure:
    """Every pair of runs that differ in one factor only, joined; one panel for each factor.

    Args:
        sweep: The runs.
        measure, target: Columns.
        label: Of the axis of the measure.
    """
    m, t = sweep[measure], sweep[target]
    figure, axes = panels(2, 2, height=4.4, sharex=True, sharey=True)
    for axis, name in zip(axes.flat, AXES, strict=True):
        found = axis_pairs(sweep, name)
        agree = found.signs(m) * found.signs(t)
        for sign, look, word in ((1, ORDERS[0], "same order"), (-1, ORDERS[1], "opposite order")):
            ends = np.array([found.first[agree == sign], found.second[agree == sign]])
            axis.plot([], [], color=look["color"], linestyle=look["linestyle"], label=word)
            axis.plot(
                m[ends], t[ends], color=look["color"], linestyle=look["linestyle"], linewidth=0.9
            )
        axis.plot(m, t, ".", color="0.35", markersize=3.5)
        psi = float(found.taus(m, t).mean())
        axis.set_title(f"only {AXIS_NAMES[name]} differs: {psi:+.2f}", fontsize=8.5, loc="left")
        _log_axis(axis)
    figure.supxlabel(label, fontsize=10)
    figure.supylabel(f"{target}, nats", fontsize=10)
    legend_above(figure, axes[0, 0])
    return figure


def clouds(arms: Mapping[str, Sweep], measures: Mapping[str, str]) -> Figure:
    """Gap against measures, all runs; colours tell learning rates, markers widths.

    Args:
        arms: What is said of an arm -> its runs.
        measures: What is said of a measure -> its column.

    Raises:
        ValueError: There are more than five widths.
    """
    figure, axes = panels(len(measures), len(arms), height=5.4, squeeze=False)
    rates, widths = (
        sorted({level for sweep in arms.values() for level in sweep[name].tolist()})
        for name in ("lr", "width")
    )
    colors = {rate: _SHADES(0.75 * nth / max(len(rates) - 1, 1)) for nth, rate in enumerate(rates)}
    markers = dict(zip(widths, "v^osD", strict=False))
    if len(markers) < len(widths):
        raise ValueError(f"there are markers for {len(markers)} widths, not for {len(widths)}")
    for row, (words, column) in zip(axes, measures.items(), strict=True):
        for axis, (arm, sweep) in zip(row, arms.items(), strict=True):
            for (rate, color), (width, marker) in product(colors.items(), markers.items()):
                chosen = (sweep["lr"] == rate) & (sweep["width"] == width)
                points = (sweep[column][chosen], sweep["gap"][chosen])
                axis.plot(*points, marker, color=color, markersize=3.5)
            _log_axis(axis)
            axis.set_title(arm, fontsize=9)
            axis.set_xlabel(words, fontsize=9)
        row[0].set_ylabel("gap, nats")
    keys = {
        **{f"learning rate {rate:g}": {"color": color, "lw": 3} for rate, color in colors.items()},
        **{
            f"width {width:g}": {"color": "0.3", "marker": marker, "lw": 0}
            for width, marker in markers.items()
        },
    }
    figure.legend(
        [Line2D([], [], **look) for look in keys.values()],
        list(keys),
        loc="outside upper center",
        ncols=4,
        fontsize=7.5,
        frameon=False,
        handlelength=1.2,
    )
    return figure


def simpson(m: Array, t: Array, group: Array) -> Figure:
    """A cloud that leans one way and whose groups lean the other way.

    Args:
        m, t: ``(N,)`` measure and target.
        group: ``(N,)`` the level of the factor; at most three levels.
    """
    figure, axis = panels(height=3.2)
    for look, level in zip(ORDERS, np.unique(group), strict=False):
        inside = group == level
        axis.plot(
            *(m[inside], t[inside], look["marker"]),
            color=look["color"],
            markersize=4,
            label=f"width {level:g}: {kendall_tau(m[inside], t[inside]):+.2f}",
        )
    axis.set_xlabel("measure")
    axis.set_ylabel("target")
    axis.set_title(f"Kendall's tau of all runs: {kendall_tau(m, t):+.2f}", fontsize=9, loc="left")
    legend_above(figure, axis)
    return figure


def power_curves(curves: Mapping[str, Sequence[Power]]) -> Figure:
    """The share of simulated sweeps that see an effect, against the effect.

    Args:
        curves: Per test its simulations, from small effects to large ones; at most three.
    """
    figure, axis = panels(height=3.3)
    for (name, found), look in zip(curves.items(), ORDERS, strict=False):
        axis.plot(
            [one.truth for one in found], [100 * one.seen for one in found], label=name, **look
        )
    axis.axhline(80, **REFERENCE)
    axis.set_ylim(-3, 103)
    axis.set_xlabel(r"true effect, $\Psi$")
    axis.set_ylabel("sweeps that see it, %")
    handles, labels = axis.get_legend_handles_labels()
    place: Any = {"loc": "outside upper center", "ncols": 1, "handlelength": 2.4}
    figure.legend(handles, labels, fontsize=8, frameon=False, **place)
    return figure


def forest(
    effects: Mapping[str, Mapping[str, Interval]], *, thresholds: Sequence[float], last: int
) -> Figure:
    """Psi of each measure with its interval, one panel for each set of runs.

    Args:
        effects: Per panel the effects by measure, the same measures in each.
        thresholds: Drawn dotted.
        last: So many at the end are baselines, drawn in another look.
    """
    names = list(next(iter(effects.values())))
    figure, axes = panels(
        1, len(effects), height=0.9 + 0.23 * len(names), sharex=True, sharey=True, squeeze=False
    )
    for axis, (title, found) in zip(axes[0], effects.items(), strict=True):
        for place, name in enumerate(reversed(names)):
            look = ORDERS[1] if place < last else ORDERS[0]
            effect = found[name]
            axis.plot(
                [effect.low, effect.high], [place] * 2, color=look["color"], solid_capstyle="butt"
            )
            axis.plot(effect.mean, place, look["marker"], color=look["color"])
        axis.axvline(0, color="0.3", linewidth=0.8)
        for threshold in thresholds:
            axis.axvline(threshold, **REFERENCE)
        axis.set_title(title, fontsize=9)
        axis.set_xlim(-1.05, 1.05)
        axis.set_xticks([-1, -0.5, 0, 0.5, 1], labels=["-1", "-.5", "0", ".5", "1"])
        axis.grid(visible=False, axis="y")
    axes[0, 0].set_yticks(range(len(names)), labels=list(reversed(names)), fontsize=8.5)
    figure.supxlabel(r"$\Psi$(measure, gap)", fontsize=10)
    return figure


def _log_axis(axis: Any) -> None:
    """A logarithmic axis over few powers of ten, with plain numbers."""
    axis.set_xscale("log")
    plain_ticks(axis.xaxis)
