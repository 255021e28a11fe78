"""Intervals over runs: for a mean, for a further run, and for a comparison paired by image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binomtest
from scipy.stats import t as student


@dataclass(frozen=True)
class Interval:
    """A mean over runs with its two-sided confidence interval.

    >>> print(t_interval([1.0, 2.0, 3.0]))
    2.00 [-0.48, 4.48]
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:z.2f} [{self.low:z.2f}, {self.high:z.2f}]"

    def __neg__(self) -> Interval:
        return Interval(-self.mean, -self.high, -self.low, self.count)

    def exp(self) -> Interval:
        """The geometric mean with its interval, if this is of logarithms.

        >>> print(Interval(0.0, -math.log(2), math.log(4), 5).exp())
        1.00 [0.50, 4.00]
        """
        return Interval(math.exp(self.mean), math.exp(self.low), math.exp(self.high), self.count)


def t_interval(values: Iterable[float], *, level: float = 0.95) -> Interval:
    """Mean of independent values with its t interval.

    Raises:
        ValueError: There are fewer than two values.
    """
    found = _at_least_two(values)
    half = student.ppf((1 + level) / 2, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
    middle = float(found.mean())
    return Interval(middle, middle - float(half), middle + float(half), len(found))


@dataclass(frozen=True)
class Predictive:
    r"""The law of one further run: :math:`(x - \bar x) / (s \sqrt{1 + 1/n})` is Student's t.

    The runs are taken to scatter like a normal law on the scale given.

    Attributes:
        mean, spread: Centre and scale of the t law, on that scale.
        freedom: Its degrees of freedom, the number of runs less one.
        scale: ``"log"``, ``"logit"`` or ``"plain"``.

    >>> law = predict_run([10.0, 20.0, 40.0], "log")
    >>> round(law.percentile(20.0)), [round(x) for x in law.interval(0.9)]
    (50, [2, 207])
    """

    mean: float
    spread: float
    freedom: int
    scale: str

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where a further run lies with probability ``level``, in the unit of the runs."""
        half = self.spread * float(student.ppf((1 + level) / 2, self.freedom))
        back = _SCALES[self.scale][1]
        return float(back(self.mean - half)), float(back(self.mean + half))

    def percentile(self, value: float) -> float:
        """Chance, in per cent, that a further run lies below ``value``."""
        return 100 * float(student.cdf(self._standard(value), self.freedom))

    def p_value(self, value: float) -> float:
        """Chance that a further run lies at least as far from the centre as ``value``."""
        return float(2 * student.sf(abs(self._standard(value)), self.freedom))

    def _standard(self, value: float) -> float:
        return (float(_SCALES[self.scale][0](value)) - self.mean) / self.spread


_SCALES = {"plain": (float, float), "log": (np.log, np.exp), "logit": (logit, expit)}


def predict_run(values: Sequence[float], scale: str = "plain") -> Predictive:
    """The predictive law of a further run.

    Raises:
        ValueError: There are fewer than two values, or they are all equal.
    """
    found = np.asarray([_SCALES[scale][0](value) for value in _at_least_two(values)])
    spread = float(found.std(ddof=1)) * math.sqrt(1 + 1 / len(found))
    if spread == 0:
        raise ValueError("all values are equal: nothing is known about a further one")
    return Predictive(float(found.mean()), spread, len(found) - 1, scale)


@dataclass(frozen=True)
class PairedErrors:
    """Two classifiers on the same images.

    Attributes:
        only_first, only_second: Images that only this one gets wrong.
        difference: Error rate of the first minus that of the second.
        stderr: Its standard error over images.
        p_value: Exact McNemar test of equal error rates (McNemar, *Psychometrika* 12, 1947).
    """

    only_first: int
    only_second: int
    difference: float
    stderr: float
    p_value: float


def compare_errors(first: Iterable[int], second: Iterable[int], images: int) -> PairedErrors:
    """Compare two classifiers by the positions of the images they get wrong.

    >>> compare_errors([1, 2, 3, 4], [4, 5], 100).difference
    0.02
    """
    one, other = set(first) - set(second), set(second) - set(first)
    difference = (len(one) - len(other)) / images
    discordant = len(one) + len(other)
    stderr = math.sqrt(max(discordant / images - difference**2, 0) / images)
    p_value = binomtest(len(one), discordant).pvalue if discordant else 1.0
    return PairedErrors(len(one), len(other), difference, stderr, float(p_value))


def _at_least_two(values: Iterable[float]) -> np.ndarray:
    found = np.array(list(values), dtype=float)
    if len(found) < 2:
        raise ValueError(f"an interval needs at least two values, got {len(found)}")
    return found
