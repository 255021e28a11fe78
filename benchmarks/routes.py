"""One Hessian-vector product by every route, against one gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from problem import Problem
from tools import (
    CURVLINOPS,
    EIGENTHINGS,
    OURS,
    PYHESSIAN,
    curvlinops_hessian,
    eigenthings_hessian,
    hessian,
    pyhessian_hessian,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.functional import cross_entropy

TORCH = "PyTorch"
BLOCK = 8
STEPS = (1e-2, 1e-3, 1e-4, 1e-5)
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Route:
    """One row: ``prepare`` is not timed, the product that it returns is."""

    tool: str
    call: str
    prepare: Callable[[Problem, nn.Module], Product]
    columns: int = 1


def gradient(problem: Problem, model: nn.Module) -> Callable[[], Tensor]:
    """The unit of cost: forward and backward over all batches."""
    params = list(model.parameters())

    def run() -> Tensor:
        total = torch.zeros(problem.size)
        for inputs, targets in problem.batches:
            loss = cross_entropy(model(inputs), targets) * (len(targets) / problem.images)
            total += _flat(torch.autograd.grad(loss, params))
        return total

    return run


def _flat(pieces: Any) -> Tensor:
    return torch.cat([piece.detach().reshape(-1) for piece in pieces])


def _split(model: nn.Module, vector: Tensor) -> list[Tensor]:
    params = list(model.parameters())
    pieces = vector.split([p.numel() for p in params])
    return [piece.view_as(p) for piece, p in zip(pieces, params, strict=True)]


def _kept(problem: Problem, model: nn.Module) -> Product:
    op = hessian(problem, model)
    op @ torch.ones(problem.size)  # builds the graph
    return lambda vector: op @ vector


def _first(problem: Problem, model: nn.Module) -> Product:
    return lambda vector: hessian(problem, model) @ vector


def _recomputed(problem: Problem, model: nn.Module) -> Product:
    op = hessian(problem, model, memory_budget=0)
    return lambda vector: op @ vector


def _block(problem: Problem, model: nn.Module) -> Product:
    op = hessian(problem, model, memory_budget=0)
    return lambda vector: (op @ vector[:, None].expand(-1, BLOCK))[:, 0]


def _pyhessian(problem: Problem, model: nn.Module) -> Product:
    made = pyhessian_hessian(problem, model, 0, one_batch=False)
    return lambda vector: _flat(made.dataloader_hv_product(_split(model, vector))[1])


def _pyhessian_one_batch(problem: Problem, model: nn.Module) -> Product:
    from pyhessian.utils import hessian_vector_product

    made = pyhessian_hessian(problem, model, 0, one_batch=True)
    return lambda vector: _flat(
        hessian_vector_product(made.gradsH, made.params, _split(model, vector))
    )


def _eigenthings(problem: Problem, model: nn.Module) -> Product:
    product: Product = eigenthings_hessian(problem, model).matvec
    return product


def _eigenthings_differences(problem: Problem, model: nn.Module) -> Product:
    from hessian_eigenthings import HessianOperator, supervised_loss

    op = HessianOperator(
        model, problem.batches, supervised_loss(cross_entropy), method="finite_difference"
    )
    product: Product = op.matvec
    return product


def _curvlinops(problem: Problem, model: nn.Module) -> Product:
    op = curvlinops_hessian(problem, model, check=False)
    return lambda vector: op @ vector


def _functional(problem: Problem, model: nn.Module, over_reverse: bool) -> Product:
    names = [name for name, _ in model.named_parameters()]
    weights = tuple(p.detach() for p in model.parameters())

    def run(vector: Tensor) -> Tensor:
        directions = tuple(_split(model, vector))
        total = torch.zeros(problem.size)
        for inputs, targets in problem.batches:
            share = len(targets) / problem.images

            def loss(
                values: tuple[Tensor, ...],
                inputs: Tensor = inputs,
                targets: Tensor = targets,
                share: float = share,
            ) -> Tensor:
                named = dict(zip(names, values, strict=True))
                return cross_entropy(functional_call(model, named, (inputs,)), targets) * share

            if over_reverse:
                pieces = jvp(grad(loss), (weights,), (directions,))[1]
            else:
                pieces = grad(lambda w, f=loss: jvp(f, (w,), (directions,))[1])(weights)
            total += _flat(pieces)
        return total

    return run


def _differences(problem: Problem, model: nn.Module) -> Product:
    """Central differences with the best step of ``STEPS`` for this very vector, found untimed."""
    slope = gradient(problem, model)
    weights = [p.detach().clone() for p in model.parameters()]

    def shifted(vector: Tensor, step: float) -> Tensor:
        with torch.no_grad():
            for p, w, d in zip(model.parameters(), weights, _split(model, vector), strict=True):
                p.copy_(w + step * d)
        return slope()

    def run(vector: Tensor, step: float) -> Tensor:
        result = (shifted(vector, step) - shifted(vector, -step)) / (2 * step)
        _restore(model, weights)
        return result

    vector = probe_vector(problem)
    exact = problem.exact @ vector.double()
    best = min(STEPS, key=lambda step: relative_error(run(vector, step), exact))
    return lambda vector: run(vector, best)


def _restore(model: nn.Module, weights: list[Tensor]) -> None:
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(w)


def probe_vector(problem: Problem) -> Tensor:
    """The unit vector that all routes multiply."""
    vector = torch.randn(problem.size, generator=torch.Generator().manual_seed(7))
    return vector / torch.linalg.vector_norm(vector)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Distance in units of the exact product's length."""
    return float(torch.linalg.vector_norm(found.double() - exact) / torch.linalg.vector_norm(exact))


ROUTES = [
    Route(OURS, "graph kept, later products", _kept),
    Route(OURS, "first product, operator made", _first),
    Route(OURS, "memory_budget 0", _recomputed),
    Route(OURS, f"memory_budget 0, each of {BLOCK} columns", _block, columns=BLOCK),
    Route(PYHESSIAN, "batches", _pyhessian),
    Route(PYHESSIAN, "one batch, graph kept", _pyhessian_one_batch),
    Route(EIGENTHINGS, "default", _eigenthings),
    Route(EIGENTHINGS, "finite differences", _eigenthings_differences),
    Route(CURVLINOPS, "default", _curvlinops),
    Route(TORCH, "jvp of grad", lambda p, m: _functional(p, m, over_reverse=True)),
    Route(TORCH, "grad of jvp", lambda p, m: _functional(p, m, over_reverse=False)),
    Route(TORCH, "central differences, best step", _differences),
]
