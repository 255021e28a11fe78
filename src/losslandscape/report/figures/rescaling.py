"""Figures of the chapter on rescaling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from losslandscape.report.figures.style import (
    CONFIGURATIONS,
    ORDERS,
    REFERENCE,
    legend_above,
    panels,
)
from losslandscape.rescaling import Orbit

DASHES = {"Sharp_SGD_HighLR": "-", "Flat_SGD_LowLR": "--", "Adam_Default": "-."}


def orbits(curves: Mapping[str, Orbit], bounds: Mapping[str, Any]) -> Figure:
    """Curvature of each network over its rescalings: lambda_max, and the relative one.

    Args:
        curves: Per configuration its rescalings.
        bounds: Per configuration ``(m,)`` values that lambda_max cannot be below.
    """
    figure, (upper, lower) = panels(2, 1, height=5.0, sharex=True, height_ratios=(3, 1.6))
    for name, orbit in curves.items():
        look = {**CONFIGURATIONS[name], "linestyle": DASHES[name], "markevery": 4}
        upper.loglog(orbit.alphas, orbit.lambda_max, **look)
        upper.loglog(orbit.alphas, bounds[name], color=look["color"], linewidth=0.7, alpha=0.7)
        lower.loglog(orbit.alphas, orbit.relative, **look)
    for axis in (upper, lower):
        axis.axvline(1, **REFERENCE)
    upper.set_ylabel(r"$\lambda_{\max}(H)$, nats/weight$^2$")
    lower.set_ylabel(r"$\lambda_{\max}(|w|H|w|)$, nats")
    lower.set_xlabel(r"hidden activations times $a$, outgoing weights divided by $a$")
    values = [value for orbit in curves.values() for value in orbit.relative.tolist()]
    lower.set_ylim(min(values) / 3, max(values) * 3)
    legend_above(figure, upper)
    return figure


def two_tables(accuracy: Mapping[str, float], tables: Mapping[str, Mapping[str, float]]) -> Figure:
    """Test accuracy against lambda_max for the same functions with other weights.

    Args:
        accuracy: Per configuration the test accuracy in per cent.
        tables: Per panel and configuration lambda_max.
    """
    figure, axes = panels(1, len(tables), height=2.9, sharey=True, squeeze=False)
    for axis, (title, values) in zip(axes[0], tables.items(), strict=True):
        for name, value in values.items():
            look = CONFIGURATIONS[name]
            marker: dict[str, Any] = {key: look[key] for key in ("color", "marker", "label")}
            axis.semilogx([value], [accuracy[name]], linestyle="", markersize=8, **marker)
        axis.set_xlim(2, 800)
        axis.set_xlabel(rf"$\lambda_{{\max}}$, {title}")
    axes[0, 0].set_ylabel("test accuracy (%)")
    spread = max(accuracy.values()) - min(accuracy.values())
    axes[0, 0].set_ylim(
        min(accuracy.values()) - 0.2 * spread, max(accuracy.values()) + 0.2 * spread
    )
    legend_above(figure, axes[0, 0])
    return figure


def convexity(scales: Any, heights: Mapping[str, Any]) -> Figure:
    """Logarithm of lambda_max under ``exp(t E)``, one panel per matrix, with a chord.

    Args:
        scales: ``(m,)`` values of ``t``.
        heights: Per matrix ``(m,)`` logarithms of the largest eigenvalue.
    """
    figure, axes = panels(1, len(heights), height=2.7, squeeze=False)
    for axis, (name, values), look in zip(axes[0], heights.items(), ORDERS, strict=False):
        axis.plot(scales, values, color=look["color"])
        ends = [0, -1]
        axis.plot([scales[i] for i in ends], [values[i] for i in ends], **REFERENCE, marker="o")
        axis.set_xlabel(f"$t$, {name}")
    axes[0, 0].set_ylabel(r"$\ln \lambda_{\max}(e^{-tE} A\, e^{-tE})$")
    return figure
