"""The numbers that prose pages quote, each taken from records and ledger when the book is built."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import losslandscape
from losslandscape.lab import records
from losslandscape.lab.experiments.validation import ARMS
from losslandscape.report import ledger
from losslandscape.report.rules import Evidence, Verdict
from losslandscape.report.sweep import load_sweep
from losslandscape.report.sweep_claims import C5_LEVEL
from losslandscape.report.tables import recorded, reported, show, show_spread, span

STUDY = "three_configurations"
SHORT = {"sharp": "Sharp_SGD_HighLR", "flat": "Flat_SGD_LowLR", "adam": "Adam_Default"}


def headline(root: Path | None = None) -> dict[str, str]:
    """Substitutions ``{{ ll_... }}`` for every page: name -> text.

    Numbers over seeds read ``median [smallest, largest]``, also ``ll_flat_fall``, by how much the
    polish lowers the training loss of Flat_SGD_LowLR (nats). ``ll_low_rate_factor``, by how much
    the low learning rate multiplies lambda_max (claim C23), has its interval in brackets.
    ``ll_sweep_said`` is a sentence: the four effects that decide claim C5, once there are any.

    Raises:
        RecordError: There are no records.
    """
    runs = recorded(STUDY, root)
    found = records.load_study(STUDY, root)
    if not found:
        raise records.RecordError(f"no records: run 'losslandscape study run {STUDY}'")
    paper = reported(root)["configurations"]
    seeds = min(len(of_one) for of_one in runs.values())
    numbers = {
        "ll_version": losslandscape.__version__,
        "ll_seeds": str(seeds),
        "ll_runs": str(len(found)),
        "ll_records_date": max(record.timing["finished"] for record in found)[:10],
        "ll_cpu_hours": f"{sum(record.timing['cpu_seconds'] for record in found) / 3600:.1f}",
    }
    for short, name in SHORT.items():
        numbers[f"ll_{short}_lambda"] = show_spread(runs[name], "lambda_max")
        numbers[f"ll_{short}_accuracy"] = show_spread(runs[name], "test_accuracy")
        numbers[f"ll_{short}_batch_lambda"] = show_spread(runs[name], "batch_lambda_max")
        numbers[f"ll_reported_{short}_lambda"] = f"{paper[name]['lambda_max']:g}"
        numbers[f"ll_reported_{short}_accuracy"] = f"{100 * paper[name]['test_accuracy']:.2f}"
        first = median(run["lambda_path"][0]["value"] for run in runs[name])
        numbers[f"ll_{short}_init_lambda"] = show("lambda_max", first)
    polished = [end["polish"] for end in recorded("end_points", root).get(SHORT["flat"], [])]
    numbers["ll_flat_fall"] = span([polish["fall"] for polish in polished], 2)
    verdicts = {
        row.verdict.claim: row.verdict
        for row in ledger.load((root or records.records_root()).parent)
    }
    effect = verdicts["C23"].effects["low learning rate"]  # of being flatter, on a log scale
    times = (-effect).exp()
    numbers["ll_low_rate_factor"] = f"{times.mean:.0f} [{times.low:.0f}, {times.high:.0f}]"
    numbers |= _sweep(root, verdicts["C5"])
    return numbers


def _sweep(root: Path | None, verdict: Verdict) -> dict[str, str]:
    """How many networks of SGD the sweep rests on, and what it says of sharpness and gap."""
    evidence = Evidence(root)
    arms = [load_sweep(evidence, arm) for arm in ARMS]
    asked = sum(arm.asked for arm in arms)
    there = asked - sum(arm.missing for arm in arms)
    shown = {
        (measure, arm): str(verdict.effects[name])
        for measure in ("lambda", "B5-lambda")
        for arm in ("clean", "noisy")
        if (name := f"Psi({measure}, gap), {arm} arm") in verdict.effects
    }
    if shown:
        raw, relative = (
            f"{shown[measure, 'clean']} with right and {shown[measure, 'noisy']} with partly wrong "
            "labels"
            for measure in ("lambda", "B5-lambda")
        )
        said = (
            "The rank correlation Ψ of sharpness with the gap, among networks that differ in one "
            f"factor only and on a scale from -1 to 1, is {raw} for λ_max; for normalised "
            f"sharpness it is {relative} ({100 * C5_LEVEL:g} % intervals, so that all four hold at "
            "once with 95 % or more)."
        )
    elif there == asked and verdict.word != "waits":
        said = f"The rule gives no numbers {verdict.condition}."
    else:
        said = "Nothing is computed from them before all runs are in that the test needs."
    runs = str(sum(map(len, arms))) if there == asked else f"{there} of {asked}"
    return {"ll_sweep_runs": runs, "ll_sweep_said": said}
