"""Figures of the chapter on what flatness proves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from losslandscape.report.figures.style import CONFIGURATIONS, ORDERS, REFERENCE, panels

MEANINGS = {
    "test_error": "test error",
    "test_loss": "test loss",
    "gap": "gap: test minus\ntraining loss",
}


def average_increase(scales: Any, networks: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Mean rise of the loss under noise against its quadratic model, one column per network.

    Args:
        scales: ``(m,)`` deviations of the noise.
        networks: Per name: ``rise`` and ``quadratic``, ``(m,)``; ``left``, the relative difference
            of the two, ``(m,)``, with its standard errors ``errors``; where the network has kinks,
            ``kinks``, what they should make of that difference.
    """
    figure, axes = panels(2, len(networks), height=4.8, sharex=True, sharey="row", squeeze=False)
    for (upper, lower), (name, found) in zip(axes.T, networks.items(), strict=True):
        upper.loglog(scales, found["rise"], **ORDERS[0], linewidth=0, label="mean rise")
        upper.loglog(scales, found["quadratic"], **REFERENCE, label=r"$s^2\,\mathrm{tr}\,H/2$")
        upper.annotate(
            name, (0.06, 0.94), xycoords="axes fraction", va="top", fontsize=10, weight="bold"
        )
        looks = {**ORDERS[0], "linestyle": "none", "label": "measured"}
        lower.errorbar(scales, found["left"], 2 * found["errors"], **looks, capsize=2)
        if "kinks" in found:
            look = {**ORDERS[1], "marker": None}
            lower.plot(scales, found["kinks"], **look, label="kinks, predicted")
        else:
            guide = found["left"][0] * (scales / scales[0]) ** 2
            lower.plot(scales, guide, **REFERENCE, label="slope 2")
        lower.set(xscale="log", yscale="log", xlabel=r"noise $s$")
        for axis in (upper, lower):
            axis.legend(loc="lower right", fontsize=9, frameon=False, handlelength=1.5)
    axes[0][0].set_ylabel(r"$\mathbb{E}\,L(w+d) - L(w)$")
    axes[1][0].set_ylabel(r"rise$\,/\,(s^2\,\mathrm{tr}\,H/2) - 1$")
    return figure


def bound_by_scale(
    profile: Any, root: Any, test_errors: Any, best: tuple[float, float], guessing: float
) -> Figure:
    """The PAC-Bayes bound against the deviation of the noise.

    Args:
        profile: ``(m, 3)``: scale, mean training error, bound in kl form.
        root: ``(m,)`` bound in McAllester's form.
        test_errors: ``(m,)`` mean test error of the noisy network.
        best: Scale and value of the bound that is claimed.
        guessing: Error of guessing a class.
    """
    figure, axis = panels(height=3.7)
    scales, train_errors, bounds = profile[:, 0], profile[:, 1], profile[:, 2]
    axis.semilogx(scales, root, **ORDERS[2], label="bound, root form")
    axis.semilogx(scales, bounds, **ORDERS[0], label="bound, kl form")
    axis.semilogx(scales, test_errors, **ORDERS[1], label="test error")
    look = {"color": "#CC79A7", "marker": "x", "linestyle": ":"}
    axis.semilogx(scales, train_errors, **look, label="training error")
    axis.plot(*best, marker="*", markersize=12, color="#0072B2", linestyle="none", label="claimed")
    for height in (1.0, guessing):
        axis.axhline(height, **REFERENCE)
    place = ("axes fraction", "data")
    axis.annotate("guessing", (0.02, guessing - 0.02), xycoords=place, ha="left", va="top")
    axis.set(ylim=(0, 1.6), xlabel=r"noise $s$", ylabel="mean error of the noisy network")
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False, handlelength=2.2)
    return figure


def three_meanings(
    recorded: Mapping[str, Sequence[Mapping[str, float]]],
    reported: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Test error, test loss and gap against lambda_max: runs as dots, the paper's rows as crosses.

    Args:
        recorded: Per configuration one mapping for each run: ``lambda_max`` and the keys of
            :data:`MEANINGS`.
        reported: Per configuration the same without ``gap``.
    """
    figure, axes = panels(len(MEANINGS), 1, height=5.6, sharex=True)
    for axis, (key, label) in zip(axes, MEANINGS.items(), strict=True):
        for name, runs in recorded.items():
            look = CONFIGURATIONS[name]
            x, y = [run["lambda_max"] for run in runs], [run[key] for run in runs]
            axis.plot(x, y, linestyle="none", alpha=0.7, **look)
            if key in reported[name]:
                place = reported[name]["lambda_max"], reported[name][key]
                axis.plot(*place, "x", color=look["color"], markersize=8, markeredgewidth=2)
        axis.set(xscale="log", ylabel=label)
        if key == "gap":
            axis.axhline(0, **REFERENCE)
        else:
            axis.set_yscale("log")
    axes[-1].set_xlabel(r"$\lambda_{\max}$")
    handles, labels = axes[0].get_legend_handles_labels()
    layout: Any = {"loc": "outside upper center", "ncols": 3, "handlelength": 1.0}
    figure.legend(handles, labels, fontsize=8, frameon=False, **layout)
    return figure
