"""Numbers with standard errors, from independent samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, from the spread over probes.

    >>> print(Estimate(12.3456, 0.2))
    12.35 +- 0.2
    """

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.4g} +- {self.stderr:.2g}"


@dataclass(frozen=True)
class Estimates:
    """Several numbers and their standard errors."""

    values: Tensor  # (m,)
    stderrs: Tensor  # (m,)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Estimate:
        return Estimate(float(self.values[index]), float(self.stderrs[index]))


class RunningMean:
    """Mean and variance of vectors that are seen once, in blocks (Chan, Golub & LeVeque, 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0  # sum of squared deviations

    def add(self, samples: Tensor) -> None:
        """Take in ``(k, D)`` samples."""
        count = len(samples)
        mean = samples.mean(dim=0)
        squares = ((samples - mean) ** 2).sum(dim=0)
        total = self.count + count
        gap = mean - self.mean
        self.mean = self.mean + gap * (count / total)
        self.squares = self.squares + squares + gap**2 * (self.count * count / total)
        self.count = total

    def estimates(self) -> Estimates:
        """The means so far, with their standard errors."""
        mean, squares = torch.as_tensor(self.mean), torch.as_tensor(self.squares)
        return Estimates(mean, (squares / (max(self.count - 1, 1) * self.count)).sqrt())


def summary(samples: Tensor) -> Estimate:
    """Mean of independent samples ``(K,)``; a single one is exact by construction."""
    return summaries(samples[:, None])[0]


def summaries(samples: Tensor) -> Estimates:
    """Means over the first axis of independent samples ``(K, m)``."""
    count = len(samples)
    spread = samples.std(dim=0) if count > 1 else torch.zeros_like(samples[0])
    return Estimates(samples.mean(dim=0), spread / count**0.5)


def jackknife(samples: Tensor, statistic: Callable[[Tensor], Tensor]) -> Estimate:
    """A function of means, ``(..., p) -> (...)``, from independent samples ``(K, p)``.

    Leaving out one sample at a time removes the bias of order 1/K and gives the standard error
    (Efron & Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 10 and 11).
    """
    count = len(samples)
    mean = samples.mean(dim=0)
    if count == 1:
        return Estimate(float(statistic(mean)), 0.0)
    left_out = statistic((count * mean - samples) / (count - 1))
    centre = left_out.mean()
    value = count * statistic(mean) - (count - 1) * centre
    variance = (count - 1) / count * ((left_out - centre) ** 2).sum()
    return Estimate(float(value), float(variance.sqrt()))
