"""Tables, headline numbers, figures and the landing picture, on records made up for the purpose."""

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from losslandscape.lab import records
from losslandscape.lab.records import Record
from losslandscape.report import figures, headline, picture, tables
from losslandscape.report.rules import Verdict
from losslandscape.report.statistics import predict_run
from losslandscape.report.sweep import Sweep

BOOK = Path(__file__).parent.parent / "book"
NAMES = list(figures.style.CONFIGURATIONS)


def results(shift):
    """A made-up run whose numbers tell which seed they are of."""
    return {
        "history": [
            {
                "epoch": epoch,
                "train_loss": 0.5 / epoch,
                "train_accuracy": 0.9,
                "test_loss": 0.4 / epoch + shift,
                "test_accuracy": 0.9 + 0.01 * shift + 0.01 * epoch,
                "grad_norm": 0.1,
            }
            for epoch in (1, 2)
        ],
        "lambda_path": [
            {"epoch": epoch, "value": 2.0 + epoch + shift, "residual": 1e-3, "converged": True}
            for epoch in (0, 1, 2)
        ],
        "lambda_max": {"value": 5.0 + shift, "residual": 1e-3, "converged": True, "images": 9},
        "batch_lambda_max": {"64": [6.0 + shift, 10.0 + shift, 14.0 + shift]},
    }


@pytest.fixture
def root(tmp_path):
    """A book folder with three made-up runs per configuration."""
    for name in ("reported.yml", "claims.yml", "verdicts.json"):
        shutil.copy(BOOK / name, tmp_path)
    for name in NAMES:
        for seed in range(3):
            record = Record(
                study=headline.STUDY,
                configuration=name,
                seed=seed,
                fingerprint="f",
                recipe={},
                settings={},
                dataset={},
                environment={},
                timing={"finished": f"2026-11-2{seed}T10:00:00+00:00", "cpu_seconds": 400.0},
                results=results(seed),
            )
            records.save(record, tmp_path / "records" / headline.STUDY)
            end = {"polish": {"fall": 0.25 + seed / 10}}
            end_point = replace(record, study="end_points", results=end)
            records.save(end_point, tmp_path / "records" / "end_points")
    return tmp_path / "records"


def test_reported_is_the_papers_table():
    rows = tables.reported(BOOK / "records")["configurations"]
    printed = {name: tuple(row.values()) for name, row in rows.items()}
    assert printed == {
        "Sharp_SGD_HighLR": (0.9814, 0.0573, 9.14),
        "Flat_SGD_LowLR": (0.9172, 0.2753, 246.19),
        "Adam_Default": (0.9890, 0.0357, 6.26),
    }


def test_spread_is_median_and_range(root):
    runs = tables.recorded(headline.STUDY, root)["Adam_Default"]
    assert tables.spread(runs, "lambda_max") == (6.0, 5.0, 7.0)
    assert tables.spread(runs, "test_loss") == pytest.approx((1.2, 0.2, 2.2))
    assert tables.spread(runs, "batch_lambda_max") == (11.0, 6.0, 16.0)
    assert tables.show_spread(runs, "lambda_max") == "6.00 [5.00, 7.00]"
    assert tables.show_spread(runs[:1], "lambda_max") == "5.00"


def test_table1_puts_each_number_in_its_column(root):
    runs = tables.recorded(headline.STUDY, root)
    live = {name: [results(0.5)] for name in NAMES}
    table = tables.table1(tables.reported(root), runs, live)
    assert list(table.columns) == ["reported", "recorded", "lies at", "live"]
    assert len(table) == 12
    law = predict_run([5.0, 6.0, 7.0], "log")
    low, high = law.interval()
    row = table.loc[("Flat_SGD_LowLR", tables.QUANTITIES["lambda_max"])]
    above = tables.show_percentile(100)
    assert row.tolist() == ["246.19", f"6.00 [{low:#.3g}, {high:#.3g}]", above, "5.50"]
    assert above.split() == [">", "99", "%"]
    row = table.loc[("Adam_Default", tables.QUANTITIES["test_accuracy"])]
    assert row["reported"] == "98.90"
    assert row["recorded"].startswith("93.00 [")
    assert row["live"] == "92.50"
    row = table.loc[("Sharp_SGD_HighLR", tables.QUANTITIES["batch_lambda_max"])]
    assert row["lies at"].split() == ["33", "%"]  # batches 6, 7 and 8 of 9 lie below 9.14


def test_headline_takes_every_number_from_the_records(root):
    numbers = headline.headline(root)
    assert numbers["ll_seeds"] == "3"
    assert numbers["ll_runs"] == "9"
    assert numbers["ll_records_date"] == "2026-11-22"
    assert numbers["ll_cpu_hours"] == "1.0"
    assert numbers["ll_flat_lambda"] == "6.00 [5.00, 7.00]"
    assert numbers["ll_flat_init_lambda"] == "3.00"
    assert numbers["ll_reported_flat_lambda"] == "246.19"
    assert numbers["ll_low_rate_factor"] == "15 [13, 18]"
    assert numbers["ll_flat_fall"] == "0.35 [0.25, 0.45]"
    assert numbers["ll_sweep_runs"] == "0 of 288"
    assert all(isinstance(text, str) and text for text in numbers.values())


def test_headline_of_the_sweep_says_which_effect_is_which(root, monkeypatch):
    path = root.parent / "verdicts.json"
    content = records.read(path)
    content["verdicts"]["C5"]["effects"] = {}
    records.write(content, path)
    assert headline.headline(root)["ll_sweep_said"].startswith("Nothing is computed")
    without = Verdict(
        "C5", "untestable here", "(the residual of lambda_max of 1 runs is too large)"
    )
    monkeypatch.setattr(headline, "load_sweep", lambda *_: Sweep({"seed": np.zeros(3)}, asked=3))
    found = headline._sweep(root, without)
    assert found["ll_sweep_runs"] == "6"
    assert found["ll_sweep_said"] == f"The rule gives no numbers {without.condition}."
    stale = headline._sweep(root, Verdict("C5", "waits", "for 1 of 6 runs"))
    assert stale["ll_sweep_said"].startswith("Nothing is computed")
    content["verdicts"]["C5"]["effects"] = {
        f"Psi({measure}, gap), {arm} arm": {"mean": mean, "low": -1.0, "high": 1.0, "count": 72}
        for (measure, arm), mean in zip(
            product(("lambda", "B5-lambda"), ("clean", "noisy")), (0.1, 0.2, 0.3, 0.4), strict=True
        )
    }
    records.write(content, path)
    said = headline.headline(root)["ll_sweep_said"]
    places = [
        said.index(words)
        for words in ("0.10 [-1.00, 1.00] with right", "0.20", "λ_max", "0.30", "0.40")
    ]
    assert places == sorted(places)


def test_every_figure_draws_every_run(root):
    runs, paper = tables.recorded(headline.STUDY, root), tables.reported(root)
    drawn = figures.training.sharpness_path(runs, paper)
    (axes,) = drawn.axes
    heights = sorted(max(line.get_ydata()) for line in axes.lines)
    assert heights == sorted([4.0, 5.0, 6.0] * 3 + [9.14, 246.19, 6.26])
    for figure in (
        figures.training.curves(runs),
        figures.training.batch_sharpness(runs, paper),
        figures.training.landing(runs, paper),
    ):
        assert isinstance(figure, Figure)
        assert figure.get_figwidth() == 5.0
        figure.draw_without_rendering()


def test_negative_curvature_is_taken_where_both_ends_were_measured():
    runs = {0: results(0), 1: results(1), 2: results(2)}
    path = [{"epoch": epoch, "value": -1.0 - epoch} for epoch in (0, 2)]
    ends = {1: {"lambda_min_path": path}, 2: {"lambda_min_path": path[1:]}, 9: {}}
    assert tables.negative_share(runs, ends) == [([0, 2], [1 / 3, 3 / 5])]
    shown = figures.training.stationarity(
        {name: [results(0)] for name in NAMES},
        {name: tables.negative_share(runs, ends) for name in NAMES},
    )
    assert [len(axes.lines) for axes in shown.axes] == [3, 3]
    assert list(shown.axes[1].lines[0].get_ydata()) == [1 / 3, 3 / 5]


def test_the_picture_knows_what_it_was_drawn_from(root, tmp_path):
    path = tmp_path / "landing.png"
    assert not picture.is_fresh(path, root)
    picture.draw(path, root)
    assert picture.is_fresh(path, root)
    record = root / headline.STUDY / "Adam_Default-seed0.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content))  # the same numbers in other bytes
    assert not picture.is_fresh(path, root)


def test_the_committed_picture_is_fresh():
    path = BOOK / "figures" / "landing.png"
    assert picture.is_fresh(path, BOOK / "records"), "run: make notebooks"


def test_the_rises_of_single_runs_are_drawn_beside_their_median():
    eps = np.array([0.01, 0.1])
    whole = figures.trust_region.RadiusCurves(
        eps, [3.0, 1.5], [2.0, 0.2], eps, [3.5, 2.0], [3.0, 1.2], (0.02, 0.2)
    )
    recorded = replace(whole, sam=None, window=(0.02, None), runs=[[3.0, 2.0], [4.0, 2.5]])
    above, below = figures.trust_region.radii({"whole": whole, "recorded": recorded}).axes
    heights = {tuple(line.get_ydata()) for line in below.lines}
    assert {(3.0, 2.0), (4.0, 2.5), (3.5, 2.0)} <= heights
    assert "loss, SAM's step" in {line.get_label() for line in above.lines}
    assert "loss, SAM's step" not in {line.get_label() for line in below.lines}
    ends = [sorted(line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"
                   and list(line.get_ydata()) == [0, 1]) for axis in (above, below)]  # fmt: skip
    assert ends == [[0.02, 0.2], [0.02]]
