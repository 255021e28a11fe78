"""Figures of the chapter on slices of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from losslandscape.report.figures.style import (
    CONFIGURATIONS,
    ORDERS,
    REFERENCE,
    legend_above,
    panels,
)

DASHES = {"Sharp_SGD_HighLR": "-", "Flat_SGD_LowLR": "--", "Adam_Default": "-."}
# Dark where the loss is low, in grey-scale too; the rest of the page shines through nowhere.
COLOURS = "Blues_r"
TWICE: Any = {"colors": "#D55E00", "linewidths": 1.6}


def sections(
    positions: Mapping[str, Sequence[float]], curves: Mapping[str, Mapping[str, Sequence[float]]]
) -> Figure:
    """The loss along lines, one panel for each way to choose them.

    Args:
        positions: Per panel ``(m,)`` coordinates on the line.
        curves: Per panel and name ``(m,)`` losses.
    """
    figure, axes = panels(1, len(curves), height=2.9, sharey=True, squeeze=False)
    for axis, (title, lines) in zip(axes[0], curves.items(), strict=True):
        for (name, losses), order in zip(lines.items(), ORDERS, strict=False):
            known = CONFIGURATIONS.get(name, {})
            look = {**order, "marker": "", "color": known.get("color", order["color"])}
            axis.semilogy(positions[title], losses, **look, label=name)
        axis.set_xlabel(title, fontsize=8)
    axes[0, 0].set_ylabel("$L$, nats")
    legend_above(figure, axes[0, 0])
    return figure


def planes(views: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Contours of the loss around end points, one row per network, one column per plane.

    Args:
        views: Per network and plane ``axes`` (two lists), ``loss`` ``[i][j]`` and ``base``, the
            loss of the end point; the line is at twice that.
    """
    columns = list(next(iter(views.values())))
    figure, axes = panels(len(views), len(columns), height=1.45 * len(views), squeeze=False)
    every = [np.array(v["loss"]) for row in views.values() for v in row.values()]
    norm = LogNorm(min(g.min() for g in every), max(g.max() for g in every))
    for row, (network, kinds) in zip(axes, views.items(), strict=True):
        for axis, (kind, view) in zip(row, kinds.items(), strict=True):
            filled = _filled(axis, view, norm)
            axis.plot(0, 0, "o", color="#D55E00", markersize=3)
            axis.set_aspect("equal")
            if network == list(views)[-1]:
                axis.set_xlabel(kind, fontsize=8)
            else:
                axis.set_xticklabels([])
            if kind != columns[0]:
                axis.set_yticklabels([])
        row[0].set_ylabel(network, fontsize=7)
    _scale(figure, filled, axes, shrink=0.6, aspect=30)
    return figure


def plane_of_points(view: Mapping[str, Any], points: Mapping[str, Sequence[float]]) -> Figure:
    """Contours of the loss in the plane through some points.

    Args:
        view: ``axes``, ``loss`` and ``base`` as for :func:`planes`.
        points: Per name the two coordinates.
    """
    figure, axis = panels(height=4.0)
    grid = np.array(view["loss"])
    filled = _filled(axis, view, LogNorm(grid.min(), grid.max()))
    for name, (x, y) in points.items():
        known = CONFIGURATIONS.get(name, {"marker": "o", "color": "black"})
        look: Any = {"color": known["color"], "markeredgecolor": "white", "markersize": 9}
        axis.plot(x, y, known["marker"], linestyle="", label=name, **look)
    legend_above(figure, axis)
    axis.set(aspect="equal", xlabel="distance in weight space", ylabel="distance")
    _scale(figure, filled, axis, shrink=0.8)
    return figure


def paths(positions: Sequence[float], found: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """The loss along straight and bent paths, one panel per pair of end points.

    Args:
        positions: ``(m,)`` values of ``t`` from 0 to 1.
        found: Per panel ``straight`` and ``bent``, ``(m,)`` each.
    """
    columns = 2 if len(found) == 4 else min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = panels(
        rows, columns, height=0.5 + 2.1 * rows, sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, (title, curves) in zip(axes.flat, found.items(), strict=False):
        for (name, losses), look in zip(curves.items(), ORDERS, strict=False):
            axis.semilogy(positions, losses, **{**look, "marker": ""}, label=name)
        axis.set_title(title, fontsize=8)
    # Four plain numbers: between two powers of ten a logarithmic axis would show none or one.
    every = [loss for curves in found.values() for losses in curves.values() for loss in losses]
    ticks = np.geomspace(min(every), max(every), 4)
    axes[0, 0].set_yticks(
        ticks, labels=[f"{tick:.2g}" if tick < 100 else f"{tick:.0f}" for tick in ticks]
    )
    axes[0, 0].minorticks_off()
    axes[0, 0].set_xticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    for axis in axes[-1]:
        axis.set_xlabel("$t$")
    for axis in axes[:, 0]:
        axis.set_ylabel("$L$, nats")
    legend_above(figure, axes[0, 0])
    return figure


def trajectory(view: Mapping[str, Any]) -> Figure:
    """A trajectory in the plane of its two main components, and what the plane leaves out.

    Args:
        view: ``axes``, ``loss``, ``base``, ``coordinates`` (m, 2) and ``pairs``, ``(m, 2)`` losses
            at the checkpoints and at their projections.
    """
    figure, (left, right) = panels(1, 2, height=2.9)
    grid, pairs = np.array(view["loss"]), np.array(view["pairs"])
    _filled(left, view, LogNorm(grid.min(), grid.max()))
    x, y = np.array(view["coordinates"]).T
    left.plot(x, y, "-", color="#D55E00", linewidth=1)
    left.plot(x, y, ".", color="#D55E00", markersize=3)
    left.plot(x[:1], y[:1], "s", color="white", markeredgecolor="black", markersize=6)
    left.plot(x[-1:], y[-1:], "o", color="white", markeredgecolor="black", markersize=6)
    left.set(aspect="equal", xlabel="first component", ylabel="second")
    names = ("at the checkpoint", "at its projection")
    for column, name, look in zip(pairs.T, names, ORDERS, strict=False):
        right.semilogy(column, **{**look, "marker": ""}, label=name)
    right.set(xlabel="checkpoint", ylabel="$L$, nats")
    right.axvline(len(pairs) - 1, **REFERENCE)
    legend_above(figure, right)
    return figure


def _scale(figure: Figure, filled: Any, axes: Any, **look: Any) -> None:
    """A colour bar with four plain numbers; its own logarithmic ticks may leave a single one."""
    bar = figure.colorbar(filled, ax=axes, **look)
    ticks = np.geomspace(filled.norm.vmin, filled.norm.vmax, 4)
    bar.set_ticks(
        list(ticks), labels=[f"{tick:.2g}" if tick < 100 else f"{tick:.0f}" for tick in ticks]
    )
    bar.minorticks_off()
    bar.set_label("$L$, nats")


def _filled(axis: Any, view: Mapping[str, Any], norm: LogNorm) -> Any:
    """Filled contours at equal ratios, and the line at twice the base."""
    first, second = (np.array(one) for one in view["axes"])
    grid = np.array(view["loss"]).T  # matplotlib wants [row][column] = [second][first]
    low, high = float(norm.vmin or grid.min()), float(norm.vmax or grid.max())
    levels = np.geomspace(low, high, 16)
    levels[[0, -1]] = low * (1 - 1e-9), high * (1 + 1e-9)
    filled = axis.contourf(first, second, grid, levels=levels, norm=norm, cmap=COLOURS)
    filled.set_edgecolor("face")
    if "base" in view:
        axis.contour(first, second, grid, levels=[2 * view["base"]], **TWICE)
    axis.grid(False)
    axis.tick_params(labelsize=7)
    return filled
