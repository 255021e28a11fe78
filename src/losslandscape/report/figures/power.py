"""Figures of the chapter on power iteration and its faster relatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from losslandscape.report.figures.style import panels


def rate(products: Any, error: Any, residual: Any, error_bound: Any, residual_bound: Any) -> Figure:
    """Power iteration against its bounds, one value of each per product."""
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


def stopping(runs: Mapping[str, Any], largest: float, *, tolerance: float = 1e-3) -> Figure:
    """What stopping rules see: error, change and residual by product.

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


def race(curves: Mapping[str, tuple[Any, Any]], *, tolerance: float = 1e-3) -> Figure:
    """Relative residual by product, power iteration against Lanczos.

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
    """Relative residual by pass over all the data, one line per method.

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
