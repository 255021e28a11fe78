"""The registered tests of the paper's claims, evaluated on the records.

``book/claims.yml`` fixes statistic, threshold and rule of every claim; here they are code.
A claim whose runs are not all recorded gets the word ``waits``, whatever the runs at hand say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau

from losslandscape.lab.experiments.reconstruction import CANDIDATES
from losslandscape.lab.studies import find_study
from losslandscape.report import sweep_claims
from losslandscape.report.rules import (
    ADAM,
    FLAT,
    JUDGES,
    ROWS,
    SHARP,
    Evidence,
    Finding,
    Run,
    Seeds,
    Verdict,
    common,
    interval_rule,
    judges,
    mean_log,
    uncertified,
)
from losslandscape.report.statistics import Interval, predict_run, t_interval


def prediction_rule(
    numbers: Mapping[str, float],
    accuracies: Sequence[float],
    losses: Sequence[float],
    sharpness: Sequence[float],
) -> dict[str, float]:
    """Rule P: p of a row's reported accuracy, loss and lambda_max, each on its registered scale."""
    return {
        "accuracy": predict_run(accuracies, "logit").p_value(numbers["test_accuracy"]),
        "loss": predict_run(losses, "log").p_value(numbers["test_loss"]),
        "lambda": predict_run(sharpness, "log").p_value(numbers["lambda_max"]),
    }


AGREES = 0.05 / 9  # smallest p of rule P


def judge(claim: str, evidence: Evidence | None = None) -> Verdict:
    """The verdict of a claim by its registered rule, on the records at hand.

    Raises:
        KeyError: The claim is not decided by records alone.
    """
    return JUDGES[claim](evidence or Evidence())


@judges("C2", "end_points")
def c2(evidence: Evidence, seeds: Seeds) -> Finding:
    """The reported minima are minima: nothing is left to gain by training on."""
    passed = _polish_passes(seeds)
    good = [name for name, count in passed.items() if count >= 8]
    effects = {f"runs of {name} that pass": count for name, count in passed.items()}
    if len(good) == len(ROWS):
        return "holds", "", effects
    if good:
        return "holds if", "the row is " + " or ".join(good), effects
    if all(count <= 2 for count in passed.values()):
        return "refuted", "", effects
    return "untestable here", "", effects


@judges("C26", "end_points")
def c26(evidence: Evidence, seeds: Seeds) -> Finding:
    """The low learning rate ended in a minimum."""
    count = _polish_passes(seeds)[FLAT]
    word = "holds" if count >= 8 else "refuted" if count <= 2 else "untestable here"
    return word, "", {"Flat end points that pass": count}


def _polish_passes(seeds: Seeds) -> dict[str, int]:
    """Per row, the end points whose training loss falls by less than .02 nats in the polish."""
    return {
        name: sum(row[place]["polish"]["fall"] < 0.02 for row in seeds)
        for place, name in enumerate(ROWS)
    }


@judges("C17", "end_points")
def c17(evidence: Evidence, seeds: Seeds) -> Finding:
    """Power iteration is within 1 % after 50 products."""
    quick = {
        method: sum(
            (run["power"][method]["within_percent"] or math.inf) <= 50
            for row in seeds
            for run in row
        )
        for method in ("power", "lanczos")
    }
    ends = 3 * len(seeds)
    effects = {f"{method}: end points within 50 products": n for method, n in quick.items()}
    effects["end points"] = ends
    if quick["power"] >= 27:
        return "holds", "", effects
    if quick["lanczos"] >= 27:
        return "holds if", "Lanczos is used", effects
    return "not supported", "", effects


@judges("C18", "three_configurations", certified={"lambda_max": 1e-3})
def c18(evidence: Evidence, seeds: Seeds) -> Finding:
    """Single batches do not overstate lambda_max."""
    effects = {
        name: t_interval(
            mean(row[place]["batch_lambda_max"]["64"]) / row[place]["lambda_max"]["value"]
            for row in seeds
        )
        for place, name in enumerate(ROWS)
    }
    if any(effect.low > 1.1 for effect in effects.values()):
        return "holds if", "full data and a fixed parametrisation are used", effects
    return "holds", "", effects


def _prediction(claim: str, name: str) -> None:
    """C20, C21 and C22: rule P, first under the default recipe, then under one other for all."""

    @judges(claim, "three_configurations")
    def rule(evidence: Evidence, seeds: Seeds) -> Finding:
        place = ROWS.index(name)
        ends = [row[place]["history"][-1] for row in seeds]
        found = prediction_rule(
            evidence.paper["configurations"][name],
            [end["test_accuracy"] for end in ends],
            [end["test_loss"] for end in ends],
            [row[place]["batch_lambda_max"]["64"][0] for row in seeds],
        )
        effects = {f"p of {quantity}": p for quantity, p in found.items()}
        if min(found.values()) >= AGREES:
            return "holds", "", effects
        return *_other_recipe(evidence), effects


def _other_recipe(evidence: Evidence) -> tuple[str, str]:
    """The second half of rule P: one recipe other than the default that fits all three rows.

    Five run seeds screen all candidates; only a recipe that ten run seeds confirm lets a row hold.
    """
    ten = readings(evidence, seeds=10)
    confirmed = _fitting(ten)
    if len(confirmed) == 1:
        return "holds if", f"the recipe is {next(iter(confirmed))}"
    if confirmed:
        shared = in_common(confirmed)
        each = f", each with {shared}" if shared else ""
        return "holds if", f"the recipe is one of {len(confirmed)} readings{each}"
    runs = evidence.runs("table1_reconstruction")
    if any(len(runs.get(candidate.name, {})) < 5 for candidate in CANDIDATES):
        return "waits", "for table1_reconstruction"
    left = _fitting(readings(evidence, most=5)) - set(ten)
    if left:
        return "waits", f"for 10 run seeds of the {len(left)} recipe(s) that 5 leave possible"
    return "not supported", ""


def _fitting(found: Mapping[Reading, Mapping[str, float]]) -> set[Reading]:
    """The readings other than the default under which all nine numbers agree."""
    return {
        reading
        for reading, p in found.items()
        if reading != DEFAULT_READING and min(p.values()) >= AGREES
    }


for _claim, _row in zip(("C20", "C21", "C22"), ROWS, strict=True):
    _prediction(_claim, _row)


class Reading(NamedTuple):
    """One recipe for all three rows of Table 1; it prints as words.

    Attributes:
        flat: Configuration of the Flat row, the only row with more than one.
        channels: Of the first convolution; the second has twice as many.
        inputs: ``standardised`` or ``raw``.
        epochs: After so many epochs the numbers are taken.
    """

    flat: str
    channels: int
    inputs: str
    epochs: int

    def parts(self) -> tuple[str, ...]:
        """The four choices in words."""
        return (
            self.flat,
            f"{self.channels} and {2 * self.channels} channels",
            f"{self.inputs} inputs",
            f"epoch {self.epochs}",
        )

    def __str__(self) -> str:
        flat, *rest = self.parts()
        return f"{flat} with {', '.join(rest)}"


def in_common(found: Collection[Reading]) -> str:
    """The choices that all of several readings share, in words.

    Example:
        >>> in_common([DEFAULT_READING, DEFAULT_READING._replace(inputs="raw", epochs=4)])
        'Flat_SGD_LowLR, 32 and 64 channels'
    """
    columns = zip(*(reading.parts() for reading in found), strict=True)
    return ", ".join(column[0] for column in columns if len(set(column)) == 1)


DEFAULT_READING = Reading(FLAT, 32, "standardised", 5)


def readings(
    evidence: Evidence, seeds: int = 2, most: int | None = None
) -> dict[Reading, dict[str, float]]:
    """Rule P for every reading of the paper: one recipe for all three rows.

    Args:
        evidence: The recorded runs.
        seeds: Readings of which a row has fewer recorded runs are left out.
        most: Only so many of the first run seeds count.

    Returns:
        The nine p values of each reading, by row and number.
    """
    runs = evidence.runs("table1_reconstruction")
    found = {}
    for flat in sorted({c.name.rsplit("_", 2)[0] for c in CANDIDATES if c.row == FLAT}):
        for channels, inputs in product((32, 16), ("standardised", "raw")):
            rows = {
                name: [run for _, run in sorted(of_row.items())][:most]
                for name, reading in ((SHARP, SHARP), (FLAT, flat), (ADAM, ADAM))
                for of_row in [runs.get(f"{reading}_{channels}_{inputs}", {})]
            }
            if min(map(len, rows.values())) < max(seeds, 2):
                continue
            for epoch in range(len(rows[FLAT][0]["epochs"])):
                found[Reading(flat, channels, inputs, epoch + 1)] = {
                    f"{name} {quantity}": p
                    for name, of_row in rows.items()
                    for quantity, p in _agreement(evidence, name, of_row, epoch).items()
                }
    return found


def _agreement(evidence: Evidence, name: str, runs: Sequence[Run], epoch: int) -> dict[str, float]:
    ends = [run["epochs"][epoch] for run in runs]
    return prediction_rule(
        evidence.paper["configurations"][name],
        [end["test_accuracy"] for end in ends],
        [end["test_loss"] for end in ends],
        [end["batch_lambda_max"][0] for end in ends],
    )


DESIGN = ("Flat_SGD_LowLR", "lr_0.001_wd_0", "lr_0.1_wd_0.01", "lr_0.1_wd_0")


@judges("C23", "unfinished_training", DESIGN, certified={"lambda_max": 1e-2})
def c23(evidence: Evidence, seeds: Seeds) -> Finding:
    """A low learning rate and a high weight decay make a network flatter, at equal loss."""
    if any(len(cell["level"]) < 5 for row in seeds for cell in row):
        return "untestable here", "(a run never came to the common training loss)", {}
    effects = design_effects(seeds, checkpoints=5)
    return *_two_effects(effects, math.log(1.5)), effects


def design_effects(seeds: Seeds, *, checkpoints: int) -> dict[str, Interval]:
    """The two effects of C23: how much flatter a low rate, and a high decay, make the network."""
    logs = np.array(
        [[mean_log(cell["level"][:checkpoints], "lambda_max") for cell in row] for row in seeds]
    )
    low_decayed, low, high_decayed, high = logs.T
    return {
        "low learning rate": t_interval(((high_decayed - low_decayed) + (high - low)) / 2),
        "weight decay": t_interval(((low - low_decayed) + (high - high_decayed)) / 2),
    }


@judges(
    "C24",
    "matched_loss",
    (SHARP, ADAM),
    certified={"lambda_max": 1e-2, "adaptive_lambda_max": 1e-2},
)
def c24(evidence: Evidence, seeds: Seeds) -> Finding:
    """Adam is flatter than plain SGD, at equal loss."""
    if any(len(run["level"]) < 5 for row in seeds for run in row):
        return "untestable here", "(a run never came to the common training loss)", {}
    effects = {
        name: t_interval(
            mean_log(sharp["level"], name) - mean_log(adam["level"], name) for sharp, adam in seeds
        )
        for name in ("lambda_max", "adaptive_lambda_max")
    }
    raw, relative = (interval_rule(effect, math.log(1.5)) for effect in effects.values())
    if "refuted" in (raw, relative):
        return "refuted", "", effects
    if raw == relative:
        return raw, "", effects
    if raw == "holds":
        return "holds if", "raw lambda is meant", effects
    return "untestable here", "", effects


def _two_effects(effects: Mapping[str, Interval], threshold: float) -> tuple[str, str]:
    """Either refuted: refuted; both hold; one holds: if that one; else by rule I."""
    words = {name: interval_rule(effect, threshold) for name, effect in effects.items()}
    holding = [name for name, word in words.items() if word == "holds"]
    if "refuted" in words.values():
        return "refuted", ""
    if len(holding) == len(words):
        return "holds", ""
    if holding:
        return "holds if", "only " + " and ".join(holding) + " is meant"
    return common(list(words.values())), ""


@judges("C25", "three_configurations")
def c25(evidence: Evidence, seeds: Seeds) -> Finding:
    """The sharpest configuration has the largest gap."""

    def gap(run: Mapping[str, Any]) -> float:
        end = run["history"][-1]
        return float(end["test_loss"] - end["train_loss"])

    effect = t_interval(gap(flat) - (gap(sharp) + gap(adam)) / 2 for sharp, flat, adam in seeds)
    return interval_rule(effect, 0.0), "", {"gap of Flat minus the others": effect}


def c27(evidence: Evidence) -> Verdict:
    """In Table 1 itself, sharpness and test error are not in the same order."""
    rows = [evidence.paper["configurations"][name] for name in ROWS]
    tau = kendalltau(
        [row["lambda_max"] for row in rows], [1 - row["test_accuracy"] for row in rows]
    ).statistic
    word = "holds" if tau <= 1 / 3 + 1e-12 else "refuted"
    condition = "" if word == "holds" else "on its own data"
    return Verdict("C27", word, condition, {"tau": float(tau)})


JUDGES["C27"] = c27


def c28(evidence: Evidence) -> Verdict:
    """Within one run, sharper is worse."""
    runs = evidence.runs("unfinished_training").get(FLAT, {})
    asked = len(find_study("unfinished_training").seeds)
    tolerance = {"lambda_max": 1e-2}
    count = sum(
        sharper_and_better(run["checkpoints"])
        for run in runs.values()
        if not uncertified([run], tolerance)
    )
    effects = {"long runs with a sharper, better epoch": count, "long runs": len(runs)}
    if count >= 4:  # further runs cannot take it back
        return Verdict("C28", "refuted", "", effects)
    if len(runs) < asked:
        missing = f"for {asked - len(runs)} of {asked} long runs of unfinished_training"
        return Verdict("C28", "waits", missing, effects)
    loose = uncertified(runs.values(), tolerance)
    if loose:
        return Verdict("C28", "untestable here", loose, effects)
    return sweep_claims.c28_given_loss(evidence, effects)


JUDGES["C28"] = c28


def sharper_and_better(checkpoints: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one epoch of a run is 1.5 times as sharp as another and two points more accurate."""
    ends = [row for row in checkpoints if row["epoch"] >= 1]
    return any(
        one["lambda_max"]["value"] >= 1.5 * other["lambda_max"]["value"]
        and one["test_accuracy"] >= other["test_accuracy"] + 0.02
        for one in ends
        for other in ends
    )


@judges("C30", "end_points", certified={"lambda_max": 1e-3})
def c30(evidence: Evidence, seeds: Seeds) -> Finding:
    """Flat is necessary, and not sufficient, for accurate."""
    lifted = [row[ROWS.index(ADAM)]["rescaled"] for row in seeds]
    necessary = sum(
        end["logit_change"] <= 1e-4
        and end["test_accuracy"] >= 0.98
        and end["lambda_max"]["value"] > 246
        for end in lifted
    )
    starts = [row[0]["halved_start"] for row in seeds]
    sufficient = sum(
        start["lambda_max"]["value"] <= 6.26 and start["test_accuracy"] < 0.2 for start in starts
    )
    effects = {"sharp and accurate": necessary, "flat and useless": sufficient}
    if necessary == len(seeds):
        return "refuted", "(the word necessary)", effects
    if sufficient == len(seeds):
        return "holds", "", effects
    return "untestable here", "", effects


@judges(
    "C34",
    "end_points",
    (FLAT, ADAM),
    certified={"lambda_max": 1e-3, "adaptive_lambda_max": 1e-2},
)
def c34(evidence: Evidence, seeds: Seeds) -> Finding:
    """A rescaling reverses the order of lambda_max and leaves B5-lambda alone."""
    above = sum(
        adam["rescaled"]["lambda_max"]["value"] > flat["lambda_max"]["value"]
        and adam["rescaled"]["logit_change"] <= 1e-4
        for flat, adam in seeds
    )
    change = max(
        abs(
            adam["rescaled"]["adaptive_lambda_max"]["value"] / adam["adaptive_lambda_max"]["value"]
            - 1
        )
        for _, adam in seeds
    )
    effects = {"Adam lifted above Flat": above, "largest change of B5-lambda": change}
    if above < len(seeds):
        return "refuted", "", effects
    return ("holds" if change <= 0.01 else "not supported"), "", effects


def power_disagrees(evidence: Evidence) -> list[str]:
    """End points of C16 (c) at which power iteration and Lanczos found different eigenvalues."""
    return [
        f"{name} seed {seed}"
        for name, runs in evidence.runs("end_points").items()
        for seed, run in runs.items()
        if abs(run["power"]["power"]["value"] - run["power"]["lanczos"]["value"])
        > run["power"]["power"]["residual"] + run["power"]["lanczos"]["residual"]
    ]


def climb_ratios(evidence: Evidence) -> dict[str, list[list[float]]]:
    """Statistic r of C8 per row, run and radius: the rise found over ``eps**2 lambda / 2``."""
    return {
        name: [
            [
                max(rises) / (radius**2 * run["lambda_max"]["value"] / 2)
                for radius, rises in zip(run["radii"], run["rises"], strict=True)
            ]
            for run in evidence.runs("climbs").get(name, {}).values()
        ]
        for name in ROWS
    }


def noise_slopes(evidence: Evidence) -> dict[str, list[float]]:
    """Slope b of C12, of ln c_k on ln lambda_k, per row and run of ``end_points``."""
    return {
        name: [
            float(
                np.polyfit(np.log(run["noise"]["curvature"]), np.log(run["noise"]["variance"]), 1)[
                    0
                ]
            )
            for run in evidence.runs("end_points").get(name, {}).values()
        ]
        for name in ROWS
    }
