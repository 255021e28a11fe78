"""The loss around the end points of the three configurations and on paths between them.

Everything here is a picture or the number behind one: planes around one end point, straight and
bent paths between two, the plane through all three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from losslandscape.eigen import EigenResult, lanczos
from losslandscape.lab.data import Dataset
from losslandscape.lab.models import cnn
from losslandscape.lab.training import RECIPES, evaluate, recipe_for, steps
from losslandscape.objective import LossFunction
from losslandscape.operators import HessianOperator
from losslandscape.slices import (
    Slice,
    barrier,
    bent_path,
    eigen_slice,
    evaluate_at,
    evaluate_on,
    line_through,
    plane_through,
    projection_gap,
    random_slice,
    trajectory_plane,
)
from losslandscape.spectrum import estimate_trace

KINDS = ("around", "path", "plane")


def share_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of images whose largest output is the label's."""
    return (outputs.argmax(dim=1) == targets).double().mean()


FUNCTIONS: dict[str, LossFunction] = {"loss": cross_entropy, "accuracy": share_correct}


@dataclass(frozen=True)
class MinimaRecipe:
    """What is looked at.

    Attributes:
        name: Name of the configuration.
        kind: ``"around"`` one end point, ``"path"`` between two, ``"plane"`` through three.
        configurations: Names of the recipes that are trained.
        offsets: What is added to the run seed for each of them; with the same offset two networks
            have the same initial weights and order of batches.
    """

    name: str
    kind: str
    configurations: tuple[str, ...]
    offsets: tuple[int, ...] = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        if len(self.configurations) != KINDS.index(self.kind) + 1:
            raise ValueError(
                f"{self.kind} needs {KINDS.index(self.kind) + 1} configurations, got "
                f"{len(self.configurations)}"
            )


MINIMA_RECIPES = (
    *(MinimaRecipe(f"around_{name}", "around", (name,)) for name in RECIPES),
    *(MinimaRecipe(f"path_{a}_{b}", "path", (a, b)) for a, b in combinations(RECIPES, 2)),
    MinimaRecipe("path_Adam_Default_other_start", "path", ("Adam_Default",) * 2, (0, 1)),
    MinimaRecipe("three_minima", "plane", tuple(RECIPES)),
)


@dataclass(frozen=True)
class Settings:
    """How a run is measured.

    Attributes:
        channels, hidden: Width of the network.
        epochs: Epochs of training; ``None`` takes the recipe's.
        images: Size of the fixed stratified training subset of all planes and eigenvalues.
        grid: Points along each side of a plane; odd, so that the middle is a point.
        filter_range, eigen_range: Half the side of a plane along filter-normalised directions, in
            their lengths, and along unit eigenvectors.
        lines: Random directions of each normalisation that are looked at one by one.
        line_points: Points on each of these lines.
        tol: Relative residual of eigenvalues.
        probes: Products for the trace.
        snapshots: Checkpoints of the training trajectory, evenly spaced, the start apart.
        margin: Free border around trajectories and points, in sides of their bounding box.
        path_points: Points on a path, its ends included.
        bend_steps, bend_lr, bend_batch: Training of the bent path's middle point.
    """

    channels: tuple[int, int] = (32, 64)
    hidden: int = 128
    epochs: int | None = None
    images: int = 1024
    grid: int = 41
    filter_range: float = 1.0
    eigen_range: float = 1.0
    lines: int = 8
    line_points: int = 41
    tol: float = 1e-2
    probes: int = 32
    snapshots: int = 70
    margin: float = 0.25
    path_points: int = 25
    bend_steps: int = 2000
    bend_lr: float = 1e-3
    bend_batch: int = 128


def measure(
    recipe: MinimaRecipe, dataset: Dataset, seed: int, settings: Settings
) -> dict[str, Any]:
    """Train and look: JSON-ready results of one run, numbers to 6 significant digits.

    Returns:
        ``ends``: by configuration (with ``+1`` for a run seed one higher) what
        :func:`~losslandscape.lab.training.evaluate` measures, with ``norm`` of the weights, on all
        images. Further, by kind of the recipe, what :func:`around`, :func:`between` and
        :func:`plane` return.

    Raises:
        FloatingPointError: Training diverged, or a number is not finite.
    """
    models: dict[str, nn.Module] = {}
    ends = {}
    for label, name, offset in _runs(recipe):
        model, trajectory = trained(name, dataset, seed + offset, settings)
        models[label] = model
        ends[label] = {**evaluate(model, dataset), "norm": float(torch.linalg.norm(flat(model)))}
    if recipe.kind == "around":
        found = around(model, trajectory, dataset, seed, settings)
    elif recipe.kind == "path":
        start, end = models.values()
        found = between(start, end, dataset, seed, settings)
    else:
        found = plane(models, dataset, settings)
    rounded: dict[str, Any] = _rounded({"ends": ends, **found}, "results")
    return rounded


def measure_ends(
    recipe: MinimaRecipe, dataset: Dataset, seed: int, settings: Settings
) -> dict[str, Any]:
    """The part of :func:`measure` that ``study diff`` repeats: training and its end points."""
    ends = {
        label: evaluate(trained(name, dataset, seed + offset, settings)[0], dataset)
        for label, name, offset in _runs(recipe)
    }
    rounded: dict[str, Any] = _rounded({"ends": ends}, "results")
    return rounded


def trained(
    name: str, dataset: Dataset, seed: int, settings: Settings
) -> tuple[nn.Module, dict[int, Tensor]]:
    """One of the three configurations: the network, and its weights ``(D,)`` by step."""
    recipe = recipe_for(name, dataset)
    if settings.epochs is not None:
        recipe = replace(recipe, epochs=settings.epochs)
    model = cnn(dataset, seed=seed, channels=settings.channels, hidden=settings.hidden)
    last = math.ceil(len(dataset.y_train) / recipe.batch_size) * recipe.epochs
    kept = {round(last * number / settings.snapshots) for number in range(settings.snapshots + 1)}
    trajectory = {}
    for step in steps(model, recipe, dataset, seed=seed):
        if step in kept:
            trajectory[step] = flat(model)
        if step == last:
            break
    return model, trajectory


def _runs(recipe: MinimaRecipe) -> list[tuple[str, str, int]]:
    """Label, configuration and seed offset of each network."""
    return [
        (f"{name}+{offset}" if offset else name, name, offset)
        for name, offset in zip(recipe.configurations, recipe.offsets, strict=False)
    ]


def around(
    model: nn.Module,
    trajectory: Mapping[int, Tensor],
    dataset: Dataset,
    seed: int,
    settings: Settings,
) -> dict[str, Any]:
    """Planes and lines through one end point, and the plane of its trajectory.

    Returns:
        ``lambda_max``, ``second``: the two top eigenpairs with certificates; ``trace`` with its
        standard error; all on the subset, as are the planes.
        ``planes``: by name (``filter``: random filter-normalised; ``unit``: random, all weights
        alike, directions as long as the first filter-normalised one; ``eigen``), each with the two
        ``axes``, ``loss`` and ``accuracy`` as ``[i][j]`` at ``(axes[0][i], axes[1][j])``,
        ``lengths`` of the directions, their ``cosine``, and the exact ``curvature``
        ``d' H d`` along each.
        ``lines``: for ``filter`` and ``unit`` the ``positions``, one ``loss`` curve per direction,
        and the exact ``curvature`` along each.
        ``trajectory``: ``explained`` shares of variance, ``steps`` and ``coordinates`` of the
        checkpoints, ``pairs`` of ``loss`` and ``accuracy`` (at the checkpoint, at its projection),
        and a plane as above.
    """
    subset = _subset(dataset, settings)
    hessian = HessianOperator(model, cross_entropy, subset)
    eigen, pairs = eigen_slice(model, cross_entropy, subset, tol=settings.tol, progress=False)
    trace = estimate_trace(hessian, probes=settings.probes, seed=seed)
    results: dict[str, Any] = {
        "lambda_max": _pair(pairs, 0, len(subset[1])),
        "second": _pair(pairs, 1, len(subset[1])),
        "trace": {"value": trace.value, "stderr": trace.stderr},
        "parameters": hessian.shape[0],
    }
    random = {
        name: random_slice(model, max(2, settings.lines), seed=seed, normalise=name)
        for name in ("filter", "unit")
    }
    # As long as the filter-normalised direction: the pictures differ by normalisation alone.
    length = torch.linalg.vector_norm(random["filter"].basis[:, 0])
    random["unit"] = Slice(random["unit"].origin, random["unit"].basis * length)
    planes = {name: Slice(wide.origin, wide.basis[:, :2]) for name, wide in random.items()}
    planes["eigen"] = eigen
    results["planes"] = {}
    for name, where in planes.items():
        reach = settings.eigen_range if name == "eigen" else settings.filter_range
        axis = torch.linspace(-reach, reach, settings.grid, dtype=torch.float64)
        results["planes"][name] = {
            **_grid(model, subset, where, axis, axis),
            **_directions(where, hessian),
        }
    reach = settings.filter_range
    positions = torch.linspace(-reach, reach, settings.line_points, dtype=torch.float64)
    results["lines"] = {"positions": positions.tolist()}
    for name, wide in random.items():
        curves = [
            evaluate_on(
                model, FUNCTIONS, subset, Slice(wide.origin, d[:, None]), positions, progress=False
            )["loss"].tolist()
            for d in wide.basis.T[: settings.lines]
        ]
        bent = _directions(Slice(wide.origin, wide.basis[:, : settings.lines]), hessian)
        results["lines"][name] = {"loss": curves, "curvature": bent["curvature"]}
    results["trajectory"] = _trajectory(model, subset, trajectory, settings)
    return results


def between(
    start: nn.Module, end: nn.Module, dataset: Dataset, seed: int, settings: Settings
) -> dict[str, Any]:
    """The straight and the bent path between two end points, on all images.

    Returns:
        ``positions``; ``distance``, ``cosine`` of the end points; for ``straight`` and ``bent`` the
        ``length``, the curves ``train_loss``, ``train_accuracy``, ``test_loss``, ``test_accuracy``
        and the ``barrier`` of both losses.
    """
    a, b = flat(start), flat(end)
    # The training set may be sorted, and the bend takes its batches in order.
    order = torch.randperm(len(dataset.y_train), generator=torch.Generator().manual_seed(seed))
    bend = bent_path(
        start,
        cross_entropy,
        (dataset.x_train[order], dataset.y_train[order]),
        a,
        b,
        steps=settings.bend_steps,
        lr=settings.bend_lr,
        batch_size=settings.bend_batch,
        seed=seed,
        progress=False,
    )
    positions = torch.linspace(0, 1, settings.path_points, dtype=torch.float64)
    straight = line_through(a, b)
    distance = float(torch.linalg.vector_norm(b - a))
    results: dict[str, Any] = {
        "positions": positions.tolist(),
        "distance": distance,
        "cosine": float(torch.cosine_similarity(a, b, dim=0)),
    }
    for name, length, points in (
        ("straight", distance, [straight.at(t[None]) for t in positions]),
        ("bent", bend.length(), [bend.at(float(t)) for t in positions]),
    ):
        results[name] = {"length": length, "barrier": {}}
        for part, data in (
            ("train", (dataset.x_train, dataset.y_train)),
            ("test", (dataset.x_test, dataset.y_test)),
        ):
            found = evaluate_at(start, FUNCTIONS, data, points, progress=False)
            for what, values in found.items():
                results[name][f"{part}_{what}"] = values.tolist()
            results[name]["barrier"][f"{part}_loss"] = barrier(positions, found["loss"])
    return results


def plane(models: Mapping[str, nn.Module], dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """The plane through three end points, on the subset.

    Returns:
        ``points``: by configuration its ``coordinates`` in the plane, its ``loss`` and certified
        ``lambda_max``; and a plane as in :func:`around`.
    """
    subset = _subset(dataset, settings)
    corners = torch.stack([flat(model) for model in models.values()])
    where = plane_through(*corners)
    coordinates = where.coordinates(corners)
    points = {}
    for (name, model), place in zip(models.items(), coordinates, strict=True):
        top = lanczos(HessianOperator(model, cross_entropy, subset), tol=settings.tol)
        here = evaluate_at(model, FUNCTIONS, subset, [flat(model)], progress=False)
        points[name] = {
            "coordinates": place.tolist(),
            "loss": float(here["loss"][0]),
            "accuracy": float(here["accuracy"][0]),
            "lambda_max": _pair(top, 0, len(subset[1])),
        }
    model = next(iter(models.values()))
    axes = _around_points(coordinates, settings)
    return {"points": points, **_grid(model, subset, where, *axes)}


def flat(model: nn.Module) -> Tensor:
    """All weights as one vector ``(D,)``, a copy."""
    return parameters_to_vector(model.parameters()).detach().clone()


def _subset(dataset: Dataset, settings: Settings) -> tuple[Tensor, Tensor]:
    return dataset.stratified_subset(min(settings.images, len(dataset.y_train)))


def _grid(
    model: nn.Module, subset: tuple[Tensor, Tensor], where: Slice, first: Tensor, second: Tensor
) -> dict[str, Any]:
    found = evaluate_on(model, FUNCTIONS, subset, where, first, second, progress=False)
    values = {name: grid.tolist() for name, grid in found.items()}
    return {"axes": [first.tolist(), second.tolist()], **values}


def _directions(where: Slice, hessian: HessianOperator) -> dict[str, Any]:
    lengths = torch.linalg.vector_norm(where.basis, dim=0)
    curvature = (where.basis * (hessian @ where.basis)).sum(dim=0)
    first, second = where.basis[:, 0], where.basis[:, -1]
    return {
        "lengths": lengths.tolist(),
        "cosine": float(torch.cosine_similarity(first, second, dim=0)),
        "curvature": curvature.tolist(),
    }


def _trajectory(
    model: nn.Module,
    subset: tuple[Tensor, Tensor],
    trajectory: Mapping[int, Tensor],
    settings: Settings,
) -> dict[str, Any]:
    points = torch.stack(list(trajectory.values()))
    where, explained = trajectory_plane(points)
    coordinates = where.coordinates(points)
    pairs = projection_gap(model, FUNCTIONS, subset, points, where, progress=False)
    return {
        "explained": explained[:10].tolist(),
        "steps": list(trajectory),
        "coordinates": coordinates.tolist(),
        "pairs": {name: values.tolist() for name, values in pairs.items()},
        **_grid(model, subset, where, *_around_points(coordinates, settings)),
    }


def _around_points(coordinates: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Two axes over the bounding box of points (m, 2), with a margin; the plane stays square."""
    low, high = coordinates.double().min(dim=0).values, coordinates.double().max(dim=0).values
    half = float((high - low).max()) * (0.5 + settings.margin)
    first, second = (
        torch.linspace(middle - half, middle + half, settings.grid, dtype=torch.float64)
        for middle in ((low + high) / 2).tolist()
    )
    return first, second


def _pair(pairs: EigenResult, index: int, images: int) -> dict[str, Any]:
    return {
        "value": float(pairs.values[index]),
        "residual": float(pairs.residuals[index]),
        "converged": bool(pairs.converged[index]),
        "products": pairs.products,
        "images": images,
    }


def _rounded(value: Any, name: str) -> Any:
    """Every float to 6 significant digits.

    Raises:
        FloatingPointError: One of them is not finite.
    """
    if isinstance(value, dict):
        return {key: _rounded(part, f"{name}.{key}") for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part, name) for part in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} holds {value}: narrow the range of the slice")
        return float(f"{value:.6g}")
    return value
