"""Every call that is compared: ours and the peers', at defaults and at tighter settings.

A call gets the problem and a seed, builds its own operator (that is part of its time), and returns
an :class:`~judge.Answer`.
Peers are imported inside the calls, so that a missing one is a row of the table and no crash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import numpy as np
import torch
from judge import Answer
from problem import LEADING, Problem
from torch import nn
from torch.nn.functional import cross_entropy

import losslandscape as ll
from losslandscape import eigen, spectrum

OURS, SCIPY = "losslandscape", "SciPy on our operator"
PYHESSIAN, EIGENTHINGS, CURVLINOPS = "PyHessian", "hessian-eigenthings", "curvlinops"
MODULES = {
    OURS: "losslandscape",
    SCIPY: "scipy",
    PYHESSIAN: "pyhessian",
    EIGENTHINGS: "hessian_eigenthings",
    CURVLINOPS: "curvlinops",
}
PROBES, STEPS = 10, 30
TRACE_PROBES = 32

Call = Callable[[Problem, nn.Module, int], Answer]


@dataclass(frozen=True)
class Contender:
    """One row: a tool, its call in words, and the call."""

    tool: str
    call: str
    run: Call


# Ours


def hessian(problem: Problem, model: nn.Module, **options: Any) -> ll.HessianOperator:
    """Our operator on the benchmark's images."""
    return ll.HessianOperator(model, cross_entropy, problem.data, **options)


def ours(result: Any, tol: float) -> Answer:
    """An answer from our ``EigenResult``."""
    return Answer(
        values=result.values.tolist(),
        vectors=result.vectors,
        converged=bool(result.converged.all()),
        tol=tol,
        residuals=(result.residuals / result.values.abs()).tolist(),
    )


def our_lambda_max(problem: Problem, model: nn.Module, seed: int) -> Answer:
    """``lambda_max`` at its default tolerance 1e-3."""
    return ours(ll.lambda_max(model, cross_entropy, problem.data, seed=seed), 1e-3)


def our_lanczos(k: int, tol: float = 1e-3) -> Call:
    """``lanczos`` for ``k`` pairs."""
    return lambda problem, model, seed: ours(
        ll.lanczos(hessian(problem, model), k, tol=tol, seed=seed), tol
    )


def our_top(problem: Problem, model: nn.Module, seed: int) -> Answer:
    """``top_eigenpairs``."""
    found = eigen.top_eigenpairs(
        model, cross_entropy, problem.data, LEADING, tol=1e-3, seed=seed, progress=False
    )
    return ours(found, 1e-3)


def our_density(problem: Problem, model: nn.Module, seed: int) -> Answer:
    """``spectral_density``; nodes and smoothing width are compared where they are told."""
    found = spectrum.spectral_density(
        hessian(problem, model), probes=PROBES, steps=STEPS, seed=seed
    )
    return Answer(
        values=[],
        extra={
            "probes": PROBES,
            "grid": found.grid,
            "density": found.density,
            **{name: getattr(found, name, None) for name in ("nodes", "weights", "sigma")},
        },
    )


def our_trace(problem: Problem, model: nn.Module, seed: int) -> Answer:
    """``estimate_trace``."""
    found = spectrum.estimate_trace(hessian(problem, model), probes=TRACE_PROBES, seed=seed)
    return Answer(values=[float(found.value)], extra={"stderr": float(found.stderr)})


# SciPy's ARPACK, on our operator and on curvlinops'


def arpack(op: Any, k: int, seed: int, tol: float, ncv: int | None) -> Answer:
    """``eigsh``: it raises where it does not converge, so returning is its certificate."""
    from scipy.sparse.linalg import eigsh

    start = np.random.default_rng(seed).standard_normal(op.shape[0]).astype(op.dtype)
    values, vectors = eigsh(op, k=k, which="LA", tol=tol, ncv=ncv, v0=start)
    order = np.argsort(-values)
    return Answer(
        values=values[order].tolist(),
        vectors=torch.from_numpy(np.ascontiguousarray(vectors[:, order])),
        converged=True,
        tol=tol or float(np.finfo(op.dtype).eps),
    )


def scipy_ours(k: int, tol: float = 0.0, ncv: int | None = None) -> Call:
    """``eigsh`` on ``H.to_scipy()``."""
    return lambda problem, model, seed: arpack(
        hessian(problem, model).to_scipy(), k, seed, tol, ncv
    )


# curvlinops


def curvlinops_hessian(problem: Problem, model: nn.Module, check: bool = True) -> Any:
    """Its operator on the batches; ``check`` is its determinism check, on by default."""
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        problem.batches,
        check_deterministic=check,
    )


def curvlinops_eigsh(
    k: int, tol: float = 0.0, ncv: int | None = None, check: bool = True, dtype: Any = None
) -> Call:
    """``eigsh`` on its SciPy export."""
    return lambda problem, model, seed: arpack(
        curvlinops_hessian(problem, model, check).to_scipy(dtype=dtype), k, seed, tol, ncv
    )


def curvlinops_density(problem: Problem, model: nn.Module, seed: int) -> Answer:
    """``lanczos_approximate_spectrum``, which first finds both ends with ARPACK."""
    from curvlinops import lanczos_approximate_spectrum

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (it gives ARPACK no start: SciPy may draw one here)
    op = curvlinops_hessian(problem, model, check=False)
    grid, height = lanczos_approximate_spectrum(op, ncv=STEPS, num_repeats=PROBES)
    # Its Gaussians have this width where the padded spectrum is scaled to [-1, 1].
    half = float(grid[-1] - grid[0]) / 2
    sigma = half * 2 / (STEPS - 1) / sqrt(8 * log(3.0))
    return Answer(
        values=[], extra={"probes": PROBES, "grid": grid, "density": height, "sigma": sigma}
    )


def curvlinops_trace(name: str, products: int) -> Call:
    """One of its trace estimators, none of which states an error."""

    def run(problem: Problem, model: nn.Module, seed: int) -> Answer:
        import curvlinops

        torch.manual_seed(seed)
        op = curvlinops_hessian(problem, model, check=False)
        return Answer(values=[float(getattr(curvlinops, name)(op, products))])

    return run


# hessian-eigenthings


def eigenthings_hessian(problem: Problem, model: nn.Module) -> Any:
    """Its operator; the batches are equal, so its plain mean over batches is exact here."""
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(model, problem.batches, supervised_loss(cross_entropy))


def eigenthings(name: str, k: int, **options: Any) -> Call:
    """``lanczos`` or ``deflated_power_iteration``; both state residuals and a flag at tol 1e-4."""

    def run(problem: Problem, model: nn.Module, seed: int) -> Answer:
        import hessian_eigenthings

        solve = getattr(hessian_eigenthings, name)
        found = solve(eigenthings_hessian(problem, model), k=k, seed=seed, **options)
        return Answer(
            values=found.eigenvalues.tolist(),
            vectors=found.eigenvectors.T,
            converged=bool(found.converged.all()),
            tol=options.get("tol", 1e-4),
            residuals=(found.residuals / found.eigenvalues.abs()).tolist(),
        )

    return run


def eigenthings_density(problem: Problem, model: nn.Module, seed: int) -> Answer:
    """``spectral_density``, with its raw nodes and weights."""
    from hessian_eigenthings import spectral_density

    found = spectral_density(
        eigenthings_hessian(problem, model), num_runs=PROBES, lanczos_steps=STEPS, seed=seed
    )
    return Answer(
        values=[],
        extra={
            "probes": PROBES,
            "grid": found.grid,
            "density": found.density,
            "sigma": found.sigma,
            "nodes": found.raw_eigenvalues.nan_to_num(),
            "weights": found.raw_weights,
        },
    )


def eigenthings_trace(name: str, **options: Any) -> Call:
    """``hutchinson`` or ``hutch_plus_plus``, each with a standard error."""

    def run(problem: Problem, model: nn.Module, seed: int) -> Answer:
        import hessian_eigenthings

        estimate = getattr(hessian_eigenthings, name)
        found = estimate(eigenthings_hessian(problem, model), seed=seed, **options)
        return Answer(values=[found.estimate], extra={"stderr": found.stderr})

    return run


# PyHessian


def pyhessian_hessian(problem: Problem, model: nn.Module, seed: int, one_batch: bool) -> Any:
    """Its object: one batch keeps the graph of the gradient, a list of batches does not."""
    from pyhessian import hessian as make

    torch.manual_seed(seed)
    data = {"data": problem.data} if one_batch else {"dataloader": problem.batches}
    return make(model, cross_entropy, cuda=False, **data)


def pyhessian_eigenvalues(k: int, *, one_batch: bool = False, **options: Any) -> Call:
    """``eigenvalues``, a power iteration that states nothing of its result."""

    def run(problem: Problem, model: nn.Module, seed: int) -> Answer:
        made = pyhessian_hessian(problem, model, seed, one_batch)
        values, vectors = made.eigenvalues(top_n=k, **options)
        flat = [torch.cat([piece.reshape(-1) for piece in vector]) for vector in vectors]
        return Answer(values=list(values), vectors=torch.stack(flat, dim=1).detach())

    return run


def pyhessian_density(problem: Problem, model: nn.Module, seed: int) -> Answer:
    """``density``, which raises in the release on PyPI: ``torch.eig`` is gone."""
    pyhessian_hessian(problem, model, seed, one_batch=False).density(iter=STEPS, n_v=1)
    raise NotImplementedError("it works again: read its nodes and weights here")


def pyhessian_trace(**options: Any) -> Call:
    """``trace``, which returns its samples."""

    def run(problem: Problem, model: nn.Module, seed: int) -> Answer:
        made = pyhessian_hessian(problem, model, seed, one_batch=False)
        samples = made.trace(maxIter=TRACE_PROBES, **options)
        return Answer(values=[float(np.mean(samples))], extra={"samples": len(samples)})

    return run


# How to go on after one more optimizer step: a call gets the top pairs of the step before.
WARM: dict[str, Callable[[Any, Any, int], Any]] = {
    "lanczos, cold": lambda op, near, seed: ll.lanczos(op, seed=seed),
    "lanczos, warm": lambda op, near, seed: ll.lanczos(op, v0=near.vectors[:, 0], seed=seed),
    "refine, warm": lambda op, near, seed: eigen.refine(op, near, seed=seed),
}


TASKS: dict[str, list[Contender]] = {
    "lambda_max": [
        Contender(OURS, "lambda_max, tol 1e-3", our_lambda_max),
        Contender(OURS, "lanczos, tol 1e-3", our_lanczos(1)),
        Contender(SCIPY, "eigsh, defaults", scipy_ours(1)),
        Contender(SCIPY, "eigsh, tol 1e-3, ncv 8", scipy_ours(1, tol=1e-3, ncv=8)),
        Contender(PYHESSIAN, "eigenvalues, defaults", pyhessian_eigenvalues(1)),
        Contender(
            PYHESSIAN, "eigenvalues, defaults, one batch", pyhessian_eigenvalues(1, one_batch=True)
        ),
        Contender(PYHESSIAN, "eigenvalues, tol 1e-5", pyhessian_eigenvalues(1, tol=1e-5)),
        Contender(EIGENTHINGS, "lanczos, defaults", eigenthings("lanczos", 1)),
        Contender(EIGENTHINGS, "lanczos, max_iter 10", eigenthings("lanczos", 1, max_iter=10)),
        Contender(
            EIGENTHINGS,
            "lanczos, max_iter 20, tol 1e-3",
            eigenthings("lanczos", 1, max_iter=20, tol=1e-3),
        ),
        Contender(
            EIGENTHINGS, "power iteration, defaults", eigenthings("deflated_power_iteration", 1)
        ),
        Contender(CURVLINOPS, "eigsh, defaults", curvlinops_eigsh(1)),
        Contender(
            CURVLINOPS,
            "eigsh, tol 1e-3, ncv 8, float32, no check",
            curvlinops_eigsh(1, tol=1e-3, ncv=8, check=False, dtype=np.float32),
        ),
    ],
    "top_5": [
        Contender(OURS, "top_eigenpairs, tol 1e-3", our_top),
        Contender(OURS, "lanczos, tol 1e-3", our_lanczos(LEADING)),
        Contender(SCIPY, "eigsh, defaults", scipy_ours(LEADING)),
        Contender(SCIPY, "eigsh, tol 1e-3", scipy_ours(LEADING, tol=1e-3)),
        Contender(PYHESSIAN, "eigenvalues, defaults", pyhessian_eigenvalues(LEADING)),
        Contender(EIGENTHINGS, "lanczos, defaults", eigenthings("lanczos", LEADING)),
        Contender(
            EIGENTHINGS,
            "lanczos, max_iter 40, tol 1e-3",
            eigenthings("lanczos", LEADING, max_iter=40, tol=1e-3),
        ),
        Contender(CURVLINOPS, "eigsh, defaults", curvlinops_eigsh(LEADING)),
        Contender(
            CURVLINOPS,
            "eigsh, tol 1e-3, float32, no check",
            curvlinops_eigsh(LEADING, tol=1e-3, check=False, dtype=np.float32),
        ),
    ],
    "density": [
        Contender(OURS, "spectral_density", our_density),
        Contender(EIGENTHINGS, "spectral_density", eigenthings_density),
        Contender(CURVLINOPS, "lanczos_approximate_spectrum", curvlinops_density),
        Contender(PYHESSIAN, "density", pyhessian_density),
    ],
    "trace": [
        Contender(OURS, "estimate_trace", our_trace),
        Contender(EIGENTHINGS, "hutchinson", eigenthings_trace("hutchinson", num_samples=32)),
        Contender(
            EIGENTHINGS, "hutch_plus_plus", eigenthings_trace("hutch_plus_plus", num_matvecs=33)
        ),
        Contender(CURVLINOPS, "hutchinson_trace", curvlinops_trace("hutchinson_trace", 32)),
        Contender(CURVLINOPS, "hutchpp_trace", curvlinops_trace("hutchpp_trace", 33)),
        Contender(CURVLINOPS, "xtrace", curvlinops_trace("xtrace", 32)),
        Contender(PYHESSIAN, "trace, defaults", pyhessian_trace()),
        Contender(PYHESSIAN, "trace, tol 0", pyhessian_trace(tol=0.0)),
    ],
}
