"""Figures of the three configurations: training, sharpness, batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losslandscape.report.figures.style import CONFIGURATIONS, legend_above, panels


def curves(runs: Mapping[str, list[Mapping[str, Any]]]) -> Figure:
    """Training loss and test error by epoch; ``runs``: configuration -> results per seed."""
    figure, (loss, error) = panels(1, 2, height=2.9)
    for name, look in CONFIGURATIONS.items():
        for number, run in enumerate(runs[name]):
            epochs = [row["epoch"] for row in run["history"]]
            style = {**look, "label": look["label"] if number == 0 else None, "alpha": 0.7}
            loss.plot(epochs, [row["train_loss"] for row in run["history"]], **style)
            test_error = [100 * (1 - row["test_accuracy"]) for row in run["history"]]
            error.plot(epochs, test_error, **style)
    loss.set(yscale="log", xlabel="epoch", ylabel="training loss (nats)")
    error.set(yscale="log", xlabel="epoch", ylabel="test error (%)")
    legend_above(figure, loss)
    return figure


def sharpness_path(runs: Mapping[str, list[Mapping[str, Any]]], paper: Mapping[str, Any]) -> Figure:
    """lambda_max by epoch, one line per seed, with the reported values at the right."""
    figure, axes = panels(height=3.3)
    for name, look in CONFIGURATIONS.items():
        for number, run in enumerate(runs[name]):
            path = run["lambda_path"]
            style = {**look, "label": look["label"] if number == 0 else None, "alpha": 0.7}
            axes.plot([row["epoch"] for row in path], [row["value"] for row in path], **style)
        last = runs[name][0]["lambda_path"][-1]["epoch"]
        reported = paper["configurations"][name]["lambda_max"]
        axes.plot(1.06 * last, reported, "x", color=look["color"], markersize=8, markeredgewidth=2)
    axes.set(yscale="log", xlabel="epoch", ylabel=r"$\lambda_{\max}$ (nats per weight$^2$)")
    legend_above(figure, axes)
    return figure


def stationarity(
    runs: Mapping[str, list[Mapping[str, Any]]],
    curvature: Mapping[str, list[tuple[list[int], list[float]]]],
) -> Figure:
    """Norm of the full gradient, and the lowest over the largest eigenvalue, by epoch.

    Args:
        runs: Configuration -> results per seed.
        curvature: Configuration -> per seed, epochs and ``|lambda_min| / lambda_max`` at them.
    """
    figure, (slope, ratio) = panels(1, 2, height=2.9)
    for name, look in CONFIGURATIONS.items():
        for number, run in enumerate(runs[name]):
            epochs = [row["epoch"] for row in run["history"]]
            style = {**look, "label": look["label"] if number == 0 else None, "alpha": 0.7}
            slope.plot(epochs, [row["grad_norm"] for row in run["history"]], **style)
        for epochs, values in curvature[name]:
            ratio.plot(epochs, values, **{**look, "label": None, "alpha": 0.7})
    slope.set(yscale="log", xlabel="epoch", ylabel=r"$\|\nabla L\|$ (nats per weight)")
    ratio.set(yscale="log", xlabel="epoch", ylabel=r"$|\lambda_{\min}|\,/\,\lambda_{\max}$")
    legend_above(figure, slope)
    return figure


def batch_sharpness(
    runs: Mapping[str, list[Mapping[str, Any]]], paper: Mapping[str, Any]
) -> Figure:
    """lambda_max on single batches (dots), on all images (bars), and as reported (crosses)."""
    figure, axes = panels(height=3.3)
    spread = np.random.default_rng(0)  # sideways only, so that dots do not hide each other
    for place, (name, look) in enumerate(CONFIGURATIONS.items()):
        batches = [value for run in runs[name] for value in run["batch_lambda_max"]["64"]]
        sideways = place + spread.uniform(-0.25, 0.25, len(batches))
        axes.plot(sideways, batches, ".", color=look["color"], alpha=0.35, markersize=4)
        for run in runs[name]:
            axes.hlines(run["lambda_max"]["value"], place - 0.35, place + 0.35, color=look["color"])
        reported = paper["configurations"][name]["lambda_max"]
        axes.plot(place, reported, "x", color="black", markersize=9, markeredgewidth=2)
    axes.set(yscale="log", ylabel=r"$\lambda_{\max}$ (nats per weight$^2$)")
    axes.set_xticks(range(len(CONFIGURATIONS)), list(CONFIGURATIONS), fontsize=8)
    axes.grid(axis="x", visible=False)
    return figure


def landing(runs: Mapping[str, list[Mapping[str, Any]]], paper: Mapping[str, Any]) -> Figure:
    """lambda_max against test accuracy along training, epoch by epoch, with the paper's points."""
    figure, axes = panels(height=3.4)
    for name, look in CONFIGURATIONS.items():
        for number, run in enumerate(runs[name]):
            sharpness = {row["epoch"]: row["value"] for row in run["lambda_path"]}
            steps = [row for row in run["history"] if row["epoch"] in sharpness]
            accuracy = [100 * row["test_accuracy"] for row in steps]
            values = [sharpness[row["epoch"]] for row in steps]
            style = {**look, "label": look["label"] if number == 0 else None}
            axes.plot(accuracy, values, alpha=0.55, **style)
        point = paper["configurations"][name]
        axes.plot(
            100 * point["test_accuracy"],
            point["lambda_max"],
            "x",
            color=look["color"],
            markersize=10,
            markeredgewidth=2.5,
        )
    # Distance from 100 %, so that the crowded end has room.
    axes.set_xscale("function", functions=(lambda a: -np.log10(101 - a), lambda u: 101 - 10**-u))
    axes.set_xticks([70, 80, 90, 95, 98, 99])
    axes.set(yscale="log", xlabel="test accuracy (%)", ylabel=r"$\lambda_{\max}$")
    legend_above(figure, axes)
    return figure


def batch_size_bias(runs: Mapping[str, list[Mapping[str, Any]]]) -> Figure:
    """Mean lambda_max of a batch by its size, over the value on all images.

    Args:
        runs: Configuration -> results per seed; bars are two standard errors of the mean.
    """
    figure, axes = panels(height=3.3)
    for name, look in CONFIGURATIONS.items():
        for number, run in enumerate(runs[name]):
            whole = run["lambda_max"]["value"]
            sizes = [int(size) for size in run["batch_lambda_max"]]
            batches = [np.array(found) / whole for found in run["batch_lambda_max"].values()]
            means = [found.mean() for found in batches] + [1.0]
            errors = [2 * found.std(ddof=1) / len(found) ** 0.5 for found in batches] + [0.0]
            axes.errorbar(
                [*sizes, run["lambda_max"]["images"]],
                means,
                yerr=errors,
                capsize=2,
                alpha=0.8,
                **{**look, "label": look["label"] if number == 0 else None},
            )
    axes.axhline(1.0, color="0.5", linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="images in the batch",
        ylabel=r"mean $\lambda_{\max}(H_B)\,/\,\lambda_{\max}(H)$",
    )
    legend_above(figure, axes)
    return figure
