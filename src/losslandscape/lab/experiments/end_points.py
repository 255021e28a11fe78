"""What the end points of the three configurations are: minima or not, and by which measures.

The networks are those of ``three_configurations``, trained again from the same seeds; this study
holds what is measured on them beyond Table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos, power_iteration
from losslandscape.estimates import Estimate
from losslandscape.lab.data import Dataset
from losslandscape.lab.experiments.polish import polish
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import cnn
from losslandscape.lab.training import Recipe, accuracy, fit, predict
from losslandscape.objective import flat, gradient
from losslandscape.operators import HessianOperator, ScaledOperator, weight_scale
from losslandscape.rescaling import rescale_relu
from losslandscape.sgd_noise import gradient_noise
from losslandscape.spectrum import estimate_moments, spectral_density

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """How an end point is measured.

    Attributes:
        channels, hidden: Width of the network.
        hessian_images: Size of the fixed stratified training subset for eigenvalues and moments.
        path_tol, end_tol: Relative residual of eigenvalues along training and at the end.
        noise_images: Size of each of two disjoint sets of training images: one gives the
            eigenvectors, the other the gradient noise along them.
        noise_pairs, noise_tol: Number of those eigenvectors and their relative residual.
        power_products: Most products of power iteration.
        probes: Random vectors for trace and participation ratio.
        rescaled: Configurations whose end point is rescaled.
        rescaled_goal: The rescaling goes on until lambda_max exceeds this value.
        largest_factor: Largest factor of the rescaling, a power of two.
        detailed_seeds: Of so many first seeds lambda_min is taken after every epoch, of the others
            at the end only; and single batches are measured.
        batch_sizes: Pairs (size, number) of single random batches.
        density_seeds: Of so many first seeds the spectral density is taken.
        density_probes, density_steps: Its random vectors and Lanczos steps.
    """

    channels: tuple[int, int] = (32, 64)
    hidden: int = 128
    hessian_images: int = 2048
    path_tol: float = 1e-2
    end_tol: float = 1e-3
    noise_images: int = 4096
    noise_pairs: int = 20
    noise_tol: float = 5e-2
    power_products: int = 200
    probes: int = 16
    rescaled: tuple[str, ...] = ("Adam_Default",)
    rescaled_goal: float = 246.19
    largest_factor: int = 64
    detailed_seeds: int = 3
    batch_sizes: tuple[tuple[int, int], ...] = ((16, 100), (256, 20), (1024, 10))
    density_seeds: int = 1
    density_probes: int = 4
    density_steps: int = 60


def measure(recipe: Recipe, dataset: Dataset, seed: int, settings: Settings) -> dict[str, Any]:
    """Train once and measure the end point: JSON-ready results of one run.

    Returns:
        ``history`` as in :class:`~losslandscape.lab.training.Run`; ``lambda_min_path`` by epoch;
        ``lambda_max``, ``adaptive_lambda_max`` (of ``|w| H |w|``), ``trace`` and
        ``participation_ratio`` on the fixed subset; ``power`` (see :func:`compare_methods`);
        ``noise`` (see :func:`noise_along_eigenvectors`); ``stationarity``;
        ``wrong_test_images`` (positions of those that are classified wrongly); ``polish``;
        ``halved_start``; and, where the settings ask for them, ``rescaled``, ``batch_lambda_max``
        and ``density``.
    """
    model = cnn(dataset, seed=seed, channels=settings.channels, hidden=settings.hidden)
    subset = dataset.stratified_subset(min(settings.hessian_images, len(dataset.y_train)))
    results: dict[str, Any] = {"halved_start": _halved(model, dataset, subset, settings)}
    detailed = seed < settings.detailed_seeds
    lowest: list[dict[str, Any]] = []

    def watch(epoch: int, network: nn.Module) -> None:
        if detailed or epoch == recipe.epochs:
            bottom = lanczos(_hessian(network, subset), which="SA", tol=settings.path_tol)
            lowest.append({"epoch": epoch, **summary(bottom, len(subset[1]))})

    run = fit(model, recipe, dataset, seed=seed, progress=False, on_epoch=watch)
    hessian = _hessian(run.model, subset)
    moments = estimate_moments(hessian, probes=settings.probes)
    results |= {
        "history": run.history,
        "lambda_min_path": lowest,
        "lambda_max": _top(run.model, subset, settings.end_tol),
        "adaptive_lambda_max": _adaptive_top(run.model, subset, settings.path_tol),
        "trace": _estimate(moments.trace),
        "participation_ratio": _estimate(moments.participation_ratio),
        "power": compare_methods(hessian, settings, seed=seed),
        "noise": noise_along_eigenvectors(run.model, dataset, settings),
        "stationarity": stationarity(run.model, recipe, dataset),
        "wrong_test_images": wrong_test_images(run.model, dataset),
        "polish": polish(run.model, recipe, dataset, subset, seed=seed, tol=settings.path_tol),
    }
    if recipe.name in settings.rescaled:
        results["rescaled"] = _lifted(run.model, dataset, subset, settings)
    if detailed:
        results["batch_lambda_max"] = _on_batches(run.model, dataset, settings)
    if seed < settings.density_seeds:
        density = spectral_density(
            hessian, probes=settings.density_probes, steps=settings.density_steps
        )
        results["density"] = {
            "nodes": density.nodes.tolist(),
            "weights": density.weights.tolist(),
            "size": density.size,
        }
    return results


def compare_methods(hessian: HessianOperator, settings: Settings, *, seed: int) -> dict[str, Any]:
    """Power iteration against Lanczos, from the same random start.

    Returns:
        ``power`` and ``lanczos``: value, residual and products at the end, and ``within_percent``,
        the number of products after which the value stays within 1 % of the converged Lanczos
        value (``None``: never).
    """
    krylov = lanczos(hessian, tol=settings.end_tol, seed=seed)
    power = power_iteration(
        hessian, tol=settings.path_tol, max_products=settings.power_products, seed=seed
    )
    goal = float(krylov.values[0])
    return {
        name: {
            "value": float(found.values[0]),
            "residual": float(found.residuals[0]),
            "products": found.products,
            "within_percent": _settled(found.history, goal),
        }
        for name, found in (("lanczos", krylov), ("power", power))
    }


def _settled(history: Tensor, goal: float) -> int | None:
    """Products after which all later values lie within 1 % of ``goal``."""
    good = None
    for products, value, _ in history.tolist():
        if abs(value - goal) > 0.01 * goal:
            good = None
        elif good is None:
            good = int(products)
    return good


def noise_along_eigenvectors(
    model: nn.Module, dataset: Dataset, settings: Settings
) -> dict[str, Any]:
    """Variance of single-image gradients along the top eigenvectors, from disjoint images.

    Returns:
        ``curvature`` and ``residual`` of each pair on the first set; ``variance`` along it and
        ``variance_stderr`` on the second.
    """
    size = min(settings.noise_images, len(dataset.y_train) // 2)
    images, labels = dataset.stratified_subset(2 * size)
    first, second = (images[::2], labels[::2]), (images[1::2], labels[1::2])
    top = lanczos(
        _hessian(model, first), k=settings.noise_pairs, tol=settings.noise_tol, max_products=600
    )
    if not top.converged.all():
        raise ArithmeticError(f"the top {settings.noise_pairs} eigenpairs did not converge")
    noise = gradient_noise(model, cross_entropy, second, top.vectors).variances
    return {
        "curvature": top.values.tolist(),
        "residual": top.residuals.tolist(),
        "variance": noise.values.tolist(),
        "variance_stderr": noise.stderrs.tolist(),
        "images": size,
    }


def stationarity(model: nn.Module, recipe: Recipe, dataset: Dataset) -> dict[str, float]:
    """How far the gradient of the objective is from zero, on all training images.

    Returns:
        ``grad_norm`` of the data loss, ``weight_norm``, ``weight_dot_grad``, and
        ``objective_grad_norm``, of the data loss with the recipe's weight penalty.
    """
    _, slope = gradient(model, cross_entropy, (dataset.x_train, dataset.y_train))
    weights = flat(p.detach() for p in model.parameters())
    return {
        "grad_norm": float(slope.norm()),
        "weight_norm": float(weights.norm()),
        "weight_dot_grad": float(weights @ slope),
        "objective_grad_norm": float((slope + recipe.weight_decay * weights).norm()),
    }


def wrong_test_images(model: nn.Module, dataset: Dataset) -> list[int]:
    """Positions of the wrongly classified test images, for tests paired by image."""
    wrong = predict(model, dataset.x_test).argmax(dim=1) != dataset.y_test
    return [int(place) for place in wrong.nonzero()[:, 0]]


def _lifted(
    model: nn.Module, dataset: Dataset, subset: Batch, settings: Settings
) -> dict[str, Any]:
    """The same function at weights whose lambda_max exceeds the goal.

    The last hidden layer is multiplied by the smallest power of two that suffices, and the output
    layer divided by it.
    """
    outputs = predict(model, dataset.x_test)
    factor = 1
    while True:
        factor *= 2
        other = rescale_relu(model, [1, 1, factor])
        top = _top(other, subset, settings.end_tol)
        if top["value"] > settings.rescaled_goal or factor >= settings.largest_factor:
            break
    changed = predict(other, dataset.x_test)
    return {
        "factor": factor,
        "lambda_max": top,
        "adaptive_lambda_max": _adaptive_top(other, subset, settings.path_tol),
        "logit_change": float((changed - outputs).abs().max() / outputs.abs().max()),
        "test_accuracy": accuracy(changed, dataset.y_test),
    }


def _halved(
    model: nn.Module, dataset: Dataset, subset: Batch, settings: Settings
) -> dict[str, Any]:
    """A flat point that predicts nothing: the initial weights and biases times one half."""
    half = cnn(dataset, seed=0, channels=settings.channels, hidden=settings.hidden).eval()
    half.load_state_dict({name: 0.5 * weights for name, weights in model.state_dict().items()})
    return {
        "lambda_max": _top(half, subset, settings.end_tol),
        "test_accuracy": accuracy(predict(half, dataset.x_test), dataset.y_test),
    }


def _on_batches(model: nn.Module, dataset: Dataset, settings: Settings) -> dict[str, list[float]]:
    """lambda_max of single random batches, by size."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}
    for size, number in settings.batch_sizes:
        found[str(size)] = []
        for _ in range(number):
            rows = torch.randperm(len(dataset.y_train), generator=generator)[:size]
            batch = (dataset.x_train[rows], dataset.y_train[rows])
            found[str(size)].append(_top(model, batch, settings.path_tol)["value"])
    return found


def _top(model: nn.Module, data: Batch, tol: float) -> dict[str, Any]:
    return _certified(_hessian(model, data), len(data[1]), tol)


def _adaptive_top(model: nn.Module, data: Batch, tol: float) -> dict[str, Any]:
    scaled = ScaledOperator(_hessian(model, data), weight_scale(model))
    return _certified(scaled, len(data[1]), tol)


def _certified(op: HessianOperator | ScaledOperator, images: int, tol: float) -> dict[str, Any]:
    top = lanczos(op, tol=tol)
    if not top.converged.all():
        raise ArithmeticError(f"lambda_max of {images} images did not converge")
    return summary(top, images)


def _hessian(model: nn.Module, data: Batch) -> HessianOperator:
    return HessianOperator(model, cross_entropy, data)


def _estimate(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "stderr": found.stderr}
