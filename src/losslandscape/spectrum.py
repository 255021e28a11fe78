"""Traces, block traces and the density of eigenvalues, from random probes.

One probe says ``z' f(H) z``, whose mean over random ``z`` is ``tr f(H)``.
The spread over probes gives each estimate its standard error.
A matrix with no more rows than there are probes is formed instead; its numbers are exact and their
standard errors zero.

The operator is multiplied by blocks of vectors: ``op @ V`` with ``V`` of shape ``(D, k)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor
from tqdm import tqdm

from losslandscape import sums
from losslandscape.eigen import SymmetricMatrix
from losslandscape.estimates import (
    Estimate,
    Estimates,
    RunningMean,
    jackknife,
    summaries,
    summary,
)

METHODS = ("krylov", "hutchinson")

Blocks = Mapping[str, Tensor | Sequence[int]] | Iterable[tuple[str, Tensor | Sequence[int]]]

# Products are asked for in blocks of this many vectors, which share the work on the data.
_BLOCK = 16
# Krylov bases of all probes that are advanced together stay below this many bytes.
_BASIS_BYTES = 1 << 30
# The density's grid has this many points per width of the smoothing kernel.
_POINTS_PER_WIDTH = 4
# A spectrum that is narrower than this share of its largest modulus is drawn this wide.
_NARROWEST = 1e-10


@dataclass(frozen=True)
class Moments:
    """What one loop over probes says of a symmetric matrix ``H`` of shape ``(D, D)``.

    Attributes:
        trace: ``tr H``.
        trace_of_square: ``tr H^2``, the squared Frobenius norm.
        diagonal: ``H_ii``, ``(D,)``.
        blocks: Trace of each tensor's diagonal block, by name.
        rows: Per name, the trace of the block of each row (output unit, filter) of a weight tensor;
            a tensor with one axis, such as a bias, is a single row.
        samples: ``(K, 2)`` independent unbiased values of ``tr H`` and ``tr H^2``, one per probe.
        products: Products with ``H`` used.
    """

    trace: Estimate
    trace_of_square: Estimate
    diagonal: Estimates = field(repr=False)  # (D,)
    blocks: dict[str, Estimate] = field(repr=False)
    rows: dict[str, Estimates] = field(repr=False)
    samples: Tensor = field(repr=False)  # (K, 2)
    products: int

    @property
    def participation_ratio(self) -> Estimate:
        r"""``(tr H)^2 / tr H^2``, with a jackknife over probes against the bias of a ratio.

        For a positive semidefinite matrix it counts directions: ``r`` equal eigenvalues among
        zeros give ``r``, and it never exceeds ``D``.
        Eigenvalues of both signs cancel in the trace, so for an indefinite matrix it is no count.
        It is NaN for the zero matrix.
        """
        return jackknife(self.samples, lambda m: m[..., 0] ** 2 / m[..., 1])

    def stable_rank(self, norm: float) -> Estimate:
        r"""``tr H^2 / norm^2``, between 1 and the rank when ``norm`` is the largest ``|lambda|``.

        Raises:
            ValueError: ``norm`` is not positive.
        """
        if not norm > 0:
            raise ValueError(f"norm must be positive, got {norm}")
        square = self.trace_of_square
        return Estimate(square.value / norm**2, square.stderr / norm**2)


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of the eigenvalues of a symmetric matrix, ``(D, D)``.

    The raw result is one quadrature rule per probe: ``nodes`` (Ritz values) and ``weights``.
    ``density`` is its picture, smoothed by a kernel whose width grows with the distance from the
    mean; it integrates to one, and has the mean and the variance of the quadrature.

    A standard error here adds, in squares, the spread over probes and the change of the estimate
    when every rule is made from the first half of its steps.
    The change is zero for moments of order below ``steps``, which both rules get right.

    Attributes:
        grid: ``(G,)`` places, denser near the mean.
        density: ``(G,)`` share of eigenvalues per unit of ``grid``.
        stderr: ``(G,)`` standard error of ``density``.
        nodes: ``(P, m)`` Ritz values of each probe, ascending.
        weights: ``(P, m)`` their shares; each row sums to one.
        residuals: ``(P, m)`` residual norms of the Ritz vectors, from the recurrence: an
            eigenvalue lies within that distance of the node.
        coarse_nodes, coarse_weights: ``(P, c)`` nodes and weights after half of the steps.
        size: ``D``.
        width: Width of the kernel relative to the distance from the mean.
        products: Products with the matrix used.
    """

    grid: Tensor = field(repr=False)  # (G,)
    density: Tensor = field(repr=False)  # (G,)
    stderr: Tensor = field(repr=False)  # (G,)
    nodes: Tensor = field(repr=False)  # (P, m)
    weights: Tensor = field(repr=False)  # (P, m)
    residuals: Tensor = field(repr=False)  # (P, m)
    coarse_nodes: Tensor = field(repr=False)  # (P, c)
    coarse_weights: Tensor = field(repr=False)  # (P, c)
    size: int
    width: float
    products: int

    @property
    def smallest(self) -> float:
        """Smallest Ritz value: no smaller than the smallest eigenvalue, up to rounding."""
        return float(self.nodes.min())

    @property
    def largest(self) -> float:
        """Largest Ritz value: no larger than the largest eigenvalue, up to rounding."""
        return float(self.nodes.max())

    def mean(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """Mean of ``function`` over the eigenvalues; ``size`` times it is ``tr function(H)``.

        Meant for smooth functions; for shares of the spectrum use :meth:`fraction`.
        """
        return self._estimate([function], lambda means: means[..., 0])

    def moment(self, order: int) -> Estimate:
        """Mean of ``lambda**order``, that is ``tr H^order / D``."""
        return self.mean(lambda nodes: nodes**order)

    def cdf(self, points: Tensor) -> Estimates:
        """Share of the eigenvalues up to each of ``points``, ``(m,)``.

        A rule has steps at its nodes only.
        What this may cost takes the place of the change described above: no more than the weight
        of one of the two nodes around the point (Chebyshev, Markov and Stieltjes; Szego,
        *Orthogonal Polynomials*, section 3.41), and less where those nodes have converged, since a
        Ritz vector of residual ``r`` has at most ``(r / d)^2`` of its length squared on
        eigenvectors that lie ``d`` or more away (Chebyshev).
        """
        values, slack = self._cdf_samples(points)
        shares = summaries(values)
        return Estimates(shares.values, torch.hypot(shares.stderrs, slack))

    def histogram(self, edges: Tensor) -> Estimates:
        """Share of the eigenvalues in each bin ``(edges[i], edges[i + 1]]``; any spacing.

        Raises:
            ValueError: The edges do not increase.
        """
        if not bool((edges.diff() > 0).all()):
            raise ValueError(f"the edges of bins must increase, got {edges.tolist()}")
        values, slack = self._cdf_samples(edges)
        shares = summaries(values.diff(dim=1))
        return Estimates(shares.values, torch.hypot(shares.stderrs, slack[1:] + slack[:-1]))

    def fraction(self, low: float = -math.inf, high: float = math.inf) -> Estimate:
        """Share of the eigenvalues in ``(low, high]``.

        Raises:
            ValueError: ``low`` is not below ``high``.
        """
        return self.histogram(torch.tensor([low, high]))[0]

    def smoothed(self, points: Tensor, width: float | None = None) -> Estimates:
        """The density at any ``points`` (m,), with a kernel of another ``width`` if given."""
        points = torch.as_tensor(points, dtype=self.nodes.dtype)
        width = self.width if width is None else width
        fine = _Kernel.of(self.nodes, self.weights, width).density(points)
        coarse = _Kernel.of(self.coarse_nodes, self.coarse_weights, width).density(points)
        return _with_change(fine, coarse)

    def participation_ratio(self, *, modulus: bool = False) -> Estimate:
        """``(tr H)^2 / tr H^2``; with ``modulus``, ``(sum |lambda|)^2 / sum lambda^2`` instead.

        The second counts directions whatever their sign; the two agree for a semidefinite matrix.
        """
        first = torch.abs if modulus else torch.clone
        return self._estimate(
            [first, torch.square], lambda means: self.size * means[..., 0] ** 2 / means[..., 1]
        )

    def stable_rank(self) -> Estimate:
        """``tr H^2`` over the square of the largest Ritz value in modulus."""
        norm = max(abs(self.smallest), abs(self.largest))
        square = self.moment(2)
        scale = self.size / norm**2 if norm else math.nan
        return Estimate(scale * square.value, scale * square.stderr)

    def entropy(self) -> Estimate:
        r"""Spectral entropy :math:`-\sum_i q_i \ln q_i` with :math:`q_i = |\lambda_i| / \sum_j
        |\lambda_j|`.

        It lies between 0 (one eigenvalue is not zero) and ``ln D``; its exponential is the
        effective rank (Roy & Vetterli, *The Effective Rank*, EUSIPCO 2007).
        """
        top = self.nodes.abs().max()  # the entropy does not depend on the scale

        def weighted_log(nodes: Tensor) -> Tensor:
            share = nodes.abs() / top
            return share * torch.where(share > 0, share, 1).log()

        def statistic(means: Tensor) -> Tensor:
            return math.log(self.size) + torch.log(means[..., 0]) - means[..., 1] / means[..., 0]

        return self._estimate([lambda nodes: nodes.abs() / top, weighted_log], statistic)

    def _estimate(
        self,
        functions: Sequence[Callable[[Tensor], Tensor]],
        statistic: Callable[[Tensor], Tensor],
    ) -> Estimate:
        """``statistic`` of the means of ``functions`` over the spectrum."""
        fine = torch.stack([(self.weights * f(self.nodes)).sum(dim=1) for f in functions], dim=1)
        coarse = torch.stack(
            [(self.coarse_weights * f(self.coarse_nodes)).sum(dim=1) for f in functions], dim=1
        )
        change = statistic(fine.mean(dim=0)) - statistic(coarse.mean(dim=0))
        estimate = jackknife(fine, statistic)
        return Estimate(estimate.value, math.hypot(estimate.stderr, float(change)))

    def _cdf_samples(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Each rule's share up to each of ``points``, (P, m), and the rules' mean error, (m,)."""
        points = torch.as_tensor(points, dtype=self.nodes.dtype)
        below = (self.nodes[:, :, None] <= points).sum(dim=1)  # (P, m)
        shares = torch.nn.functional.pad(self.weights.cumsum(dim=1), (1, 0)).gather(1, below)
        padded = torch.nn.functional.pad(self.weights, (1, 1))
        around = torch.maximum(padded.gather(1, below), padded.gather(1, below + 1))
        distance = (points - self.nodes[:, :, None]).abs()
        residuals = self.residuals[:, :, None].expand_as(distance)
        strays = torch.where(distance > residuals, (residuals / distance).square(), residuals > 0)
        slack = torch.minimum(around, (self.weights[:, :, None] * strays).sum(dim=1))
        return shares, torch.where(points.isinf(), 0, slack.mean(dim=0))


def estimate_trace(
    op: SymmetricMatrix,
    *,
    probes: int = 32,
    seed: int = 0,
    method: str = "krylov",
    progress: bool = False,
) -> Estimate:
    r"""The trace, with its standard error, from ``probes`` products.

    ``"hutchinson"`` averages :math:`z^\top H z` over random signs :math:`z` (Hutchinson, *A
    Stochastic Estimator of the Trace of the Influence Matrix*, 1989); its variance is
    :math:`2 \sum_{i \ne j} H_{ij}^2 / K`, to which the largest eigenvalues contribute most.

    ``"krylov"`` spends half of the products on a Krylov space with orthonormal basis :math:`Q`,
    which soon holds the largest eigenvalues of both signs, and the rest on its complement,

    .. math:: \operatorname{tr} H = \operatorname{tr} Q^\top H Q
        + \operatorname{tr} (I - QQ^\top) H (I - QQ^\top) .

    The first term is known exactly; for the second, :math:`(D - k)\, u^\top H u` is averaged over
    random unit vectors :math:`u` of the complement.
    The idea is Hutch++ (Meyer, Musco, Musco & Woodruff, SOSA 2021) with a Krylov basis (Chen &
    Hallman, *Krylov-Aware Stochastic Trace Estimation*, SIAM J. Matrix Anal. Appl. 44, 2023).
    Given :math:`Q` the probes are independent, so both methods are unbiased and so is the square
    of their standard error.

    Args:
        op: Symmetric, ``(D, D)``.
        probes: Products allowed; from ``D`` on the trace is exact and takes ``D`` of them.
        seed: Seed of the probes.
        method: ``"krylov"`` or ``"hutchinson"``.
        progress: Show a bar.

    Raises:
        ValueError: An operator that is not square, fewer than two probes (one suffices if
            ``D = 1``), an unknown method, a product that is not finite.

    Example:
        >>> estimate_trace(torch.diag(torch.tensor([1., 2., 4.])))
        Estimate(value=7.0, stderr=0.0)
    """
    moments = estimate_moments(op, probes=probes, seed=seed, method=method, progress=progress)
    return moments.trace


def estimate_moments(
    op: SymmetricMatrix,
    *,
    probes: int = 32,
    seed: int = 0,
    blocks: Blocks | None = None,
    method: str = "krylov",
    progress: bool = False,
) -> Moments:
    r"""Trace, trace of the square, diagonal and block traces, from one loop over probes.

    With :math:`N = I - QQ^\top` as in :func:`estimate_trace`, and :math:`u` a random vector with
    :math:`E\,uu^\top = N`,

    .. math:: \operatorname{tr} H^2 = \lVert HQ \rVert_F^2 + E\,\lVert Hu \rVert^2 , \qquad
        \operatorname{diag} H = \operatorname{diag}(HQQ^\top + QQ^\top HN)
        + E\,[u \circ NHu] .

    Block traces are sums of the diagonal, formed per probe so that their standard errors know how
    its entries move together (Bekas, Kokiopoulou & Saad, *An Estimator for the Diagonal of a
    Matrix*, 2007).

    Args:
        op, probes, seed, method, progress: As for :func:`estimate_trace`.
        blocks: Names with tensors or shapes, whose sizes add up to ``D``, in the order of the
            flat vector; for instance ``model.named_parameters()``.

    Raises:
        ValueError: As for :func:`estimate_trace`, or sizes that do not add up to ``D``.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> H = torch.diag(torch.tensor([1., 2., 4.]))
        >>> moments = estimate_moments(H, blocks=model.named_parameters())
        >>> moments.blocks["weight"].value, moments.trace_of_square.value
        (3.0, 21.0)
    """
    size = _check(op, probes)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    layout = _row_layout(blocks, size)
    lengths = torch.tensor([length for _, length in layout])
    diagonal = RunningMean()
    rows, squares = [], []
    with tqdm(total=min(size, probes), desc="probes", disable=not progress) as bar:
        for samples, square in _moment_samples(op, probes, seed, method, bar):
            diagonal.add(samples)
            rows.append(_sum_runs(samples, lengths))
            squares.append(square.double().cpu())
    per_row = torch.cat(rows)  # (K, R)
    totals = torch.stack([per_row.sum(dim=1), torch.cat(squares)], dim=1)
    named = _by_name(per_row, layout)
    return Moments(
        trace=summary(totals[:, 0]),
        trace_of_square=summary(totals[:, 1]),
        diagonal=diagonal.estimates(),
        blocks={name: summary(part.sum(dim=1)) for name, part in named.items()},
        rows={name: summaries(part) for name, part in named.items()},
        samples=totals,
        products=min(size, probes),
    )


def spectral_density(
    op: SymmetricMatrix,
    *,
    probes: int = 10,
    steps: int = 60,
    seed: int = 0,
    width: float = 0.05,
    progress: bool = False,
) -> SpectralDensity:
    r"""The density of eigenvalues, by stochastic Lanczos quadrature.

    ``steps`` Lanczos steps from a random unit vector :math:`v` give a tridiagonal matrix whose
    eigenvalues :math:`\theta_j` and squared first components :math:`\omega_j` of its eigenvectors
    are the Gauss quadrature rule of :math:`v`,

    .. math:: v^\top f(H)\, v \approx \sum_j \omega_j f(\theta_j) ,

    exact for polynomials up to degree ``2 * steps - 1``; its mean over :math:`v` is
    :math:`\frac1D \operatorname{tr} f(H)` (Ubaru, Chen & Saad, *Fast Estimation of tr(f(A)) via
    Stochastic Lanczos Quadrature*, SIAM J. Matrix Anal. Appl. 38, 2017; for networks Ghorbani,
    Krishnan & Xiao, ICML 2019).
    Each Krylov basis is re-orthogonalised in full, so that no eigenvalue is counted twice, also in
    single precision.
    Starts are uniform on the sphere: whatever the basis in which ``H`` is written, the variance
    depends on its eigenvalues only, and no start is an eigenvector by bad luck.
    All probes advance in lockstep, one block product per step, as far as their bases fit into one
    GiB together.

    Args:
        op: Symmetric, ``(D, D)``.
        probes: Start vectors; from ``D`` on the matrix is formed with ``D`` products.
        steps: Lanczos steps per probe, at most ``D`` are made.
        seed: Seed of the starts.
        width: Width of the smoothing kernel, relative to the distance from the mean of the
            spectrum (near the mean: to the standard deviation of the spectrum).
        progress: Show a bar.

    Raises:
        ValueError: An operator that is not square or not symmetric, ``probes`` below two (one
            suffices if ``D = 1``), ``steps`` below one, ``width`` not positive, a product that is
            not finite.

    Example:
        >>> density = spectral_density(torch.diag(torch.tensor([0., 0., 0., 2.])))
        >>> density.moment(1), density.fraction(high=1.0)
        (Estimate(value=0.5, stderr=0.0), Estimate(value=0.75, stderr=0.0))
    """
    size = _check(op, probes)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    steps = min(steps, size)
    exact = size <= probes
    with tqdm(total=size if exact else probes * steps, desc="density", disable=not progress) as bar:
        if exact:
            nodes, weights, residuals = _dense_rule(_form(op, bar))
            coarse_nodes, coarse_weights = nodes, weights
            products = size
        else:
            runs = _krylov_runs(op, probes, steps, seed, bar)
            nodes, weights, residuals = _rules(runs, steps)
            coarse_nodes, coarse_weights, _ = _rules(runs, (steps + 1) // 2)
            products = sum(len(alpha) for alpha, _ in runs)
    kernel = _Kernel.of(nodes, weights, width)
    grid = kernel.grid()
    per_probe = kernel.density(grid)
    per_probe = per_probe / torch.trapezoid(per_probe, grid, dim=1)[:, None]
    curve = _with_change(per_probe, _Kernel.of(coarse_nodes, coarse_weights, width).density(grid))
    return SpectralDensity(
        grid=grid,
        density=curve.values,
        stderr=curve.stderrs,
        nodes=nodes,
        weights=weights,
        residuals=residuals,
        coarse_nodes=coarse_nodes,
        coarse_weights=coarse_weights,
        size=size,
        width=width,
        products=products,
    )


# Probes


def _moment_samples(
    op: SymmetricMatrix, probes: int, seed: int, method: str, bar: tqdm[Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Independent unbiased values of the diagonal ``(k, D)`` and of ``tr H^2`` ``(k,)``."""
    size = op.shape[0]
    if size <= probes:
        matrix = _form(op, bar)
        yield matrix.diagonal()[None], (matrix**2).sum()[None]
        return
    generator = torch.Generator().manual_seed(seed)
    deflation = min(probes // 2, probes - 2) if method == "krylov" else 0
    if deflation == 0:
        for count in _portions(probes):
            signs = torch.randint(2, (count, size), generator=generator)
            z = (2.0 * signs - 1.0).T.to(**_kind(op))
            image = _product(op, z, bar)
            yield (z * image).T, (image**2).sum(dim=0)
        return
    start = _directions(op, 1, generator)
    krylov = _lanczos(op, start, deflation, bar)
    basis, rest = krylov.basis[0], krylov.rest[:, 0]  # Q^T (k, D) and the residual of its last row
    inside = krylov.tridiagonal(0).to(basis)
    # diag(H Q Q^T + Q Q^T H N) and ||H Q||^2, where H Q = Q T + rest e_k^T.
    diagonal = ((inside @ basis) * basis).sum(dim=0) + 2 * rest * basis[-1]
    square = (inside**2).sum() + (rest**2).sum()
    for count in _portions(probes - len(basis)):
        u = _outside(_directions(op, count, generator), basis)
        u = u * (size - len(basis)) ** 0.5 / sums.norm(u)
        image = _product(op, u, bar)
        yield diagonal + (u * _outside(image, basis)).T, square + (image**2).sum(dim=0)


def _outside(vectors: Tensor, basis: Tensor) -> Tensor:
    """Remove from the columns ``(D, k)`` their components along the orthonormal rows of basis."""
    for _ in range(2):
        vectors = vectors - basis.T @ sums.contract(basis, vectors)
    return vectors


def _directions(op: SymmetricMatrix, count: int, generator: torch.Generator) -> Tensor:
    """``(D, count)`` independent unit vectors, uniform on the sphere."""
    size = op.shape[0]
    # One vector at a time and on the CPU: a seed means the same probes on every device and
    # whatever the size of the blocks.
    draws = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]
    vectors = torch.stack([draw / sums.norm(draw) for draw in draws], dim=1)
    return vectors.to(**_kind(op))


def _portions(count: int) -> list[int]:
    """``count`` in portions of at most a block: 20 -> [16, 4]."""
    return [min(_BLOCK, count - done) for done in range(0, count, _BLOCK)]


def _form(op: SymmetricMatrix, bar: tqdm[Any]) -> Tensor:
    """The matrix itself, from ``D`` products."""
    identity = torch.eye(op.shape[0], **_kind(op))
    columns = [_product(op, part, bar) for part in identity.split(_BLOCK, dim=1)]
    return torch.cat(columns, dim=1)


def _product(op: SymmetricMatrix, vectors: Tensor, bar: tqdm[Any]) -> Tensor:
    result = op @ vectors
    if not torch.isfinite(result).all():
        raise ValueError("a product of the operator is not finite")
    bar.update(vectors.shape[1])
    return result


def _kind(op: SymmetricMatrix) -> dict[str, Any]:
    return {
        "dtype": getattr(op, "dtype", torch.get_default_dtype()),
        "device": getattr(op, "device", torch.device("cpu")),
    }


def _check(op: SymmetricMatrix, probes: int) -> int:
    rows, columns = op.shape
    if rows != columns:
        raise ValueError(f"the operator must be square, got {rows} x {columns}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if probes == 1 and rows > 1:
        raise ValueError("probes must be at least 2, got 1: one probe has no standard error")
    return int(rows)


# Lanczos from several starts at once


@dataclass
class _Krylov:
    """Lanczos runs from ``P`` starts; run ``p`` made ``lengths[p]`` steps."""

    diagonal: np.ndarray  # (P, m)
    off_diagonal: np.ndarray  # (P, m): entry j couples step j to the next; 0 ends the run
    lengths: np.ndarray  # (P,)
    basis: Tensor  # (P', m, D) of the runs that went on to the end
    rest: Tensor  # (D, P') their last residual vectors

    def tridiagonal(self, run: int) -> Tensor:
        d, e = self.entries(run)
        return torch.as_tensor(np.diag(d) + np.diag(e[:-1], 1) + np.diag(e[:-1], -1))

    def entries(self, run: int) -> tuple[np.ndarray, np.ndarray]:
        length = self.lengths[run]
        return self.diagonal[run, :length], self.off_diagonal[run, :length]


def _lanczos(op: SymmetricMatrix, starts: Tensor, steps: int, bar: tqdm[Any]) -> _Krylov:
    """``steps`` Lanczos steps from each unit column of ``starts`` (D, P), in lockstep.

    A run ends early where its Krylov space is invariant; its rule is then exact.
    """
    size, count = starts.shape
    eps = torch.finfo(starts.dtype).eps
    alpha, beta = np.zeros((count, steps)), np.zeros((count, steps))
    lengths = np.zeros(count, dtype=int)
    scale = np.zeros(count)  # no smaller than a third of the norm of each tridiagonal matrix
    running = np.arange(count)
    basis = starts.new_empty(count, steps, size)
    vectors = starts
    for step in range(steps):
        basis[:, step] = vectors.T
        image = _product(op, vectors, bar)
        if step == 0:
            _refuse_asymmetric(vectors, image)
        alpha[running, step] = (vectors * image).sum(dim=0).double().cpu().numpy()
        rest = image.T[:, :, None]  # (P', D, 1)
        known = basis[:, : step + 1]
        for _ in range(2):  # twice is enough (Parlett, section 6.9)
            rest = rest - known.transpose(1, 2) @ (known @ rest)
        rest = rest[:, :, 0].T
        norms = sums.norm(rest)
        coupling = norms.double().cpu().numpy()
        lengths[running] = step + 1
        scale[running] = np.maximum.reduce([scale[running], np.abs(alpha[running, step]), coupling])
        # Below rounding the next direction is noise: the Krylov space is invariant. Going on with
        # noise would be harmless, stopping too soon would not: the threshold is tight.
        alive = coupling > 10 * eps * scale[running]
        beta[running, step] = np.where(alive, coupling, 0.0)
        if step + 1 == steps or not alive.any():
            break
        if not alive.all():
            keep = torch.as_tensor(alive, device=basis.device)
            running, basis, rest, norms = running[alive], basis[keep], rest[:, keep], norms[keep]
        vectors = rest / norms
    return _Krylov(alpha, beta, lengths, basis[:, : step + 1], rest)


def _refuse_asymmetric(vectors: Tensor, images: Tensor) -> None:
    """Compare ``v_i' (H v_j)`` with ``v_j' (H v_i)``, which costs no product."""
    gram = sums.contract(vectors.T, images)
    slack = torch.finfo(gram.dtype).eps ** 0.5 * sums.norm(images).max()
    if (gram - gram.T).abs().max() > slack:
        raise ValueError("the operator is not symmetric: use (A + A.T) / 2")


def _krylov_runs(
    op: SymmetricMatrix, probes: int, steps: int, seed: int, bar: tqdm[Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tridiagonal matrix of each probe: diagonal (m,) and off-diagonal (m,).

    The last entry of the off-diagonal couples to a step that was not made; it is zero where the
    Krylov space is invariant.
    """
    generator = torch.Generator().manual_seed(seed)
    bytes_each = steps * op.shape[0] * torch.finfo(_kind(op)["dtype"]).bits // 8
    together = max(1, min(probes, _BASIS_BYTES // bytes_each))
    runs = []
    for first in range(0, probes, together):
        count = min(together, probes - first)
        krylov = _lanczos(op, _directions(op, count, generator), steps, bar)
        runs += [krylov.entries(run) for run in range(count)]
    return runs


def _rules(runs: list[tuple[np.ndarray, np.ndarray]], steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, weights and residuals ``(P, steps)`` of the Gauss rules after at most ``steps`` steps.

    Runs that ended early are padded with weights of zero.
    """
    nodes, weights, residuals = np.zeros((3, len(runs), steps))
    for row, (alpha, beta) in enumerate(runs):
        length = min(steps, len(alpha))
        theta, vectors = eigh_tridiagonal(alpha[:length], beta[: length - 1])
        nodes[row] = theta[-1]
        nodes[row, :length] = theta
        weights[row, :length] = vectors[0] ** 2
        residuals[row, :length] = beta[length - 1] * np.abs(vectors[-1])
    weights /= weights.sum(axis=1, keepdims=True)
    return torch.as_tensor(nodes), torch.as_tensor(weights), torch.as_tensor(residuals)


def _dense_rule(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All eigenvalues as one rule with equal weights, and residuals of zero."""
    _refuse_asymmetric(torch.eye(len(matrix)).to(matrix), matrix)
    nodes = torch.linalg.eigvalsh(matrix.double().cpu())[None]
    return nodes, torch.full_like(nodes, 1 / len(matrix)), torch.zeros_like(nodes)


# Smoothing


@dataclass(frozen=True)
class _Kernel:
    """Gaussians at the nodes, of width proportional to ``sqrt((theta - mean)^2 + deviation^2)``.

    Nodes and deviation are first contracted towards the mean by ``1 / sqrt(1 + 2 width^2)``, which
    takes back the variance that the kernel adds; mean and variance of the spectrum are kept.
    """

    centres: Tensor  # (P, m)
    weights: Tensor  # (P, m)
    middle: float
    deviation: float
    width: float

    @classmethod
    def of(cls, nodes: Tensor, weights: Tensor, width: float) -> _Kernel:
        share = weights / len(nodes)
        middle = float((share * nodes).sum())
        deviation = float((share * (nodes - middle) ** 2).sum().sqrt())
        # One eigenvalue of multiplicity D has no deviation but rounding; zero has no scale at all.
        floor = _NARROWEST * float(nodes.abs().max())
        deviation = max(deviation, floor) or 1.0
        contraction = (1 + 2 * width**2) ** -0.5
        centres = middle + contraction * (nodes - middle)
        return cls(centres, weights, middle, contraction * deviation, width)

    @property
    def sigmas(self) -> Tensor:
        return self.width * torch.hypot(
            self.centres - self.middle, torch.full_like(self.centres, self.deviation)
        )

    def grid(self) -> Tensor:
        """Places spaced like the kernel is wide: evenly in ``asinh((x - middle) / deviation)``."""
        reach = 8 * self.sigmas
        ends = torch.stack([(self.centres - reach).min(), (self.centres + reach).max()])
        low, high = torch.asinh((ends - self.middle) / self.deviation).tolist()
        count = math.ceil((high - low) / self.width * _POINTS_PER_WIDTH) + 1
        steps = torch.linspace(low, high, count, dtype=torch.float64)
        return self.middle + self.deviation * torch.sinh(steps)

    def density(self, points: Tensor) -> Tensor:
        """``(P, G)`` density of each probe at ``points`` (G,)."""
        rows = []
        for centres, weights, sigmas in zip(self.centres, self.weights, self.sigmas, strict=True):
            z = (points[:, None] - centres) / sigmas
            heights = weights / (sigmas * math.sqrt(2 * math.pi))
            rows.append((heights * torch.exp(-0.5 * z**2)).sum(dim=1))
        return torch.stack(rows)


def _with_change(fine: Tensor, coarse: Tensor) -> Estimates:
    """Means of ``fine`` (K, m), with the change against those of ``coarse`` in the errors."""
    estimates = summaries(fine)
    change = estimates.values - coarse.mean(dim=0)
    return Estimates(estimates.values, torch.hypot(estimates.stderrs, change))


# Blocks


def _row_layout(blocks: Blocks | None, size: int) -> list[tuple[str, int]]:
    """Name and length of each row, in the order of the flat vector."""
    if blocks is None:
        return [("all", size)]
    items = blocks.items() if isinstance(blocks, Mapping) else blocks
    layout = []
    names = set()
    for name, item in items:
        if name in names:
            raise ValueError(f"blocks holds the name {name!r} twice")
        names.add(name)
        shape = tuple(item.shape) if isinstance(item, Tensor) else tuple(item)
        rows = shape[0] if len(shape) > 1 else 1
        layout += [(name, math.prod(shape) // rows if rows else 0)] * rows
    total = sum(length for _, length in layout)
    if total != size:
        raise ValueError(f"the blocks have {total} entries together, the operator {size}")
    return layout


def _sum_runs(samples: Tensor, lengths: Tensor) -> Tensor:
    """Sum ``(k, D)`` over consecutive runs of the given lengths, in float64: ``(k, R)``."""
    run_of = torch.repeat_interleave(lengths).to(samples.device)
    sums = torch.zeros(len(samples), len(lengths), dtype=torch.float64, device=samples.device)
    return sums.index_add_(1, run_of, samples.double()).cpu()


def _by_name(per_row: Tensor, layout: list[tuple[str, int]]) -> dict[str, Tensor]:
    """Columns of ``(K, R)`` gathered by name."""
    columns: dict[str, list[int]] = {}
    for column, (name, _) in enumerate(layout):
        columns.setdefault(name, []).append(column)
    return {name: per_row[:, chosen] for name, chosen in columns.items()}
