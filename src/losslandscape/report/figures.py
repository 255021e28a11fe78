"""Every figure of the book, as a function of data, in one style.

Figures are drawn five inches wide with ten-point letters, so that they stay readable on a phone,
on a transparent ground, so that one picture serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

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


def hvp_difference(steps: Any, errors: Mapping[tuple[str, str], Any]) -> Figure:
    """Error of central gradient differences against their step (chapter 2).

    Args:
        steps: ``(m,)`` step lengths along a unit vector.
        errors: Relative errors ``(m,)`` by (activation, floating type).
    """
    activations = list(dict.fromkeys(activation for activation, _ in errors))
    figure, axes = panels(1, len(activations), sharey=True, squeeze=False)
    looks = {"float64": {"color": "#0072B2", "marker": "o"}}
    other = {"color": "#D55E00", "marker": "s", "linestyle": "--"}
    for axis, activation in zip(axes[0], activations, strict=True):
        for (name, dtype), values in errors.items():
            if name == activation:
                look = looks.get(dtype, other)
                axis.loglog(steps, values, markersize=3, **look)
        axis.text(0.05, 0.95, activation, transform=axis.transAxes, va="top")
        axis.set_xlabel("step $h$")
        axis.set_xticks([1e-9, 1e-6, 1e-3, 1])
        axis.text(3e-7, 3e-8, "float64", color="#0072B2")
        axis.text(5e-7, 8, "float32", color="#D55E00")
    axes[0, 0].set_ylabel("relative error in $Hv$")
    return figure


def _name_configurations(figure: Figure, axes: Any) -> None:
    """One legend above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    place: Any = {"loc": "outside upper center", "ncols": 3, "handlelength": 1.2}
    figure.legend(handles, labels, fontsize=8, frameon=False, **place)


def training_curves(runs: Mapping[str, list[Mapping[str, Any]]]) -> Figure:
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
    _name_configurations(figure, loss)
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
    _name_configurations(figure, axes)
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
    _name_configurations(figure, axes)
    return figure


# Chapter 1. Orders 0, 1, 2 of a Taylor polynomial, and what no longer is a plain remainder.
ORDERS = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#009E73", "marker": "^", "linestyle": "-."},
)
CORRECTED = {"color": "#CC79A7", "marker": "x", "linestyle": ":"}
REFERENCE = {"color": "0.5", "linestyle": (0, (1, 1.5)), "linewidth": 1.2, "zorder": 0}


def taylor_remainder(
    radii: Any, remainders: Mapping[str, Any], corrected: Mapping[str, Any]
) -> Figure:
    """Size of the Taylor remainders of order 0, 1 and 2 against the step, one panel per network.

    Args:
        radii: ``(m,)`` steps.
        remainders: Per network ``(3, m)`` sizes of the remainders.
        corrected: For some of the networks ``(m,)``, order 2 after the kinks are taken out.
    """
    figure, axes = panels(1, len(remainders), height=3.9, sharey=True, squeeze=False)
    for axis, (name, sizes) in zip(axes[0], remainders.items(), strict=True):
        for order, (size, look) in enumerate(zip(sizes, ORDERS, strict=True)):
            axis.loglog(radii, size, **look, markevery=(2 * order, 6), label=f"order {order}")
        if name in corrected:
            axis.loglog(
                radii, corrected[name], **CORRECTED, markevery=6, label="order 2, kinks taken out"
            )
        far = radii[-1]
        for order in range(3):
            guide = 0.35 * sizes[order][-1] * (radii / far) ** (order + 1)
            label = "slopes 1, 2, 3" if order == 0 else None
            axis.loglog(radii, guide, **REFERENCE, label=label)
        axis.annotate(
            name, (0.04, 0.97), xycoords="axes fraction", va="top", fontsize=10, weight="bold"
        )
        axis.set_xlabel(r"step $t$")
    axes[0][0].set_ylabel(r"$|R_k(t)|$, median over directions")
    found = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        found.values(), found.keys(), loc="outside upper center", ncols=2, fontsize=9, frameon=False
    )
    return figure


def taylor_linear_term(
    radii: Any, ratios: Mapping[str, Any], steps: Any, changes: Mapping[str, Any]
) -> Figure:
    """What the gradient does to eq. 2: size of the linear term, and the models along ``-g``.

    Args:
        radii: ``(m,)`` steps of the upper panel.
        ratios: Per direction ``(m,)``, size of the linear over that of the quadratic term.
        steps: ``(k,)`` steps of the lower panel, against the gradient.
        changes: Per curve ``(k,)`` change of the loss: the loss itself, then its models.
    """
    figure, (upper, lower) = panels(2, 1, height=5.4)
    for (name, ratio), look in zip(ratios.items(), ORDERS, strict=False):
        upper.loglog(radii, ratio, **look, markevery=4, label=name)
    upper.axhline(1, **REFERENCE)
    for text, height, side in (("linear", 1.5, "bottom"), ("quadratic", 0.6, "top")):
        place = {"xycoords": ("axes fraction", "data"), "ha": "center", "va": side}
        upper.annotate(f"{text} term larger", (0.5, height), **place)
    upper.set(xlabel=r"step $t$", ylabel="|linear| / |quadratic|")
    upper.legend(loc="lower left", fontsize=9, frameon=False)
    for (name, change), look in zip(changes.items(), ORDERS, strict=False):
        lower.plot(steps, change, **look, markevery=5, label=name)
    lower.axhline(0, **REFERENCE)
    lower.set(xlabel=r"step $t$ against the gradient", ylabel=r"$L(w + t\,u) - L(w)$")
    lower.legend(loc="best", fontsize=9, frameon=False)
    return figure


def power_rate(
    products: Any, error: Any, residual: Any, error_bound: Any, residual_bound: Any
) -> Figure:
    """Power iteration against its bounds, one value of each per product (chapter 3)."""
    figure, axis = panels()
    lines = (
        ("residual", residual, residual_bound, {"color": "#D55E00", "linestyle": "--"}),
        ("error of the value", error, error_bound, {"color": "#0072B2", "linestyle": "-"}),
    )
    for name, values, bound, look in lines:
        axis.semilogy(products, values, label=name, **look)
        axis.semilogy(
            products, bound, color=look["color"], linewidth=0.8, linestyle=":", label="its bound"
        )
    axis.set_xlabel("products")
    axis.set_ylabel(r"$\lambda_1 - \theta_k$, residual")
    axis.set_ylim(bottom=1e-13)
    axis.legend(frameon=False)
    return figure


def power_stopping(runs: Mapping[str, Any], largest: float, *, tolerance: float = 1e-3) -> Figure:
    """What stopping rules see: error, change and residual by product (chapter 3).

    Args:
        runs: Histories ``(m, 3)`` (products, value, residual) by name.
        largest: The true largest eigenvalue.
        tolerance: Drawn as a horizontal line.
    """
    figure, axes = panels(1, len(runs), sharey=True, squeeze=False)
    for axis, (name, history) in zip(axes[0], runs.items(), strict=True):
        products, values, residuals = history.T
        change = abs(values[1:] - values[:-1])
        axis.semilogy(products, abs(values - largest) / largest, "#0072B2", label="error")
        axis.semilogy(
            products[1:], change / abs(values[1:]), "#D55E00", linestyle="--", label="change"
        )
        axis.semilogy(
            products, residuals / abs(values), "#009E73", linestyle="-.", label="residual"
        )
        axis.axhline(tolerance, color="0.5", linestyle=":", linewidth=1)
        axis.text(0.97, 0.97, name, transform=axis.transAxes, ha="right", va="top")
        axis.set_xlabel("products")
        axis.set_ylim(1e-12, 1e2)
    axes[0, 0].set_ylabel("relative size")
    axes[0, 0].legend(loc="lower left", frameon=False)
    return figure


def power_race(curves: Mapping[str, tuple[Any, Any]], *, tolerance: float = 1e-3) -> Figure:
    """Relative residual by product, power iteration against Lanczos (chapter 3).

    Args:
        curves: Two histories ``(m, 3)`` (products, value, residual) by name: power iteration
            first, then Lanczos.
        tolerance: Drawn as a horizontal line.
    """
    figure, axes = panels(1, len(curves), sharey=True, squeeze=False)
    looks = (
        ("power iteration", {"color": "#D55E00", "marker": "s", "linestyle": "--"}),
        ("Lanczos", {"color": "#0072B2", "marker": "o"}),
    )
    for axis, (name, histories) in zip(axes[0], curves.items(), strict=True):
        for (label, look), history in zip(looks, histories, strict=True):
            relative = history[:, 2] / abs(history[:, 1])
            axis.semilogy(history[:, 0], relative, label=label, markersize=3, **look)
        axis.axhline(tolerance, color="0.5", linestyle=":", linewidth=1)
        axis.set_xlabel(f"products, {name}")
    axes[0, 0].set_ylabel(r"residual / $|\theta|$")
    axes[0, -1].legend(loc="upper right", frameon=False)
    return figure


def residual_race(histories: Mapping[str, Any], *, tolerance: float = 1e-3) -> Figure:
    """Relative residual by pass over all the data, one line per method (chapter 3).

    Args:
        histories: ``(m, 3)`` passes, value and residual by name of the method, slowest first.
        tolerance: Drawn as a horizontal line.
    """
    figure, axes = panels(height=3.4)
    looks = (
        {"color": "0.45", "marker": "v", "linestyle": ":"},
        {"color": "#0072B2", "marker": "o", "linestyle": "-."},
        {"color": "#009E73", "marker": "^", "linestyle": "--"},
        {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    )
    for (name, history), look in zip(histories.items(), looks, strict=True):
        axes.semilogy(history[:, 0], history[:, 2] / abs(history[:, 1]), label=name, **look)
    axes.axhline(tolerance, color="0.5", linewidth=1)
    axes.set(xlabel="passes over all the images", ylabel=r"residual / $|\theta|$")
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    return figure


def batch_size_bias(runs: Mapping[str, list[Mapping[str, Any]]]) -> Figure:
    """Mean lambda_max of a batch by its size, over the value on all images (chapter 4).

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
    _name_configurations(figure, axes)
    return figure


def spectrum_trace_error(errors: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> Figure:
    """Error of trace estimates against products, one panel per matrix (chapter 5).

    Args:
        errors: Per panel, per method, products ``(m,)`` and relative root mean square errors
            ``(m,)``.
    """
    figure, axes = panels(1, len(errors), sharey=True, squeeze=False)
    for axis, (name, methods) in zip(axes[0], errors.items(), strict=True):
        for (method, (products, values)), look in zip(methods.items(), ORDERS, strict=False):
            axis.loglog(products, values, **look, label=method)
        axis.set_xticks(products, [str(count) for count in products])
        axis.minorticks_off()
        axis.set_xlabel(f"products, {name}")
    axes[0, 0].set_ylabel("error / trace")
    axes[0, 0].legend(loc="lower left", frameon=False)
    return figure


def spectrum_density(stages: Mapping[str, tuple[Any, Any, Any, Any]]) -> Figure:
    """Densities of eigenvalues from quadrature over the exact ones, panel by panel (chapter 5).

    Args:
        stages: Per panel the grid, the density, its standard error and the exact density
            smoothed in the same way, each ``(G,)``.
    """
    figure, axes = panels(len(stages), 1, height=2.0 * len(stages), sharex=True, squeeze=False)
    for axis, (name, (grid, density, stderr, exact)) in zip(
        axes[:, 0], stages.items(), strict=True
    ):
        # Errors of the logarithm, because the axis is one.
        factor = np.exp(2 * np.minimum(stderr / np.maximum(density, 1e-12), 3))
        axis.fill_between(grid, density / factor, density * factor, color="#0072B2", alpha=0.2)
        axis.plot(grid, exact, color="#D55E00", linestyle="--", label="exact")
        axis.plot(grid, density, color="#0072B2", linewidth=1, label="quadrature")
        axis.set_xscale("symlog", linthresh=0.1, linscale=0.5)
        axis.set_yscale("log")
        axis.set_ylim(1e-4, 1e3)
        axis.set_ylabel("density")
        axis.text(0.03, 0.93, name, transform=axis.transAxes, va="top", weight="bold")
    axes[0, 0].legend(loc="upper right", frameon=False)
    axes[-1, 0].set_xticks([-1, -0.1, 0, 0.1, 1], ["-1", "-0.1", "0", "0.1", "1"])
    axes[-1, 0].set_xlabel(r"eigenvalue $\lambda$ (nats per weight$^2$)")
    return figure


def spectrum_outliers(eigenvalues: Mapping[str, Mapping[str, Any]], last_outlier: int) -> Figure:
    """Largest eigenvalues in order, one panel per stage, one line per matrix (chapter 5).

    Args:
        eigenvalues: Per stage and matrix the largest eigenvalues ``(k,)``, descending.
        last_outlier: A line is drawn behind this position.
    """
    figure, axes = panels(1, len(eigenvalues), sharey=True, squeeze=False)
    for axis, (name, matrices) in zip(axes[0], eigenvalues.items(), strict=True):
        for (matrix, values), look in zip(matrices.items(), ORDERS, strict=False):
            places = np.arange(1, len(values) + 1)
            axis.semilogy(places, values, **{**look, "markersize": 4}, label=matrix)
        axis.axvline(last_outlier + 0.5, **REFERENCE)
        axis.set_xticks([1, 5, 10, 15])
        axis.set_xlabel(f"$k$, {name}")
    axes[0, 0].set_ylabel(r"eigenvalue $\lambda_k$")
    _name_configurations(figure, axes[0, 0])
    return figure
