"""Traces and spectral densities against dense float64 matrices, and their standard errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_eigen import Counting, with_spectrum
from torch.nn.functional import cross_entropy

from losslandscape.estimates import Estimate
from losslandscape.lab.models import mlp
from losslandscape.operators import HessianOperator
from losslandscape.spectrum import (
    estimate_moments,
    estimate_trace,
    spectral_density,
)

METHODS = ["krylov", "hutchinson"]


def like_a_network(size=300, outliers=10, seed=0):
    """Ten large eigenvalues, two negative ones, and a bulk of both signs around zero."""
    bulk = np.random.default_rng(seed).normal(0.02, 0.1, size - outliers - 2)
    return with_spectrum(np.concatenate([np.linspace(3, 14, outliers), [-2.0, -1.0], bulk]), seed)


some_number = st.just(0.0) | st.floats(1e-3, 10) | st.floats(-10, -1e-3)
# Spectra with clusters, repeated values, zeros and both signs, of any scale.
values_of_size = {
    1: st.lists(some_number, min_size=1, max_size=1),
    2: st.lists(st.sampled_from([-3.0, 0.0, 1.0, 1.0 + 1e-9, 5.0]), min_size=2, max_size=2),
    3: st.lists(some_number, min_size=3, max_size=3),
    200: st.lists(
        st.sampled_from([0.0, 0.0, 0.1, -0.1, 1.0, 1.0 + 1e-9, -4.0, 9.0]),
        min_size=200,
        max_size=200,
    ),
}
spectra = st.sampled_from(sorted(values_of_size)).flatmap(values_of_size.get)
scales = st.sampled_from([1e-8, 1.0, 1e8])


def coverage(estimates, truth, width=1.96):
    """Share of the estimates whose interval holds the truth."""
    return np.mean([abs(e.value - truth) <= width * e.stderr for e in estimates])


def honesty(estimates, truth):
    """Root mean square of the standard errors over that of the errors; 1 is honest."""
    errors = [e.value - truth for e in estimates]
    return math.sqrt(np.mean([e.stderr**2 for e in estimates]) / np.mean(np.square(errors)))


class TestTraceAndMoments:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("probes", [8, 32])
    def test_unbiased_with_honest_standard_errors(self, method, probes):
        matrix = like_a_network()
        runs = [estimate_moments(matrix, probes=probes, seed=s, method=method) for s in range(300)]
        for name, truth in [
            ("trace", float(matrix.trace())),
            ("trace_of_square", float((matrix**2).sum())),
        ]:
            estimates = [getattr(run, name) for run in runs]
            mean = np.mean([e.value for e in estimates])
            spread = np.std([e.value for e in estimates])
            assert abs(mean - truth) < 3.5 * spread / math.sqrt(len(runs)), name
            if name == "trace" or method == "hutchinson":
                # Not for the square after deflation: rare runs that miss an outlier carry the sums.
                assert 0.85 < honesty(estimates, truth) < 1.15, name
            # With 4 probes the interval of a t distribution would be 1.6 times as wide.
            assert coverage(estimates, truth) > (0.75 if probes == 8 else 0.88), name

    @pytest.mark.parametrize("method", METHODS)
    def test_diagonal_rows_and_blocks(self, method):
        matrix = like_a_network()
        blocks = {"w": (10, 20), "b": (10,), "v": (6, 3, 5)}
        runs = [
            estimate_moments(matrix, probes=24, seed=s, blocks=blocks, method=method)
            for s in range(300)
        ]
        diagonal = matrix.diagonal()
        errors = torch.stack([run.diagonal.values - diagonal for run in runs])
        stderrs = torch.stack([run.diagonal.stderrs for run in runs])
        # Unbiased in every entry: 300 means, each within 4.5 of its standard errors.
        assert (errors.mean(0).abs() < 4.5 * errors.std(0) / len(runs) ** 0.5).all()
        assert float(stderrs.norm() / errors.norm()) == pytest.approx(1.0, abs=0.05)
        assert float((errors.abs() <= 1.96 * stderrs).double().mean()) == pytest.approx(
            0.95, abs=0.05
        )
        parts = dict(zip(blocks, diagonal.split([200, 10, 90]), strict=True))
        for name, truth in parts.items():
            estimates = [run.blocks[name] for run in runs]
            assert 0.8 < honesty(estimates, float(truth.sum())) < 1.2, name
            assert coverage(estimates, float(truth.sum())) > 0.85, name
        for name, rows in [("w", 10), ("b", 1), ("v", 6)]:
            truth = parts[name].reshape(rows, -1).sum(dim=1)
            assert len(runs[0].rows[name]) == rows
            for row in range(rows):
                estimates = [run.rows[name][row] for run in runs]
                assert 0.75 < honesty(estimates, float(truth[row])) < 1.25, (name, row)

    def test_the_diagonal_is_unbiased_after_very_few_steps(self):
        # Two Krylov steps out of eight: every term of the split carries weight.
        matrix = with_spectrum(np.arange(8.0) - 2)
        runs = [estimate_moments(matrix, probes=4, seed=s) for s in range(2000)]
        values = torch.stack([run.diagonal.values for run in runs])
        off = values.mean(0) - matrix.diagonal()
        assert (off.abs() < 4.5 * values.std(0) / len(runs) ** 0.5).all()

    def test_one_loop_agrees_with_itself(self):
        blocks = [("w", torch.empty(10, 20)), ("b", torch.empty(100))]
        run = estimate_moments(like_a_network(), probes=20, seed=1, blocks=blocks)
        total = sum(block.value for block in run.blocks.values())
        assert run.trace.value == pytest.approx(total)
        assert run.trace.value == pytest.approx(float(run.diagonal.values.sum()))
        assert float(run.rows["w"].values.sum()) == pytest.approx(run.blocks["w"].value)
        alone = estimate_trace(like_a_network(), probes=20, seed=1)
        assert (alone.value, alone.stderr) == pytest.approx((run.trace.value, run.trace.stderr))

    def test_krylov_wins_where_a_few_eigenvalues_dominate(self):
        matrix = like_a_network()
        truth = float(matrix.trace())

        def error(method):
            runs = [estimate_trace(matrix, seed=s, method=method) for s in range(40)]
            return math.sqrt(np.mean([(run.value - truth) ** 2 for run in runs]))

        assert error("krylov") < 0.3 * error("hutchinson")

    @settings(max_examples=60, deadline=None)
    @given(values=spectra, scale=scales, seed=st.integers(0, 1000), method=st.sampled_from(METHODS))
    def test_any_spectrum(self, values, scale, seed, method):
        matrix = with_spectrum(scale * np.array(values), seed)
        run = estimate_moments(matrix, probes=20, seed=seed, method=method)
        norm = float(torch.linalg.matrix_norm(matrix, 2)) or 1.0
        exact = len(values) <= 20
        for estimate, truth, unit in [
            (run.trace, matrix.trace(), norm * len(values)),
            (run.trace_of_square, (matrix**2).sum(), norm**2 * len(values)),
        ]:
            error = abs(estimate.value - float(truth))
            if exact:
                assert estimate.stderr == 0
            # Ten probes have tails: eight standard errors is far outside of honest luck.
            assert error <= (0 if exact else 8 * estimate.stderr) + 1e-9 * unit

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("scale", [1e-8, 1e8])
    def test_scale_equivariance(self, method, scale):
        matrix = like_a_network()
        one = estimate_moments(matrix, seed=2, method=method)
        other = estimate_moments(scale * matrix, seed=2, method=method)
        assert other.trace.value == pytest.approx(scale * one.trace.value, rel=1e-9)
        assert other.trace.stderr == pytest.approx(scale * one.trace.stderr, rel=1e-9)
        assert other.participation_ratio.value == pytest.approx(one.participation_ratio.value)

    def test_a_negative_trace_uses_every_probe(self):
        # A relative stopping rule without a modulus ends after two probes here.
        counter = Counting(-100 * like_a_network())
        estimate = estimate_trace(counter, probes=40, method="hutchinson")
        assert counter.count == 40
        assert abs(estimate.value + 100 * float(like_a_network().trace())) < 4 * estimate.stderr

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("probes", [2, 3, 4, 17, 33, 300, 1000])
    def test_products_are_bounded_and_counted(self, method, probes):
        counter = Counting(like_a_network())
        run = estimate_moments(counter, probes=probes, method=method)
        assert run.products == counter.count == min(probes, 300)
        assert math.isfinite(run.trace.stderr)
        assert (run.trace.stderr == 0) == (probes >= 300)

    def test_low_rank_and_multiples_of_the_identity_are_exact(self):
        # An invariant Krylov space ends the deflation early; nothing is left to estimate.
        low = with_spectrum([5.0, 3.0, -1.0, *[0.0] * 97])
        for matrix, trace in [(low, 7.0), (3 * torch.eye(100), 300.0), (torch.zeros(50, 50), 0.0)]:
            estimate = estimate_trace(matrix, probes=16)
            assert estimate.value == pytest.approx(trace, rel=1e-5)
            assert estimate.stderr <= 1e-5 * abs(trace)

    def test_float32(self):
        matrix = like_a_network()
        one, other = estimate_trace(matrix), estimate_trace(matrix.float())
        assert other.value == pytest.approx(one.value, rel=1e-4)

    def test_seeds_repeat_and_differ(self):
        matrix = like_a_network()
        assert estimate_trace(matrix, seed=3) == estimate_trace(matrix, seed=3)
        assert estimate_trace(matrix, seed=3) != estimate_trace(matrix, seed=4)


class TestIsotropy:
    def test_participation_ratio_counts_equal_eigenvalues(self):
        matrix = with_spectrum([2.0] * 7 + [0.0] * 93)
        for ratio in (
            estimate_moments(matrix, probes=100).participation_ratio,
            spectral_density(matrix, probes=100).participation_ratio(),
        ):
            assert ratio.value == pytest.approx(7.0, rel=1e-6)
        assert estimate_moments(matrix, probes=100).stable_rank(2.0).value == pytest.approx(7.0)

    def test_signs_cancel_in_the_ratio_but_not_in_its_modulus(self):
        matrix = with_spectrum([1.0, -1.0] * 5)
        density = spectral_density(matrix)
        assert density.participation_ratio().value == pytest.approx(0.0, abs=1e-12)
        assert density.participation_ratio(modulus=True).value == pytest.approx(10.0)
        assert density.entropy().value == pytest.approx(math.log(10))

    def test_standard_errors_are_honest(self):
        matrix = like_a_network()
        eigenvalues = torch.linalg.eigvalsh(matrix)
        ratio = float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
        for method in METHODS:
            runs = [
                estimate_moments(matrix, probes=32, seed=s, method=method).participation_ratio
                for s in range(200)
            ]
            assert 0.85 < honesty(runs, ratio) < 1.2
            assert coverage(runs, ratio) > 0.87
        share = eigenvalues.abs() / eigenvalues.abs().sum()
        entropy = float(-torch.special.xlogy(share, share).sum())
        densities = [spectral_density(matrix, steps=40, seed=s) for s in range(60)]
        assert coverage([d.entropy() for d in densities], entropy) > 0.8
        modulus = float(eigenvalues.abs().sum() ** 2 / (eigenvalues**2).sum())
        ratios = [d.participation_ratio(modulus=True) for d in densities]
        assert coverage(ratios, modulus) > 0.8
        stable = [d.stable_rank() for d in densities]
        assert coverage(stable, float((eigenvalues**2).sum()) / 14**2) > 0.8

    def test_the_jackknife_removes_most_of_the_bias(self):
        matrix = with_spectrum([5.0, 4.0, *[0.1] * 58])
        ratio = float(matrix.trace() ** 2 / (matrix**2).sum())
        runs = [
            estimate_moments(matrix, probes=8, seed=s, method="hutchinson") for s in range(1500)
        ]
        means = [run.samples.mean(dim=0) for run in runs]
        plain = np.mean([float(mean[0] ** 2 / mean[1]) for mean in means]) - ratio
        ours = np.mean([run.participation_ratio.value for run in runs]) - ratio
        assert abs(ours) < 0.5 * abs(plain)

    def test_few_steps_are_owned_up_to(self):
        # Eight nodes cannot follow the kink of |x| at zero; the spread over probes is blind to it.
        matrix = with_spectrum(np.linspace(-1, 1, 300))
        share = torch.linalg.eigvalsh(matrix).abs()
        share /= share.sum()
        entropy = float(-torch.special.xlogy(share, share).sum())
        runs = [spectral_density(matrix, steps=8, seed=s).entropy() for s in range(30)]
        assert coverage(runs, entropy) > 0.9
        assert np.mean([run.stderr for run in runs]) < 0.1

    def test_the_zero_matrix_has_no_ratio(self):
        assert math.isnan(estimate_moments(torch.zeros(3, 3)).participation_ratio.value)
        assert math.isnan(spectral_density(torch.zeros(3, 3)).stable_rank().value)


class TestDensity:
    @settings(max_examples=60, deadline=None)
    @given(values=spectra, scale=scales, seed=st.integers(0, 1000))
    def test_any_spectrum(self, values, scale, seed):
        matrix = with_spectrum(scale * np.array(values), seed)
        density = spectral_density(matrix, probes=8, steps=30, seed=seed)
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        assert float(torch.trapezoid(density.density, density.grid)) == pytest.approx(1.0)
        assert (density.density >= 0).all()
        assert (density.grid.diff() > 0).all()
        eigenvalues = torch.linalg.eigvalsh(matrix)
        for order in (1, 2):
            truth = float((eigenvalues**order).mean())
            estimate = density.moment(order)
            drawn = float(torch.trapezoid(density.grid**order * density.density, density.grid))
            assert abs(estimate.value - truth) <= 8 * estimate.stderr + 1e-9 * norm**order
            # The picture has the moments of the rule.
            assert drawn == pytest.approx(
                estimate.value, rel=1e-6, abs=1e-6 * norm**order + (norm == 0)
            )
        assert eigenvalues.min() - 1e-9 * norm <= density.smallest
        assert density.largest <= eigenvalues.max() + 1e-9 * norm

    def test_moments_cover(self):
        matrix = like_a_network()
        runs = [spectral_density(matrix, probes=20, steps=12, seed=s) for s in range(150)]
        for order in range(1, 5):
            truth = float(torch.trace(torch.linalg.matrix_power(matrix, order))) / 300
            estimates = [run.moment(order) for run in runs]
            assert 0.85 < honesty(estimates, truth) < 1.15, order
            assert coverage(estimates, truth) > 0.87, order

    def test_quadrature_is_exact_up_to_degree_2m_minus_1(self):
        matrix = like_a_network()
        density = spectral_density(matrix, probes=2, steps=4, seed=5)
        start = torch.randn(300, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        start /= start.norm()
        powers = [start]
        for _ in range(8):
            powers.append(matrix @ powers[-1])
        for order in range(9):
            rule = float((density.weights[0] * density.nodes[0] ** order).sum())
            exact = float(start @ powers[order])
            assert (rule == pytest.approx(exact, rel=1e-9)) == (order <= 7), order

    @pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e8])
    def test_scale_equivariance(self, scale):
        # Codes with an epsilon in the normalisation report 0.955 of lambda_max = 1e-4.
        matrix = like_a_network()
        one, other = spectral_density(matrix, steps=40), spectral_density(scale * matrix, steps=40)
        assert other.largest == pytest.approx(scale * 14.0, rel=1e-6)
        torch.testing.assert_close(other.grid, scale * one.grid, rtol=1e-6, atol=1e-6 * scale)
        torch.testing.assert_close(other.density * scale, one.density, rtol=1e-5, atol=1e-5)

    def test_no_ghosts_in_float32(self):
        # Without re-orthogonalisation 14 comes back several times in 120 steps.
        matrix = like_a_network().float()
        density = spectral_density(matrix, probes=3, steps=120)
        for nodes in density.nodes:
            assert ((nodes - 14).abs() < 0.1).sum() == 1
        assert density.fraction(low=2.0).value == pytest.approx(10 / 300, abs=0.03)
        for low, high in ((2.0, 1.0), (math.nan, 1.0), (1.0, 1.0)):
            with pytest.raises(ValueError, match="edges of bins must increase"):
                density.fraction(low, high)

    def test_shares_are_honest(self):
        matrix = like_a_network()
        eigenvalues = torch.linalg.eigvalsh(matrix)
        runs = [spectral_density(matrix, steps=30, seed=s) for s in range(80)]
        for low, high in [(2.0, math.inf), (-math.inf, -0.5), (-0.05, 0.05), (0.1, 20.0)]:
            truth = float(((eigenvalues > low) & (eigenvalues <= high)).double().mean())
            assert coverage([run.fraction(low, high) for run in runs], truth) > 0.85, (low, high)
        outliers = [run.fraction(low=2.0) for run in runs]
        assert honesty(outliers, 10 / 300) < 1.3  # and not by saying nothing

    def test_cdf_and_histogram_fit_together(self):
        density = spectral_density(like_a_network())
        edges = torch.tensor([-math.inf, -0.5, 0.0, 0.1, 2.0, math.inf])
        bins = density.histogram(edges)
        torch.testing.assert_close(bins.values.cumsum(0), density.cdf(edges).values[1:])
        assert density.cdf(edges)[5] == Estimate(pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))
        exact = spectral_density(torch.diag(torch.tensor([0.0, 0.0, 1.0])))
        assert exact.cdf(torch.tensor([-1.0, 0.0, 0.5, 1.0])).values.tolist() == pytest.approx(
            [0, 2 / 3, 2 / 3, 1]
        )

    def test_agrees_with_the_smoothed_exact_spectrum(self):
        matrix = like_a_network()
        exact = spectral_density(matrix, probes=300)
        distances, claims = [], []
        for seed in range(20):
            density = spectral_density(matrix, probes=10, steps=60, seed=seed)
            gap = (density.density - exact.smoothed(density.grid).values).abs()
            distances.append(float(torch.trapezoid(gap, density.grid)))
            claims.append(float(torch.trapezoid(density.stderr, density.grid)))
        assert np.mean(distances) < 0.2
        assert 0.5 < np.mean(claims) / np.mean(distances) < 2

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_small_matrices_are_exact(self, size):
        counter = Counting(with_spectrum([4.0, -1.0, -1.0][:size]))
        density = spectral_density(counter, probes=max(1, size), steps=50)
        assert density.products == counter.count == size
        assert density.moment(1).stderr == density.moment(2).stderr == 0
        assert sorted(density.nodes[0].tolist()) == pytest.approx(sorted([4.0, -1.0, -1.0][:size]))

    def test_invariant_spaces_end_early_and_are_exact(self):
        # Three distinct eigenvalues: three steps say all, and cost no more.
        counter = Counting(torch.diag(torch.tensor([1.0] * 40 + [2.0] * 30 + [8.0] * 30).double()))
        density = spectral_density(counter, probes=5, steps=50)
        assert density.products == counter.count == 15
        assert density.residuals.max() == 0
        total = density.weights.sum(dim=1)
        torch.testing.assert_close(total, torch.ones_like(total))
        for nodes in density.nodes:
            assert nodes.unique().numpy() == pytest.approx([1.0, 2.0, 8.0], rel=1e-12)

    def test_steps_beyond_an_invariant_space_change_nothing(self):
        # Rounding may hide that the space is invariant; what follows has no weight.
        density = spectral_density(with_spectrum([1.0] * 40 + [2.0] * 30 + [7.0] * 30), probes=5)
        for nodes, weights in zip(density.nodes, density.weights, strict=True):
            near = (nodes[:, None] - torch.tensor([1.0, 2.0, 7.0])).abs().amin(dim=1) < 1e-8
            assert float(weights[near].sum()) == pytest.approx(1.0, abs=1e-9)

    def test_more_steps_than_rows(self):
        density = spectral_density(with_spectrum(np.arange(12.0)), probes=4, steps=500)
        assert density.nodes.shape == (4, 12)
        torch.testing.assert_close(density.nodes[0], torch.arange(12.0, dtype=torch.float64))

    def test_residuals_certify_nodes(self):
        matrix = like_a_network()
        density = spectral_density(matrix, probes=4, steps=25)
        gaps = (density.nodes[:, :, None] - torch.linalg.eigvalsh(matrix)).abs().amin(dim=2)
        assert (gaps <= density.residuals + 1e-9).all()

    def test_the_size_of_the_groups_changes_nothing(self, monkeypatch):
        one = spectral_density(like_a_network(), probes=6, steps=20)
        monkeypatch.setattr("losslandscape.spectrum._BASIS_BYTES", 2 * 20 * 300 * 8)
        other = spectral_density(like_a_network(), probes=6, steps=20)
        torch.testing.assert_close(other.nodes, one.nodes)


def digits_like(examples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (examples,), generator=generator)


def test_a_network_against_its_dense_hessian():
    model = mlp((6, 8, 3), seed=0)
    H = HessianOperator(model, cross_entropy, digits_like(200))
    size = H.shape[0]
    matrix = H @ torch.eye(size, dtype=torch.float64)
    exact = estimate_moments(H, probes=size, blocks=model.named_parameters())
    assert exact.trace.value == pytest.approx(float(matrix.trace()))
    at = 0
    for name, p in model.named_parameters():
        block = matrix.diagonal()[at : at + p.numel()]
        assert exact.blocks[name].value == pytest.approx(float(block.sum()))
        if p.ndim == 2:
            torch.testing.assert_close(
                exact.rows[name].values, block.reshape(p.shape[0], -1).sum(dim=1)
            )
        at += p.numel()
    runs = [
        estimate_moments(H, probes=20, seed=s, blocks=model.named_parameters()) for s in range(30)
    ]
    assert coverage([run.trace for run in runs], exact.trace.value, width=2.5) > 0.85
    density = spectral_density(H, steps=40)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert density.largest == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    assert density.smallest == pytest.approx(float(eigenvalues[0]), rel=1e-6)
    for order in (1, 2):
        estimate = density.moment(order)
        assert abs(estimate.value - float((eigenvalues**order).mean())) < 4 * estimate.stderr


class TestRefusals:
    @pytest.mark.parametrize("solve", [estimate_trace, estimate_moments, spectral_density])
    def test_bad_operators_and_probes(self, solve):
        with pytest.raises(ValueError, match="square, got 2 x 3"):
            solve(torch.ones(2, 3))
        with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
            solve(torch.eye(3), probes=0)
        with pytest.raises(ValueError, match="one probe has no standard error"):
            solve(torch.eye(3), probes=1)
        with pytest.raises(ValueError, match="not finite"):
            solve(torch.full((3, 3), float("nan")))
        with pytest.raises(ValueError, match="not finite"):
            solve(torch.full((100, 100), float("inf")))

    @pytest.mark.parametrize("size", [4, 100])
    def test_not_symmetric(self, size):
        generator = torch.Generator().manual_seed(0)
        with pytest.raises(ValueError, match="not symmetric"):
            spectral_density(torch.randn(size, size, generator=generator))

    def test_bad_options(self):
        with pytest.raises(ValueError, match="method must be one of krylov, hutchinson, got 'x'"):
            estimate_trace(torch.eye(3), method="x")
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            spectral_density(torch.eye(3), steps=0)
        with pytest.raises(ValueError, match="width must be positive, got 0"):
            spectral_density(torch.eye(3), width=0)
        with pytest.raises(ValueError, match="the blocks have 2 entries together, the operator 3"):
            estimate_moments(torch.eye(3), blocks={"w": (2,)})
        with pytest.raises(ValueError, match="the name 'w' twice"):
            estimate_moments(torch.eye(3), blocks=[("w", (1,)), ("w", (2,))])
        with pytest.raises(ValueError, match="norm must be positive, got 0"):
            estimate_moments(torch.eye(3)).stable_rank(0)

    def test_progress_is_silent_unless_asked(self, capsys):
        spectral_density(torch.eye(3))
        assert capsys.readouterr().err == ""
        estimate_trace(torch.eye(3), progress=True)
        assert "probes" in capsys.readouterr().err
