"""Inner products of long vectors in single precision, without what rounding adds up.

PyTorch adds the products of two long vectors one after another in the precision of the vectors.
With ten million entries the length of a vector is then wrong by about 5e-4, more than a usual
tolerance of an eigenvalue. Here pieces are summed as PyTorch does, and their sums in ``float64``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LONG = 1 << 17  # entries; up to here rounding is harmless
_PIECE = 1 << 13


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two vectors ``(D,)``, or of each column of two ``(D, k)``."""
    if _short(a):
        return _dot(a, b)
    parts = [_dot(p, q) for p, q in zip(a.split(_PIECE), b.split(_PIECE), strict=True)]
    return _total(parts).to(a.dtype)


def norm(a: Tensor) -> Tensor:
    """The Euclidean length of a vector ``(D,)``, or of each column of ``(D, k)``.

    >>> norm(torch.tensor([3.0, 4.0]))
    tensor(5.)
    """
    if _short(a):
        return _norm(a)
    return _norm(torch.stack([_norm(piece) for piece in a.split(_PIECE)]).double()).to(a.dtype)


def contract(rows: Tensor, other: Tensor) -> Tensor:
    """``rows @ other``, from ``(m, D)`` and ``(D,)`` or ``(D, k)``."""
    if _short(other):
        return rows @ other
    pieces = zip(rows.split(_PIECE, dim=1), other.split(_PIECE), strict=True)
    return _total([p @ q for p, q in pieces]).to(other.dtype)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a, b) if a.ndim == 1 else (a * b).sum(dim=0)


def _norm(a: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(a, dim=0)
    return found


def _short(tensor: Tensor) -> bool:
    # On a GPU sums are trees already.
    return len(tensor) <= _LONG or tensor.dtype == torch.float64 or tensor.is_cuda


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(dim=0, dtype=torch.float64)
