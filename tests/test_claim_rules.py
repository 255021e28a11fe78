"""The registered rules as code: every branch, on results made up so that the answer is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from losslandscape.report import claims, rules
from losslandscape.report.rules import ADAM, FLAT, ROWS, SHARP, Evidence
from losslandscape.report.statistics import Interval, predict_run

BOOK = Path(__file__).parent.parent / "book"


class MadeUp(Evidence):
    """Evidence whose studies are given, with the paper's own numbers."""

    def __init__(self, **studies):
        super().__init__(BOOK / "records")
        self._studies = {
            study: {name: dict(enumerate(map(exact, runs))) for name, runs in found.items()}
            for study, found in studies.items()
        }

    def runs(self, study):
        """Not those in the book's records."""
        return self._studies.get(study, {})


def exact(results):
    """The same results, each value without a residual having one of zero."""
    if isinstance(results, list):
        return [exact(found) for found in results]
    if not isinstance(results, dict):
        return results
    found = {name: exact(part) for name, part in results.items()}
    return {"residual": 0.0, **found} if "value" in found else found


def level(value, measures=("lambda_max",), count=5):
    return {"level": [{name: {"value": value} for name in measures} for _ in range(count)]}


def jitter(count, size=0.01):
    return [1 + size * (-1) ** seed for seed in range(count)]


class TestRules:
    @pytest.mark.parametrize(
        ("low", "high", "word"),
        [
            (0.3, 0.5, "holds"),
            (-0.5, -0.1, "refuted"),
            (-0.1, 0.1, "not supported"),
            (0.05, 0.15, "not supported"),
            (0.1, 0.3, "untestable here"),
            (-0.1, 0.3, "untestable here"),
        ],
    )
    def test_rule_i_in_its_order(self, low, high, word):
        assert rules.interval_rule(Interval((low + high) / 2, low, high, 10), 0.2) == word

    def test_rule_p_takes_logits_and_logs(self):
        numbers = {"test_accuracy": 0.98, "test_loss": 0.05, "lambda_max": 10.0}
        accuracies, losses, lambdas = [0.97, 0.98, 0.985], [0.04, 0.05, 0.07], [5.0, 12.0, 30.0]
        found = claims.prediction_rule(numbers, accuracies, losses, lambdas)
        logits = [math.log(a / (1 - a)) for a in accuracies]
        assert found["accuracy"] == pytest.approx(
            predict_run(logits).p_value(math.log(0.98 / 0.02))
        )
        assert found["lambda"] == pytest.approx(
            predict_run([math.log(v) for v in lambdas]).p_value(math.log(10))
        )


def test_every_judge_is_a_registered_claim():
    registered = {c["id"] for c in yaml.safe_load((BOOK / "claims.yml").read_text())["claims"]}
    assert set(rules.JUDGES) <= registered


@pytest.mark.parametrize("claim", rules.JUDGES)
def test_the_committed_records_get_a_word(claim):
    verdict = claims.judge(claim, Evidence(BOOK / "records"))
    assert verdict.claim == claim
    assert verdict.word in rules.WORDS
    assert verdict.condition or verdict.word not in ("waits", "holds if")


def test_missing_runs_wait_whatever_the_others_say():
    ends = {name: [{"polish": {"fall": 0.5}}] * 9 for name in ROWS}
    verdict = claims.judge("C2", MadeUp(end_points=ends))
    assert str(verdict) == "waits for 1 of 10 run seeds of end_points"
    assert claims.judge("C2", MadeUp(end_points={})).word == "waits"


class TestPolish:
    def ends(self, *passing):
        return {
            name: [{"polish": {"fall": 0.01 if seed < good else 0.02}} for seed in range(10)]
            for name, good in zip(ROWS, passing, strict=True)
        }

    @pytest.mark.parametrize(
        ("passing", "c2", "c26"),
        [
            ((10, 8, 9), "holds", "holds"),
            ((10, 2, 9), f"holds if the row is {SHARP} or {ADAM}", "refuted"),
            ((2, 1, 0), "refuted", "refuted"),
            ((3, 7, 0), "untestable here", "untestable here"),
        ],
    )
    def test_counts(self, passing, c2, c26):
        evidence = MadeUp(end_points=self.ends(*passing))
        assert str(claims.judge("C2", evidence)) == c2
        assert str(claims.judge("C26", evidence)) == c26


class TestC17:
    @pytest.mark.parametrize(
        ("power", "krylov", "word"),
        [(50, 10, "holds"), (51, 10, "holds if"), (None, None, "not supported")],
    )
    def test_products(self, power, krylov, word):
        run = {"power": {"power": {"within_percent": power}, "lanczos": {"within_percent": krylov}}}
        ends = {name: [run] * 10 for name in ROWS}
        assert claims.judge("C17", MadeUp(end_points=ends)).word == word


class TestTable1:
    def runs(self, factor=1.0):
        """Runs around the paper's own numbers, their lambda_max off by ``factor``."""
        paper = Evidence(BOOK / "records").paper["configurations"]
        return {
            name: [
                {
                    "history": [
                        {
                            "test_accuracy": 1 - (1 - paper[name]["test_accuracy"]) * wobble,
                            "test_loss": paper[name]["test_loss"] * wobble,
                            "train_loss": 0.03,
                        }
                    ],
                    "lambda_max": {"value": 1.0},
                    "batch_lambda_max": {
                        "64": [factor * paper[name]["lambda_max"] * wobble, 1.0, 1.0]
                    },
                }
                for wobble in jitter(10)
            ]
            for name in ROWS
        }

    def test_rule_p(self):
        good, bad = (
            MadeUp(three_configurations=self.runs(factor), table1_reconstruction={})
            for factor in (1.0, 2.0)
        )
        for claim in ("C20", "C21", "C22"):
            assert claims.judge(claim, good).word == "holds"
            assert str(claims.judge(claim, bad)) == "waits for table1_reconstruction"

    def test_batch_bias(self):
        assert claims.judge("C18", MadeUp(three_configurations=self.runs())).word == "holds if"
        fair = self.runs()
        for run in (run for runs in fair.values() for run in runs):
            run["batch_lambda_max"]["64"] = [1.05, 1.0, 1.0 + run["history"][0]["test_loss"] / 100]
        assert claims.judge("C18", MadeUp(three_configurations=fair)).word == "holds"

    def test_the_gap_is_test_minus_train(self):
        runs = self.runs()  # the gap of Flat is the largest here
        assert claims.judge("C25", MadeUp(three_configurations=runs)).word == "holds"
        for run in runs[FLAT]:
            run["history"][-1]["train_loss"] = 0.3
        assert claims.judge("C25", MadeUp(three_configurations=runs)).word == "refuted"


def test_readings_are_one_recipe_for_all_rows():
    paper = MadeUp().paper["configurations"]

    def run(row, wobble, right):
        numbers = paper[row]
        end = {
            "test_accuracy": 1 - (1 - numbers["test_accuracy"]) * wobble,
            "test_loss": numbers["test_loss"] * wobble,
            "batch_lambda_max": [numbers["lambda_max"] * wobble * (1 if right else 3), 1.0],
        }
        return {"epochs": [{**end, "test_loss": 9.0 * wobble}, end]}

    study = {
        f"{reading}_{channels}_{inputs}": [
            run(row, wobble, right=(reading != FLAT and inputs == "raw")) for wobble in jitter(5)
        ]
        for reading, row in (
            (SHARP, SHARP),
            (FLAT, FLAT),
            (f"{FLAT}_wd_0.001", FLAT),
            (ADAM, ADAM),
        )
        for channels in (16, 32)
        for inputs in ("standardised", "raw")
    }
    found = claims.readings(MadeUp(table1_reconstruction=study))
    assert len(found) == 2 * 2 * 2 * 2
    good = {key for key, p in found.items() if min(p.values()) >= claims.AGREES}
    assert good == {(f"{FLAT}_wd_0.001", channels, "raw", 2) for channels in (16, 32)}
    assert all(len(p) == 9 for p in found.values())
    assert claims.readings(MadeUp(table1_reconstruction={})) == {}


def test_table_1_is_in_order():
    verdict = claims.judge("C27", MadeUp())
    assert str(verdict) == "refuted on its own data"
    assert verdict.effects["tau"] == pytest.approx(1.0)


class TestMatchedLoss:
    """Signs: the claim predicts that a low rate, a high decay and Adam are flatter."""

    def design(self, rate, decay):
        """lambda_max of the four cells when the effects are factors ``rate`` and ``decay``."""
        cells = {"lr_0.1_wd_0": 1, "lr_0.1_wd_0.01": decay, "lr_0.001_wd_0": rate}
        cells["Flat_SGD_LowLR"] = rate * decay
        return MadeUp(
            unfinished_training={
                name: [level(20 * factor * wobble) for wobble in jitter(5)]
                for name, factor in cells.items()
            }
        )

    @pytest.mark.parametrize(
        ("rate", "decay", "said"),
        [
            (0.5, 0.5, "holds"),
            (0.5, 1.0, "holds if only low learning rate is meant"),
            (2.0, 0.5, "refuted"),
            (0.5, 2.0, "refuted"),
        ],
    )
    def test_c23(self, rate, decay, said):
        evidence = self.design(rate, decay)
        for cell, wobble in zip(
            evidence.runs("unfinished_training")["lr_0.1_wd_0"].values(), jitter(5, 0.03)[::-1],
            strict=True,
        ):  # fmt: skip
            for row in cell["level"]:
                row["lambda_max"]["value"] *= wobble
        verdict = claims.judge("C23", evidence)
        assert str(verdict) == said
        assert verdict.effects["low learning rate"].mean == pytest.approx(-math.log(rate), abs=0.1)

    def test_c23_needs_certified_eigenvalues(self):
        evidence = self.design(0.5, 0.5)
        certificate = evidence.runs("unfinished_training")["lr_0.1_wd_0"][2]["level"][3]
        certificate["lambda_max"]["residual"] = 1.0
        verdict = claims.judge("C23", evidence)
        assert str(verdict) == "untestable here (the residual of 1 eigenvalue is too large)"

    def test_c23_needs_every_run_to_reach_the_level(self):
        evidence = self.design(0.5, 0.5)
        evidence.runs("unfinished_training")["lr_0.1_wd_0"][0]["level"].pop()
        assert claims.judge("C23", evidence).word == "untestable here"

    @pytest.mark.parametrize(
        ("raw", "relative", "said"),
        [
            (2.0, 2.0, "holds"),
            (2.0, 1.0, "holds if raw lambda is meant"),
            (2.0, 0.5, "refuted"),
            (1.0, 1.0, "not supported"),
            (1.0, 2.0, "untestable here"),
        ],
    )
    def test_c24(self, raw, relative, said):
        def runs(factors):
            names = ("lambda_max", "adaptive_lambda_max")
            return [
                {
                    "level": [
                        {
                            n: {"value": f * (w if factors != (1, 1) else 1.0)}
                            for n, f in zip(names, factors, strict=True)
                        }
                    ]
                    * 5
                }
                for w in jitter(10)
            ]

        evidence = MadeUp(matched_loss={SHARP: runs((raw, relative)), ADAM: runs((1, 1))})
        if (raw, relative) == (1.0, 1.0):  # some spread, so that there is an interval
            for seed, run in evidence.runs("matched_loss")[SHARP].items():
                names = ("lambda_max", "adaptive_lambda_max")
                run |= exact(level(1 + 0.01 * seed, names))
        assert str(claims.judge("C24", evidence)) == said


class TestC28:
    def run(self, second_lambda, second_accuracy):
        rows = [(0, 300.0, 0.99), (1, 10.0, 0.70), (2, second_lambda, second_accuracy)]
        return {
            "checkpoints": [
                {"epoch": epoch, "lambda_max": {"value": value}, "test_accuracy": accuracy}
                for epoch, value, accuracy in rows
            ]
        }

    @pytest.mark.parametrize(
        ("value", "accuracy", "found"),
        [(15.0, 0.72, True), (14.9, 0.72, False), (15.0, 0.719, False), (5.0, 0.9, False)],
    )
    def test_both_are_asked_of_the_same_epoch(self, value, accuracy, found):
        assert claims.sharper_and_better(self.run(value, accuracy)["checkpoints"]) is found

    def test_four_runs_refute_and_three_wait(self):
        good, bad = self.run(20.0, 0.9), self.run(5.0, 0.9)
        four = MadeUp(unfinished_training={FLAT: [good] * 4})
        assert claims.judge("C28", four).word == "refuted"
        three = MadeUp(unfinished_training={FLAT: [good] * 3 + [bad] * 2})
        assert str(claims.judge("C28", three)) == "waits for 144 of 144 runs of validation_sweep"
        assert "2 of 5 long runs" in str(
            claims.judge("C28", MadeUp(unfinished_training={FLAT: [good] * 3}))
        )

    def test_runs_without_a_certificate_do_not_count(self):
        good, loose = (self.run(20.0, 0.9) for _ in range(2))
        loose["checkpoints"][2]["lambda_max"] |= {"residual": 0.3}  # 1.5 %, 1 % is allowed
        runs = [good] * 3 + [loose] * 2
        verdict = claims.judge("C28", MadeUp(unfinished_training={FLAT: runs}))
        assert verdict.word == "untestable here"
        assert verdict.effects["long runs with a sharper, better epoch"] == 3
        loose["checkpoints"][2]["lambda_max"] |= {"residual": 0.1}
        assert claims.judge("C28", MadeUp(unfinished_training={FLAT: runs})).word == "refuted"


class TestRescaling:
    def ends(self, lifted=300.0, logits=1e-6, accuracy=0.99, b5=1.0, halved=(1.0, 0.1)):
        start = {"lambda_max": {"value": halved[0]}, "test_accuracy": halved[1]}
        adam = {
            "halved_start": start,
            "adaptive_lambda_max": {"value": 1.0},
            "rescaled": {
                "lambda_max": {"value": lifted},
                "adaptive_lambda_max": {"value": b5},
                "logit_change": logits,
                "test_accuracy": accuracy,
            },
        }
        flat = {"halved_start": start, "lambda_max": {"value": 250.0}}
        return MadeUp(end_points={SHARP: [flat] * 10, FLAT: [flat] * 10, ADAM: [adam] * 10})

    @pytest.mark.parametrize(
        ("change", "c30", "c34"),
        [
            ({}, "refuted (the word necessary)", "holds"),
            ({"b5": 1.02}, "refuted (the word necessary)", "not supported"),
            ({"lifted": 248.0}, "refuted (the word necessary)", "refuted"),
            ({"accuracy": 0.97}, "holds", "holds"),
            ({"logits": 1e-3}, "holds", "refuted"),
            ({"logits": 1e-3, "halved": (7.0, 0.1)}, "untestable here", "refuted"),
        ],
    )
    def test_words(self, change, c30, c34):
        evidence = self.ends(**change)
        assert str(claims.judge("C30", evidence)) == c30
        assert str(claims.judge("C34", evidence)) == c34


def test_noise_slopes_are_slopes_of_logs():
    curvature = np.array([1.0, 2.0, 8.0])
    run = {"noise": {"curvature": curvature, "variance": 3 * curvature**1.5}}
    found = claims.noise_slopes(MadeUp(end_points={FLAT: [run]}))
    assert found[FLAT] == pytest.approx([1.5])
    assert found[ADAM] == []


def test_methods_that_disagree_are_named():
    def run(value):
        return {
            "power": {
                "power": {"value": value, "residual": 0.1},
                "lanczos": {"value": 5.0, "residual": 0.1},
            }
        }

    evidence = MadeUp(end_points={FLAT: [run(5.15), run(-5.0)]})
    assert claims.power_disagrees(evidence) == [f"{FLAT} seed 1"]
