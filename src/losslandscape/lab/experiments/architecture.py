"""Batch normalisation and residual connections: curvature at equal training loss.

Raw curvature is no common measure here: a convolution before batch normalisation can be given any
scale without changing the function, and its curvature falls with the square of that scale (van
Laarhoven, *L2 Regularization versus Batch and Weight Normalization*, 2017). So curvature is taken
relative to the filters as well, and :func:`scale_invariance` checks the identities behind this.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from losslandscape.eigen import lanczos
from losslandscape.flatness import row_scale
from losslandscape.lab.data import Dataset
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import ConvolutionLayer, convolutional
from losslandscape.lab.training import Recipe, accuracy, predict, steps
from losslandscape.objective import flat, gradient
from losslandscape.operators import HessianOperator, ScaledOperator
from losslandscape.slices import evaluate_at, random_slice
from losslandscape.spectrum import estimate_trace

# Beside any variance this is nothing, but it keeps the 0/0 of a channel without variance away.
_TINY = 1e-30


@dataclass(frozen=True)
class ArchitectureRecipe:
    """A network and how it is trained.

    Attributes:
        name: Name of the configuration.
        batchnorm: Whether batch normalisation follows every convolution.
        residual: Whether there are residual connections.
        convolutions: Number of convolutions.
        training: How it is trained.
    """

    name: str
    batchnorm: bool
    residual: bool
    convolutions: int
    training: Recipe


@dataclass(frozen=True)
class Settings:
    """How a run is measured.

    Attributes:
        channels: Of every convolution.
        images: Size of the training set, a stratified subset.
        hessian_images: Size of the fixed stratified subset of it for curvature.
        tol: Relative residual of eigenvalues.
        level: Training loss at which runs are compared.
        level_images: Training images on which that loss is read.
        every: Steps between two readings.
        checkpoints, gap: The first checkpoint is the first reading at or below the level; so many
            in all, so many steps apart.
        outliers: Number of largest eigenvalues taken at the last checkpoint.
        probes: Random vectors for the trace there.
        slices: Number of random filter-normalised lines through it.
        slice_points: Points on each, from -1 to 1.
        identity_images: Size of the batch on which the identities are checked.
    """

    channels: int = 16
    images: int = 10_000
    hessian_images: int = 2048
    tol: float = 1e-2
    level: float = 0.02
    level_images: int = 4096
    every: int = 50
    checkpoints: int = 5
    gap: int = 100
    outliers: int = 10
    probes: int = 16
    slices: int = 3
    slice_points: int = 21
    identity_images: int = 64


def measure(
    recipe: ArchitectureRecipe, dataset: Dataset, seed: int, settings: Settings
) -> dict[str, Any]:
    """Train until the last checkpoint: JSON-ready results of one run, in evaluation mode.

    Returns:
        ``reached``: whether there were all checkpoints. ``level``: per checkpoint step,
        ``train_loss`` on the reading images, ``lambda_max`` and ``row_lambda_max``, relative to
        the filters (see :func:`filter_scale`). ``steps``.
        If it was reached, further, at the last checkpoint: ``test_loss``, ``test_accuracy``,
        ``outliers`` (the largest eigenvalues, with ``outlier_residuals``), ``lambda_min``,
        ``trace``, ``slices`` (see :func:`lines`), and with batch normalisation ``identity`` (see
        :func:`scale_invariance`).
    """
    images, labels = dataset.stratified_subset(min(settings.images, len(dataset.y_train)))
    training = replace(dataset, x_train=images, y_train=labels)
    subset = training.stratified_subset(min(settings.hessian_images, len(labels)))
    model = convolutional(
        training,
        seed=seed,
        convolutions=recipe.convolutions,
        batchnorm=recipe.batchnorm,
        residual=recipe.residual,
        channels=settings.channels,
    )
    done, level = _follow(model, recipe.training, training, subset, seed, settings)
    reached = len(level) == settings.checkpoints
    results = {"reached": reached, "level": level, "steps": done}
    if not reached:
        return results
    hessian = HessianOperator(model, cross_entropy, subset)
    outliers = lanczos(hessian, k=settings.outliers, tol=settings.tol)
    outputs = predict(model, dataset.x_test)
    results |= {
        "test_loss": float(cross_entropy(outputs, dataset.y_test)),
        "test_accuracy": accuracy(outputs, dataset.y_test),
        "outliers": outliers.values.tolist(),
        "outlier_residuals": outliers.residuals.tolist(),
        "lambda_min": summary(lanczos(hessian, which="SA", tol=settings.tol), len(subset[1])),
        "trace": asdict(estimate_trace(hessian, probes=settings.probes)),
        "slices": lines(model, subset, settings),
    }
    if recipe.batchnorm:
        batch = training.stratified_subset(min(settings.identity_images, len(labels)))
        results["identity"] = scale_invariance(model, batch)
    return results


def _follow(
    model: nn.Module,
    recipe: Recipe,
    training: Dataset,
    subset: tuple[Tensor, Tensor],
    seed: int,
    settings: Settings,
) -> tuple[int, list[dict[str, Any]]]:
    """Train to the last checkpoint or epoch: the steps made, and what the checkpoints gave."""
    labels = training.y_train
    images, targets = training.stratified_subset(min(settings.level_images, len(labels)))
    last = recipe.epochs * math.ceil(len(labels) / recipe.batch_size)
    level: list[dict[str, Any]] = []
    due = step = 0
    for step in steps(model, recipe, training, seed=seed):
        if step == due:
            loss = float(cross_entropy(predict(model, images), targets))
            if not math.isfinite(loss):
                break
            reached = bool(level) or loss <= settings.level
            due += settings.gap if reached else settings.every
            if reached:
                level.append({"step": step, "train_loss": loss})
                level[-1] |= _sharpness(model, subset, settings.tol)
        if step == last or len(level) == settings.checkpoints:
            break
    return step, level


def _sharpness(model: nn.Module, subset: tuple[Tensor, Tensor], tol: float) -> dict[str, Any]:
    """lambda_max, plain and relative to the filters."""
    hessian = HessianOperator(model, cross_entropy, subset)
    relative = ScaledOperator(hessian, filter_scale(model))
    return {
        "lambda_max": summary(lanczos(hessian, tol=tol), len(subset[1])),
        "row_lambda_max": summary(lanczos(relative, tol=tol), len(subset[1])),
    }


def filter_scale(model: nn.Module) -> Tensor:
    """:func:`~losslandscape.flatness.row_scale` without scales and shifts of normalisation layers.

    Returns:
        ``(D,)``, zero at the parameters of batch normalisation.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    affine = {id(p) for norm in norms for p in norm.parameters()}
    kept = [torch.full((p.numel(),), float(id(p) not in affine)) for p in model.parameters()]
    scale = row_scale(model)
    return scale * torch.cat(kept).to(scale)


def lines(
    model: nn.Module, data: tuple[Tensor, Tensor], settings: Settings
) -> dict[str, list[Any]]:
    """The loss along random filter-normalised lines through the weights.

    Returns:
        ``positions``, from -1 to 1, and ``losses``, one list per line.
    """
    space = random_slice(model, settings.slices, seed=0)
    positions = torch.linspace(-1, 1, settings.slice_points)
    points = (space.origin + t * column for column in space.basis.T for t in positions)
    found = evaluate_at(model, {"loss": cross_entropy}, data, points, progress=False)["loss"]
    return {
        "positions": positions.tolist(),
        "losses": found.reshape(settings.slices, -1).tolist(),
    }


def scale_invariance(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, training: bool = True, factor: float = 10.0
) -> dict[str, float]:
    r"""How far the identities of a scale-invariant block are from holding.

    The weights :math:`w` of a convolution before batch normalisation that takes the statistics of
    the batch have :math:`L(cw) = L(w)` for every :math:`c > 0`, so with gradient :math:`g` and
    Hessian :math:`H` of this block

    .. math:: \langle g, w \rangle = 0, \quad Hw = -g, \quad g(cw) = g(w)/c, \quad
        H(cw) = H(w)/c^2

    at every :math:`w`. They need the constant that is added to the variance to be negligible, which
    is set to almost zero here; in evaluation mode, with fixed statistics, they are false.

    Args:
        model: Holds :class:`~losslandscape.lab.models.ConvolutionLayer` with batch normalisation;
            a copy in ``float64`` is used.
        batch: Images and labels.
        training: Whether the statistics are those of the batch.
        factor: ``c``.

    Returns:
        The largest relative error over the convolutions: ``loss``, ``radial`` (of ``<g, w> = 0``,
        relative to ``|g| |w|``), ``product`` (``Hw``), ``gradient`` and ``hessian`` (of a product
        with a random vector).

    Raises:
        ValueError: No convolution feeds batch normalisation.
    """
    twin = copy.deepcopy(model).double().train(training)
    images, labels = batch[0].double(), batch[1]
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.eps = _TINY
    errors = [
        _block_errors(twin, layer.conv, (images, labels), factor)
        for layer in twin.modules()
        if isinstance(layer, ConvolutionLayer) and isinstance(layer.norm, _BatchNorm)
    ]
    if not errors:
        raise ValueError("no convolution of this model feeds batch normalisation")
    return {name: max(found[name] for found in errors) for name in errors[0]}


def _block_errors(
    model: nn.Module, conv: nn.Conv2d, batch: tuple[Tensor, Tensor], factor: float
) -> dict[str, float]:
    """The relative errors of :func:`scale_invariance` for one convolution without bias."""
    block, size = list(conv.parameters()), len(batch[1])  # with batch statistics nothing is cut
    hessian = HessianOperator(
        model, cross_entropy, batch, params=block, chunk_size=size, allow=["batchnorm"]
    )
    w = flat(block)
    v = torch.randn(len(w), generator=torch.Generator().manual_seed(0), dtype=w.dtype)
    loss, g = gradient(model, cross_entropy, batch, params=block, chunk_size=size)
    hw, hv = hessian @ w, hessian @ v
    before = conv.weight.detach().clone()
    conv.weight.data.mul_(factor)
    new_loss, new_g = gradient(model, cross_entropy, batch, params=block, chunk_size=size)
    new_hv = hessian @ v
    conv.weight.data.copy_(before)
    return {
        "loss": abs(new_loss - loss) / loss,
        "radial": float((g @ w).abs() / (g.norm() * w.norm())),
        "product": float((hw + g).norm() / g.norm()),
        "gradient": float((factor * new_g - g).norm() / g.norm()),
        "hessian": float((factor**2 * new_hv - hv).norm() / hv.norm()),
    }
