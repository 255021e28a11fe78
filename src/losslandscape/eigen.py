"""Extreme eigenvalues of symmetric operators, each with its residual.

For a symmetric matrix and a unit vector, some eigenvalue lies within ``||A v - theta v||`` of
``theta`` (Parlett, *The Symmetric Eigenvalue Problem*, SIAM 1998, section 4.5).
That residual is computed from a product with the returned vector, never taken from a recurrence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn

from losslandscape.operators import Batch, HessianOperator, LossFunction

ENDS = ("LA", "SA", "LM")


class SymmetricMatrix(Protocol):
    """Anything with a shape and ``@``: an operator of this package or a plain symmetric tensor."""

    @property
    def shape(self) -> Any:
        """``(D, D)``."""

    def __matmul__(self, other: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class EigenResult:
    """Eigenpairs with their certificates.

    Attributes:
        values: ``(k,)`` Rayleigh quotients, in the order asked for.
        vectors: ``(D, k)`` unit columns.
        residuals: ``(k,)`` true ``||A v - theta v||``; an eigenvalue lies within it of ``theta``.
        products: Products with ``A`` used, the certificate included.
        converged: ``(k,)`` bool, ``residuals <= tol * |values|`` and nothing weaker.
        history: ``(m, 3)`` products so far, leading value and its residual, one row per step;
            in :func:`lanczos` the residual of a step is the recurrence's estimate.
    """

    values: Tensor  # (k,)
    vectors: Tensor  # (D, k)
    residuals: Tensor  # (k,)
    products: int
    converged: Tensor  # (k,) bool
    history: Tensor  # (m, 3)


def power_iteration(
    op: SymmetricMatrix,
    *,
    tol: float = 1e-3,
    max_products: int = 1000,
    v0: Tensor | None = None,
    seed: int = 0,
) -> EigenResult:
    r"""The eigenvalue of largest modulus, with its sign, by repeated multiplication.

    After ``k`` products the error of the Rayleigh quotient shrinks like
    :math:`|\lambda_2 / \lambda_1|^{2k}` (Golub & Van Loan, *Matrix Computations*, section 8.2).
    With two dominant eigenvalues of opposite sign the iteration never settles, and ``converged``
    stays false.

    Args:
        op: Symmetric, ``(D, D)``.
        tol: Relative residual asked for.
        max_products: Upper bound on products, never exceeded.
        v0: Start vector ``(D,)``; by default Gaussian from ``seed``.
        seed: Seed of the start vector.

    Raises:
        ValueError: ``tol`` or ``max_products`` out of range, or a start vector that is zero,
            not finite or of the wrong shape.

    Example:
        >>> round(float(power_iteration(torch.diag(torch.tensor([1., -3.]))).values[0]), 4)
        -3.0
    """
    _check_arguments(op, 1, tol, max_products, least=1)
    vector = _start_vector(op, v0, seed)
    history = []
    products = 0
    while True:
        image = op @ vector
        products += 1
        value = torch.dot(vector, image)
        residual = torch.linalg.vector_norm(image - value * vector)
        history.append((float(products), float(value), float(residual)))
        if not torch.isfinite(residual):
            raise ValueError("a product of the operator is not finite")
        if residual <= tol * value.abs() or products >= max_products:
            break
        vector = image / torch.linalg.vector_norm(image)
    return EigenResult(
        values=value[None],
        vectors=vector[:, None],
        residuals=residual[None],
        products=products,
        converged=(residual <= tol * value.abs())[None],
        history=torch.tensor(history, dtype=torch.float64),
    )


def lanczos(
    op: SymmetricMatrix,
    k: int = 1,
    *,
    which: str = "LA",
    tol: float = 1e-3,
    max_products: int = 300,
    v0: Tensor | None = None,
    seed: int = 0,
) -> EigenResult:
    """``k`` eigenpairs from one end of the spectrum, by Lanczos with full re-orthogonalisation.

    Each new Krylov vector is made orthogonal to all earlier ones twice, so no eigenvalue appears
    as a false copy of itself.
    When the recurrence says that all ``k`` pairs are good enough, ``k`` further products measure
    their true residuals; if one fails, the iteration goes on.
    Memory: one vector of length ``D`` per product.

    Args:
        op: Symmetric, ``(D, D)``.
        k: Number of pairs.
        which: ``"LA"`` largest first, ``"SA"`` smallest first, ``"LM"`` largest modulus first.
        tol: Relative residual asked for.
        max_products: Upper bound on products, certificate included, never exceeded.
        v0: Start vector ``(D,)``; by default Gaussian from ``seed``.
        seed: Seed of the start vector.

    Raises:
        ValueError: An argument out of range, or a product that is not finite.

    Example:
        >>> lanczos(torch.diag(torch.tensor([1., -3., 2.])), k=2).values
        tensor([2., 1.])
    """
    if which not in ENDS:
        raise ValueError(f"which must be one of {', '.join(ENDS)}, got {which!r}")
    _check_arguments(op, k, tol, max_products, least=2 * k)
    start = _start_vector(op, v0, seed)
    size = len(start)
    generator = torch.Generator().manual_seed(seed + 1)
    basis = start[None].clone()  # rows are the Krylov vectors
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    history = []
    products = 0
    target = tol
    while True:
        image = op @ basis[-1]
        products += 1
        if not torch.isfinite(image).all():
            raise ValueError("a product of the operator is not finite")
        diagonal.append(float(torch.dot(basis[-1], image)))
        rest = _orthogonalise(image, basis)
        beta = float(torch.linalg.vector_norm(rest))
        theta, weights = eigh_tridiagonal(np.array(diagonal), np.array(off_diagonal))
        chosen = _pick(theta, which)[:k]
        scale = max(abs(theta[0]), abs(theta[-1]))
        exhausted = len(diagonal) == size
        # Below rounding the next direction is noise: the Krylov space is invariant.
        invariant = beta <= size**0.5 * torch.finfo(basis.dtype).eps * max(scale, 1e-300)
        estimates = (0.0 if invariant or exhausted else beta) * np.abs(weights[-1, chosen])
        history.append((float(products), float(theta[chosen[0]]), float(estimates[0])))

        enough = len(chosen) == k and bool(np.all(estimates <= target * np.abs(theta[chosen])))
        last = exhausted or products + k >= max_products
        if enough or last:
            combine = torch.as_tensor(weights[:, chosen], dtype=basis.dtype, device=basis.device)
            result = _certify(op, basis.T @ combine, which, tol, products, history)
            products = result.products
            if result.converged.all() or last or products + k + 1 > max_products:
                return result
            target /= 4  # the recurrence was too hopeful in finite precision: ask it for more
        if invariant:
            rest = _orthogonalise(_gaussian(size, basis, generator), basis)
            off_diagonal.append(0.0)
        else:
            off_diagonal.append(beta)
        basis = torch.cat([basis, (rest / torch.linalg.vector_norm(rest))[None]])


def lambda_max(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    *,
    tol: float = 1e-3,
    seed: int = 0,
    coarse_examples: int = 2048,
    max_products: int = 100,
    chunk_size: int = 128,
) -> EigenResult:
    """The algebraically largest Hessian eigenvalue on all the data, coarse to fine.

    A Lanczos run on a random subsample finds a good start vector.
    The run on all the data starts from it, blended with a random direction so that an eigenvector
    which the subsample does not show keeps a share in the start, and certifies the result there.

    Args:
        model, loss_fn, data, chunk_size: As for :class:`~losslandscape.operators.HessianOperator`.
        tol: Relative residual asked for on all the data.
        seed: Seed of the subsample and of the start vectors.
        coarse_examples: Size of the subsample.
        max_products: Bound on passes over all the data.

    Returns:
        One eigenpair; ``products`` counts passes over all the data, coarse work apart.
    """
    full = HessianOperator(model, loss_fn, data, chunk_size=chunk_size)
    inputs, targets = (torch.cat(parts) for parts in zip(*full._batches, strict=True))
    generator = torch.Generator().manual_seed(seed)
    start = None
    if coarse_examples < len(targets):
        chosen = torch.randperm(len(targets), generator=generator)[:coarse_examples]
        subsample = (inputs[chosen], targets[chosen])
        coarse = HessianOperator(model, loss_fn, subsample, chunk_size=chunk_size)
        ritz = lanczos(coarse, tol=10 * tol, seed=seed).vectors[:, 0]
        noise = _gaussian(len(ritz), ritz, generator)
        start = ritz + 0.1 * noise / torch.linalg.vector_norm(noise)
    return lanczos(full, tol=tol, max_products=max_products, v0=start, seed=seed)


def _certify(
    op: SymmetricMatrix,
    vectors: Tensor,
    which: str,
    tol: float,
    products: int,
    history: list[tuple[float, float, float]],
) -> EigenResult:
    """Recompute values and residuals of unit ``vectors`` (D, k) from ``k`` fresh products."""
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
    images = torch.stack([op @ column for column in vectors.unbind(dim=1)], dim=1)
    values = (vectors * images).sum(dim=0)
    order = torch.as_tensor(_pick(values.cpu().numpy(), which).copy(), device=values.device)
    values, vectors, images = values[order], vectors[:, order], images[:, order]
    residuals = torch.linalg.vector_norm(images - values * vectors, dim=0)
    return EigenResult(
        values=values,
        vectors=vectors,
        residuals=residuals,
        products=products + len(values),
        converged=residuals <= tol * values.abs(),
        history=torch.tensor(history, dtype=torch.float64),
    )


def _pick(values: np.ndarray, which: str) -> np.ndarray:
    """Indices of ``values`` from the asked-for end inwards."""
    keys = {"LA": -values, "SA": values, "LM": -np.abs(values)}
    return np.argsort(keys[which], kind="stable")


def _orthogonalise(vector: Tensor, basis: Tensor) -> Tensor:
    """Remove the components along the rows of ``basis``; twice is enough (Parlett, 6.9)."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _gaussian(size: int, like: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that a seed means the same vector on every device.
    draw: Tensor = torch.randn(size, generator=generator, dtype=torch.float64).to(like)
    return draw


def _start_vector(op: SymmetricMatrix, v0: Tensor | None, seed: int) -> Tensor:
    size = op.shape[0]
    dtype = getattr(op, "dtype", torch.get_default_dtype())
    like = torch.empty(0, dtype=dtype, device=getattr(op, "device", "cpu"))
    if v0 is None:
        vector = _gaussian(size, like, torch.Generator().manual_seed(seed))
    else:
        if tuple(v0.shape) != (size,):
            raise ValueError(f"v0 must have shape ({size},), got {tuple(v0.shape)}")
        vector = v0.detach().to(like)
    norm: Tensor = torch.linalg.vector_norm(vector)
    if not torch.isfinite(norm) or norm == 0:
        raise ValueError("v0 must be finite and not zero")
    unit: Tensor = vector / norm
    return unit


def _check_arguments(
    op: SymmetricMatrix, k: int, tol: float, max_products: int, *, least: int
) -> None:
    rows, columns = op.shape
    if rows != columns:
        raise ValueError(f"the operator must be square, got {rows} x {columns}")
    if not 1 <= k <= rows:
        raise ValueError(f"k must lie between 1 and {rows}, got {k}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if max_products < least:
        raise ValueError(f"max_products must be at least {least} here, got {max_products}")
