"""Double wells: occupancy against quadrature, limits and the chain's own stationary state."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from losslandscape.lab.double_well import DoubleWell, simulate_double_well

WELL = DoubleWell(flat=1, sharp=4, flat_depth=3, sharp_depth=3)


class TestDoubleWell:
    def test_continuous_with_the_stated_bottoms(self):
        well = DoubleWell(flat=1, sharp=4, flat_depth=3, sharp_depth=5)
        edge = np.array([-1e-9, 0.0])
        np.testing.assert_allclose(well.potential(edge), 0, atol=1e-8)
        bottoms = np.array(well.bottoms)
        np.testing.assert_allclose(well.potential(bottoms), [-3, -5])
        x = np.array([-3.0, -0.4, 0.2, 2.0])
        step = 1e-6
        numeric = (well.potential(x + step) - well.potential(x - step)) / (2 * step)
        np.testing.assert_allclose(well.slope(x), numeric, rtol=1e-6)

    @settings(max_examples=25, deadline=None)
    @given(
        st.floats(0.5, 2),
        st.floats(1, 8),
        st.floats(1, 5),
        st.floats(1, 5),
        st.floats(0.5, 2),
        st.booleans(),
    )
    def test_ratio_agrees_with_quadrature(self, flat, sharp, low, high, T, proportional):
        well = DoubleWell(flat, sharp, low, high)
        D = [T, T * sharp / flat if proportional else T]

        def density(x):
            diffusion = D[0] if x < 0 else D[1]
            return math.exp(-float(well.potential(np.array(x))) / diffusion) / diffusion

        left, right = well.bottoms
        masses = [
            quad(density, left - 40, 0, points=[left], limit=200)[0],
            quad(density, 0, right + 40, points=[right], limit=200)[0],
        ]
        found = well.ratio(T, proportional=proportional)
        assert math.isclose(found, masses[0] / masses[1], rel_tol=1e-6)

    def test_laplace_is_exact_for_equal_depths_and_the_limit_of_deep_wells(self):
        assert math.isclose(WELL.laplace_ratio(1.0), WELL.ratio(1.0), rel_tol=1e-12)
        well = DoubleWell(flat=1, sharp=4, flat_depth=3, sharp_depth=5)
        gaps = [abs(well.laplace_ratio(T) / well.ratio(T) - 1) for T in (1.0, 0.5, 0.25)]
        assert gaps[0] > gaps[1] > gaps[2]

    @pytest.mark.parametrize("proportional", [False, True])
    def test_chain_approaches_the_langevin_ratio(self, proportional):
        exact = WELL.ratio(1.0, proportional=proportional)
        gaps = [
            abs(WELL.chain_ratio(1.0, lr, proportional=proportional) / exact - 1)
            for lr in (0.02, 0.005)
        ]
        assert gaps[1] < 0.7 * gaps[0]

    @pytest.mark.parametrize("proportional", [False, True])
    def test_simulation_agrees_with_the_chain(self, proportional):
        run = simulate_double_well(WELL, 1.0, 0.02, proportional=proportional, chains=2000)
        expected = WELL.chain_ratio(1.0, 0.02, proportional=proportional)
        assert abs(run.ratio / expected - 1) < 0.12
        first, last = run.history[0], run.history[-5]
        assert first[0] - first[1] > 0.05 > 0.02 >= abs(last[0] - last[1])

    def test_bad_input(self):
        with pytest.raises(ValueError, match="sharp_depth must be positive"):
            DoubleWell(1, 4, 3, 0)
        with pytest.raises(ValueError, match="must be even"):
            simulate_double_well(WELL, 1.0, 0.01, chains=3)
        with pytest.raises(ValueError, match="lower lr"):
            simulate_double_well(WELL, 1.0, 0.5)
        with pytest.raises(RuntimeError, match=r"halves differ by 1\.000 after 1 blocks"):
            simulate_double_well(WELL, 0.1, 0.01, chains=2, block=10, max_blocks=1)
        with pytest.raises(ValueError, match="points are too few"):
            WELL.chain_ratio(1.0, 1e-5)
