"""Rule P's second half: one recipe other than the default, the same for all rows of Table 1."""

from pathlib import Path

import pytest

from losslandscape.lab.experiments.reconstruction import CANDIDATES
from losslandscape.report import claims
from losslandscape.report.claims import DEFAULT_READING
from losslandscape.report.rules import ADAM, FLAT, ROWS, SHARP, Evidence

BOOK = Path(__file__).parent.parent / "book"
DECAY = f"{FLAT}_wd_0.001"  # of the Flat row
WOBBLE = (0.99, 1.01)


class MadeUp(Evidence):
    """Table 1 repeated with a wrong lambda_max, and a reconstruction in which some recipes fit.

    Args:
        good: Candidates that give the paper's numbers, after epoch 2 only.
        factor: What their ``lambda_max`` is the paper's multiplied by.
        seeds: Recorded runs per candidate; 5 for those not named.
        default: What ``lambda_max`` of the default recipe is multiplied by, by row.
    """

    def __init__(self, good=(), seeds=None, default=3.0, sharp=None, factor=1):
        super().__init__(BOOK / "records")
        factors = {name: default for name in ROWS} | ({SHARP: sharp} if sharp else {})
        self._studies = {
            "three_configurations": {
                name: {seed: self._whole(name, factors[name], seed) for seed in range(10)}
                for name in ROWS
            },
            "table1_reconstruction": {
                c.name: {
                    seed: {"epochs": [self._end(c.row, 3, seed), self._end(c.row, fits, seed)]}
                    for seed in range((seeds or {}).get(c.name, 5))
                }
                for c in CANDIDATES
                for fits in [factor if c.name in good else 3]
            },
        }

    def _end(self, row, factor, seed):
        numbers, wobble = self.paper["configurations"][row], WOBBLE[seed % 2]
        return {
            "test_accuracy": 1 - (1 - numbers["test_accuracy"]) * wobble,
            "test_loss": numbers["test_loss"] * wobble,
            "batch_lambda_max": [factor * numbers["lambda_max"] * wobble],
        }

    def _whole(self, row, factor, seed):
        end = self._end(row, factor, seed)
        return {"history": [end], "batch_lambda_max": {"64": end["batch_lambda_max"]}}


def words(evidence):
    return {str(claims.judge(claim, evidence)) for claim in ("C20", "C21", "C22")}


GOOD = tuple(f"{name}_16_raw" for name in (SHARP, DECAY, ADAM))
READING = claims.Reading(DECAY, 16, "raw", 2)


def test_no_recipe_fits():
    assert words(MadeUp()) == {"not supported"}


def test_a_row_that_holds_by_default_asks_for_no_recipe():
    evidence = MadeUp(sharp=1.0)
    assert claims.judge("C20", evidence).word == "holds"
    assert claims.judge("C21", evidence).word == "not supported"


def test_a_missing_run_waits():
    assert words(MadeUp(seeds={f"{ADAM}_32_raw": 4})) == {"waits for table1_reconstruction"}


def test_five_seeds_are_a_screen_only():
    said = "waits for 10 run seeds of the 1 recipe(s) that 5 leave possible"
    assert words(MadeUp(good=GOOD)) == {said}
    two_of_three = dict.fromkeys(GOOD[:2], 10)
    assert words(MadeUp(good=GOOD, seeds=two_of_three)) == {said}


def test_between_five_and_ten_seeds_nothing_is_given_up():
    """Six per cent off, in a scatter of one per cent: too little for five seeds to tell."""
    seven = MadeUp(good=GOOD, seeds=dict.fromkeys(GOOD, 7), factor=1.06)
    assert min(claims.readings(seven)[READING].values()) < claims.AGREES
    assert words(seven) == {"waits for 10 run seeds of the 1 recipe(s) that 5 leave possible"}
    ten = MadeUp(good=GOOD, seeds=dict.fromkeys(GOOD, 10), factor=1.06)
    assert words(ten) == {"not supported"}


def test_ten_seeds_confirm_and_the_recipe_is_named():
    evidence = MadeUp(good=GOOD, seeds=dict.fromkeys(GOOD, 10))
    said = f"holds if the recipe is {DECAY} with 16 and 32 channels, raw inputs, epoch 2"
    assert words(evidence) == {said}
    missing = {f"{SHARP}_32_raw": 0} | dict.fromkeys(GOOD, 10)
    assert words(MadeUp(good=GOOD, seeds=missing)) == {said}, "more runs cannot take it back"


def test_several_recipes_are_counted_and_what_they_share_is_named():
    inputs = ("raw", "standardised")
    both = tuple(f"{name}_16_{how}" for name in (SHARP, DECAY, ADAM) for how in inputs)
    evidence = MadeUp(good=both, seeds=dict.fromkeys(both, 10))
    assert words(evidence) == {
        f"holds if the recipe is one of 2 readings, each with {DECAY}, 16 and 32 channels, epoch 2"
    }


def test_readings_may_share_nothing(monkeypatch):
    other = claims.Reading(FLAT, 32, "standardised", 1)
    assert claims.in_common([READING, other]) == ""
    both = {READING: {"accuracy": 1.0}, other: {"accuracy": 1.0}}
    monkeypatch.setattr(claims, "readings", lambda evidence, **_: both)
    assert words(MadeUp()) == {"holds if the recipe is one of 2 readings"}


@pytest.mark.parametrize("other", [f"{ADAM}_16_standardised", f"{ADAM}_32_raw"])
def test_rows_may_not_fit_under_different_recipes(other):
    assert words(MadeUp(good=(*GOOD[:2], other))) == {"not supported"}


def test_the_default_is_no_other_recipe(monkeypatch):
    default = tuple(f"{name}_32_standardised" for name in ROWS)
    evidence = MadeUp(good=default, seeds=dict.fromkeys(default, 10))
    monkeypatch.setattr(claims, "DEFAULT_READING", DEFAULT_READING._replace(epochs=2))
    assert words(evidence) == {"not supported"}


def test_the_default_reading_is_among_the_readings():
    found = claims.readings(MadeUp())
    assert DEFAULT_READING._replace(epochs=2) in found
    assert len(found) == 3 * 2 * 2 * 2
    assert DEFAULT_READING.epochs == 5
