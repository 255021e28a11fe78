"""Figures of sharpness along training: unfinished runs, and the edge of stability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from losslandscape.report.figures.style import ORDERS, REFERENCE, panels

FLAT = "#D55E00"  # the colour of Flat_SGD_LowLR in every chapter
POLISHED = "#0072B2"


def long_run(runs: Sequence[Sequence[Mapping[str, Any]]]) -> Figure:
    """Sharpness, training loss and test error by epoch, and what one epoch of Adam changes.

    Args:
        runs: One sequence of checkpoints per seed: ``epoch``, ``lambda_max`` (with ``value``),
            ``train_loss``, ``test_accuracy``; where a copy was polished also ``polish``. Epochs
            below 0.02 are left out, for the axis is logarithmic.
    """
    figure, axes = panels(3, 1, height=5.6, sharex=True)
    sharp, loss, error = axes
    for checkpoints in runs:
        rows = [row for row in checkpoints if row["epoch"] >= 0.02]
        epochs = [row["epoch"] for row in rows]
        line: Any = {"color": FLAT, "marker": "s", "markersize": 3, "alpha": 0.8}
        sharp.plot(epochs, [row["lambda_max"]["value"] for row in rows], **line)
        loss.plot(epochs, [row["train_loss"] for row in rows], **line)
        error.plot(epochs, [100 * (1 - row["test_accuracy"]) for row in rows], **line)
        for row in rows:
            for panel, name in ((sharp, "lambda_max"), (loss, "train_loss")):
                if "polish" in row:
                    place, pair = [row["epoch"]] * 2, row["polish"][name]
                    panel.plot(place, pair, color=POLISHED, linewidth=0.8, linestyle=":")
                    panel.plot(place[1:], pair[1:], "o", color=POLISHED, mfc="none")
    sharp.set(xscale="log", yscale="log", ylabel=r"$\lambda_{\max}$")
    loss.set(yscale="log", ylabel="training loss (nats)")
    error.set(yscale="log", ylabel="test error (%)", xlabel="epoch")
    handles = [
        Line2D([], [], color=FLAT, marker="s", markersize=3, label="the run"),
        Line2D([], [], color=POLISHED, marker="o", mfc="none", linestyle=":", label="polished"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def anatomy(
    epochs: Sequence[float], sharpness: Sequence[float], uncertainty: Sequence[float]
) -> Figure:
    """lambda_max along a run as a product: uncertainty times response of the outputs."""
    figure, axes = panels(height=3.1)
    response = [value / doubt for value, doubt in zip(sharpness, uncertainty, strict=True)]
    for look, values, label in zip(
        ORDERS,
        (sharpness, response, uncertainty),
        (r"$\lambda_{\max}$", r"$\lambda_{\max}$ / uncertainty", "uncertainty"),
        strict=True,
    ):
        axes.plot(epochs, values, label=label, **look)
    axes.set(yscale="log", xlabel="epoch", ylabel="value")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def edge(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """lambda_max by step of full-batch gradient descent, with the limit of each learning rate.

    Args:
        runs: Learning rate, as it is to be printed, -> results of
            ``experiments.edge_of_stability``, one per seed; at most four learning rates.
    """
    figure, axes = panels(height=3.1)
    for look, (name, seeds) in zip(_LOOKS, runs.items(), strict=False):
        for number, run in enumerate(seeds):
            steps = [row["step"] for row in run["path"]]
            values = [row["lambda_max"]["value"] for row in run["path"]]
            label = name if number == 0 else None
            axes.plot(steps, values, linewidth=1.1, label=label, **look)
        axes.axhline(seeds[0]["limit"], color=look["color"], linestyle=(0, (1, 1.5)), linewidth=1.2)
    axes.set(yscale="log", xlabel="step", ylabel=r"$\lambda_{\max}$")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8, frameon=False, handlelength=1.8)
    return figure


_LOOKS: Any = (
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": "--"},
    {"color": "#009E73", "linestyle": "-."},
    {"color": "#CC79A7", "linestyle": (0, (4, 1, 1, 1, 1, 1))},
)


def ratios(
    upper: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    lower: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
) -> Figure:
    """Measured curvature over the method's limit: squared error above, cross-entropy below.

    Args:
        upper, lower: Name of the curve -> one sequence of (step, ratio) per seed.
    """
    figure, axes = panels(2, 1, height=5.0)
    for panel, curves, loss in zip(
        axes, (upper, lower), ("squared error", "cross-entropy"), strict=True
    ):
        for name, seeds in curves.items():
            look = _LOOKS[list(upper).index(name)]
            for number, points in enumerate(seeds):
                steps, values = zip(*points, strict=True)
                label = name if number == 0 and panel is axes[0] else None
                panel.plot(steps, values, linewidth=1.1, label=label, **look)
        panel.axhline(1.0, **REFERENCE)
        panel.set(yscale="log", xlabel="step", ylabel=f"over limit\n({loss})")
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False, handlelength=2)
    return figure
