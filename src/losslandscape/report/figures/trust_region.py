"""Figures of the chapter on sharpness as a trust-region problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losslandscape.report.figures.style import ORDERS, REFERENCE, legend_above, panels


@dataclass(frozen=True)
class RadiusCurves:
    """What :func:`radii` draws of one network, all rises divided by ``eps^2 lambda_max / 2``.

    Attributes:
        fine: ``(m,)`` radii of ``exact`` and ``linear``.
        exact: ``(m,)`` maximum of the quadratic model.
        linear: ``(m,)`` slope times radius.
        coarse: ``(k,)`` radii of ``ascent`` and ``sam``.
        ascent: ``(k,)`` rise of the loss by projected gradient ascent.
        sam: ``(k,)`` rise of the loss after SAM's one step; None if it was not taken.
        window: Lower and upper end; the upper one is None if it is not known.
        runs: ``(s, k)`` ascents of the single runs whose median ``ascent`` is.
    """

    fine: Any  # (m,)
    exact: Any  # (m,)
    linear: Any  # (m,)
    coarse: Any  # (k,)
    ascent: Any  # (k,)
    sam: Any  # (k,)
    window: tuple[float, float | None]
    runs: Any = ()  # (s, k)


def radii(curves: Mapping[str, RadiusCurves]) -> Figure:
    """Four or five answers to "how far can the loss rise within eps", relative to eq. 4.

    Args:
        curves: Per network, or per row of several networks.
    """
    figure, axes = panels(len(curves), 1, height=6.6, sharex=True, sharey=True, squeeze=False)
    exact, ascent, sam = ORDERS
    for axis, (name, one) in zip(axes[:, 0], curves.items(), strict=True):
        low, high = one.window
        if high is not None:
            axis.axvspan(low, high, color="0.5", alpha=0.15, linewidth=0)
        for end in one.window:
            if end is not None:
                axis.axvline(end, color="0.4", linestyle="--", linewidth=0.8)
        axis.axhline(1, color="0.35", linewidth=2.2, zorder=1, label="eq. 4")
        axis.loglog(one.fine, one.linear, **REFERENCE, label=r"linear, $\epsilon \|g\|$")
        axis.loglog(one.fine, one.exact, color=exact["color"], label="quadratic, exact")
        points = {"linestyle": "", "markersize": 6, "zorder": 3}
        for run in one.runs:
            axis.loglog(one.coarse, run, color=ascent["color"], linewidth=0.6, alpha=0.5)
        axis.loglog(
            one.coarse, one.ascent, ascent["marker"], color=ascent["color"], **points,
            label="loss, ascent",
        )  # fmt: skip
        if one.sam is not None:
            axis.loglog(
                one.coarse, one.sam, color=sam["color"], linestyle="--", marker=sam["marker"],
                markerfacecolor="none", label="loss, SAM's step",
            )  # fmt: skip
        axis.annotate(name, (0.03, 0.07), xycoords="axes fraction", weight="bold")
    axes[-1, 0].set_xlabel(r"radius $\epsilon$")
    axes[len(curves) // 2, 0].set_ylabel(
        r"rise of the loss / $\frac{1}{2}\epsilon^2\lambda_{\max}$"
    )
    axes[0, 0].set_ylim(0.1, 600)
    legend_above(figure, axes[0, 0])
    return figure


def hard_case(
    values: tuple[float, float],
    slopes: tuple[float, float],
    radii: Any,
    maximisers: Any,
    lengths: Mapping[str, tuple[Any, Any]],
) -> Figure:
    """The maximisers of a quadratic over growing discs, and the length of d against mu.

    Args:
        values: Eigenvalues, the larger one first.
        slopes: Components of the gradient along the two eigenvectors.
        radii: ``(m,)`` radii whose discs are drawn.
        maximisers: ``(k, 2)`` the path of one maximiser; its mirror image is added.
        lengths: Per curve of the right panel ``mu`` and ``||d(mu)||``.
    """
    figure, (left, right) = panels(1, 2, height=2.9)
    reach = 1.15 * max(radii)
    across, up = np.meshgrid(*[np.linspace(-reach, reach, 121)] * 2)
    q = slopes[0] * across + slopes[1] * up + (values[0] * across**2 + values[1] * up**2) / 2
    left.contour(across, up, q, levels=9, colors="0.6", linewidths=0.7, linestyles="-")
    angle = np.linspace(0, 2 * np.pi, 200)
    for radius in radii:
        left.plot(radius * np.cos(angle), radius * np.sin(angle), color="0.3", linewidth=0.9)
        best = maximisers[np.argmin(np.abs(np.linalg.norm(maximisers, axis=1) - radius))]
        for sign in (1, -1):
            left.plot(sign * best[0], best[1], ORDERS[1]["marker"], color=ORDERS[0]["color"])
    for sign in (1, -1):
        left.plot(sign * maximisers[:, 0], maximisers[:, 1], color=ORDERS[0]["color"])
    left.set(aspect="equal", xlabel="along $v_1$", ylabel="along $v_2$")
    for (name, (mu, length)), look in zip(lengths.items(), ORDERS, strict=False):
        right.plot(mu, length, color=look["color"], linestyle=look["linestyle"], label=name)
    right.axvline(values[0], **REFERENCE)
    for radius in radii:
        right.axhline(radius, color="0.3", linewidth=0.9)
    right.set(ylim=(0, reach), xlabel=r"$\mu$", ylabel=r"$\|d(\mu)\|$")
    legend_above(figure, right)
    return figure
