"""Does a measure of flatness predict the generalisation gap of networks of equal training loss?

Small networks are trained on 2 000 images, with right labels or with a tenth of them wrong, by many
recipes, all of them stopped at the same training loss; then every measure is taken on all of the
training images, and the gap on all other images.
"""

from __future__ import annotations

import math
import time
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos
from losslandscape.flatness import fisher_rao, input_jacobian, relative_flatness, row_scale
from losslandscape.lab.data import Dataset
from losslandscape.lab.experiments.polish import polish, train_loss
from losslandscape.lab.experiments.three_configurations import summary
from losslandscape.lab.models import cnn
from losslandscape.lab.training import OPTIMIZERS, Recipe, accuracy, predict
from losslandscape.objective import flat
from losslandscape.operators import HessianOperator, ScaledOperator, weight_scale
from losslandscape.rescaling import hidden_layers, rescaling_diagonal
from losslandscape.spectrum import estimate_moments, estimate_trace

ARMS = ("clean", "noisy")


@dataclass(frozen=True)
class SweepRecipe:
    """One cell of the sweep.

    Attributes:
        name: Name of the configuration.
        arm: ``"clean"``, or ``"noisy"`` for training labels some of which are wrong.
        optimizer: ``"sgd"`` (without momentum) or ``"adam"``.
        lr: Learning rate.
        batch_size: Images per step.
        weight_decay: Coefficient ``wd`` of the penalty ``(wd/2) ||w||^2``.
        channels, hidden: Width of the network.
    """

    name: str
    arm: str
    optimizer: str
    lr: float
    batch_size: int
    weight_decay: float
    channels: tuple[int, int]
    hidden: int

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"unknown arm {self.arm!r}: choose one of {', '.join(ARMS)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"unknown optimizer {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}"
            )


@dataclass(frozen=True)
class Settings:
    """When a run stops and how it is measured.

    Attributes:
        images: Size of the training set, one stratified draw for all runs.
        wrong_labels: Share of its labels that are wrong in the noisy arm.
        draw_seed: Seed of the draw and of the wrong labels.
        target: Training loss aimed at.
        band: The run stops at the first reading of the training loss in this interval.
        every: Steps between two readings. They begin once the mean loss of so many batches is
            below ``alert`` times the target, and go on from then on.
        alert: See ``every``.
        budget: CPU seconds of training after which a run has missed the band.
        end_tol: Relative residual of lambda_max and lambda_min.
        path_tol: Relative residual of the other eigenvalues.
        probes: Random vectors for each trace.
        rescaling: Largest ``|log10|`` of the factor of the random rescaling.
    """

    images: int = 2000
    wrong_labels: float = 0.1
    draw_seed: int = 0
    target: float = 0.01
    band: tuple[float, float] = (0.009, 0.011)
    every: int = 5
    alert: float = 1.5
    budget: float = 240.0
    end_tol: float = 1e-3
    path_tol: float = 1e-2
    probes: int = 24
    rescaling: float = 1.0


@dataclass(frozen=True)
class Stop:
    """How training ended.

    Attributes:
        reached: Whether the training loss was read inside the band.
        train_loss: At the end; ``None`` after divergence.
        steps: Steps made.
        reason: ``"band"``, ``"diverged"`` or ``"budget"``.
    """

    reached: bool
    train_loss: float | None
    steps: int
    reason: str


def measure(recipe: SweepRecipe, dataset: Dataset, seed: int, settings: Settings) -> dict[str, Any]:
    """Train until the band and measure there: JSON-ready results of one run.

    Returns:
        What :func:`measure_training` gives. If the band was reached, further, on all training
        images with the labels given: ``lambda_max``, ``lambda_min``, ``trace`` and
        ``participation_ratio`` of the Hessian ``H``; ``radial_curvature``, ``w'Hw``;
        ``adaptive_lambda_max``, ``adaptive_trace`` and ``adaptive_participation_ratio`` of
        ``|w| H |w|``; ``row_lambda_max`` and ``row_trace``, relative to rows and filters;
        ``fisher_rao``, ``relative_flatness``, ``relative_flatness_normalised``,
        ``input_jacobian``; ``rescaled`` (see :func:`rescaled`); ``polish`` (see
        :func:`~losslandscape.lab.experiments.polish.polish`).
    """
    training = training_set(dataset, recipe, settings)
    model, results = _train_and_test(recipe, dataset, training, seed, settings)
    if not results["reached"]:
        return results
    data = (training.x_train, training.y_train)
    tol, end_tol, probes = settings.path_tol, settings.end_tol, settings.probes
    hessian = HessianOperator(model, cross_entropy, data)
    adaptive = ScaledOperator(hessian, weight_scale(model))
    rows = ScaledOperator(hessian, row_scale(model))
    moments = estimate_moments(hessian, probes=probes)
    adaptive_moments = estimate_moments(adaptive, probes=probes)
    w, images = flat(model.parameters()), settings.images
    results |= {
        "lambda_max": summary(lanczos(hessian, tol=end_tol), images),
        "lambda_min": summary(lanczos(hessian, which="SA", tol=end_tol), images),
        "trace": asdict(moments.trace),
        "participation_ratio": asdict(moments.participation_ratio),
        "radial_curvature": float(w @ (hessian @ w)),
        "adaptive_lambda_max": summary(lanczos(adaptive, tol=tol), images),
        "adaptive_trace": asdict(adaptive_moments.trace),
        "adaptive_participation_ratio": asdict(adaptive_moments.participation_ratio),
        "row_lambda_max": summary(lanczos(rows, tol=tol), images),
        "row_trace": asdict(estimate_trace(rows, probes=probes)),
        "rescaled": rescaled(model, hessian, recipe, seed, settings),
    }
    del hessian, adaptive, rows  # the kept graphs go, those of the polish test come
    kappa = relative_flatness(model, cross_entropy, data, normalise=True)
    return results | {
        "fisher_rao": asdict(fisher_rao(model, cross_entropy, data)),
        "relative_flatness": asdict(relative_flatness(model, cross_entropy, data)),
        "relative_flatness_normalised": asdict(kappa),
        "input_jacobian": asdict(input_jacobian(model, training.x_train)),
        "polish": polish(model, _plain(recipe), training, data, seed=seed, tol=tol),
    }


def measure_training(
    recipe: SweepRecipe, dataset: Dataset, seed: int, settings: Settings
) -> dict[str, Any]:
    """The part of :func:`measure` without curvature.

    Returns:
        ``reached``: whether the band was. If not, further only ``train_loss``, ``steps`` and
        ``reason`` (see :class:`Stop`). Else ``train_loss`` and ``train_error`` against the labels
        given, ``steps``, ``epochs``, ``weight_norm``, ``distance`` from the initial weights,
        ``parameters``, ``heldout_loss`` and ``heldout_error`` on the images of :func:`held_out`.
    """
    training = training_set(dataset, recipe, settings)
    return _train_and_test(recipe, dataset, training, seed, settings)[1]


def _train_and_test(
    recipe: SweepRecipe, dataset: Dataset, training: Dataset, seed: int, settings: Settings
) -> tuple[nn.Module, dict[str, Any]]:
    model = cnn(training, seed=seed, channels=recipe.channels, hidden=recipe.hidden)
    start = flat(model.parameters()).double()
    stop = train_to_band(model, recipe, training, seed, settings)
    results = {"reached": stop.reached, "train_loss": stop.train_loss, "steps": stop.steps}
    if not stop.reached:
        return model, {**results, "reason": stop.reason}
    end = flat(model.parameters()).double()
    images, labels = held_out(dataset, settings)
    outputs = predict(model, images)
    fitted = accuracy(predict(model, training.x_train), training.y_train)
    return model, {
        **results,
        "train_error": 1 - fitted,
        "epochs": stop.steps / math.ceil(len(training.y_train) / recipe.batch_size),
        "weight_norm": float(end.norm()),
        "distance": float((end - start).norm()),
        "parameters": len(end),
        "heldout_loss": float(cross_entropy(outputs.double(), labels)),
        "heldout_error": 1 - accuracy(outputs, labels),
    }


def training_set(dataset: Dataset, recipe: SweepRecipe, settings: Settings) -> Dataset:
    """The images of the draw for training, with the labels of the recipe's arm.

    In the noisy arm exactly the share ``settings.wrong_labels`` of them get another class, each
    other class being as likely as the next. Draw and wrong labels are the same for all runs.
    """
    chosen, _ = _draw(dataset, settings)
    labels = dataset.y_train[chosen]
    if recipe.arm == "noisy":
        generator = torch.Generator().manual_seed(settings.draw_seed)
        count = round(settings.wrong_labels * len(labels))
        wrong = torch.randperm(len(labels), generator=generator)[:count]
        shift = torch.randint(1, dataset.classes, (count,), generator=generator)
        labels[wrong] = (labels[wrong] + shift) % dataset.classes
    return replace(dataset, x_train=dataset.x_train[chosen], y_train=labels)


def held_out(dataset: Dataset, settings: Settings) -> tuple[Tensor, Tensor]:
    """All images outside the draw, those for testing first, with their right labels."""
    _, unused = _draw(dataset, settings)
    images = torch.cat([dataset.x_test, dataset.x_train[unused]])
    return images, torch.cat([dataset.y_test, dataset.y_train[unused]])


def _draw(dataset: Dataset, settings: Settings) -> tuple[Tensor, Tensor]:
    """Positions of the training images that are drawn, by class in proportion, and of the rest."""
    from sklearn.model_selection import train_test_split

    chosen, unused = train_test_split(
        np.arange(len(dataset.y_train)),
        train_size=settings.images,
        random_state=settings.draw_seed,
        stratify=dataset.y_train.numpy(),
    )
    return torch.from_numpy(np.sort(chosen)), torch.from_numpy(np.sort(unused))


def train_to_band(
    model: nn.Module, recipe: SweepRecipe, training: Dataset, seed: int, settings: Settings
) -> Stop:
    """Train in place until the training loss is read inside the band, or in vain."""
    low, high = settings.band
    started = time.process_time()
    recent: deque[float] = deque(maxlen=settings.every)
    near = False
    for step, loss in enumerate(_batch_losses(model, recipe, training, seed), start=1):
        if not math.isfinite(loss):
            return Stop(False, None, step, "diverged")
        recent.append(loss)
        full = len(recent) == settings.every
        near = near or (full and sum(recent) < settings.alert * settings.target * settings.every)
        if near and step % settings.every == 0:
            level = train_loss(model, training)
            if low <= level <= high:
                return Stop(True, level, step, "band")
        if time.process_time() - started > settings.budget:
            level = train_loss(model, training)
            return Stop(False, level if math.isfinite(level) else None, step, "budget")
    raise AssertionError("training ended by itself")


def _batch_losses(
    model: nn.Module, recipe: SweepRecipe, training: Dataset, seed: int
) -> Iterator[float]:
    """Train without end: yields, after each step, the loss of its batch before it."""
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    order = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(training.y_train), generator=order).split(recipe.batch_size):
            model.train()
            optimizer.zero_grad()
            loss = cross_entropy(model(training.x_train[rows]), training.y_train[rows])
            loss.backward()
            optimizer.step()
            model.eval()
            yield float(loss.detach())


def _plain(recipe: SweepRecipe) -> Recipe:
    """How the network is trained, without what it is and what it is trained on."""
    return Recipe(
        recipe.name,
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        batch_size=recipe.batch_size,
    )


def rescaled(
    model: nn.Module,
    hessian: HessianOperator,
    recipe: SweepRecipe,
    seed: int,
    settings: Settings,
) -> dict[str, Any]:
    """lambda_max at other weights of the same function.

    The last hidden layer is multiplied by a random factor and the output layer divided by it. The
    factor depends on the name of the recipe and the seed only.

    Returns:
        ``log10_alpha``, the logarithm of the factor; ``layer``, the name of the layer;
        ``lambda_max``.
    """
    layers = list(hidden_layers(model))
    draw = torch.Generator().manual_seed(zlib.crc32(f"{recipe.name} seed {seed}".encode()))
    exponent = settings.rescaling * (2 * float(torch.rand((), generator=draw)) - 1)
    diagonal = rescaling_diagonal(model, [*[1.0] * (len(layers) - 1), 10**exponent])
    # The Hessian of the rescaled network, H(Dw) = D^-1 H(w) D^-1, on the graphs kept for H.
    top = lanczos(ScaledOperator(hessian, 1 / diagonal), tol=settings.end_tol)
    return {
        "log10_alpha": exponent,
        "layer": layers[-1],
        "lambda_max": summary(top, settings.images),
    }
