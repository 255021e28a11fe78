"""The one problem that every tool gets: a trained CNN, 2,048 training images, and the truth.

The truth is computed in float64 and kept in ``_build/benchmarks``, because it costs more than the
benchmark itself.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

import losslandscape as ll
from losslandscape.lab import records
from losslandscape.lab.data import Dataset, default_root
from losslandscape.lab.models import cnn
from losslandscape.lab.training import Recipe, evaluate, fit

CACHE = Path(__file__).parents[1] / "_build" / "benchmarks"
CHANNELS, HIDDEN, SEED = (8, 16), 32, 0
IMAGES = 2048
CHUNK = 128  # every tool that takes batches gets batches of this size: they suit all of them
LEADING = 5
MOMENT_PROBES = 100
EPOCHS = {"mnist": 1, "digits": 30}

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """The network, its images and the reference values.

    Attributes:
        dataset: All images.
        recipe: How the network was trained.
        model: Trained, in ``eval`` mode, float32; never given away, see :meth:`fresh_model`.
        training: What :func:`losslandscape.lab.training.evaluate` says of it.
        images: Number of training images that define the Hessian.
    """

    dataset: Dataset
    recipe: Recipe
    model: nn.Module
    training: dict[str, float]
    images: int

    @cached_property
    def data(self) -> Batch:
        """The first training images, in one batch."""
        return self.dataset.x_train[: self.images], self.dataset.y_train[: self.images]

    @cached_property
    def batches(self) -> list[Batch]:
        """The same images in batches of ``CHUNK``, all full."""
        inputs, targets = self.data
        return list(zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True))

    @property
    def size(self) -> int:
        """Number of parameters, ``D``."""
        return sum(p.numel() for p in self.model.parameters())

    def fresh_model(self) -> nn.Module:
        """A copy that a tool may leave in any state."""
        return copy.deepcopy(self.model)

    @cached_property
    def exact(self) -> ll.HessianOperator:
        """The Hessian in float64, the judge of every answer."""
        model = self.fresh_model().double()
        inputs, targets = self.data
        return ll.HessianOperator(model, cross_entropy, (inputs.double(), targets))

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the trained weights."""
        weights = parameters_to_vector(self.model.parameters()).detach().numpy()
        return hashlib.sha256(weights.tobytes()).hexdigest()

    @cached_property
    def reference(self) -> dict[str, Any]:
        """Leading and last eigenvalue, trace and squared Frobenius norm of the Hessian."""
        content = {"weights": self.weights_hash, "images": self.images, "leading": LEADING}
        return cached("reference", content, lambda: _reference(self))


def load_problem(name: str | None = None) -> Problem:
    """Train the network, or read it from the cache.

    Args:
        name: ``"mnist"`` or ``"digits"``; by default MNIST where ``LOSSLANDSCAPE_DATA`` or the
            user's cache folder has it, else the embedded digits.
    """
    if name is None:
        name = "mnist" if (default_root() / "MNIST" / "raw").is_dir() else "digits"
    dataset = ll.load_dataset(name)
    recipe = Recipe("benchmark", "sgd", lr=0.1, batch_size=128, epochs=EPOCHS[name])
    model = cnn(dataset, seed=SEED, channels=CHANNELS, hidden=HIDDEN)
    content = {
        "recipe": asdict(recipe),
        "network": [CHANNELS, HIDDEN, SEED],
        "data": dataset.checksum,
    }
    path = CACHE / f"weights-{records.fingerprint(content, fit)[:16]}.npy"
    if path.is_file():
        set_weights(model, np.load(path))
        model.eval()
    else:
        fit(model, recipe, dataset, seed=SEED, progress=True, on_epoch=None)
        save_array(path, parameters_to_vector(model.parameters()).detach().numpy())
    training = cached(
        "training", {**content, "weights": path.name}, lambda: evaluate(model, dataset)
    )
    # Whole batches only: a plain mean over batches is then the mean over images, for every tool.
    images = min(IMAGES, len(dataset.y_train) // CHUNK * CHUNK)
    return Problem(dataset, recipe, model, training, images)


def set_weights(model: nn.Module, weights: np.ndarray) -> None:
    """Write a flat vector into the parameters."""
    vector_to_parameters(torch.from_numpy(weights), model.parameters())


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array so that a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    np.save(part, array)
    part.replace(path)


def cached(name: str, content: Any, compute: Callable[[], Any]) -> Any:
    """The JSON value of ``compute``, kept under a hash of what it depends on."""
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    path = CACHE / f"{name}-{key}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    value = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(path)
    return value


def _reference(problem: Problem) -> dict[str, Any]:
    tqdm.write("reference values in float64 (once, then cached)")
    top = ll.lanczos(problem.exact, LEADING, tol=1e-10, seed=1)
    bottom = ll.lanczos(problem.exact, 1, which="SA", tol=1e-6, seed=1)
    if not (top.converged.all() and bottom.converged.all()):
        raise RuntimeError("the float64 reference did not converge")
    moments = _moments(problem)
    return {
        "values": top.values.tolist(),
        "residuals": top.residuals.tolist(),
        "smallest": float(bottom.values[0]),
        "loss": float(_loss(problem)),
        "trace": _trace(problem),
        **moments,
    }


def _loss(problem: Problem) -> Tensor:
    with torch.no_grad():
        inputs, targets = problem.data
        return cross_entropy(problem.model(inputs), targets)


def _trace(problem: Problem) -> float:
    r"""The exact trace, without any probe.

    The network is piecewise linear: with its ReLU and pooling pattern fixed, the outputs are linear
    in every single weight, so the outputs' own second derivatives have a zero diagonal, and the
    Hessian has the diagonal of the Gauss-Newton matrix (Botev, Ritter, Barber, *Practical
    Gauss-Newton Optimisation for Deep Learning*, ICML 2017, section 3).
    Its trace is :math:`\frac1n \sum_i \sum_c p_{ic} \lVert \nabla_w \log p_{ic} \rVert^2`.
    """
    model = problem.fresh_model().double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    inputs, targets = problem.data
    classes = torch.eye(problem.dataset.classes, dtype=torch.float64)

    def log_probability(weights: Any, image: Tensor, label: Tensor) -> Tensor:
        return functional_call(model, weights, (image[None],)).log_softmax(dim=1)[0] @ label

    of_labels = vmap(grad(log_probability), in_dims=(None, None, 0))
    slopes = vmap(of_labels, in_dims=(None, 0, None))
    total = 0.0
    for part in inputs.double().split(32):
        with torch.no_grad():
            probabilities = model(part).softmax(dim=1)
        squares = sum(
            s.flatten(start_dim=2).square().sum(dim=2)
            for s in slopes(weights, part, classes).values()
        )
        total += float((probabilities * squares).sum())
    return total / len(targets)


def _moments(problem: Problem) -> dict[str, float]:
    """Squared Frobenius norm, and how much one Rademacher probe scatters.

    The leading eigenvectors' share is exact; probes estimate the rest.
    Float32 is enough: its rounding is far below the probes' error.
    """
    op = ll.HessianOperator(problem.model, cross_entropy, problem.data)
    top = ll.lanczos(op, LEADING, tol=1e-3, seed=1)
    basis = torch.linalg.qr(top.vectors).Q
    images = (op @ basis).double()
    known = float(images.square().sum())
    generator = torch.Generator().manual_seed(12345)
    rest, traces, squares = [], [], []
    for _ in tqdm(range(MOMENT_PROBES), desc="probes of the second moment", leave=False):
        probe = torch.randint(0, 2, (problem.size,), generator=generator).float() * 2 - 1
        image = (op @ probe).double()
        inside = images @ (basis.T @ probe).double()
        # |H P z|^2 has the mean of tr(P H^2 P), with P = 1 - Q Q^T.
        rest.append(float((image - inside).square().sum()))
        traces.append(float(probe.double() @ image))
        squares.append(float(image @ image))
    count = MOMENT_PROBES**0.5
    return {
        "frobenius2": known + float(np.mean(rest)),
        "frobenius2_stderr": float(np.std(rest, ddof=1)) / count,
        "probe_trace": float(np.mean(traces)),
        "probe_trace_sd": float(np.std(traces, ddof=1)),
        "probe_square_sd": float(np.std(squares, ddof=1)),
    }
