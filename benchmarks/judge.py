"""Count a tool's products, and compare what it says with the truth."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from problem import Problem
from torch import Tensor

from losslandscape.operators import CurvatureOperator, HessianOperator

# A float32 product is exact to about 1e-6 |H v|: a residual may be off by so much of |theta|.
ROUNDING = 1e-5
# A gradient, as a share of a product with a kept graph: what a curved start vector costs.
GRADIENT = 0.5
# Moments of a density may differ from the truth by this many standard deviations of its probes.
DEVIATIONS = 3.0


@dataclass(frozen=True)
class Answer:
    """What a tool returns.

    Attributes:
        values: Eigenvalues, or the one estimate.
        vectors: ``(D, k)``, or nothing.
        converged: What the tool says of itself; ``None`` when it says nothing.
        tol: The relative residual that ``converged`` stands for.
        residuals: Residuals that the tool states, relative to the values.
        extra: Whatever else the task compares.
    """

    values: list[float]
    vectors: Tensor | None = None
    converged: bool | None = None
    tol: float | None = None
    residuals: list[float] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Count:
    """Products with all images, and the work in passes over them, subsamples included."""

    products: int = 0
    passes: float = 0.0


@contextmanager
def counting(images: int) -> Iterator[Count]:
    """Count the Hessian-vector products of every tool in the block, whatever it says itself."""
    count = Count()

    def add(columns: int, examples: int = images) -> None:
        count.products += columns if examples == images else 0
        count.passes += columns * examples / images

    def ours(op: Any, vectors: Tensor) -> None:
        add(1 if vectors.ndim == 1 else vectors.shape[1], getattr(op, "examples", images))

    def start(op: Any) -> None:
        count.passes += GRADIENT * op.examples / images

    patched: list[tuple[Any, str, Callable[..., None]]] = [
        (CurvatureOperator, "__matmul__", ours),
        (HessianOperator, "curved_start", start),
    ]
    for module, owner, name, tell in (
        ("pyhessian.hessian", None, "hessian_vector_product", lambda *_: add(1)),
        ("pyhessian.hessian", "hessian", "dataloader_hv_product", lambda *_: add(1)),
        ("hessian_eigenthings", "HessianOperator", "matvec", lambda *_: add(1)),
        ("curvlinops", "HessianLinearOperator", "_matmat", lambda _, m: add(m[0].shape[-1])),
    ):
        if available(module):
            target = importlib.import_module(module)
            patched.append((getattr(target, owner) if owner else target, name, tell))
    with ExitStack() as stack:
        for target, name, tell in patched:
            stack.enter_context(mock.patch.object(target, name, _told(getattr(target, name), tell)))
        yield count


def _told(call: Callable[..., Any], tell: Callable[..., None]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        tell(*args)  # how much work it is depends on the positional arguments only
        return call(*args, **kwargs)

    return wrapper


def available(module: str) -> bool:
    """Whether a peer can be imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def eigenpairs(problem: Problem, answer: Answer) -> dict[str, Any]:
    """Compare eigenpairs with the float64 reference and with float64 products."""
    truth = problem.reference["values"]
    errors = [abs(v - t) / abs(t) for v, t in zip(answer.values, truth, strict=False)]
    told = {
        "values": answer.values,
        "error": max(errors),
        "says": answer.converged,
        "tol": answer.tol,
        "stated_residual": max(answer.residuals) if answer.residuals else None,
    }
    return told | certificate(problem.exact, answer)


def certificate(exact: Any, answer: Answer) -> dict[str, Any]:
    """The true relative residual, and whether what the tool says of itself agrees with it."""
    if answer.vectors is None:
        return {"true_residual": None, "verdict": "nothing said"}
    vectors = answer.vectors.double()
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
    values = torch.tensor(answer.values, dtype=torch.float64)
    rest = exact @ vectors - vectors * values
    true = float((torch.linalg.vector_norm(rest, dim=0) / values.abs()).max())
    if answer.converged is None or answer.tol is None:
        verdict = "nothing said"
    elif answer.converged:
        verdict = "true" if true <= answer.tol + ROUNDING else "false"
    else:
        verdict = "true" if true > answer.tol else "too modest"
    return {"true_residual": true, "verdict": verdict}


def trace(problem: Problem, answer: Answer) -> dict[str, Any]:
    """Compare a trace estimate with the exact trace."""
    truth = problem.reference["trace"]
    return {
        "values": answer.values,
        "error": abs(answer.values[0] - truth) / abs(truth),
        "stderr": answer.extra.get("stderr"),
        "samples": answer.extra.get("samples"),
    }


def density(problem: Problem, answer: Answer) -> dict[str, Any]:
    """Compare mass and first two moments of a density with the exact ones.

    ``mean`` and ``square`` are first and second moment as multiples of the true ones;
    ``square_sharp`` leaves out the variance of the smoothing kernel, where the tool states it.
    """
    reference, size = problem.reference, problem.size
    first, second = reference["trace"] / size, reference["frobenius2"] / size
    probes = answer.extra["probes"] ** 0.5
    slack_first = DEVIATIONS * reference["probe_trace_sd"] / probes / reference["trace"]
    slack_second = DEVIATIONS * reference["probe_square_sd"] / probes / reference["frobenius2"]
    grid, height = answer.extra["grid"].double(), answer.extra["density"].double()
    mass = float(torch.trapezoid(height, grid))
    mean = float(torch.trapezoid(height * grid, grid)) / first
    square = float(torch.trapezoid(height * grid**2, grid)) / second
    told = {"mass": mass, "mean": mean, "square": square}
    sharp = square
    if answer.extra.get("sigma") is not None:
        sharp = square - mass * float(answer.extra["sigma"]) ** 2 / second
        told["square_sharp"] = sharp
    if answer.extra.get("nodes") is not None:
        nodes, weights = answer.extra["nodes"].double(), answer.extra["weights"].double()
        weights = weights / weights.sum()
        told["node_mean"] = float((weights * nodes).sum()) / first
        told["node_square"] = float((weights * nodes**2).sum()) / second
        mean, sharp = told["node_mean"], told["node_square"]
    return told | {
        "slack_mean": slack_first,
        "slack_square": slack_second,
        "density_right": _near(told["mean"], slack_first)
        and _near(told["square"], slack_second)
        and abs(mass - 1) <= 0.01,
        "quadrature_right": _near(mean, slack_first) and _near(sharp, slack_second),
    }


def _near(ratio: float, slack: float) -> bool:
    return abs(ratio - 1) <= slack
