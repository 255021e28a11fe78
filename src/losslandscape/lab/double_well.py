"""SGD in a double well: does it sit in the flat one?

The paper's Result 2 says that probability concentrates in wide, flat regions. In one dimension
everything can be computed, for isotropic noise and for noise proportional to the curvature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from losslandscape.sgd_noise import stability_limit

# Blocks that are averaged once the chains have mixed.
_COUNTED_BLOCKS = 4


@dataclass(frozen=True)
class DoubleWell:
    r"""Two parabolas joined at ``x = 0``, the top of the barrier: a flat well left, a sharp right.

    .. math:: V(x) = \tfrac12 h_f (x + a)^2 - \Delta_f \;\; (x < 0), \qquad
        \tfrac12 h_s (x - b)^2 - \Delta_s \;\; (x \ge 0),

    with :math:`a, b` such that :math:`V(0) = 0`.
    Curvature is constant in each well, so no higher derivative blurs what curvature does.

    Attributes:
        flat, sharp: Curvatures ``h_f`` and ``h_s``.
        flat_depth, sharp_depth: Barriers ``Delta`` seen from the bottoms.
    """

    flat: float
    sharp: float
    flat_depth: float
    sharp_depth: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")

    @property
    def bottoms(self) -> tuple[float, float]:
        """Places of the two minima."""
        return (
            -math.sqrt(2 * self.flat_depth / self.flat),
            math.sqrt(2 * self.sharp_depth / self.sharp),
        )

    def potential(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """``V`` at the places ``x``."""
        left, right = self.bottoms
        return np.where(
            x < 0,
            self.flat * (x - left) ** 2 / 2 - self.flat_depth,
            self.sharp * (x - right) ** 2 / 2 - self.sharp_depth,
        )

    def slope(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """``V'`` at the places ``x``; the right-hand derivative at the top of the barrier."""
        left, right = self.bottoms
        return np.where(x < 0, self.flat * (x - left), self.sharp * (x - right))

    def laplace_ratio(self, temperature: float) -> float:
        r"""Flat over sharp in the limit of deep wells: depth and :math:`\sqrt{\det}` of curvature.

        Isotropic noise: :math:`\sqrt{h_s / h_f} \, e^{(\Delta_f - \Delta_s) / T}`.
        """
        depth = math.exp((self.flat_depth - self.sharp_depth) / temperature)
        return math.sqrt(self.sharp / self.flat) * depth

    def ratio(self, temperature: float, *, proportional: bool = False) -> float:
        r"""Flat over sharp under the Langevin equation, exactly.

        With Ito noise of diffusion :math:`D_b` in well :math:`b` the stationary density is
        :math:`e^{-V / D_b} / D_b` times one constant, and its mass is a Gaussian integral up to
        the barrier.

        Args:
            temperature: ``D`` in both wells, and in the flat well if ``proportional``.
            proportional: The noise is proportional to the curvature: ``D_s = D_f h_s / h_f``.

        Example:
            >>> well = DoubleWell(flat=1, sharp=4, flat_depth=3, sharp_depth=3)
            >>> round(well.ratio(1.0), 3), round(well.ratio(1.0, proportional=True), 1)
            (2.0, 42.4)
        """
        colder = temperature * (self.sharp / self.flat if proportional else 1.0)
        masses = [
            math.exp(depth / diffusion)
            * math.sqrt(2 * math.pi / (diffusion * curvature))
            * (1 + math.erf(math.sqrt(depth / diffusion)))
            / 2
            for curvature, depth, diffusion in (
                (self.flat, self.flat_depth, temperature),
                (self.sharp, self.sharp_depth, colder),
            )
        ]
        return masses[0] / masses[1]

    def chain_ratio(
        self, temperature: float, lr: float, *, proportional: bool = False, points: int = 1000
    ) -> float:
        """Flat over sharp for the steps of :func:`simulate_double_well`, which are not small.

        The stationary distribution of the chain on a grid of ``points`` places, by a linear solve:
        what the simulation would find with infinitely many chains.

        Raises:
            ValueError: The grid is wider than half of the noise of a step.
        """
        larger = self.sharp / self.flat if proportional else 1.0
        left, right = self.bottoms
        low = left - 8 * math.sqrt(temperature / self.flat)
        high = right + 8 * math.sqrt(temperature * larger / self.sharp)
        width = (high - low) / points
        x = (np.arange(points) - round(-low / width) + 0.5) * width  # the top is between places
        kick = np.sqrt(2 * lr * temperature * np.where(x < 0, 1.0, larger))
        if width > kick.min() / 2:
            raise ValueError(f"{points} points are too few for steps of {kick.min():.2g}: use more")
        kernel = np.exp(-(((x[:, None] - (x - lr * self.slope(x))) / kick) ** 2) / 2)
        balance = kernel / kernel.sum(axis=0) - np.eye(points)
        balance[-1] = 1.0  # one equation is the others' sum: the shares add up to one instead
        shares = np.linalg.solve(balance, np.eye(points)[-1])
        flat = float(shares[x < 0].sum())
        return flat / (1 - flat)


@dataclass(frozen=True)
class Occupancy:
    """Where chains in a :class:`DoubleWell` spend their time.

    Attributes:
        flat_share: Share of time left of the barrier, after the halves agreed.
        history: ``(blocks, 2)``, the same share per block of steps, for the chains that began in
            the flat and in the sharp well.
        block: Steps per block.
    """

    flat_share: float
    history: NDArray[np.float64]
    block: int

    @property
    def ratio(self) -> float:
        """Time in the flat well over time in the sharp one."""
        return self.flat_share / (1 - self.flat_share)


def simulate_double_well(
    well: DoubleWell,
    temperature: float,
    lr: float,
    *,
    proportional: bool = False,
    chains: int = 4000,
    seed: int = 0,
    block: int = 1000,
    agree: float = 0.02,
    max_blocks: int = 200,
) -> Occupancy:
    r"""SGD in a double well, :math:`x \leftarrow x - \eta (V'(x) + \xi)`, until it has mixed.

    The noise has the variance :math:`2 T / \eta`, so that :math:`T = \eta \operatorname{Var}
    \xi / 2`; if ``proportional``, times :math:`h / h_f` at the curvature :math:`h` of the place.
    Half of the chains begin in each well.
    Once the halves' shares of a block differ by at most ``agree``, four further blocks are run and
    averaged.

    Args:
        well: The potential.
        temperature: ``T``.
        lr: Learning rate, well below ``1 / well.sharp``.
        proportional: As for :meth:`DoubleWell.ratio`.
        chains: Even number of independent chains.
        seed: Seed of the noise.
        block: Steps per block.
        agree: Largest difference of the two shares.
        max_blocks: Blocks allowed before the halves agree.

    Raises:
        ValueError: An odd number of chains, or a learning rate at which a well is unstable.
        RuntimeError: The halves did not agree.
    """
    if chains < 2 or chains % 2:
        raise ValueError(f"chains must be even and at least 2, got {chains}")
    stiffest = max(well.flat, well.sharp)
    if not stiffest < stability_limit(lr):
        raise ValueError(f"lr {lr} times curvature {stiffest} must be below 2: lower lr")
    rng = np.random.default_rng(seed)
    # Index 0 is the sharp well, index 1 the flat one: the well of a chain is ``x < 0``.
    curvatures = np.array([well.sharp, well.flat])
    larger = curvatures / well.flat if proportional else np.ones(2)
    kicks = np.sqrt(2 * lr * temperature * larger).astype(np.float32)
    pulls = (lr * curvatures).astype(np.float32)
    bottoms = np.array(well.bottoms[::-1], dtype=np.float32)
    x = np.repeat(bottoms[::-1], chains // 2)
    noise = np.empty_like(x)

    def run_block() -> list[float]:
        in_flat = np.zeros(chains, dtype=np.int64)
        for _ in range(block):
            place = (x < 0).view(np.int8)
            in_flat += place
            rng.standard_normal(out=noise, dtype=np.float32)
            np.multiply(noise, kicks.take(place), out=noise)
            np.subtract(noise, pulls.take(place) * (x - bottoms.take(place)), out=noise)
            np.add(x, noise, out=x)
        return [float(half.mean()) / block for half in np.split(in_flat, 2)]

    history = [run_block()]
    while (gap := abs(history[-1][0] - history[-1][1])) > agree:
        if len(history) >= max_blocks:
            raise RuntimeError(
                f"the halves differ by {gap:.3f} after {max_blocks} blocks of {block} steps: "
                "raise max_blocks or lower the barrier"
            )
        history.append(run_block())
    fresh = [run_block() for _ in range(_COUNTED_BLOCKS)]
    return Occupancy(float(np.mean(fresh)), np.array(history + fresh), block)
