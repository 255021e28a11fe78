"""Claims decided without a recorded study: every branch of their rules, and what they measure."""

import math

import numpy as np
import pytest
import torch
from test_claim_rules import MadeUp
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from losslandscape import objective
from losslandscape.lab import records
from losslandscape.lab.models import mlp
from losslandscape.report import live_claims
from losslandscape.report.live_claims import LIVE, RIGOROUS, c38, judge_live, leaves
from losslandscape.report.rules import ADAM, FLAT, ROWS, SHARP, Verdict

WELLS = {"equal": [1.9, 2.1] * 2, "deeper": [0.27] * 3 + [0.272]}


def said(claim, found, **studies):
    return str(judge_live(claim, found, MadeUp(**studies)))


class TestRules:
    @pytest.mark.parametrize(
        ("tanh", "relu", "word"),
        [
            ([1.0, 2.09, 2.91], [1.0, 2.0, 3.0], "holds"),
            ([1.0, 2.0, 3.0], [1.0, 2.0, 2.8], "holds if the loss is smooth on the segment"),
            ([1.0, 2.0, 3.2], [1.0, 2.0, 3.0], "refuted"),
            ([0.8, 2.0, 3.0], [1.0, 2.0, 3.0], "refuted"),
        ],
    )
    def test_c1(self, tanh, relu, word):
        good = [1.0, 2.0, 3.0]
        assert said("C1", {"tanh": [good, tanh], "ReLU": [relu, good]}) == word

    def test_c3(self):
        assert said("C3", {"difference": [1e-9, 1e-4]}) == "holds"
        assert said("C3", {"difference": [1e-9, 1.1e-4]}) == "refuted"

    @pytest.mark.parametrize(
        ("reduction", "rescaling", "word"),
        [(0.0, 2.0, "holds if"), (0.0, 1.9, "holds"), (-1e-7, 50.0, "untestable here")],
    )
    def test_c4(self, reduction, rescaling, word):
        found = {"reduction": [0.0, reduction], "rescaling": [50.0, rescaling]}
        assert judge_live("C4", found, MadeUp()).word == word

    def test_c6_and_c19_read_the_paper(self):
        assert said("C6", {}) == "untestable here"
        assert said("C19", {}) == "untestable here (as reported)"
        evidence = MadeUp()
        given = [True] * 7 + [False] * 2
        evidence.paper["protocol"] = dict(zip(evidence.paper["protocol"], given, strict=True))
        assert judge_live("C19", {}, evidence).word == "holds"

    def test_c7(self):
        assert said("C7", {"a = 0.1": [1.009], "a = 10": [0.991]}) == "holds"
        assert said("C7", {"a = 0.1": [1.0], "a = 10": [1.02]}).startswith("holds if the par")

    def test_c8_is_refuted_by_digits_alone_or_waits(self):
        assert said("C8", {"r": [1.0, 1.02]}) == "refuted"
        assert said("C8", {"r": [0.991, 1.009]}) == "waits for 10 of 10 run seeds of climbs"

    @pytest.mark.parametrize(
        ("sharp", "word", "best"),
        [
            ((9.0, 3.0, 1.0, 1.09, 0.5, 0.5, 0.5), "holds", 0.09),
            ((9.0, 3.0, 1.11, 1.12, 0.89, 0.89, 0.5), "holds if", 0.11),  # just outside
            # near 1 twice, but not at two radii side by side
            ((9.0, 1.0, 2.0, 1.09, 0.5, 0.5, 0.5), "holds if", 0.5),
        ],
    )
    def test_c8_looks_for_two_adjacent_radii(self, sharp, word, best):
        good = (9.0, 9.0, 9.0, 0.95, 1.05, 0.5, 0.5)
        evidence = self.climbs({SHARP: sharp, FLAT: good, ADAM: good})
        verdict = judge_live("C8", {"r": [1.0]}, evidence)
        assert verdict.word == word
        assert (f"{FLAT} and {ADAM}" in verdict.condition) == (word == "holds if")
        assert verdict.effects[f"median r of {SHARP}, all radii"] == pytest.approx(sharp)
        deciding = verdict.effects[f"abs(median r - 1) of {SHARP}, best two radii side by side"]
        assert deciding == pytest.approx([best])

    def test_c8_says_so_where_no_row_passes(self):
        far = (9.0, 9.0, 9.0, 2.0, 1.0, 0.5, 0.5)  # near 1 at one radius only
        verdict = judge_live("C8", {"r": [1.0]}, self.climbs(dict.fromkeys(ROWS, far)))
        assert verdict.word == "holds if"
        assert "rows that pass: none" in verdict.condition

    def test_c8_needs_all_runs_and_their_certificates(self):
        good = (9.0, 9.0, 9.0, 0.95, 1.05, 0.5, 0.5)
        evidence = self.climbs(dict.fromkeys(ROWS, good), loose=1)
        assert "residual of 1 eigenvalue" in str(judge_live("C8", {"r": [1.0]}, evidence))
        del evidence.runs("climbs")[ADAM][3]
        assert str(judge_live("C8", {"r": [1.0]}, evidence)).startswith("waits for 1 of 10")

    @staticmethod
    def climbs(ratios, loose=0):
        """Ten runs per row with these ratios r at the registered radii, one or two odd ones out."""
        radii = [10 ** (k / 2) for k in range(-6, 1)]
        return MadeUp(
            climbs={
                name: [
                    {
                        "radii": radii,
                        "rises": [
                            # the best start is another one from run to run
                            np.roll(
                                [-1.0, -1.0, -1.0, r * radius**2 * 4.0 * (7 if seed == 5 else 1)],
                                seed,
                            ).tolist()
                            for radius, r in zip(radii, row, strict=True)
                        ],
                        "lambda_max": {
                            "value": 8.0,
                            "residual": 8.1e-3 if seed < loose and name == FLAT else 7.9e-3,
                        },
                    }
                    for seed in range(10)
                ]
                for name, row in ratios.items()
            }
        )

    @pytest.mark.parametrize(
        ("violations", "pairs", "word"),
        [(1, 5, "refuted"), (0, 5, "not supported"), (0, 4, "untestable here")],
    )
    def test_c9(self, violations, pairs, word):
        found = {"violations": violations, "pairs": pairs}
        assert judge_live("C9", found, MadeUp()).word == word

    @pytest.mark.parametrize(
        ("logits", "ratios", "word"),
        [
            ([1e-10, 0.0], [2.0, 9.0], "refuted"),
            ([2e-10, 1.0], [9.0, 9.0], "holds"),
            ([0.0, 0.0], [1.9, 1.0], "holds"),
            ([0.0, 1.0], [9.0, 9.0], "untestable here"),
        ],
    )
    def test_c10(self, logits, ratios, word):
        assert said("C10", {"logits": logits, "lambda": ratios}) == word

    @pytest.mark.parametrize(
        ("at_small", "at_large", "shuffled", "word"),
        [
            (1.05, 2.0, 0.04, "holds if"),
            (1.11, 2.0, 0.0, "refuted"),
            (1.05, 2.0, -0.06, "not supported"),
        ],
    )
    def test_c11_asks_for_small_steps_only(self, at_small, at_large, shuffled, word):
        spread = np.array([-0.3, 0.3])  # the mean over run seeds decides
        found = {
            "replaced": {"0.01": 1 + spread, "0.1": at_small + spread, "1": at_large + spread},
            "shuffled": {"0.1": spread, "1": shuffled + spread},
        }
        assert judge_live("C11", found, MadeUp()).word == word

    def test_c13(self):
        assert said("C13", {"ratios": [0.91, 1.09]}).startswith("holds if T = ")
        assert said("C13", {"ratios": [0.95, 1.11]}) == "not supported"

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({}, "holds if"),
            ({"equal": [1.7, 1.85]}, "refuted"),
            ({"deeper": [0.23, 0.25]}, "not supported"),
        ],
    )
    def test_c14(self, change, word):
        assert judge_live("C14", {**WELLS, **change}, MadeUp()).word == word

    @pytest.mark.parametrize(
        ("error", "asymmetry", "cost", "word"),
        [
            (1e-11, 1e-11, [3.0, 4.0], "holds"),
            (1e-11, 1e-11, [3.0, 4.1], "holds if the cost is not claimed"),
            (2e-10, 1e-11, [3.0, 3.0], "refuted"),
            (1e-11, 2e-10, [3.0, 3.0], "refuted"),
        ],
    )
    def test_c15(self, error, asymmetry, cost, word):
        found = {"error": [0.0, error], "asymmetry": [0.0, asymmetry], "cost": cost}
        assert said("C15", found) == word


S = {"close": [-1.02, -1.0, -0.98], "wide": [-2.0, -0.6, -0.9], "flat": [-0.2, -0.1, -0.12]}


class TestC12:
    def ends(self, slopes, runs=10):
        curvature = np.array([1.0, 2.0, 8.0])

        def run(slope, wobble):
            return {"noise": {"curvature": curvature, "variance": curvature ** (slope + wobble)}}

        return {
            name: [run(slope, 0.01 * (-1) ** seed) for seed in range(runs)]
            for name, slope in zip(ROWS, slopes, strict=True)
        }

    @pytest.mark.parametrize(
        ("s", "b", "words"),
        [
            ("close", (0, 0.1, -0.1), "holds"),
            ("close", (0, 1, 1), "refuted"),
            ("close", (0, 0, 1), f"holds if the row is {SHARP} or {FLAT}"),
            ("wide", (1, 0.3, 0.3), "untestable here"),
            ("wide", (0, 0, 0), f"holds if the row is {SHARP} or {FLAT} or {ADAM}"),
            ("flat", (0, 0, 0), "refuted"),
        ],
    )
    def test_words(self, s, b, words):
        assert said("C12", {"s": S[s]}, end_points=self.ends(b)) == words

    def test_s_alone_can_refute_but_not_hold(self):
        few = self.ends((0, 0, 0), runs=3)
        assert said("C12", {"s": S["flat"]}) == "refuted"
        waits = "waits for 7 of 10 run seeds of end_points"
        assert said("C12", {"s": S["close"]}, end_points=few) == waits


GOOD = {"settled": [0.0], "differ": {"cross-entropy": 0, "squared error": 0}}
FOOLED = {**GOOD, "settled": [0.0, 0.02]}


class TestC16:
    def ends(self, value=5.0, runs=10):
        pair = {"lanczos": {"value": 5.0, "residual": 0.1}, "power": {"residual": 0.1}}
        run = {"power": {**pair, "power": {"value": value, "residual": 0.1}}}
        return {name: [run] * runs for name in ROWS}

    def test_words(self):
        assert said("C16", GOOD, end_points=self.ends()) == "holds"
        assert said("C16", FOOLED, end_points=self.ends()).startswith("holds if abs(")
        differ = {**GOOD, "differ": {"cross-entropy": 1, "squared error": 0}}
        assert said("C16", differ, end_points=self.ends()).startswith("holds if abs(")

    def test_one_end_point_refutes_and_missing_ones_wait(self):
        assert said("C16", GOOD, end_points=self.ends(value=5.3, runs=2)) == "refuted"
        some = self.ends(runs=9)
        assert said("C16", FOOLED, end_points=some) == "waits for 3 of 30 runs of end_points"


class TestC38:
    def score(self, **words):
        return str(c38({name: Verdict(name, words.get(name, "refuted")) for name in RIGOROUS}))

    def test_points(self):
        hold = dict.fromkeys(RIGOROUS, "holds")
        assert self.score(**hold) == "holds"
        assert self.score(**hold, **{}) == "holds"
        assert self.score(**{**hold, "C1": "refuted", "C2": "not supported"}) == "holds"
        half = dict.fromkeys(RIGOROUS, "holds if")
        assert self.score(**half) == "holds if the conditions are added"
        assert self.score(**{**half, "C1": "untestable here"}) == "not supported"

    def test_it_waits_only_while_something_can_change(self):
        assert self.score(C1="waits", C2="waits", C7="waits") == "not supported"
        four = dict.fromkeys(RIGOROUS[:4], "waits")
        assert self.score(**four) == "waits for C1, C2, C7 and C8"
        good = dict.fromkeys(RIGOROUS[:6], "holds")
        assert self.score(**good, C12="waits") == "holds"


class TestMeasures:
    def test_the_curvature_of_a_sum_is_n_times_that_of_the_mean(self):
        batch = (torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, 1]))
        model = mlp((4, 3, 3), seed=0)
        identity = torch.eye(27, dtype=torch.float64)
        summed = live_claims._SummedHessian(model, batch) @ identity
        assert torch.allclose(summed, 4 * live_claims._dense_hessian(model, batch))

    def test_the_dense_hessian_has_the_closed_form_of_softmax_regression(self):
        x = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
        model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
        p = model(x).softmax(dim=1).detach()
        spread = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        closed = torch.einsum("ikl,ia,ib->kalb", spread, x, x).reshape(4, 4) / 2
        found = live_claims._dense_hessian(model, (x, torch.tensor([0, 1])))
        assert torch.allclose(found, closed)

    def test_a_settled_run_sits_where_the_theorem_says(self):
        generator = torch.Generator().manual_seed(3)
        c = torch.randn(100, generator=generator, dtype=torch.float64)[:2] ** 2
        value = 10 * float((c[0] - c[1]) / c.sum())
        expected = math.sqrt(100 - value**2) / abs(value)
        assert live_claims._settled_residual(3) == pytest.approx(expected, rel=1e-6)

    def test_bounds_that_are_too_tight_are_noticed(self, monkeypatch):
        def count():
            rng = np.random.default_rng(0)
            return sum(live_claims._within_bounds(rng, hard=k % 4 == 0) for k in range(40))

        assert count() == 40
        bounds = live_claims.quadratic_bounds
        for factor in ((1.1, 1.0), (1.0, 0.9)):
            monkeypatch.setattr(
                live_claims,
                "quadratic_bounds",
                lambda *given, f=factor: [b * k for b, k in zip(bounds(*given), f, strict=True)],
            )
            assert count() < 40

    def test_variances_of_short_runs(self, monkeypatch):
        """The exact factor 1/(1 - h/2) with replacement, and R(x) for shuffled epochs."""
        monkeypatch.setattr(live_claims, "_STEPS", 10**5)
        for h in (0.1, 1.0):
            assert live_claims._replaced(h, 0) == pytest.approx(1 / (1 - h / 2), rel=0.05)
        assert live_claims._shuffled(1.0, 0) == pytest.approx(0.264, abs=0.05)

    def test_sgd_takes_the_steps_of_the_penalised_loss(self):
        """The first step by hand, in the order of the weights of the model."""
        model = mlp((64, 10), seed=1)
        runs = live_claims._softmax_sgd(model, 0.01, 0, chains=2, steps=2)
        start, after = list(runs)
        assert torch.equal(start, torch.zeros(2, 650, dtype=torch.float64))
        data = live_claims.digits()
        rows = torch.randint(1437, (2, 16), generator=torch.Generator().manual_seed(0))
        for chain in range(2):
            batch = (data.x_train[rows[chain]], data.y_train[rows[chain]])
            slope = objective.gradient(model, cross_entropy, batch)[1]
            slope = slope + 0.01 * parameters_to_vector(model.parameters()).detach()
            assert torch.allclose(after[chain], -0.25 * slope)

    def test_excess_loss_of_a_short_run(self):
        found = live_claims.excess_ratios(chains=32, burn_in=300, steps=300)["ratios"]
        assert len(found) == 18
        assert np.mean(found) == pytest.approx(1.0, abs=0.1)

    def test_slope_of_a_short_run(self):
        found = live_claims.variance_slopes(chains=20, burn_in=200, steps=200)["s"]
        assert found == pytest.approx([-0.13] * 5, abs=0.25)

    def test_pixels_lie_between_zero_and_one(self):
        data = live_claims.digits()
        assert (float(data.x_train.min()), float(data.x_train.max())) == (0.0, 1.0)
        assert torch.allclose(16 * data.x_train, (16 * data.x_train).round(), atol=1e-5)


def test_networks_are_as_small_as_registered():
    for sizes in (live_claims.SIZES, live_claims.NARROW):
        assert sum(p.numel() for p in mlp(sizes, seed=0).parameters()) < 3000
    assert live_claims.SEEDS == (0, 1, 2, 3, 4)


def test_the_fingerprint_of_a_measurement_reaches_its_helpers_and_settings():
    code = records.shaping_code(LIVE["C11"].measure, "losslandscape")
    names = {name.rsplit(".", 1)[1] for name in code}
    assert {"_replaced", "_shuffled", "_STEPS", "SEEDS", "batch_factor", "shuffled_factor"} <= names


def test_leaves_are_all_numbers_in_order():
    assert list(leaves({"a": [1, [2.5]], "b": {"c": 3}})) == [1, 2.5, 3]
