"""Figures of the chapter on curvature at scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losslandscape.report.figures.style import ORDERS, REFERENCE, legend_above, panels

_PARTS: Mapping[str, Any] = {
    "compute": {"color": "#0072B2", "linestyle": "-"},
    "all-reduce": {"color": "#D55E00", "linestyle": "--"},
    "loader": {"color": "#009E73", "linestyle": ":"},
}


def parts(devices: Any, works: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Seconds of the parts of one product against the number of devices, a panel per network.

    Args:
        devices: ``(m,)`` numbers of devices.
        works: Per network the parts, each ``(m,)`` seconds.
    """
    rows = -(-len(works) // 2)
    figure, axes = panels(rows, 2, height=2.3 * rows + 0.4, sharex=True)
    for axis, (name, found) in zip(axes.flat, works.items(), strict=True):
        for part, look in _PARTS.items():
            axis.loglog(devices, np.where(found[part] > 0, found[part], np.nan), label=part, **look)
        axis.set_title(name, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("devices")
    for axis in axes[:, 0]:
        axis.set_ylabel("seconds per product")
    legend_above(figure, axes.flat[0])
    return figure


def prediction(rows: Mapping[str, Sequence[tuple[float, Sequence[float]]]]) -> Figure:
    """Measured against predicted seconds, with the range over the rounds.

    Args:
        rows: Per network pairs of a prediction and the measurements.
    """
    figure, axis = panels(height=3.4)
    for (name, found), look in zip(rows.items(), ORDERS, strict=False):
        x = [value for value, _ in found]
        middle = [float(np.median(times)) for _, times in found]
        low = [m - min(times) for m, (_, times) in zip(middle, found, strict=True)]
        high = [max(times) - m for m, (_, times) in zip(middle, found, strict=True)]
        style = {**look, "linestyle": "none"}
        axis.errorbar(x, middle, yerr=[low, high], capsize=2, label=name, **style)
    ends = np.array(axis.get_xlim())
    axis.plot(ends, ends, **REFERENCE)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("predicted, seconds")
    axis.set_ylabel("measured, seconds")
    legend_above(figure, axis)
    return figure


def sampling(
    sizes: Sequence[int],
    found: Sequence[Sequence[float]],
    middle: Sequence[float],
    error: Sequence[float],
    whole: float,
) -> Figure:
    """The largest eigenvalue of subsets against their size, beside what theory says of them.

    Args:
        sizes: Of the subsets.
        found: Values for each size.
        middle: Expected value for each size, to second order.
        error: Standard error for each size.
        whole: The eigenvalue on all the data.
    """
    figure, axis = panels(height=3.4)
    centre, two = np.asarray(middle), 2 * np.asarray(error)
    axis.fill_between(sizes, centre - two, centre + two, color="#0072B2", alpha=0.18, linewidth=0)
    axis.plot(sizes, centre, color="#0072B2", label="theory, with two standard errors")
    for size, values in zip(sizes, found, strict=True):
        label = "subsets" if size == sizes[0] else None
        axis.plot([size] * len(values), values, "o", color="#D55E00", ms=3, alpha=0.6, label=label)
    axis.axhline(whole, **REFERENCE)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_xlabel("examples")
    axis.set_ylabel(r"$\lambda_{\max}$ of the subset")
    legend_above(figure, axis)
    return figure
