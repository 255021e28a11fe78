"""Figures of the chapter on spectrum and trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losslandscape.report.figures.style import ORDERS, REFERENCE, legend_above, panels


def trace_error(errors: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> Figure:
    """Error of trace estimates against products, one panel per matrix.

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


def density(stages: Mapping[str, tuple[Any, Any, Any, Any]]) -> Figure:
    """Densities of eigenvalues from quadrature over the exact ones, panel by panel.

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


def outliers(eigenvalues: Mapping[str, Mapping[str, Any]], last_outlier: int) -> Figure:
    """Largest eigenvalues in order, one panel per stage, one line per matrix.

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
    legend_above(figure, axes[0, 0])
    return figure
