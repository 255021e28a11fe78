"""Figures of the chapter on the noise of SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losslandscape.report.figures.style import (
    CONFIGURATIONS,
    ORDERS,
    REFERENCE,
    panels,
    plain_ticks,
)

BAND = {"color": "0.5", "alpha": 0.18, "linewidth": 0}


def langevin(
    replaced: tuple[Any, Any, Any],
    shuffled: tuple[Any, Mapping[str, Any]],
    found: Mapping[str, Any],
) -> Figure:
    """Variance over that of the Langevin equation: large steps, and shuffled epochs.

    Args:
        replaced: ``eta h`` on a fine grid, the exact ratio there, and ``{eta h: simulated ratio}``.
        shuffled: ``x`` on a fine grid, and per name the ratio there.
        found: Per name ``{x: simulated ratio}``.
    """
    figure, (left, right) = panels(1, 2, height=3.3)
    grid, exact, simulated = replaced
    left.axhspan(0.9, 1.1, **BAND)
    left.semilogx(grid, exact, color=ORDERS[0]["color"], label="exact")
    left.semilogx(list(simulated), list(simulated.values()), "ko", label="simulated")
    left.set(xlabel="$\\eta h$\nwith replacement", ylabel="variance / Langevin value")
    left.legend(loc="upper left", fontsize=9, frameon=False)
    x, curves = shuffled
    for (name, curve), look in zip(curves.items(), ORDERS, strict=False):
        right.semilogx(x, curve, color=look["color"], linestyle=look["linestyle"], label=name)
        right.semilogx(list(found[name]), list(found[name].values()), look["marker"], color="k")
    right.set(xlabel="$x = \\eta h N / B$\nshuffled epochs")
    right.legend(loc="upper left", fontsize=9, frameon=False)
    return figure


def ellipses(curvatures: Any, covariances: Mapping[str, Any], expected: Any) -> Figure:
    """Where SGD is found in a plane of two eigenvectors, for several noises of one trace.

    Args:
        curvatures: ``(2,)``, the larger one first.
        covariances: Per name of the noise, the stationary covariance ``(2, 2)``.
        expected: ``(2, 2)``, eq. 6.
    """
    figure, axes = panels(len(covariances), 1, height=5.6, sharex=True, sharey=True)
    every = [*covariances.values(), expected]
    wide, high = (2.4 * max(float(c[i][i]) ** 0.5 for c in every) for i in (1, 0))
    across, up = np.meshgrid(np.linspace(-wide, wide, 81), np.linspace(-high, high, 81))
    loss = (curvatures[0] * up**2 + curvatures[1] * across**2) / 2
    levels = loss.max() * np.linspace(0.08, 1, 6) ** 2
    for axis, (name, covariance) in zip(axes, covariances.items(), strict=True):
        axis.contour(across, up, loss, levels=levels, colors="0.6", linewidths=0.7)
        axis.plot(*_two_sigma(expected), **{**ORDERS[1], "marker": ""}, label="eq. 6")
        axis.plot(*_two_sigma(covariance), **{**ORDERS[0], "marker": ""}, label="stationary")
        axis.set(aspect="equal", ylabel="sharp")
        axis.grid(False)
        axis.annotate(name, (0.01, 1.0), xycoords="axes fraction", va="bottom", weight="bold")
    axes[-1].set_xlabel("along the flat direction (same scale in both)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    return figure


def slopes(
    networks: Mapping[str, Sequence[tuple[Any, Any]]], curvatures: Any, variances: Mapping[str, Any]
) -> Figure:
    """Gradient noise and stationary variance along Hessian eigenvectors, against curvature.

    Args:
        networks: Per configuration, for each run seed ``(lambda_k, c_k)``.
        curvatures: ``(k,)`` of softmax regression.
        variances: ``(k,)`` per name: simulated (drawn as points), predicted, eq. 6.
    """
    figure, (upper, lower) = panels(2, 1, height=5.8)
    ends = []
    for name, runs in networks.items():
        look = CONFIGURATIONS[name]
        for number, (values, noise) in enumerate(runs):
            upper.loglog(
                values, noise, color=look["color"], marker=look["marker"], linestyle="",
                markersize=4, alpha=0.7, label=None if number else look["label"],
            )  # fmt: skip
            ends += [float(values[0]), float(values[-1])]
    low, high = min(ends), max(ends)
    line = np.array([low, high])
    middle = [np.median([float(np.median(c / v)) for v, c in runs]) for runs in networks.values()]
    ratio = float(np.median(middle))
    upper.loglog(line, ratio * line, **{**REFERENCE, "color": "0.25"})
    upper.annotate("slope 1", (high, 0.6 * ratio * high), ha="right", va="top", fontsize=9)
    flat = ratio * float(np.sqrt(low * high))
    upper.loglog(line, [flat, flat], **REFERENCE)
    upper.annotate("slope 0", (low, flat), ha="left", va="bottom", fontsize=9)
    upper.set(xlabel=r"curvature $\lambda_k$", ylabel=r"noise $c_k$")
    upper.legend(loc="lower right", fontsize=8, frameon=False)
    looks = (
        {"color": "k", "marker": "o", "linestyle": ""},
        {"color": ORDERS[0]["color"], "linestyle": "-"},
        {"color": ORDERS[1]["color"], "linestyle": "--"},
    )
    for (name, variance), look in zip(variances.items(), looks, strict=True):
        lower.loglog(curvatures, variance, **look, label=name)
    lower.set(xlabel=r"curvature $\lambda_k$ (softmax regression)", ylabel=r"variance along $v_k$")
    lower.legend(loc="best", fontsize=9, frameon=False)
    for axis in (upper.xaxis, upper.yaxis, lower.xaxis, lower.yaxis):
        plain_ticks(axis)
    return figure


def occupancy(
    potentials: tuple[Any, Mapping[str, Any]],
    histories: Mapping[str, tuple[Any, Any]],
    exact: Mapping[str, float],
) -> Figure:
    """A double well and the share of chains in its flat half as they mix.

    Args:
        potentials: Places, and per name ``V / T`` there.
        histories: Per name, steps ``(m,)`` and shares ``(m, 2)`` of the chains that began in the
            flat and in the sharp well.
        exact: Per name the share that the stationary chain has.
    """
    figure, (upper, lower) = panels(2, 1, height=5.6)
    places, curves = potentials
    for (name, curve), look in zip(curves.items(), ORDERS, strict=False):
        upper.plot(places, curve, color=look["color"], linestyle=look["linestyle"], label=name)
    upper.set(xlabel=r"$w$", ylabel=r"$V(w) / T$")
    upper.legend(loc="upper center", fontsize=9, frameon=False)
    for (name, (steps, shares)), look in zip(histories.items(), ORDERS, strict=True):
        for half in range(2):
            lower.plot(steps, shares[:, half], **look, markevery=3, label=None if half else name)
        lower.axhline(exact[name], **REFERENCE)
    lower.set(xlabel="steps", ylabel="share in the flat well", ylim=(0, 1.02))
    lower.legend(loc="center right", fontsize=9, frameon=False)
    return figure


def _two_sigma(covariance: Any) -> tuple[Any, Any]:
    """The ellipse of two standard deviations: the flat coordinate, the sharp one."""
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    values, vectors = np.linalg.eigh(np.asarray(covariance))
    sharp, flat = 2 * vectors @ (np.sqrt(values)[:, None] * circle)
    return flat, sharp
