"""Static twins of explorable figures that no other figure of a chapter could stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losslandscape.report.figures.style import ORDERS, REFERENCE, legend_above, panels


def taylor_models(
    lines: Mapping[str, Mapping[str, Any]], radii: Sequence[float], radius: float
) -> Figure:
    """Loss, quadratic and linear model along one direction, one panel per network.

    Args:
        lines: Per network one of the directions of
            :func:`~losslandscape.report.explorables.taylor_lines`.
        radii: ``(m,)``, those of ``lines``.
        radius: Where the largest miss is told.
    """
    figure, axes = panels(1, len(lines), height=3.1, sharey=True, squeeze=False)
    t = np.concatenate([-np.array(radii)[::-1], [0.0], radii])
    for axis, (name, line) in zip(axes[0], lines.items(), strict=True):
        linear, bend = line["slope"] * t, np.asarray(line["bend"])
        term = line["curvature"] * t**2 / 2
        inside = np.abs(t) <= radius
        share = np.abs(bend - term)[inside].max() / (abs(line["curvature"]) * radius**2 / 2)
        axis.axvspan(-radius, radius, color="0.5", alpha=0.15, linewidth=0)
        curves = {"loss": linear + bend, "quadratic model": linear + term, "linear model": linear}
        for (label, curve), look in zip(curves.items(), ORDERS, strict=True):
            axis.plot(t, curve, **{**look, "marker": ""}, label=label)
        axis.set_xlabel(f"step $t$\n{name}: {100 * share:.0f} % missed")
    axes[0, 0].set_ylabel(r"$L(w + t\,u) - L(w)$")
    legend_above(figure, axes[0, 0])
    return figure


def trust_region_maps(gradient: Sequence[float], curvatures: Sequence[float]) -> Figure:
    """The quadratic model as a map, with the largest rise in three balls and where eq. 4 looks.

    Args:
        gradient: ``(2,)`` in the basis of eigenvectors.
        curvatures: ``(2,)``, the larger one first.
    """
    figure, axis = panels(height=4.4)
    (g1, g2), (h1, h2) = gradient, curvatures
    reach = np.linspace(-2.2, 2.2, 121)
    across, up = np.meshgrid(reach, reach)
    rise = g1 * across + g2 * up + (h1 * across**2 + h2 * up**2) / 2
    axis.contour(across, up, rise, levels=12, colors="0.6", linewidths=0.7)
    turns = np.linspace(0, 2 * np.pi, 1441)
    for number, radius in enumerate((0.5, 1.0, 2.0)):
        x, y = radius * np.cos(turns), radius * np.sin(turns)
        best = int(np.argmax(g1 * x + g2 * y + (h1 * x**2 + h2 * y**2) / 2))
        names = {} if number else {"exact": "largest rise", "eq4": "where eq. 4 looks"}
        axis.plot(x, y, **REFERENCE)
        axis.plot([x[best]], [y[best]], "o", color=ORDERS[0]["color"], label=names.get("exact"))
        axis.plot(
            [-radius, radius], [0, 0], "s", color=ORDERS[1]["color"], fillstyle="none",
            label=names.get("eq4"),
        )  # fmt: skip
    arrow = {"arrowstyle": "->", "linewidth": 1.6, "color": "#CC79A7"}
    axis.annotate("", (g1, g2), (0, 0), arrowprops=arrow)
    axis.annotate("$g$", (g1, g2), xytext=(4, 4), textcoords="offset points")
    axis.set(aspect="equal", xlabel="along the top eigenvector $v_1$", ylabel="along $v_2$")
    axis.grid(False)
    legend_above(figure, axis)
    return figure


def power_steps(seconds: Sequence[float], angle: float, steps: int) -> Figure:
    """Unit vectors of power iteration in the plane of two eigenvectors, one panel per matrix.

    Args:
        seconds: Second eigenvalue of each matrix; the first is 1.
        angle: Of the start, in degrees from the first eigenvector.
        steps: How many are drawn.
    """
    figure, axes = panels(1, len(seconds), height=2.9, sharey=True, squeeze=False)
    turns = np.linspace(0, 2 * np.pi, 181)
    for axis, second in zip(axes[0], seconds, strict=True):
        factors = np.array([second], dtype=float) ** np.arange(steps + 1)
        path = np.stack([np.full(steps + 1, np.cos(np.radians(angle))),
                         np.sin(np.radians(angle)) * factors])  # fmt: skip
        x, y = path / np.linalg.norm(path, axis=0)
        axis.plot(np.cos(turns), np.sin(turns), **REFERENCE)
        axis.plot(x[:-1], y[:-1], "s", color=ORDERS[2]["color"], fillstyle="none", label="before")
        axis.plot(x[-1:], y[-1:], "o", color=ORDERS[0]["color"], label=f"after {steps} steps")
        quotient = x[-1] ** 2 + second * y[-1] ** 2
        residual = abs((1 - second) * x[-1] * y[-1])
        told = f"eigenvalues 1, {second:g}\nquotient {quotient:.2f}\nresidual {residual:.2f}"
        axis.set(aspect="equal", xlabel=told.replace("-", "\N{MINUS SIGN}"))
        axis.grid(False)
    axes[0, 0].set_ylabel("along the second eigenvector")
    legend_above(figure, axes[0, 0])
    return figure
