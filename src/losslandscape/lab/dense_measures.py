"""Measures of flatness from whole matrices, and which rescalings of a network leave them alone.

For networks of a few dozen weights: everything is computed from dense matrices in ``float64``, so
that a change of ``1e-8`` is a change and not an error of an estimate.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from losslandscape.objective import Batch, gradient
from losslandscape.operators import GaussNewtonOperator, HessianOperator
from losslandscape.rescaling import hidden_layers, rescale_relu


@dataclass(frozen=True)
class Dense:
    """All that the measures need, at one point.

    Attributes:
        weights, gradient: ``(D,)``.
        hessian, fisher: ``(D, D)``; the Fisher matrix with labels drawn from the model is the
            Gauss-Newton matrix of cross-entropy.
        tensors: One slice of the ``D`` weights for each parameter tensor.
        layers: One slice for each layer, weight matrix and bias together.
        rows: One slice for each row of a weight matrix, one for each single bias.
        last: Slice of the last weight matrix; ``last_shape`` is ``(classes, features)``.
        input_jacobian: ``(n, classes, inputs)`` derivatives of the outputs by the inputs.
        loss: Mean cross-entropy.
    """

    weights: Tensor  # (D,)
    gradient: Tensor  # (D,)
    hessian: Tensor  # (D, D)
    fisher: Tensor  # (D, D)
    tensors: list[slice]
    layers: list[slice]
    rows: list[slice]
    last: slice
    last_shape: tuple[int, int]
    input_jacobian: Tensor  # (n, classes, inputs)
    loss: float


def look(model: nn.Sequential, data: Batch) -> Dense:
    """Compute everything at the weights of a chain of ``Linear`` layers that ends in one."""
    inputs, _ = data
    operators = [
        kind(model, cross_entropy, data) for kind in (HessianOperator, GaussNewtonOperator)
    ]
    identity = torch.eye(operators[0].shape[0], dtype=torch.float64)
    hessian, fisher = (op @ identity for op in operators)
    loss, slope = gradient(model, cross_entropy, data)
    tensors: list[slice] = []
    layers: list[slice] = []
    rows: list[slice] = []
    start = 0
    for layer in (module for module in model if isinstance(module, nn.Linear)):
        first = start
        for p in layer.parameters():
            tensors.append(slice(start, start + p.numel()))
            length = p[0].numel()
            rows += [slice(start + i * length, start + (i + 1) * length) for i in range(len(p))]
            start += p.numel()
        layers.append(slice(first, start))
    last = next(module for module in reversed(model) if isinstance(module, nn.Linear))
    size = last.weight.numel()
    end = start - (0 if last.bias is None else last.bias.numel())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(inputs)
    return Dense(
        weights=parameters_to_vector(model.parameters()).detach(),
        gradient=slope,
        hessian=(hessian + hessian.T) / 2,
        fisher=(fisher + fisher.T) / 2,
        tensors=tensors,
        layers=layers,
        rows=rows,
        last=slice(end - size, end),
        last_shape=(last.out_features, last.in_features),
        input_jacobian=jacobian.detach(),
        loss=loss,
    )


def _eigenvalues(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values


def _top(matrix: Tensor) -> Tensor:
    return _eigenvalues(matrix)[-1]


def _participation(matrix: Tensor) -> Tensor:
    ratio: Tensor = matrix.trace().square() / matrix.square().sum()
    return ratio


def _relative(at: Dense) -> Tensor:
    """``|w| H |w|``."""
    scale = at.weights.abs()
    return scale[:, None] * at.hessian * scale


def _tensorwise(at: Dense) -> Tensor:
    """``N H N`` with the norm of its tensor for each weight."""
    norms = [torch.linalg.vector_norm(at.weights[t]) for t in at.tensors]
    lengths = torch.tensor([t.stop - t.start for t in at.tensors])
    scale = torch.stack(norms).repeat_interleave(lengths)
    return scale[:, None] * at.hessian * scale


def _blocks(at: Dense, blocks: Iterable[slice]) -> Tensor:
    """Sum over blocks of squared norm of the weights times trace of the Hessian's block."""
    diagonal = at.hessian.diagonal()
    parts = [at.weights[b].square().sum() * diagonal[b].sum() for b in blocks]
    return torch.stack(parts).sum()


def _inertia(at: Dense) -> Tensor:
    """Numbers of positive and of negative eigenvalues."""
    values = _eigenvalues(at.hessian)
    zero = 1e-11 * values.abs().max()
    counts = [(values > zero).sum(), (values < -zero).sum()]
    return torch.stack(counts).double()


def _effective_dimension(at: Dense) -> Tensor:
    """``sum lambda / (lambda + 0.1)`` of the Gauss-Newton matrix (Maddox et al. 2020)."""
    values = _eigenvalues(at.fisher).clamp(min=0)
    total: Tensor = (values / (values + 0.1)).sum()
    return total


def _entropy(at: Dense) -> Tensor:
    shares = _eigenvalues(at.hessian).abs()
    shares = shares / shares.sum()
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy


def _outlier_ratio(at: Dense) -> Tensor:
    """First over C-th eigenvalue of the Gauss-Newton matrix, C classes."""
    values = _eigenvalues(at.fisher)
    return values[-1] / values[-at.last_shape[0]]


def _relative_flatness(at: Dense) -> Tensor:
    """``sum_{s,s'} <w_s, w_s'> tr H_{ss'}`` over rows of the last matrix (Petzka et al. 2021)."""
    shape = at.last_shape
    block = at.hessian[at.last, at.last].reshape(*shape, *shape)
    w = at.weights[at.last].reshape(shape)
    return torch.einsum("sf,tf,sgtg->", w, w, block)


def _per_tensor(at: Dense, vector: Tensor) -> Tensor:
    """``<w_B, vector_B>`` for each tensor."""
    return torch.stack([at.weights[t] @ vector[t] for t in at.tensors])


def _own_curvature(at: Dense) -> Tensor:
    """``w_B' H_BB w_B`` for each tensor."""
    return torch.stack([at.weights[t] @ at.hessian[t, t] @ at.weights[t] for t in at.tensors])


# In the order of the table: plain, then with some normalisation, then of the function itself.
MEASURES: dict[str, Callable[[Dense], Tensor]] = {
    "largest eigenvalue": lambda at: _top(at.hessian),
    "trace": lambda at: at.hessian.trace(),
    "Frobenius norm": lambda at: at.hessian.norm(),
    "participation ratio": lambda at: _participation(at.hessian),
    "spectral entropy": _entropy,
    "effective dimension of G": _effective_dimension,
    "first over C-th eigenvalue of G": _outlier_ratio,
    "norm of the gradient": lambda at: at.gradient.norm(),
    "norm of the weights": lambda at: at.weights.norm(),
    "largest eigenvalue x |w|^2": lambda at: _top(at.hessian) * at.weights.square().sum(),
    "trace, per layer (W and b together)": lambda at: _blocks(at, at.layers),
    "trace, per tensor": lambda at: _blocks(at, at.tensors),
    "largest eigenvalue, per tensor": lambda at: _top(_tensorwise(at)),
    "trace, per row": lambda at: _blocks(at, at.rows),
    "relative flatness of the last layer": _relative_flatness,
    "largest eigenvalue of |w| H |w|": lambda at: _top(_relative(at)),
    "trace of |w| H |w|": lambda at: _relative(at).trace(),
    "participation ratio of |w| H |w|": lambda at: _participation(_relative(at)),
    "w'Hw": lambda at: at.weights @ at.hessian @ at.weights,
    "w'Hw, each tensor alone": _own_curvature,
    "<w, g>, each tensor alone": lambda at: _per_tensor(at, at.gradient),
    "Fisher-Rao norm w'Gw": lambda at: at.weights @ at.fisher @ at.weights,
    "numbers of positive and negative eigenvalues": _inertia,
    "input Jacobian": lambda at: at.input_jacobian.square().sum(dim=(1, 2)).mean(),
    "loss": lambda at: torch.tensor(at.loss, dtype=torch.float64),
}


def largest_changes(
    *, networks: int, seed: int = 0, log_range: float = 1.5
) -> dict[str, dict[str, float]]:
    """Largest relative change of each measure over random ReLU networks and random rescalings.

    Networks with one to three hidden layers and biases, on random data of three classes; each is
    rescaled layer by layer and unit by unit.

    Args:
        networks: How many.
        seed: Of networks, data and rescalings.
        log_range: ``ln alpha`` is uniform in ``[-log_range, log_range]``.

    Returns:
        Per measure the changes under ``"layer by layer"`` and ``"unit by unit"``.
    """
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def alpha(units: int) -> Tensor:
        uniform = torch.rand(units, generator=generator, dtype=torch.float64)
        return ((2 * uniform - 1) * log_range).exp()

    changes = {name: {"layer by layer": 0.0, "unit by unit": 0.0} for name in MEASURES}
    for _ in range(networks):
        sizes = [4, *(draw.randint(3, 5) for _ in range(draw.randint(1, 3))), 3]
        model = _network(sizes, generator)
        inputs = torch.randn(40, 4, generator=generator, dtype=torch.float64)
        data = (inputs, torch.randint(3, (40,), generator=generator))
        before = look(model, data)
        units = list(hidden_layers(model).values())
        rescalings = {
            "layer by layer": [alpha(1) for _ in units],
            "unit by unit": [alpha(count) for count in units],
        }
        for kind, alphas in rescalings.items():
            other = rescale_relu(model, alphas)
            assert isinstance(other, nn.Sequential)
            after = look(other, data)
            for name, measure in MEASURES.items():
                old, new = measure(before), measure(after)
                change = float((new - old).norm() / old.norm())
                changes[name][kind] = max(changes[name][kind], change)
    return changes


def _network(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
            layer.weight.div_(inputs**0.5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
