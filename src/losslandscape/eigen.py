"""Extreme eigenvalues of symmetric operators, each with its residual.

For a symmetric matrix and a unit vector, some eigenvalue lies within ``||A v - theta v||`` of
``theta`` (Parlett, *The Symmetric Eigenvalue Problem*, SIAM 1998, section 4.5).
That residual is computed from a product with the returned vector, never taken from a recurrence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from losslandscape import sums
from losslandscape.estimates import Estimate
from losslandscape.objective import Batch, LossFunction
from losslandscape.operators import CurvatureOperator, GaussNewtonOperator, HessianOperator

ENDS = ("LA", "SA", "LM")


class SymmetricMatrix(Protocol):
    """Anything with a shape and ``@``: an operator of this package or a plain symmetric tensor."""

    @property
    def shape(self) -> Any:
        """``(D, D)``."""

    def __matmul__(self, other: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
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
        kato_temple: ``(k,)`` ``residuals^2 / gap``, a sharper bound on the distance to an
            eigenvalue, where ``gap`` is the distance to the other Ritz values, their errors taken
            off; NaN where no gap is known.
            It supposes that no eigenvalue hides inside the gap
            (Kato 1949, Temple 1933; Parlett, section 10.5).
    """

    values: Tensor  # (k,)
    vectors: Tensor = field(repr=False)  # (D, k)
    residuals: Tensor  # (k,)
    products: int
    converged: Tensor  # (k,) bool
    history: Tensor = field(repr=False)  # (m, 3)
    kato_temple: Tensor  # (k,)


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
        value = sums.dot(vector, image)
        residual = sums.norm(image - value * vector)
        history.append((float(products), float(value), float(residual)))
        if not torch.isfinite(residual):
            raise ValueError("a product of the operator is not finite")
        if residual <= tol * value.abs() or products >= max_products:
            break
        vector = image / sums.norm(image)
    return EigenResult(
        values=value[None],
        vectors=vector[:, None],
        residuals=residual[None],
        products=products,
        converged=(residual <= tol * value.abs())[None],
        history=torch.tensor(history, dtype=torch.float64),
        kato_temple=torch.full_like(residual, float("nan"))[None],
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
    max_basis: int | None = None,
    basis_bytes: int | None = None,
    progress: bool = False,
) -> EigenResult:
    """``k`` eigenpairs from one end of the spectrum, by Lanczos with full re-orthogonalisation.

    Each new Krylov vector is made orthogonal to all earlier ones twice, so no eigenvalue appears
    as a false copy of itself.
    When the recurrence says that all ``k`` pairs are good enough, ``k`` further products measure
    their true residuals; if one fails, the iteration goes on.
    Memory: one vector of length ``D`` per product, at most ``max_basis`` of them or as many as
    ``basis_bytes`` holds; a full basis is replaced in place by its best Ritz vectors (thick
    restart: Wu & Simon, *SIAM J. Matrix Anal. Appl.* 22, 2000).
    Beside the basis, about ``3 k + 4`` vectors are held at a time.
    On a GPU whose free memory is short of the basis, the basis lives in host memory.

    Args:
        op: Symmetric, ``(D, D)``.
        k: Number of pairs.
        which: ``"LA"`` largest first, ``"SA"`` smallest first, ``"LM"`` largest modulus first.
        tol: Relative residual asked for.
        max_products: Upper bound on products, certificate included, never exceeded.
        v0: Start vector ``(D,)``; by default Gaussian from ``seed``.
        seed: Seed of the start vector.
        max_basis: Most vectors held at once, at least ``k + 2``; ``None`` sets no limit.
        basis_bytes: Most bytes that these vectors may take; ``None`` sets no limit.
        progress: Show a bar over the products; it begins with the memory of the basis.

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
    room = _room(k, start, max_basis, basis_bytes)
    most = min(size, max_products, room or size)
    home = _home(start.device, most * start.nbytes)
    generator = torch.Generator().manual_seed(seed + 1)
    space = Basis(start.to(home), room)
    projected = np.zeros((0, 0))  # basis' A basis
    history = []
    products = 0
    target = tol
    memory = f"Lanczos, up to {most} vectors, {tqdm.format_sizeof(most * start.nbytes, 'B', 1024)}"
    bar = tqdm(total=max_products, desc=memory, unit="product", disable=not progress)
    while True:
        image = (op @ space.vectors[-1].to(start.device)).to(home)
        products += 1
        if not torch.isfinite(image).all():
            raise ValueError("a product of the operator is not finite")
        rest, coefficients = orthogonalise(image, space.vectors)
        projected = bordered(projected, coefficients.cpu().double().numpy())
        beta = float(sums.norm(rest))
        theta, weights = np.linalg.eigh(projected)
        order = _pick(theta, which)
        chosen = order[:k]
        scale = max(abs(theta[0]), abs(theta[-1]))
        exhausted = len(theta) == size
        # Below rounding the next direction is noise: the Krylov space is invariant.
        invariant = beta <= size**0.5 * torch.finfo(start.dtype).eps * max(scale, 1e-300)
        errors = (0.0 if invariant or exhausted else beta) * np.abs(weights[-1])
        history.append((float(products), float(theta[chosen[0]]), float(errors[chosen[0]])))
        bar.set_postfix_str(f"value {theta[chosen[0]]:.4g}, residual {errors[chosen[0]]:.1e}")
        bar.update()

        enough = len(chosen) == k and bool(np.all(errors[chosen] <= target * np.abs(theta[chosen])))
        last = exhausted or products + k >= max_products
        if enough or last:
            vectors = space.combine(weights[:, chosen]).T.to(start.device)
            others = (theta[order[k:]], errors[order[k:]])
            result = _certify(op, vectors, which, tol, products, history, others)
            products = result.products
            if result.converged.all() or last or products + k + 1 > max_products:
                bar.close()
                return result
            target /= 4  # the recurrence was too hopeful in finite precision: ask it for more
        if len(theta) == room:
            kept = order[: (k + room) // 2]
            space.replace(weights[:, kept])
            projected = np.diag(theta[kept])
        if invariant:
            rest, _ = orthogonalise(_gaussian(size, rest, generator), space.vectors)
        space.append(rest / sums.norm(rest))


def refine(
    op: SymmetricMatrix,
    near: EigenResult,
    *,
    tol: float = 1e-3,
    max_products: int = 100,
    v0: Tensor | None = None,
    seed: int = 0,
    progress: bool = False,
) -> EigenResult:
    r"""The largest eigenvalue of a matrix that is close to one whose top eigenpairs are known.

    The known matrix may be the same Hessian on fewer examples, or before an optimizer step.
    Each step adds to the subspace, in place of the residual ``r`` that Lanczos would add, the
    correction

    .. math:: t = -M^{-1} r + \frac{u^\top M^{-1} r}{u^\top M^{-1} u} \, M^{-1} u,
        \qquad M = Q \Theta Q^\top - \theta I ,

    where ``u, theta`` is the Ritz pair and ``Q, Theta`` are the known pairs, everything else
    taken as flat (Davidson, *J. Comput. Phys.* 17, 1975; Olsen, Jorgensen & Simons, *Chem. Phys.
    Lett.* 169, 1990).
    Without known pairs (``near.vectors`` of shape ``(D, 0)``) this is the Lanczos method.
    After a step that did not halve the residual, the next one is Lanczos' too: known pairs that
    mislead cost little.

    The images ``A v`` of all basis vectors are kept, so the residual of each step is a true one,
    computed from products with ``A``, and needs no further product.

    Args:
        op: Symmetric, ``(D, D)``.
        near: Pairs of the nearby matrix, largest first.
        tol: Relative residual asked for.
        max_products: Upper bound on products, never exceeded.
        v0: Start vector ``(D,)``; by default the leading known vector.
        seed: Seed of the directions used where a correction vanishes.
        progress: Show a bar over the products.

    Returns:
        One eigenpair; each row of its history holds a true residual.

    Raises:
        ValueError: As for :func:`lanczos`.

    Example:
        >>> A, B = torch.diag(torch.tensor([3., 1.])), torch.tensor([[3., .1], [.1, 1.]])
        >>> refine(B, lanczos(A)).values
        tensor([3.0050])
    """
    _check_arguments(op, 1, tol, max_products, least=1)
    if v0 is None and near.vectors.shape[1]:
        v0 = near.vectors[:, 0]
    start = _start_vector(op, v0, seed)
    known_vectors = near.vectors.to(start)
    known_values = near.values.to(start)
    generator = torch.Generator().manual_seed(seed + 1)
    space, images = Basis(start), Basis()
    history = []
    products = 0
    bar = tqdm(total=max_products, desc="refine", unit="product", disable=not progress)
    while True:
        image = op @ space.vectors[-1]
        products += 1
        if not torch.isfinite(image).all():
            raise ValueError("a product of the operator is not finite")
        images.append(image)
        projected = sums.contract(space.vectors, images.vectors.T).cpu().double().numpy()
        theta, weights = np.linalg.eigh((projected + projected.T) / 2)
        vector = space.combine(weights[:, -1:])[0]
        image = images.combine(weights[:, -1:])[0]
        length = sums.norm(vector)
        vector, image = vector / length, image / length
        value = sums.dot(vector, image)
        residual = image - value * vector
        norm = sums.norm(residual)
        history.append((float(products), float(value), float(norm)))
        bar.set_postfix_str(f"value {float(value):.4g}, residual {float(norm):.1e}")
        bar.update()
        if norm <= tol * value.abs() or products == max_products or len(theta) == len(start):
            break
        if len(theta) == _REFINE_BASIS:
            kept = weights[:, -_REFINE_BASIS // 3 :]
            space, images = Basis(space.combine(kept)), Basis(images.combine(kept))
        # Where the known pairs mislead, the residual itself is the better direction.
        misled = len(history) > 1 and history[-1][2] > 0.5 * history[-2][2]
        step = residual
        if not misled:
            step = _correction(known_values, known_vectors, value, vector, residual)
        step, _ = orthogonalise(step / sums.norm(step), space.vectors)
        if not sums.norm(step) > 1e3 * torch.finfo(step.dtype).eps:
            step, _ = orthogonalise(_gaussian(len(start), start, generator), space.vectors)
        space.append(step / sums.norm(step))
    bar.close()
    # The known pairs tell where the next eigenvalue is, as far as a nearby matrix can.
    gap = value - known_values[1:2] if len(known_values) > 1 else torch.full_like(norm, 0)[None]
    return EigenResult(
        values=value[None],
        vectors=vector[:, None],
        residuals=norm[None],
        products=products,
        converged=(norm <= tol * value.abs())[None],
        history=torch.tensor(history, dtype=torch.float64),
        kato_temple=_kato_temple(norm[None], gap),
    )


def lambda_max(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    *,
    params: Iterable[nn.Parameter] | None = None,
    tol: float = 1e-3,
    seed: int = 0,
    coarse_examples: int | None = None,
    max_products: int = 100,
    chunk_size: int = 128,
    memory_budget: int = 1 << 30,
    progress: bool = False,
    recompute: Iterable[nn.Module] = (),
    group: Any = None,
) -> EigenResult:
    """The algebraically largest Hessian eigenvalue on all the data, coarse to fine.

    For more than one, see :func:`top_eigenpairs`.

    1. A short Lanczos run on a random subsample gives approximate top eigenpairs.
    2. The leading one, blended with a random vector to which *every* example has contributed
       (:meth:`~losslandscape.operators.HessianOperator.curved_start`), starts the run on all the
       data: an eigenvector that the subsample does not show keeps a share in the start.
    3. :func:`refine` corrects it with the coarse pairs as a model of the Hessian, one pass over
       all the data per step, until the true residual on all the data meets ``tol``.

    Memory: at most 24 vectors of length ``D``, their images and 8 coarse pairs at a time; where
    that is too much, :func:`top_eigenpairs` with ``basis_bytes`` needs less.

    What is certain is that an eigenvalue lies within the residual of the value.
    That it is the largest rests on the random start, as in every Krylov method; an eigenvector
    that carries a share of the curvature of the data cannot be missed by chance of the subsample.

    Args:
        model, loss_fn, data, params, chunk_size, memory_budget, recompute, group: As for
            :class:`~losslandscape.operators.HessianOperator`.
        tol: Relative residual asked for on all the data.
        seed: Seed of the subsample and of the start vectors.
        coarse_examples: Size of the subsample; by default a fifteenth of the data, at least 512
            and at most 4,096, and none below 4,096 examples, where it would save nothing.
        max_products: Bound on passes over all the data.
        progress: Show a bar over the passes.

    Returns:
        One eigenpair; ``products`` counts passes over all the data, coarse work apart.

    Raises:
        ValueError: As for :class:`~losslandscape.operators.HessianOperator`, and arguments out of
            range.

    Example:
        Least squares has the Hessian ``2/n X' X``, here with the eigenvalues 4 and 1.

        >>> X = torch.tensor([[2., 0.], [0., 1.]])
        >>> model = nn.Linear(2, 1, bias=False)
        >>> top = lambda_max(model, nn.functional.mse_loss, (X, torch.zeros(2, 1)))
        >>> round(float(top.values[0]), 3), top.converged.tolist()
        (4.0, [True])
    """
    full = HessianOperator(
        *(model, loss_fn, data),
        params=params,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
        recompute=recompute,
        group=group,
    )
    if coarse_examples is None:
        enough = full.examples >= _COARSE_FROM
        share = min(max(full.examples // _COARSE_SHARE, 512), 4096)
        coarse_examples = share if enough else full.examples
    if coarse_examples < 1:
        raise ValueError(f"coarse_examples must be at least 1, got {coarse_examples}")
    start = full.curved_start(seed=seed)
    near = _no_pairs(start)
    if coarse_examples < full.examples:
        coarse = full.subsample(coarse_examples, seed=seed)
        near = _ritz_pairs(coarse, coarse.curved_start(seed=seed), _COARSE_STEPS)
        del coarse  # and its graphs
        start = near.vectors[:, 0] + 0.1 * start
    return refine(
        *(full, near),
        tol=tol,
        max_products=max_products,
        v0=start,
        seed=seed,
        progress=progress and full.speaks,
    )


def top_eigenpairs(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    k: int = 5,
    *,
    which: str = "LA",
    params: Iterable[nn.Parameter] | None = None,
    tol: float = 1e-3,
    seed: int = 0,
    max_products: int = 300,
    max_basis: int | None = None,
    basis_bytes: int | None = None,
    chunk_size: int = 128,
    memory_budget: int = 1 << 30,
    progress: bool = True,
    recompute: Iterable[nn.Module] = (),
    group: Any = None,
) -> EigenResult:
    """``k`` eigenpairs of the Hessian on all the data, certified, with a progress bar.

    :func:`lanczos`, started from a vector that is rich in directions of large curvature.

    Args:
        model, loss_fn, data, params, chunk_size, memory_budget, recompute, group: As for
            :class:`~losslandscape.operators.HessianOperator`.
        k, which, tol, seed, max_products, max_basis, basis_bytes, progress: As for
            :func:`lanczos`.

    Raises:
        ValueError: As for both.

    Example:
        >>> X = torch.tensor([[2., 0.], [0., 1.]])
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = (X, torch.zeros(2, 1))
        >>> pairs = top_eigenpairs(model, nn.functional.mse_loss, data, 2, progress=False)
        >>> [round(float(value), 3) for value in pairs.values]
        [4.0, 1.0]
    """
    H = HessianOperator(
        *(model, loss_fn, data),
        params=params,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
        recompute=recompute,
        group=group,
    )
    return lanczos(
        H,
        k,
        which=which,
        tol=tol,
        max_products=max_products,
        v0=H.curved_start(seed=seed),
        seed=seed,
        max_basis=max_basis,
        basis_bytes=basis_bytes,
        progress=progress and H.speaks,
    )


# A refinement holds at most this many vectors and as many images.
_REFINE_BASIS = 24
# Lanczos steps on the subsample of lambda_max; the upper half of its pairs models the Hessian.
_COARSE_STEPS = 16
# Fewer examples than this are cheap enough without a subsample; else it is one in so many.
_COARSE_FROM = 4096
_COARSE_SHARE = 15


# A restart works on so many columns of the basis at a time.
_COLUMNS = 1 << 16
# A basis larger than this share of a GPU's free memory lives in host memory.
_SHARE_OF_FREE = 0.8


def sampling_error(op: HessianOperator | GaussNewtonOperator, vector: Tensor) -> Estimate:
    r"""An eigenvalue on all the data there could be: how far the drawn examples may mislead.

    To first order an eigenvalue moves by :math:`u^\top (\Delta H) u` when the matrix moves
    (Stewart & Sun, *Matrix Perturbation Theory*, 1990, section IV.2), so the eigenvalue of a mean
    over :math:`n` drawn examples scatters like the mean of their :math:`u^\top H_i u`.
    The largest eigenvalue is also too large on average, in second order, by about
    :math:`\sum_j (u_j^\top \Delta H u)^2 / (\lambda - \lambda_j)`.

    Costs one product. Chunks of one example each (``chunk_size=1``) give every example a voice;
    with larger ones the error is that of so many chunk means, as good while there are some dozens.

    Args:
        op: Of one process.
        vector: ``(D,)``, the eigenvector.

    Returns:
        The Rayleigh quotient, and its standard error over draws of the examples.

    Raises:
        ValueError: Fewer than two chunks, or the operator is shared by a group.

    Example:
        >>> data = (torch.tensor([[1.], [2.], [3.]]), torch.zeros(3, 1))
        >>> model = nn.Linear(1, 1, bias=False)
        >>> H = HessianOperator(model, nn.functional.mse_loss, data, chunk_size=1)
        >>> print(sampling_error(H, torch.ones(1)))
        9.333 +- 4.7
    """
    forms, sizes = op.by_chunk(vector)
    if len(forms) < 2:
        raise ValueError("the data are one chunk: give a smaller chunk_size, such as 1")
    unit = float(vector.double() @ vector.double())
    weights, forms = sizes / sizes.sum(), forms / unit
    mean = float(weights @ forms)
    spread = (weights * (forms - mean)).square().sum() * len(forms) / (len(forms) - 1)
    return Estimate(mean, float(spread.sqrt()))


def _room(k: int, start: Tensor, max_basis: int | None, basis_bytes: int | None) -> int | None:
    """How many vectors a basis may hold; ``None`` is no limit."""
    if max_basis is not None and max_basis < k + 2:
        raise ValueError(f"max_basis must be at least k + 2 = {k + 2}, got {max_basis}")
    if basis_bytes is None:
        return max_basis
    room = basis_bytes // start.nbytes
    if room < k + 2:
        raise ValueError(
            f"basis_bytes = {basis_bytes:,} holds {room} vectors of {len(start):,} numbers; "
            f"{k} eigenpairs need k + 2 = {k + 2} of them: {(k + 2) * start.nbytes:,} bytes"
        )
    return room if max_basis is None else min(room, max_basis)


def _home(device: torch.device, needed: int) -> torch.device:
    """Where a basis of so many bytes lives: beside the matrix, or in host memory."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if needed <= _SHARE_OF_FREE * free else torch.device("cpu")


class Basis:
    """Rows that grow one by one, in storage for ``room`` rows, or that grows by doubling."""

    def __init__(self, rows: Tensor | None = None, room: int | None = None) -> None:
        self._count = 0
        if rows is not None:
            self._store = rows.reshape(-1, rows.shape[-1])
            self._count = len(self._store)
            if room is not None:
                store = rows.new_empty(room, rows.shape[-1])
                store[: self._count] = self._store
                self._store = store

    @property
    def vectors(self) -> Tensor:
        """The rows so far, ``(m, D)``."""
        return self._store[: self._count]

    def append(self, row: Tensor) -> None:
        """Add a row ``(D,)``."""
        if self._count == 0:
            self._store = row[None]
        elif self._count == len(self._store):
            self._store = torch.cat([self._store, torch.empty_like(self._store)])
        self._store[self._count] = row
        self._count += 1

    def replace(self, weights: np.ndarray) -> None:
        """Put the combinations in place of the rows, without a second basis in memory."""
        matrix = torch.as_tensor(np.ascontiguousarray(weights.T)).to(self._store)
        for columns in self._store.split(_COLUMNS, dim=1):
            columns[: len(matrix)] = matrix @ columns[: self._count]
        self._count = len(matrix)

    def combine(self, weights: np.ndarray) -> Tensor:
        """The combinations ``weights' rows``, one for each column of ``weights`` (m, p)."""
        matrix = torch.as_tensor(np.ascontiguousarray(weights.T))
        return matrix.to(self._store) @ self.vectors


def bordered(matrix: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The symmetric matrix with one more row and column."""
    larger = np.empty((len(column), len(column)))
    larger[:-1, :-1] = matrix
    larger[-1] = larger[:, -1] = column
    return larger


def _ritz_pairs(op: SymmetricMatrix, start: Tensor, steps: int) -> EigenResult:
    """The upper half of the Ritz pairs after ``steps`` of Lanczos, with estimated residuals."""
    space = Basis(start / sums.norm(start))
    projected = np.zeros((0, 0))
    while True:
        rest, coefficients = orthogonalise(op @ space.vectors[-1], space.vectors)
        projected = bordered(projected, coefficients.cpu().double().numpy())
        beta = float(sums.norm(rest))
        if len(projected) in (steps, len(start)) or not beta > 0:
            break
        space.append(rest / beta)
    theta, weights = np.linalg.eigh(projected)
    upper = np.arange(len(theta))[::-1][: (len(theta) + 1) // 2]
    vectors = space.combine(weights[:, upper]).T
    residuals = torch.as_tensor(beta * np.abs(weights[-1, upper])).to(start)
    return EigenResult(
        values=torch.as_tensor(theta[upper]).to(start),
        vectors=vectors,
        residuals=residuals,
        products=len(theta),
        converged=torch.zeros(len(upper), dtype=torch.bool),
        history=torch.zeros(0, 3, dtype=torch.float64),
        kato_temple=torch.full_like(residuals, float("nan")),
    )


def _no_pairs(like: Tensor) -> EigenResult:
    none = like.new_zeros(0)
    return EigenResult(
        values=none,
        vectors=like.new_zeros(len(like), 0),
        residuals=none,
        products=0,
        converged=none.bool(),
        history=torch.zeros(0, 3, dtype=torch.float64),
        kato_temple=none,
    )


def _correction(
    values: Tensor, vectors: Tensor, theta: Tensor, ritz: Tensor, residual: Tensor
) -> Tensor:
    """Olsen's correction; without known pairs, the residual itself."""
    if not len(values) or theta == 0:
        return residual
    # A known value that equals theta would divide by zero; its direction is then the Ritz vector,
    # which the correction leaves out anyway.
    shifted = values - theta
    least = 1e-3 * theta.abs()
    shifted = torch.where(shifted.abs() < least, torch.copysign(least, shifted), shifted)

    def solve(right: Tensor) -> Tensor:
        inside = sums.contract(vectors.T, right)
        return vectors @ (inside / shifted + inside / theta) - right / theta

    solved_residual, solved_ritz = solve(residual), solve(ritz)
    share = sums.dot(ritz, solved_residual) / sums.dot(ritz, solved_ritz)
    step = share * solved_ritz - solved_residual
    return step if torch.isfinite(step).all() else residual


def _certify(
    op: SymmetricMatrix,
    vectors: Tensor,
    which: str,
    tol: float,
    products: int,
    history: list[tuple[float, float, float]],
    others: tuple[np.ndarray, np.ndarray],
) -> EigenResult:
    """Recompute values and residuals of unit ``vectors`` (D, k) from ``k`` fresh products.

    ``others``: the remaining Ritz values and the estimates of their errors, for the gaps.
    """
    vectors = vectors / sums.norm(vectors)
    # A foreign operator may know single vectors only.
    blocks = isinstance(op, (Tensor, CurvatureOperator))
    images = op @ vectors if blocks else torch.stack([op @ v for v in vectors.T], dim=1)
    values = sums.dot(vectors, images)
    order = torch.as_tensor(_pick(values.cpu().numpy(), which).copy(), device=values.device)
    values, vectors, images = values[order], vectors[:, order], images[:, order]
    residuals = sums.norm(images - values * vectors)
    rest, errors = (torch.as_tensor(other.copy()).to(values) for other in others)
    everything = torch.cat([values, rest])
    radius = torch.cat([residuals, errors])
    distance = (values[:, None] - everything).abs() - radius
    distance[range(len(values)), range(len(values))] = float("inf")  # not from itself
    gaps = distance.min(dim=1).values if len(everything) > 1 else torch.zeros_like(values)
    return EigenResult(
        values=values,
        vectors=vectors,
        residuals=residuals,
        products=products + len(values),
        converged=residuals <= tol * values.abs(),
        history=torch.tensor(history, dtype=torch.float64),
        kato_temple=_kato_temple(residuals, gaps),
    )


def _kato_temple(residuals: Tensor, gaps: Tensor) -> Tensor:
    """``residuals^2 / gaps``; NaN where the gap is not larger than the residual."""
    bound = residuals**2 / gaps
    return torch.where(gaps > residuals, bound, torch.full_like(bound, float("nan")))


def _pick(values: np.ndarray, which: str) -> np.ndarray:
    """Indices of ``values`` from the asked-for end inwards."""
    keys = {"LA": -values, "SA": values, "LM": -np.abs(values)}
    return np.argsort(keys[which], kind="stable")


def orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of ``vector`` without its components along the rows of ``basis``, and these.

    Twice is enough (Parlett, section 6.9).
    """
    removed = torch.zeros_like(basis[:, 0])
    for _ in range(2):
        components = sums.contract(basis, vector)
        removed += components
        vector = vector - basis.T @ components
    return vector, removed


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
        if not isinstance(v0, Tensor):
            raise TypeError(f"v0 must be a torch tensor, got {type(v0).__name__}")
        if tuple(v0.shape) != (size,):
            raise ValueError(f"v0 must have shape ({size},), got {tuple(v0.shape)}")
        vector = v0.detach().to(like)
    norm: Tensor = sums.norm(vector)
    if not torch.isfinite(norm) or norm == 0:
        raise ValueError("v0 must be finite and not zero")
    unit: Tensor = vector / norm
    return unit


def _check_arguments(
    op: SymmetricMatrix, k: int, tol: float, max_products: int, *, least: int
) -> None:
    if not hasattr(op, "shape") or not hasattr(op, "__matmul__"):
        raise TypeError(
            f"expected a symmetric matrix or an operator, got {type(op).__name__}: give "
            "HessianOperator(model, loss_fn, data)"
        )
    if isinstance(op, np.ndarray):
        raise TypeError("expected a torch tensor or an operator, got ndarray: use torch.as_tensor")
    if isinstance(op, Tensor) and not op.is_floating_point():
        raise ValueError(f"the matrix must hold real floating numbers, got {op.dtype}")
    rows, columns = op.shape
    if rows != columns:
        raise ValueError(f"the operator must be square, got {rows} x {columns}")
    if not 1 <= k <= rows:
        raise ValueError(f"k must lie between 1 and {rows}, got {k}")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    if max_products < least:
        raise ValueError(f"max_products must be at least {least} here, got {max_products}")
