"""Figures of the chapter on measures relative to the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from losslandscape.report.figures.style import (
    CONFIGURATIONS,
    REFERENCE,
    legend_above,
    panels,
    plain_ticks,
)

DASHES = {"Sharp_SGD_HighLR": "-", "Flat_SGD_LowLR": "--", "Adam_Default": "-."}
_MOVING: tuple[Any, ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
    {"color": "#CC79A7", "marker": "D", "linestyle": ":"},
)


def along_orbit(alphas: Any, moving: Mapping[str, Any], staying: Mapping[str, Any]) -> Figure:
    """Measures of one function over its rescalings, relative to the network as trained.

    Args:
        alphas: ``(m,)`` factors of a hidden layer.
        moving: Per name ``(m,)`` ratios, each a line of its own; at most four.
        staying: Per name ``(m,)`` ratios, drawn alike.
    """
    figure, axis = panels(height=3.6)
    for (name, ratios), look in zip(moving.items(), _MOVING, strict=False):
        axis.loglog(alphas, ratios, label=name, markevery=4, **look)
    for number, ratios in enumerate(staying.values()):
        label = None if number else f"{len(staying)} relative measures"
        axis.loglog(alphas, ratios, color="0.2", linewidth=2.6, label=label)
    axis.axvline(1, **REFERENCE)
    axis.set_xlabel(r"first hidden layer times $a$, weights behind it divided by $a$")
    axis.set_ylabel("relative to $a = 1$")
    handles, labels = axis.get_legend_handles_labels()
    place: Any = {"loc": "outside upper center", "ncols": 2, "handlelength": 2.4}
    figure.legend(handles, labels, fontsize=8, frameon=False, **place)
    return figure


def to_balance(steps: Any, curves: Mapping[str, tuple[Any, Any]]) -> Figure:
    """Largest eigenvalue and squared norm on the way from a network to its balanced form.

    Args:
        steps: ``(m,)`` places on the way, 0 as trained and 1 balanced.
        curves: Per configuration ``(m,)`` lambda_max and ``(m,)`` squared norms.
    """
    figure, (upper, lower) = panels(2, 1, height=4.6, sharex=True)
    for name, (curvature, squares) in curves.items():
        look = {**CONFIGURATIONS[name], "linestyle": DASHES[name], "markevery": 4}
        upper.semilogy(steps, curvature, **look)
        lower.semilogy(steps, squares, **look)
    for axis in (upper, lower):
        axis.axvline(0, **REFERENCE)
        axis.axvline(1, color="0.3", linewidth=1.2, zorder=0)
        plain_ticks(axis.yaxis)
    upper.set_ylabel(r"$\lambda_{\max}(H)$, nats/weight$^2$")
    lower.set_ylabel(r"$\|w\|^2$")
    lower.set_xlabel("share of the way, on a logarithmic scale of the weights")
    lower.set_xticks([-1, 0, 1, 2], ["-1", "0\nas trained", "1\nbalanced", "2"])
    legend_above(figure, upper)
    return figure


def against_loss(paths: Mapping[str, Mapping[str, Sequence[float]]], measures: Any) -> Figure:
    """Measures against training loss along runs of the three configurations.

    Args:
        paths: Per configuration lists over the epochs, by name; ``"training loss"`` is one.
        measures: The names to show, one panel each, with the label of its axis.
    """
    count = len(measures)
    figure, axes = panels(-(-count // 2), 2, height=2.3 * (-(-count // 2)) + 0.3, sharex=True)
    for axis, (name, label) in zip(axes.flat, measures.items(), strict=False):
        for configuration, path in paths.items():
            look = {**CONFIGURATIONS[configuration], "linestyle": DASHES[configuration]}
            axis.loglog(path["training loss"], path[name], **look)
        axis.set_ylabel(label)
        plain_ticks(axis.yaxis)
    for axis in axes[-1]:
        axis.set_xlabel("training loss, nats")
    axes[0, 0].invert_xaxis()
    legend_above(figure, axes[0, 0])
    return figure
