"""Figures of the chapter on the Taylor model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from losslandscape.report.figures.style import ORDERS, REFERENCE, panels

CORRECTED = {"color": "#CC79A7", "marker": "x", "linestyle": ":"}


def remainder(radii: Any, remainders: Mapping[str, Any], corrected: Mapping[str, Any]) -> Figure:
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


def linear_term(
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
