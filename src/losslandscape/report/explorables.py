"""Explorable figures: a static figure of a chapter, brought to life in the page.

A chapter has two cells. The first draws an ordinary figure with a name, a caption and alternative
text: the twin, which stays on paper, without JavaScript, and wherever else a notebook is shown.
The second ends in :func:`explorable` and emits nothing but JSON; ``explore.js`` finds the twin by
its name and puts controls and a drawing in its place. The browser evaluates closed forms and picks
stored states; what needs a network is computed here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from losslandscape import taylor
from losslandscape.objective import Batch, LossFunction
from losslandscape.rescaling import Orbit

# Figures that explore.js can draw: what each needs of data, and its controls.
FIGURES: dict[str, tuple[set[str], set[str]]] = {
    "taylor": ({"radii", "lines"}, {"radius", "network", "direction"}),
    "trust-region": (set(), {"radius", "gradient", "angle", "curvature"}),
    "noise-ellipse": (
        {"curvatures", "noises"},
        {"rate", "batch", "momentum", "noise"},
    ),
    "power-iteration": (set(), {"second", "angle", "step"}),
    "batch-bias": ({"images", "networks"}, {"size", "network"}),
    "rescaling": ({"networks", "examples"}, {"scale", "network"}),
    "landscape": ({"scale", "views"}, {"network", "plane", "turn", "tilt", "view"}),
}
SHORTEST_ALT = 20  # characters, as for any figure of the book
LARGEST = 60_000  # characters of JSON: a page should open at once
DIGITS = 4


@dataclass(frozen=True)
class Explorable:
    """One explorable figure; a notebook shows its HTML, which holds JSON and no script."""

    figure: str
    spec: str  # JSON

    def _repr_html_(self) -> str:
        return (
            f'<div class="explorable" data-figure="{self.figure}">'
            f'<script type="application/json">{self.spec}</script></div>'
        )

    def __repr__(self) -> str:
        return f"Explorable({self.figure})"


def explorable(
    name: str,
    *,
    twin: str,
    alt: str,
    controls: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any] | None = None,
    prompt: str = "",
) -> Explorable:
    """Make an explorable figure, the last value of a cell tagged ``remove-input``.

    Args:
        name: A figure that the page can draw, one of :data:`FIGURES`.
        twin: Name of the static figure on the same page (``mystnb: figure: name``).
        alt: What the drawing shows, for readers who do not see it. Its current numbers are told
            apart from this, in a sentence below the drawing.
        controls: One :func:`slider`, :func:`stops` or :func:`choice` for each control of the
            figure.
        data: What the figure needs: numbers, texts, arrays and tensors, nested at will. Floats are
            rounded to four significant digits, so that the text is the same on every processor.
        prompt: What to try, one sentence above the drawing.

    Raises:
        ValueError: An unknown figure; controls or data that the figure does not have, or lacks; a
            text too short; a number that is not finite; more than 60,000 characters in all.
        TypeError: Data that JSON cannot hold.

    Example:
        >>> sliders = [slider("radius", "Radius", 0.1, 2, 0.1, 1)]
        >>> explorable("trust-region", twin="fig-x", alt="A map.", controls=sliders)
        Traceback (most recent call last):
        ValueError: alt needs at least 20 characters that say what the drawing shows, got 'A map.'
    """
    if name not in FIGURES:
        raise ValueError(f"no figure {name!r}: one of {', '.join(sorted(FIGURES))}")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", twin):
        raise ValueError(f"twin must be the name of a figure, like fig-taylor, got {twin!r}")
    if len(alt) < SHORTEST_ALT:
        raise ValueError(
            f"alt needs at least {SHORTEST_ALT} characters that say what the drawing shows, "
            f"got {alt!r}"
        )
    needed, keys = FIGURES[name]
    _check_names(f"controls of {name}", [control["key"] for control in controls], keys)
    _check_names(f"data of {name}", list(data or {}), needed)
    spec = {
        "figure": name,
        "twin": twin,
        "alt": alt,
        "prompt": prompt,
        "controls": list(controls),
        "data": plain(data or {}),
    }
    text = json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if len(text) > LARGEST:
        raise ValueError(f"{name} holds {len(text)} characters, at most {LARGEST}: store less")
    return Explorable(name, text.replace("<", "\\u003c"))  # nothing in it can end the script


# --- Controls -------------------------------------------------------------------------------------


def slider(
    key: str, label: str, low: float, high: float, step: float, value: float, unit: str = ""
) -> dict[str, Any]:
    """A slider with equal steps.

    Raises:
        ValueError: Limits or step that leave nothing to slide, or a value beyond them.
    """
    if not all(map(math.isfinite, (low, high, step, value))):
        raise ValueError(f"slider {key}: limits, step and value must be finite")
    if not (low < high and 0 < step <= high - low):
        raise ValueError(f"slider {key}: no step of {step} fits between {low} and {high}")
    if not low <= value <= high:
        raise ValueError(f"slider {key}: {value} is not between {low} and {high}")
    return {
        **_labelled(key, label, unit),
        "min": low,
        "max": high,
        "step": step,
        "value": value,
    }


def stops(key: str, label: str, values: Any, value: float, unit: str = "") -> dict[str, Any]:
    """A slider that stops at given values only, at first at the one nearest to ``value``.

    Args:
        key, label, unit: As for :func:`slider`.
        values: At least two numbers in increasing order.
        value: A number.

    Raises:
        ValueError: Fewer than two values, or values out of order or not finite.

    Example:
        >>> stops("batch", "Batch size", [8, 32, 128], 30)["value"]
        1
    """
    places: list[float] = plain(values, f"stops {key}")
    if len(places) < 2 or any(b <= a for a, b in pairwise(places)):
        raise ValueError(f"stops {key}: give two or more different values in increasing order")
    if not math.isfinite(value):
        raise ValueError(f"stops {key}: value must be finite, got {value}")
    nearest = min(range(len(places)), key=lambda i: abs(places[i] - value))
    return {**_labelled(key, label, unit), "values": places, "value": nearest}


def choice(
    key: str, label: str, options: Iterable[str], value: str | None = None
) -> dict[str, Any]:
    """A list to choose from, at first ``value``, or the first option.

    Raises:
        ValueError: No option, the same one twice, or a value that is not among them.
    """
    listed = list(options)
    if not listed or len(set(listed)) < len(listed):
        raise ValueError(f"choice {key}: give different options, got {listed}")
    if value is None:
        value = listed[0]
    if value not in listed:
        raise ValueError(f"choice {key}: {value!r} is not one of {listed}")
    return {**_labelled(key, label), "options": listed, "value": value}


def _labelled(key: str, label: str, unit: str = "") -> dict[str, Any]:
    if not label.strip():
        raise ValueError(f"control {key} has no label")
    return {"key": key, "label": label, **({"unit": unit} if unit else {})}


# --- Data -----------------------------------------------------------------------------------------


def log_spaced(low: float, high: float, count: int) -> list[float]:
    """Numbers with equal ratios, for :func:`stops`, rounded.

    Example:
        >>> log_spaced(0.1, 10, 3)
        [0.1, 1.0, 10.0]
    """
    return [rounded(low * (high / low) ** (i / (count - 1))) for i in range(count)]


def taylor_lines(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch,
    directions: Mapping[str, Tensor],
    radii: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """The loss of a network along some directions, on both sides, for the figure ``taylor``.

    What the linear model leaves over is stored rather than the loss: four digits of it are enough
    to judge the quadratic model at the smallest step.

    Args:
        model, loss_fn, data: As for :func:`losslandscape.taylor.remainders`.
        directions: ``(D,)`` each, best of length 1.
        radii: ``(m,)`` positive and increasing.

    Returns:
        Per direction ``slope``, ``curvature`` and ``bend``, ``(2 m + 1,)`` values of
        ``L(w + t u) - L(w) - t g'u`` at ``t`` from ``-radii[-1]`` over 0 to ``radii[-1]``.
    """
    positive = torch.tensor(radii, dtype=torch.float64)
    t = torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])
    columns = torch.stack(list(directions.values()), dim=1)
    change, bend, rest = taylor.remainders(model, loss_fn, data, columns, t)
    slopes = (change - bend)[-1] / t[-1]
    curvatures = 2 * (bend - rest)[-1] / t[-1] ** 2
    return {
        name: {"slope": slope, "curvature": curvature, "bend": values}
        for name, slope, curvature, values in zip(
            directions, slopes.tolist(), curvatures.tolist(), bend.T.tolist(), strict=True
        )
    }


def plane_noises(curvatures: Tensor, measured: Tensor | None = None) -> dict[str, Any]:
    """Gradient noises of one trace in the plane of two Hessian eigenvectors.

    The data of the figure ``noise-ellipse``: covariances of the gradient of a single example.

    Args:
        curvatures: ``(2,)``, the larger one first, both positive.
        measured: ``(2, 2)``, whose trace the other noises get; without it the trace is 2.

    Raises:
        ValueError: Curvatures that are not positive or in the wrong order, or a noise of the wrong
            shape or without a positive trace.

    Example:
        >>> plane_noises(torch.tensor([3., 1.]))["noises"]["like H"]
        [[1.5, 0.0], [0.0, 0.5]]
    """
    h = curvatures.detach().double()
    if h.shape != (2,) or not h[0] >= h[1] > 0:
        raise ValueError(f"need two positive curvatures, the larger one first, got {h.tolist()}")
    total = 2.0
    if measured is not None:
        total = float(measured.detach().trace()) if measured.shape == (2, 2) else math.nan
        if not 0 < total < math.inf:
            raise ValueError("the measured noise must be a (2, 2) covariance, not zero")
    noises = {
        "isotropic": total / 2 * torch.eye(2),
        "like H": total * torch.diag(h) / h.sum(),
    }
    if measured is not None:
        noises["measured"] = measured.detach()
    return {
        "curvatures": h.tolist(),
        "noises": {name: covariance.tolist() for name, covariance in noises.items()},
    }


def orbits(curves: Mapping[str, Orbit], examples: int) -> dict[str, Any]:
    """Networks along their rescalings, for the figure ``rescaling``.

    Args:
        curves: Per network its :class:`~losslandscape.rescaling.Orbit`, all at the same factors,
            which are to be the values of the control ``scale``; 1 must be among them.
        examples: On how many the predictions were compared.

    Raises:
        ValueError: Other factors for another network, or none of them 1.
    """
    factors = [tuple(plain(orbit.alphas)) for orbit in curves.values()]
    if len(set(factors)) != 1 or 1.0 not in factors[0]:
        raise ValueError("all orbits need the same factors, 1 among them")
    return {
        "examples": examples,
        "networks": {
            name: {
                "scale": orbit.alphas,
                "sharpness": orbit.lambda_max,
                "relative": orbit.relative,
                "changed": orbit.predictions_changed,
            }
            for name, orbit in curves.items()
        },
    }


def single_batches(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """lambda_max on single batches and on all images, for the figure ``batch-bias``.

    Args:
        runs: Per configuration one result of the study ``batch_size_bias``; all with the same
            sizes, which are to be the values of the control ``size``.

    Raises:
        ValueError: Other sizes or another number of images for another configuration.

    Example:
        >>> run = {"lambda_max": {"value": 2.0, "images": 600}, "batch_lambda_max": {"16": [3, 5]}}
        >>> single_batches({"net": run})["networks"]["net"]
        {'full': 2.0, 'sizes': [16], 'values': [[3, 5]]}
    """
    found = {
        name: {
            "full": run["lambda_max"]["value"],
            "sizes": [int(size) for size in run["batch_lambda_max"]],
            "values": list(run["batch_lambda_max"].values()),
        }
        for name, run in runs.items()
    }
    images = {run["lambda_max"]["images"] for run in runs.values()}
    if len(images) != 1 or len({tuple(one["sizes"]) for one in found.values()}) != 1:
        raise ValueError("all configurations need the same sizes and as many images")
    return {"images": images.pop(), "networks": found}


def landscape(views: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Grids of losses as heights on one logarithmic scale, for the figure ``landscape``.

    A height is a whole number from 0 to 999, written with two letters of base 36, so that ten
    planes of 41 x 41 points take 34 kB.

    Args:
        views: Per network and plane ``axes``, two lists of evenly spaced coordinates, equally many;
            ``loss``, ``[i][j]`` at ``(axes[0][i], axes[1][j])``; ``base``, the loss with which
            others are compared, ``of``, whose it is, in words; ``points``, up to three names with
            coordinates.

    Raises:
        ValueError: A grid that is not square, uneven axes, a loss that is not positive and finite,
            more than three points.

    Example:
        >>> view = {"axes": [[0, 1]] * 2, "loss": [[1, 20], [20, 100]], "base": 1, "of": "it",
        ...         "points": {"it": [0, 0]}}
        >>> found = landscape({"net": {"plane": view}})
        >>> found["scale"], found["views"]["net"]["plane"]["heights"]
        ([-0.001, 2.001], '00i2i2rr')
    """
    grids = [
        torch.tensor(v["loss"], dtype=torch.float64) for row in views.values() for v in row.values()
    ]
    for grid in grids:
        if not (torch.isfinite(grid).all() and (grid > 0).all()):
            raise ValueError("a landscape needs positive and finite losses")
    # The scale as the page will read it, so that no height lies beyond it.
    low = rounded(min(math.log10(float(grid.min())) for grid in grids) - 1e-3)
    high = rounded(max(math.log10(float(grid.max())) for grid in grids) + 1e-3)
    return {
        "scale": [low, high],
        "views": {
            network: {name: _heights(view, low, high) for name, view in row.items()}
            for network, row in views.items()
        },
    }


def _heights(view: Mapping[str, Any], low: float, high: float) -> dict[str, Any]:
    axes = [torch.tensor(axis, dtype=torch.float64) for axis in view["axes"]]
    grid = torch.tensor(view["loss"], dtype=torch.float64)
    if grid.ndim != 2 or len(set(grid.shape) | {len(axis) for axis in axes}) != 1 or len(grid) < 2:
        raise ValueError(f"a landscape needs a square grid, got {tuple(grid.shape)}")
    for axis in axes:
        even = torch.linspace(float(axis[0]), float(axis[-1]), len(axis), dtype=torch.float64)
        if not (axis - even).abs().max() < 1e-3 * (axis[-1] - axis[0]):
            raise ValueError("a landscape needs evenly spaced, increasing coordinates")
    if len(view["points"]) > 3:
        raise ValueError(f"a landscape marks up to three points, got {len(view['points'])}")
    steps = ((grid.log10() - low) / (high - low) * 999).round().int().clamp(0, 999)
    return {
        "first": [float(axes[0][0]), float(axes[0][-1])],
        "second": [float(axes[1][0]), float(axes[1][-1])],
        "side": len(grid),
        "heights": "".join(_pair(step) for step in steps.flatten().tolist()),
        **{name: view[name] for name in ("base", "of", "points")},
    }


def _pair(number: int) -> str:
    """Two letters of base 36."""
    letters = "0123456789abcdefghijklmnopqrstuvwxyz"
    return letters[number // 36] + letters[number % 36]


def rounded(number: float) -> float:
    """The number to four significant digits.

    >>> rounded(0.0123456), rounded(-0.0), rounded(123456.0)
    (0.01235, 0.0, 123500.0)
    """
    return float(f"{number:.{DIGITS}g}") + 0.0  # no negative zero


def plain(value: Any, place: str = "data") -> Any:
    """What JSON can hold, floats rounded; arrays and tensors become lists.

    Raises:
        ValueError: A number is not finite; the message says where.
        TypeError: Something that is no number, text, list or mapping of texts.
    """
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{place} has the key {wrong[0]!r}: use texts")
        return {key: plain(inner, f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{place}[{i}]") for i, inner in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} is {value}: an explorable figure needs finite numbers")
        return rounded(value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}: give numbers, texts, lists or mappings")


def _check_names(what: str, given: list[str], wanted: set[str]) -> None:
    for name in given:
        if name not in wanted:
            raise ValueError(f"{what}: no {name!r}; it has {', '.join(sorted(wanted)) or 'none'}")
    missing = wanted - set(given)
    if missing:
        raise ValueError(f"{what}: {', '.join(sorted(missing))} missing")
    if len(set(given)) < len(given):
        raise ValueError(f"{what}: the same name twice")
