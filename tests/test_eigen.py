"""Eigenvalue routines against known spectra, dense solvers and SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lambda_max, lanczos, power_iteration
from losslandscape.lab.models import mlp
from losslandscape.operators import HessianOperator


def with_spectrum(values, seed=0, dtype=torch.float64):
    """A symmetric matrix with these eigenvalues in a random basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    )
    return (q @ torch.diag(values) @ q.T).to(dtype)


class Counting:
    """A matrix that counts its products, as an outside caller's operator would."""

    def __init__(self, matrix):
        self.matrix, self.count = matrix, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        self.count += 1 if vectors.ndim == 1 else vectors.shape[1]
        return self.matrix @ vectors


spectra = st.lists(st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=12)


def assert_honest(matrix, result, tol):
    """Residuals are those of the returned pairs, and ``converged`` means what it says."""
    true = torch.linalg.vector_norm(matrix @ result.vectors - result.values * result.vectors, dim=0)
    scale = torch.linalg.matrix_norm(matrix, 2)
    assert torch.allclose(result.residuals, true, rtol=1e-6, atol=1e-12 * float(scale) + 1e-14)
    assert torch.equal(result.converged, result.residuals <= tol * result.values.abs())
    norms = torch.linalg.vector_norm(result.vectors, dim=0)
    assert torch.allclose(norms, torch.ones_like(norms))
    exact = torch.linalg.eigvalsh(matrix)
    for value, residual in zip(result.values, result.residuals, strict=True):
        assert float((exact - value).abs().min()) <= float(residual) + 1e-10 * float(scale)


@settings(max_examples=60, deadline=None)
@given(values=spectra, seed=st.integers(0, 1000))
def test_power_iteration_is_honest_on_any_spectrum(values, seed):
    matrix = with_spectrum(values, seed)
    assert_honest(matrix, power_iteration(matrix, max_products=200, seed=seed), 1e-3)


@settings(max_examples=60, deadline=None)
@given(values=spectra, seed=st.integers(0, 1000), which=st.sampled_from(["LA", "SA", "LM"]))
def test_lanczos_is_honest_on_any_spectrum(values, seed, which):
    matrix = with_spectrum(values, seed)
    result = lanczos(matrix, which=which, seed=seed)
    assert_honest(matrix, result, 1e-3)
    assert result.converged.all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_power_iteration_keeps_the_sign(sign):
    matrix = with_spectrum(sign * np.array([5.0, 3.0, 1.0, 0.5]))
    result = power_iteration(matrix, tol=1e-8)
    assert result.converged.all()
    assert float(result.values[0]) == pytest.approx(5.0 * sign, rel=1e-10)


def test_power_iteration_never_settles_between_plus_and_minus():
    # The Rayleigh quotient stops moving at a number that is no eigenvalue; a rule that watches its
    # change would call that converged.
    result = power_iteration(torch.diag(torch.tensor([10.0, -10.0, 1.0])), max_products=500)
    change = abs(float(result.history[-1, 1] - result.history[-2, 1]))
    assert change < 1e-5
    assert abs(abs(float(result.values[0])) - 10.0) > 0.1
    assert not result.converged.any()


def test_power_iteration_converges_at_its_rate():
    # Error of the Rayleigh quotient: |lambda_2 / lambda_1|^(2k).
    result = power_iteration(with_spectrum([1.0, 0.8, 0.3, 0.1]), tol=1e-7)
    errors = 1.0 - result.history[40:50, 1]
    torch.testing.assert_close(
        errors[1:] / errors[:-1], torch.full((9,), 0.64, dtype=torch.float64), rtol=0.02, atol=0
    )


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_lanczos_agrees_with_scipy(which):
    matrix = with_spectrum(np.concatenate([[13.0, 11.0, 9.0, -12.0, -4.0], np.linspace(-1, 1, 95)]))
    ours = lanczos(matrix, k=3, which=which, tol=1e-9)
    theirs = eigsh(matrix.numpy(), k=3, which=which, return_eigenvectors=False)
    assert ours.converged.all()
    np.testing.assert_allclose(np.sort(ours.values.numpy()), np.sort(theirs), rtol=1e-10)


@pytest.mark.parametrize(
    ("which", "expected"), [("LA", [13, 11]), ("SA", [-12, -4]), ("LM", [13, -12])]
)
def test_values_come_in_the_order_of_the_contract(which, expected):
    matrix = with_spectrum(np.concatenate([[13.0, 11.0, -12.0, -4.0], np.linspace(-1, 1, 40)]))
    values = lanczos(matrix, k=2, which=which, tol=1e-8).values
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_no_ghost_copies_in_float32():
    # Without re-orthogonalisation the largest eigenvalue would come back five times.
    top = [13.5, 10.4, 9.15, 7.48, 6.38]
    matrix = with_spectrum(np.concatenate([top, np.linspace(-1, 1, 395)]), dtype=torch.float32)
    result = lanczos(matrix, k=5, tol=1e-5, max_products=200)
    np.testing.assert_allclose(result.values.numpy(), top, rtol=1e-4)


def test_a_start_vector_in_an_invariant_subspace_is_left():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    e1 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(
        lanczos(matrix, k=3, v0=e1).values, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    )


def test_repeated_eigenvalues_are_found_by_restarting():
    identity = torch.eye(6, dtype=torch.float64)
    result = lanczos(identity, k=3)
    torch.testing.assert_close(result.values, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(result.vectors.T @ result.vectors, torch.eye(3, dtype=torch.float64))


def test_the_zero_matrix():
    zero = torch.zeros(4, 4, dtype=torch.float64)
    for result in (lanczos(zero), power_iteration(zero)):
        assert result.values.tolist() == [0.0]
        assert result.converged.all()


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_any_scale(scale):
    matrix = with_spectrum(scale * np.concatenate([[5.0, 4.0], np.linspace(-1, 1, 30)]))
    result = lanczos(matrix, k=2, tol=1e-8)
    torch.testing.assert_close(result.values / scale, torch.tensor([5.0, 4.0], dtype=torch.float64))


@pytest.mark.parametrize("limit", [2, 3, 5, 9])
def test_the_bound_on_products_is_kept_and_counted(limit):
    hard = with_spectrum(np.linspace(0, 1, 200))
    for solve in (lanczos, power_iteration):
        counter = Counting(hard)
        result = solve(counter, tol=1e-12, max_products=limit)
        assert counter.count == result.products <= limit
        assert not result.converged.any()


def test_a_good_start_vector_saves_products():
    matrix = with_spectrum(np.concatenate([[5.0], np.linspace(-1, 4, 300)]))
    cold = lanczos(matrix, tol=1e-4)
    warm = lanczos(matrix, tol=1e-4, v0=cold.vectors[:, 0])
    assert warm.products <= 3 < cold.products


def test_seeds_repeat():
    matrix = with_spectrum(np.linspace(-2, 3, 50))
    assert torch.equal(lanczos(matrix, seed=3).vectors, lanczos(matrix, seed=3).vectors)


def digits_like(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (examples,), generator=generator)


def test_lambda_max_agrees_with_scipy_on_a_network():
    model, data = mlp((6, 8, 3), seed=0), digits_like(400)
    H = HessianOperator(model, cross_entropy, data)
    expected = eigsh(H.to_scipy(), k=1, which="LA", return_eigenvectors=False)[0]
    for coarse in (50, 400):
        result = lambda_max(model, cross_entropy, data, coarse_examples=coarse, tol=1e-6)
        assert result.converged.all()
        assert float(result.values[0]) == pytest.approx(expected, rel=1e-6)


def test_lambda_max_sees_an_example_that_the_subsample_misses():
    x, y = digits_like(400)
    x[-1] *= 3000.0
    model = mlp((6, 8, 3), activation=torch.nn.ReLU, seed=0)
    H = HessianOperator(model, cross_entropy, (x, y))
    exact = eigsh(H.to_scipy(), k=1, which="LA", return_eigenvectors=False)[0]
    without = HessianOperator(model, cross_entropy, (x[:-1], y[:-1]))
    assert exact > 5 * eigsh(without.to_scipy(), k=1, which="LA", return_eigenvectors=False)[0]
    result = lambda_max(model, cross_entropy, (x, y), coarse_examples=40)
    assert float(result.values[0]) == pytest.approx(exact, rel=1e-3)


class TestRefusals:
    @pytest.mark.parametrize("solve", [lanczos, power_iteration])
    def test_bad_numbers(self, solve):
        matrix = torch.eye(3)
        with pytest.raises(ValueError, match="tol must be positive, got 0"):
            solve(matrix, tol=0)
        with pytest.raises(ValueError, match="max_products"):
            solve(matrix, max_products=0)
        with pytest.raises(ValueError, match="v0 must have shape"):
            solve(matrix, v0=torch.ones(2))
        with pytest.raises(ValueError, match="not zero"):
            solve(matrix, v0=torch.zeros(3))
        with pytest.raises(ValueError, match="square"):
            solve(torch.ones(2, 3))
        with pytest.raises(ValueError, match="not finite"):
            solve(torch.full((3, 3), float("nan")))

    def test_unknown_end(self):
        with pytest.raises(ValueError, match="which must be one of LA, SA, LM, got 'BE'"):
            lanczos(torch.eye(3), which="BE")

    @pytest.mark.parametrize("k", [0, 4])
    def test_k_out_of_range(self, k):
        with pytest.raises(ValueError, match="between 1 and 3"):
            lanczos(torch.eye(3), k=k)
