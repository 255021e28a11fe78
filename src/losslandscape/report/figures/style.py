"""One style for every figure of the book.

Figures are drawn five inches wide with ten-point letters, so that they stay readable on a phone,
on a transparent ground, so that one picture serves light and dark pages.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 144,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


# One colour and one marker per configuration, in every chapter (colours told apart by readers with
# colour-vision deficiency; markers for print).
CONFIGURATIONS = {
    "Sharp_SGD_HighLR": {"color": "#0072B2", "marker": "o", "label": "Sharp_SGD_HighLR"},
    "Flat_SGD_LowLR": {"color": "#D55E00", "marker": "s", "label": "Flat_SGD_LowLR"},
    "Adam_Default": {"color": "#009E73", "marker": "^", "label": "Adam_Default"},
}


def panels(
    rows: int = 1, columns: int = 1, *, height: float = 3.2, **options: Any
) -> tuple[Figure, Any]:
    """Axes in the style of the book, five inches wide.

    The figure is closed for pyplot, so that a notebook shows it once, as a cell's last value.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(5.0, height), **options)
    plt.close(figure)
    return figure, axes


# Lines of one panel in this order, told apart by colour, marker and dash.
ORDERS = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
)


REFERENCE = {"color": "0.5", "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "zorder": 0}


def legend_above(figure: Figure, axes: Any) -> None:
    """One legend above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    place: Any = {"loc": "outside upper center", "ncols": 3, "handlelength": 1.2}
    figure.legend(handles, labels, fontsize=8, frameon=False, **place)


def plain_ticks(axis: Axis, subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis as plain numbers at ``subs`` times the powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
