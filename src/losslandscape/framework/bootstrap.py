"""Bootstrap over blocks of examples and over probes (Efron & Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RESAMPLES = 2000


def contributions(forms: Tensor, sizes: Sequence[int]) -> Tensor:
    """Means over blocks ``(K, P)`` as contributions to the mean over all, times ``K``."""
    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return forms * (share * len(sizes))[:, None]


def resample(count: int, resamples: int, generator: torch.Generator) -> Tensor:
    """``(R, count)`` shares of each item in bootstrap resamples; one item is always itself."""
    if count == 1:
        return torch.ones(resamples, 1, dtype=torch.float64)
    picks = torch.randint(count, (resamples, count), generator=generator)
    counts = torch.zeros(resamples, count, dtype=torch.float64)
    return counts.scatter_add_(1, picks, torch.ones_like(counts)) / count


def resampled_means(samples: Tensor, blocks: Tensor, probes: Tensor) -> Tensor:
    """Resampled means of ``(K, P)`` samples, ``(R,)``."""
    return ((blocks @ samples) * probes).sum(dim=1)


def percentiles(values: Tensor) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
