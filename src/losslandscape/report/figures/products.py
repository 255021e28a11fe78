"""Figures of the chapter on Hessian-vector products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from losslandscape.report.figures.style import panels


def difference(steps: Any, errors: Mapping[tuple[str, str], Any]) -> Figure:
    """Error of central gradient differences against their step.

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
