"""Eigenvalue routines against known spectra, dense solvers and SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from torch.nn.functional import cross_entropy

from losslandscape import eigen
from losslandscape.eigen import (
    lambda_max,
    lanczos,
    power_iteration,
    refine,
    sampling_error,
    top_eigenpairs,
)
from losslandscape.lab.models import mlp
from losslandscape.operators import HessianOperator


def with_spectrum(values, seed=0, dtype=torch.float64):
    """A symmetric matrix with these eigenvalues in a random basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    )
    matrix = q @ torch.diag(values) @ q.T
    return ((matrix + matrix.T) / 2).to(dtype)


class Counting:
    """A matrix that counts its products, as an outside caller's operator would."""

    def __init__(self, matrix):
        self.matrix, self.count = matrix, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        self.count += 1 if vectors.ndim == 1 else vectors.shape[1]
        return self.matrix @ vectors


# Clusters, degenerate and opposite pairs, tiny and huge scales, sizes 1, 2, 3 and 200.
hard_spectra = st.builds(
    lambda values, size, scale, signs: (
        scale * np.resize(np.array(values) * np.where(signs, -1, 1), size)
    ),
    values=st.lists(
        st.sampled_from([0.0, 1e-3, 0.5, 0.999, 1.0, 1.0 + 1e-7, 2.0, 10.0]), min_size=1, max_size=8
    ),
    size=st.sampled_from([1, 2, 3, 200]),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e8]),
    signs=st.booleans(),
)
spectra = st.lists(st.floats(-10, 10).filter(lambda x: abs(x) > 1e-3), min_size=2, max_size=12)


def assert_honest(matrix, result, tol):
    """Residuals are those of the returned pairs, and ``converged`` means what it says."""
    true = torch.linalg.vector_norm(matrix @ result.vectors - result.values * result.vectors, dim=0)
    scale = torch.linalg.matrix_norm(matrix, 2)
    assert torch.allclose(result.residuals, true, rtol=1e-6, atol=1e-12 * float(scale))
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


@settings(max_examples=60, deadline=None)
@given(values=hard_spectra, seed=st.integers(0, 1000), which=st.sampled_from(["LA", "SA", "LM"]))
def test_every_solver_is_honest_on_hard_spectra(values, seed, which):
    matrix = with_spectrum(values, seed)
    k = min(3, len(values))
    found = lanczos(matrix, k, which=which, seed=seed, tol=1e-6, max_products=250)
    short = {"tol": 1e-6, "max_products": 50, "seed": seed}
    bounded = lanczos(matrix, k, which=which, max_basis=k + 4, **short)
    power = power_iteration(matrix, **short)
    refined = refine(matrix, bounded, **short)
    for result, limit in ((found, 250), (bounded, 50), (power, 50), (refined, 50)):
        assert_honest(matrix, result, 1e-6)
        assert result.products <= limit
    # Two hundred rows have at most eight different eigenvalues: Lanczos cannot miss an end.
    exact = np.sort(values)
    end = {"LA": exact[-1], "SA": exact[0], "LM": np.abs(exact).max()}[which]
    value = float(found.values[0])
    size = np.abs(exact).max()
    assert abs((abs(value) if which == "LM" else value) - end) <= 1e-5 * size


@settings(max_examples=40, deadline=None)
@given(values=spectra, seed=st.integers(0, 1000), noise=st.sampled_from([0.0, 1e-3, 0.3]))
def test_refine_is_honest_on_any_spectrum(values, seed, noise):
    matrix = with_spectrum(values, seed)
    near = lanczos(matrix + noise * with_spectrum(values[::-1], seed + 1), min(3, len(values)))
    result = refine(matrix, near, tol=1e-6, seed=seed)
    assert_honest(matrix, result, 1e-6)
    assert result.converged.all()


def test_refine_with_many_steps_restarts():
    matrix = with_spectrum(np.linspace(0, 1, 300))
    near = lanczos(with_spectrum(np.linspace(0, 1, 300), seed=5), max_products=10)
    result = refine(matrix, near, tol=1e-7, max_products=200)
    assert result.products > 24
    assert result.converged.all()
    assert_honest(matrix, result, 1e-7)


def test_known_pairs_save_products_beyond_a_good_start():
    top = [9.0, 8.8, 8.5, 8.0, 7.0, 6.0]
    generator = torch.Generator().manual_seed(2)
    matrix = with_spectrum(np.concatenate([top, np.linspace(-0.5, 0.5, 394)]))
    change = torch.randn(400, 400, generator=generator, dtype=torch.float64)
    moved = matrix + 0.01 * (change + change.T)
    near = lanczos(matrix, k=6, tol=1e-3)
    corrected = refine(moved, near)
    started = lanczos(moved, v0=near.vectors[:, 0])
    assert corrected.converged.all()
    assert corrected.products <= started.products // 2
    assert float(corrected.values[0]) == pytest.approx(float(started.values[0]), rel=1e-5)


def test_an_operator_of_single_vectors_will_do():
    class OneByOne(Counting):
        def __matmul__(self, vector):
            assert vector.ndim == 1
            return super().__matmul__(vector)

    matrix = with_spectrum([5.0, 4.0, 1.0, -2.0])
    for result in (lanczos(OneByOne(matrix), 2), refine(OneByOne(matrix), lanczos(matrix))):
        assert_honest(matrix, result, 1e-3)


@pytest.mark.parametrize("max_basis", [6, 8, 15])
def test_a_bounded_basis_finds_the_same_pairs(max_basis):
    # Sixty eigenvalues near the top: far more Lanczos steps than the basis has room for.
    values = np.concatenate([[13.0, 12.5, 12.0], np.linspace(-5, 11.5, 297)])
    matrix = with_spectrum(values)
    bounded = lanczos(matrix, k=3, tol=1e-8, max_products=300, max_basis=max_basis)
    assert bounded.products > 2 * max_basis
    assert bounded.converged.all()
    np.testing.assert_allclose(bounded.values.numpy(), [13.0, 12.5, 12.0], rtol=1e-10)


def test_a_basis_keeps_to_its_bytes(monkeypatch):
    seen = []

    class Watched(eigen.Basis):
        def append(self, row):
            super().append(row)
            seen.append(self._store.untyped_storage().nbytes())

        def replace(self, weights):
            before = self._store.data_ptr()
            super().replace(weights)
            assert self._store.data_ptr() == before

    monkeypatch.setattr(eigen, "Basis", Watched)
    matrix = with_spectrum(np.concatenate([[13.0, 12.5], np.linspace(-5, 11.5, 198)]))
    limit = 9 * 200 * 8 + 5  # nine vectors, and a rest that holds no tenth
    found = lanczos(matrix, k=2, tol=1e-8, basis_bytes=limit)
    assert found.converged.all()
    np.testing.assert_allclose(found.values.numpy(), [13.0, 12.5], rtol=1e-10)
    assert found.products > 20
    assert set(seen) == {9 * 200 * 8}


def test_the_smaller_of_two_limits_counts_and_the_memory_is_said_first(capsys):
    matrix = with_spectrum(np.linspace(1, 2, 200))
    lanczos(matrix, max_basis=7, basis_bytes=10**9, max_products=20, progress=True)
    assert "Lanczos, up to 7 vectors, 10.9kB" in capsys.readouterr().err


def test_a_basis_too_large_for_the_gpu_lives_in_host_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    gpu = torch.device("cuda", 0)
    assert eigen._home(gpu, 800) == gpu
    assert eigen._home(gpu, 801) == torch.device("cpu")
    assert eigen._home(torch.device("cpu"), 10**15) == torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(values=spectra, seed=st.integers(0, 1000), steps=st.integers(2, 6))
def test_kato_temple_bounds_the_error_where_it_speaks(values, seed, steps):
    # The bound supposes that Ritz values show every eigenvalue around: true where it is finite
    # and the run saw the whole spectrum, so compare with the exact gap.
    matrix = with_spectrum(values, seed)
    result = lanczos(matrix, tol=1e-1, max_products=2 * len(values), seed=seed)
    exact = torch.linalg.eigvalsh(matrix)
    theta, residual = float(result.values[0]), float(result.residuals[0])
    bound = float(result.kato_temple[0])
    distances = (exact - theta).abs().sort().values
    if np.isnan(bound) or len(values) < 2:
        return
    claimed_gap = residual**2 / bound if bound > 0 else 0.0
    if claimed_gap <= float(distances[1]):  # no eigenvalue hides inside the gap
        assert float(distances[0]) <= bound * (1 + 1e-6) + 1e-12


def test_the_kato_temple_gap_ends_where_the_next_eigenvalue_may_lie():
    # Three of many Ritz pairs, none exact: the next one's residual has to come off the gap.
    matrix = with_spectrum(np.linspace(0.0, 10.0, 60))
    result = lanczos(matrix, k=2, tol=0.2, max_products=60, seed=3)
    first, second = result.values
    assert result.residuals[1] > 0.02 * (first - second)
    gap = first - second - result.residuals[1]
    torch.testing.assert_close(result.kato_temple[0], result.residuals[0] ** 2 / gap)


def test_kato_temple_is_far_sharper_than_the_residual():
    matrix = with_spectrum(np.concatenate([[5.0], np.linspace(-1, 1, 99)]))
    result = lanczos(matrix, tol=1e-2)
    error = 5.0 - float(result.values[0])
    assert error <= float(result.kato_temple[0]) < 0.05 * float(result.residuals[0])
    assert torch.isnan(power_iteration(matrix).kato_temple).all()


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


@pytest.mark.parametrize("values", [[-5.0, 1.0, 0.5, 0.2], [5.0, -1.0, -0.5, -0.2]])
def test_a_dominant_eigenvalue_of_either_sign(values):
    # A rule that divides the change by a signed value stops after three steps at -1.88.
    matrix = with_spectrum(values)
    for result in (power_iteration(matrix, tol=1e-8), lanczos(matrix, which="LM", tol=1e-8)):
        assert result.converged.all()
        assert float(result.values[0]) == pytest.approx(values[0], rel=1e-10)
    assert float(lanczos(matrix).values[0]) == pytest.approx(max(values), rel=1e-6)


def test_a_bulk_that_ends_close_below_the_top():
    # The value creeps there: a rule that watches its change stops at 0.96 and says nothing.
    matrix = with_spectrum(np.append(np.linspace(-1, 0.98, 399), 1.0), dtype=torch.float32)
    creeping = power_iteration(matrix, max_products=20)
    change = abs(float(creeping.history[-1, 1] / creeping.history[-2, 1]) - 1)
    off = abs(float(creeping.values[0]) - 1.0)
    assert change < off  # the change says nothing of the error
    assert off > 1e-3
    assert not creeping.converged[0]
    assert float(lanczos(matrix, tol=1e-4).values[0]) == pytest.approx(1.0, rel=1e-4)


def test_no_ghost_copies_in_float32():
    # Without re-orthogonalisation the largest eigenvalue would come back five times.
    top = [13.5, 10.4, 9.15, 7.48, 6.38]
    matrix = with_spectrum(np.concatenate([top, np.linspace(-1, 1, 395)]), dtype=torch.float32)
    result = lanczos(matrix, k=5, tol=1e-5, max_products=200)
    np.testing.assert_allclose(result.values.numpy(), top, rtol=1e-4)


def test_vectors_stay_orthonormal_in_float32_on_a_graded_spectrum():
    matrix = with_spectrum(np.geomspace(1.0, 1e-4, 300), dtype=torch.float32)
    vectors = lanczos(matrix, k=20, tol=1e-4, max_products=290).vectors
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(20), atol=2e-6, rtol=0)


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


@pytest.mark.parametrize("factor", [3.0, 30.0, 3000.0])
@pytest.mark.parametrize("seed", range(3))
def test_lambda_max_sees_one_steep_example_among_many(factor, seed):
    # A fitted network, 3,000 examples, and a last one whose input is large; the subsample of 200
    # does not hold it.
    x, y = digits_like(3000)
    model = mlp((6, 8, 3), activation=torch.nn.ReLU, seed=seed)
    x[-1] *= factor
    H = HessianOperator(model, cross_entropy, (x, y), chunk_size=500)
    exact = eigsh(H.to_scipy(), k=1, which="LA", return_eigenvectors=False)[0]
    result = lambda_max(model, cross_entropy, (x, y), coarse_examples=200, seed=seed)
    assert result.converged.all()
    assert float(result.values[0]) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_lambda_max_sees_a_steep_example_that_is_fitted_exactly(seed):
    # Its loss and its gradient are zero, so neither gives it away; white noise in 500 dimensions
    # hardly touches its direction; and it beats the common direction by a tenth only.
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 500, generator=generator) / 40
    x[:, 0] = 3.0
    x[-1] = 0.0
    x[-1, 1] = 3.0 * (1.1 * 400) ** 0.5
    model = torch.nn.Linear(500, 1, bias=False)
    targets = model(x).detach() + 0.1
    targets[-1] -= 0.1
    exact = 2 / 400 * float(torch.linalg.eigvalsh(x.T @ x)[-1])
    mse = torch.nn.functional.mse_loss
    result = lambda_max(model, mse, (x, targets), coarse_examples=50, seed=seed)
    assert result.converged.all()
    assert float(result.values[0]) == pytest.approx(exact, rel=1e-3)


def test_lambda_max_beats_lanczos_in_passes_over_the_data():
    model, data = mlp((6, 8, 3), seed=0), digits_like(4000)
    fine = lambda_max(model, cross_entropy, data, coarse_examples=1000)
    cold = lanczos(HessianOperator(model, cross_entropy, data))
    assert fine.converged.all()
    assert fine.products < cold.products
    assert float(fine.values[0]) == pytest.approx(float(cold.values[0]), rel=1e-3)


def test_top_eigenpairs_agree_with_the_dense_matrix(capsys):
    model, data = mlp((6, 8, 3), seed=0), digits_like(100)
    H = HessianOperator(model, cross_entropy, data)
    dense = H @ torch.eye(H.shape[0], dtype=torch.float64)
    exact = torch.linalg.eigvalsh(dense)
    for which, expected in (("LA", exact.flip(0)[:4]), ("SA", exact[:4])):
        result = top_eigenpairs(model, cross_entropy, data, 4, which=which, tol=1e-8)
        torch.testing.assert_close(result.values, expected)
        assert_honest(dense, result, 1e-8)
    assert "Lanczos" in capsys.readouterr().err
    last = list(model[-1].parameters())
    block = top_eigenpairs(model, cross_entropy, data, 1, params=last, progress=False, tol=1e-8)
    torch.testing.assert_close(block.values[0], torch.linalg.eigvalsh(dense[-27:, -27:])[-1])
    assert capsys.readouterr().err == ""


def test_subsample_is_the_same_matrix_on_fewer_examples():
    x, y = digits_like(300)
    model = mlp((6, 8, 3), seed=0)
    H = HessianOperator(model, cross_entropy, [(x[:150], y[:150]), (x[150:], y[150:])])
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(4))[:40]
    v = torch.randn(H.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = HessianOperator(model, cross_entropy, (x[rows], y[rows])) @ v
    torch.testing.assert_close(H.subsample(40, seed=4) @ v, expected)
    torch.testing.assert_close(H.subsample(300) @ v, H @ v)
    with pytest.raises(ValueError, match="between 1 and 300, got 301"):
        H.subsample(301)


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
        with pytest.raises(TypeError, match=r"got Linear: give HessianOperator\(model, loss"):
            solve(torch.nn.Linear(3, 3))
        with pytest.raises(ValueError, match="square"):
            solve(torch.ones(2, 3))
        with pytest.raises(ValueError, match="not finite"):
            solve(torch.full((3, 3), float("nan")))

    def test_a_basis_too_small(self):
        with pytest.raises(ValueError, match=r"max_basis must be at least k \+ 2 = 4, got 3"):
            lanczos(torch.eye(9), k=2, max_basis=3)

    def test_too_few_bytes_for_a_basis(self):
        with pytest.raises(
            ValueError, match=r"holds 2 vectors of 9 numbers.*k \+ 2 = 3.*: 108 byt"
        ):
            lanczos(torch.eye(9), basis_bytes=107)

    def test_no_coarse_examples(self):
        with pytest.raises(ValueError, match="coarse_examples must be at least 1, got 0"):
            lambda_max(mlp((6, 3), seed=0), cross_entropy, digits_like(9), coarse_examples=0)

    def test_unknown_end(self):
        with pytest.raises(ValueError, match="which must be one of LA, SA, LM, got 'BE'"):
            lanczos(torch.eye(3), which="BE")

    @pytest.mark.parametrize("k", [0, 4])
    def test_k_out_of_range(self, k):
        with pytest.raises(ValueError, match="between 1 and 3"):
            lanczos(torch.eye(3), k=k)


class TestSamplingError:
    def drawn(self, seed, examples=120):
        """Examples from one population, and a network that is the same for all draws."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
        x[:, 0] *= 3
        return x, (x[:, 0] + x[:, 1] > 0).long()

    def found(self, seed, chunk_size=1):
        data, model = self.drawn(seed), mlp((4, 3, 2), seed=1)
        whole = HessianOperator(model, cross_entropy, data)
        values, vectors = torch.linalg.eigh(whole @ torch.eye(whole.shape[0], dtype=torch.float64))
        H = HessianOperator(model, cross_entropy, data, chunk_size=chunk_size)
        return values[-1], sampling_error(H, vectors[:, -1])

    def test_many_draws_scatter_as_one_says(self):
        pairs = [self.found(seed, chunk_size=4) for seed in range(40)]
        scatter = torch.stack([top for top, _ in pairs]).std()
        said = torch.tensor([error.stderr for _, error in pairs]).mean()
        assert float(said) == pytest.approx(float(scatter), rel=0.35)

    def test_the_value_is_the_quotient_whatever_the_chunks(self):
        for chunk_size in (1, 7, 100):
            top, error = self.found(0, chunk_size)
            assert error.value == pytest.approx(float(top), rel=1e-10)

    def test_chunks_of_examples_agree_with_single_ones(self):
        (_, one), (_, seven) = self.found(0, 1), self.found(0, 7)
        assert seven.stderr == pytest.approx(one.stderr, rel=0.5)

    def test_a_copy_of_the_data_in_each_chunk_has_no_error(self):
        x, y = self.drawn(0, 20)
        H = HessianOperator(mlp((4, 3, 2), seed=1), cross_entropy, [(x, y), (x, y), (x[:20], y)])
        assert sampling_error(H, torch.ones(H.shape[0])).stderr == pytest.approx(0, abs=1e-12)

    def test_it_costs_one_product_and_takes_any_length_of_vector(self):
        H = HessianOperator(mlp((4, 3, 2), seed=1), cross_entropy, self.drawn(0), chunk_size=50)
        v = torch.ones(H.shape[0], dtype=torch.float64)
        once = sampling_error(H, v)
        assert H.products == 1
        again = sampling_error(H, -3 * v)
        assert (again.value, again.stderr) == pytest.approx((once.value, once.stderr))

    def test_one_chunk_tells_nothing(self):
        H = HessianOperator(mlp((4, 3, 2), seed=1), cross_entropy, self.drawn(0), chunk_size=300)
        with pytest.raises(ValueError, match="the data are one chunk: give a smaller chunk_size"):
            sampling_error(H, torch.ones(H.shape[0]))


def test_what_an_eigenpair_shows_is_short():
    shown = repr(lanczos(torch.diag(torch.arange(500.0))))
    assert "residuals" in shown
    assert len(shown) < 300
