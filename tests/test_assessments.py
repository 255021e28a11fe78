"""The experiment that assesses the three configurations."""

import dataclasses
import json

import pytest

import losslandscape as ll
from losslandscape.framework.assessment import verdict_of
from losslandscape.lab import records
from losslandscape.lab.experiments import assessments
from losslandscape.lab.models import cnn
from losslandscape.lab.training import RECIPES, Recipe, evaluate, fit

SETTINGS = assessments.Settings(
    channels=(2, 3), hidden=5, hessian_images=100, probes=4, level=0.5, fall=0.02
)


@pytest.fixture(scope="module")
def digits():
    return ll.load_dataset("digits")


def test_the_end_point_is_that_of_the_other_studies(digits):
    recipe = dataclasses.replace(RECIPES["Adam_Default"], epochs=2)
    result = assessments.measure(recipe, digits, 3, SETTINGS)
    model = cnn(digits, seed=3, channels=(2, 3), hidden=5)
    fit(model, recipe, digits, seed=3, progress=False, on_epoch=None)
    assert result["train_loss"] == pytest.approx(evaluate(model, digits)["train_loss"], rel=1e-5)
    assert result["stability"]["ratio"] > 0  # Adam's state is that of the run
    read = ll.Assessment.from_dict(json.loads(json.dumps(result, allow_nan=False)))
    assert read.verdict == "not-a-minimum"
    assert read.hessian_examples == 100
    assert read.to_dict() == result
    assert read.thresholds == ll.Thresholds(loss=0.5, fall=0.02)
    assert read.val_loss == pytest.approx(evaluate(model, digits)["test_loss"], rel=1e-5)
    assert read.measures["trace"].samples.shape == (32, 4)
    assert read.seconds == 0


def test_a_run_that_diverges_says_so(digits):
    with pytest.raises(FloatingPointError, match="training diverged"):
        assessments.measure(Recipe("wild", "sgd", lr=1e30, epochs=3), digits, 0, SETTINGS)


def test_committed_verdicts_follow_from_what_is_stored_beside_them():
    limits = assessments.Settings()
    for record in records.load_study("assessments"):
        read = ll.Assessment.from_dict(record.results)
        assert read.thresholds == ll.Thresholds(loss=limits.level, fall=limits.fall)
        word, _ = verdict_of(read.checks, read.stability, read.orbit, read.thresholds)
        assert read.verdict == word
