"""Recorded runs repeated: what is compared, how far a number may move, and what the page says."""

import dataclasses
import io
import json
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from test_studies import tiny_study

from losslandscape.lab import diffs, records, studies
from losslandscape.lab.records import Record
from losslandscape.lab.runs import StudyError
from losslandscape.report import diffs as report

ROOT = Path(__file__).parents[1]
FLOOR = float(np.finfo("float32").eps) ** 0.5
# Student's 99.5 % quantile with two degrees of freedom is 0.99 sqrt(2 / (1 - 0.99^2)).
APART = 0.99 * (2 / (1 - 0.99**2)) ** 0.5 * 2**0.5


def record(seed, loss=1.0, top=10.0, residual=0.0, fingerprint="f", configuration="a"):
    """A made-up record of one epoch."""
    return Record(
        study="tiny",
        configuration=configuration,
        seed=seed,
        fingerprint=fingerprint,
        recipe={},
        settings={},
        dataset={},
        environment={"threads": 1},
        timing={},
        results={
            "history": [{"epoch": 1, "train_loss": loss}],
            "lambda_path": [{"epoch": 1, "value": top, "residual": residual, "products": 5}],
        },
    )


def study_that_gives(**numbers):
    """A study whose runs are quick and known."""
    return dataclasses.replace(
        tiny_study(), repeat=None, experiment=lambda *_: record(0, **numbers).results
    )


def test_numbers_go_by_list_name_and_place():
    results = {
        "checkpoints": [
            {"step": 50, "epoch": 0.5, "train_loss": 1.0, "lambda_max": {"value": 2.0, "images": 9}}
        ],
        "level": [{"step": 50, "train_loss": 3.0, "polish": {"fall": 0.5, "both": [1.0, 2.0]}}],
        "ends": {"b": {"train_loss": 6.0, "converged": True}},
        "lambda_path": [{"epoch": 3, "value": 4.0, "residual": 0.25, "converged": True}],
        "lambda_max": {"value": 5.0},
        "batch_lambda_max": {"64": [1.0, 2.0]},
    }
    assert dict(diffs.numbers(results)) == {
        ("checkpoints", "step", "step 50"): diffs.Number(50),
        ("checkpoints", "epoch", "step 50"): diffs.Number(0.5),
        ("checkpoints", "train_loss", "step 50"): diffs.Number(1.0),
        ("checkpoints", "lambda_max", "step 50"): diffs.Number(2.0),
        ("level", "step", "step 50"): diffs.Number(50),
        ("level", "train_loss", "step 50"): diffs.Number(3.0),
        ("level", "fall", "step 50, polish"): diffs.Number(0.5),
        ("", "train_loss", "ends, b"): diffs.Number(6.0),
        ("lambda_path", "lambda_max", "epoch 3"): diffs.Number(4.0, 0.25),
        ("", "lambda_max", ""): diffs.Number(5.0),
    }


class TestTolerance:
    def test_it_is_what_seeds_lie_apart_plus_the_two_floors(self):
        recorded = [
            record(s, loss, top, 0.5) for s, loss, top in ((0, 1, 9), (1, 4, 10), (2, 2, 14))
        ]
        rows = diffs.repeat(study_that_gives(), recorded[0], recorded)
        assert [(row.quantity, row.seeds) for row in rows] == [("train_loss", 3), ("lambda_max", 3)]
        loss, top = rows
        assert loss.tolerance == pytest.approx(APART * statistics.stdev([1, 4, 2]) + FLOOR * 1)
        assert top.tolerance == pytest.approx(
            APART * statistics.stdev([9, 10, 14]) + FLOOR * 9 + 2 * 0.5
        )

    @pytest.mark.parametrize(
        "others",
        [
            [record(1, 5.0)],
            [record(1, 5.0), record(2, 3.0, fingerprint="old")],
            [record(1, 5.0), record(2, 3.0, configuration="b")],
        ],
    )
    def test_with_fewer_than_three_seeds_of_the_same_run_it_is_declared(self, others):
        first = record(0, loss=2.0)
        loss, top = diffs.repeat(study_that_gives(), first, [first, *others])
        assert (loss.tolerance, loss.seeds) == (pytest.approx(0.02 * 2.0), 0)
        assert (top.tolerance, top.seeds) == (pytest.approx(0.05 * 10.0), 0)

    def test_seeds_that_agree_leave_the_floor(self):
        recorded = [record(seed, loss=8.0) for seed in range(5)]
        loss = diffs.repeat(study_that_gives(loss=8.0), recorded[0], recorded)[0]
        assert loss.tolerance == pytest.approx(8.0 * FLOOR)
        assert loss.outcome == "same"

    @pytest.mark.parametrize(
        ("moved", "outcome"),
        [(0, "same"), (14, "within"), (-14, "within"), (14.1, "outside")],
    )
    def test_outcomes(self, moved, outcome):
        recorded = [record(seed, loss) for seed, loss in enumerate((1.0, 2.0, 3.0))]
        rows = diffs.repeat(study_that_gives(loss=2.0 + moved), recorded[1], recorded)
        assert rows[0].outcome == outcome

    @pytest.mark.parametrize("fresh", [None, float("nan"), float("inf")])
    def test_no_number_lies_outside(self, fresh):
        assert diffs.Difference("train_loss", "", 1.0, fresh, 9.0, 0.5, 3).outcome == "outside"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The records of a small study that has been run."""
    root = tmp_path_factory.mktemp("records")
    studies.run_study(tiny_study(seeds=3), root)
    return records.load_study("tiny", root)


class TestRepeat:
    def test_a_repeated_run_is_the_same_to_the_last_bit(self, recorded):
        rows = diffs.repeat(tiny_study(), recorded[0], recorded)
        assert {row.outcome for row in rows} == {"same"}
        assert len(rows) == 2 * 5 + 2
        assert {row.seeds for row in rows} == {3}

    def test_a_part_of_it_too(self, recorded):
        rows = diffs.repeat(tiny_study(), recorded[0], recorded, epochs=1)
        assert {row.outcome for row in rows} == {"same"}
        assert {row.place for row in rows} == {"epoch 0", "epoch 1"}

    def test_a_part_is_not_compared_with_the_end_of_the_run(self, recorded):
        def experiment(recipe, *_):
            one = record(0).results
            return {**one, "lambda_max": {"value": float(recipe.epochs)}, "a": {"test_loss": 1.0}}

        study = dataclasses.replace(tiny_study(), repeat=None, experiment=experiment)
        item = dataclasses.replace(
            recorded[0], results=experiment(study.recipe("a"), None), configuration="a"
        )
        assert {row.place for row in diffs.repeat(study, item, [], epochs=1)} == {"epoch 1"}
        for part in ({}, {"epochs": 2}):
            rows = diffs.repeat(study, item, [], **part)
            assert {row.place for row in rows} == {"epoch 1", "", "a"}

    def test_another_seed_is_not_taken_for_a_repetition(self, recorded):
        other = dataclasses.replace(recorded[0], seed=7)
        rows = diffs.repeat(tiny_study(), other, recorded)
        losses = [row for row in rows if row.quantity.endswith("_loss")]
        assert len(losses) == 4
        assert all(row.outcome != "same" for row in losses)
        # What the tolerance is made for: another seed lies within it.
        assert all(row.outcome != "outside" for row in rows)

    def test_it_takes_as_many_threads_as_the_record(self, recorded):
        import torch

        seen = []
        study = study_that_gives()
        noting = dataclasses.replace(
            study,
            experiment=lambda *arguments: (
                seen.append(torch.get_num_threads()) or study.experiment(*arguments)
            ),
        )
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            diffs.repeat(noting, record(0), [])
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)
        assert seen == [1]

    def test_a_whole_run_that_ends_early_lies_outside(self):
        first = record(0)
        first.results["history"].append({"epoch": 2, "train_loss": 0.5})
        late = next(
            row for row in diffs.repeat(study_that_gives(), first, []) if row.place == "epoch 2"
        )
        assert (late.fresh, late.outcome) == (None, "outside")

    def test_what_only_the_whole_experiment_measures_is_left_out(self):
        first = record(0)
        first.results["lambda_max"] = {"value": 3.0}
        assert len(diffs.repeat(study_that_gives(), first, [])) == 2

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            ({"epochs": 0}, "epochs must lie between 1 and 2, got 0"),
            ({"epochs": 3}, "epochs must lie between 1 and 2, got 3"),
            ({"steps": 5}, "a has no steps to shorten"),
        ],
    )
    def test_a_part_that_is_not_there(self, recorded, part, message):
        with pytest.raises(StudyError, match=message):
            diffs.repeat(tiny_study(), recorded[0], recorded, **part)


def test_the_cheap_part_is_one_epoch_or_a_hundred_steps():
    steps = studies.EDGE_RECIPES[0]
    assert diffs.cheap_part(tiny_study().recipe("a")) == {"epochs": 1}
    assert diffs.cheap_part(steps) == {"steps": 100}
    assert diffs.cheap_part(dataclasses.replace(steps, steps=30)) == {"steps": 30}
    assert diffs.cheap_part(object()) == {}


def test_what_is_chosen():
    recorded = [record(seed, configuration=name) for name in "ab" for seed in (1, 2)]
    names = [
        [(r.configuration, r.seed) for r in diffs.choose(recorded, **asked)]
        for asked in ({}, {"configuration": "b"}, {"seed": 2}, {"everything": True}, {"seed": 9})
    ]
    assert names[:3] == [[("a", 1), ("b", 1)], [("b", 1)], [("a", 2), ("b", 2)]]
    assert len(names[3]) == 4
    assert names[4] == []


def save_example(root, *, loss=1.0, seeds=3, label="", stale=False):
    """A saved comparison of two made-up records."""
    recorded = [record(seed, 1.0 + 0.1 * seed) for seed in range(seeds)]
    study = study_that_gives(loss=loss)
    for item in recorded:
        item.environment.update(
            processor="A", torch="2.1", python="3.11", numpy="2", commit="c" * 40
        )
        item.timing["finished"] = "2026-01-02T03:04:05+00:00"
    runs = [
        diffs.Run(item, {"epochs": 1}, stale, diffs.repeat(study, item, recorded))
        for item in recorded[:2]
    ]
    return diffs.save(study, runs, root, options=["--epochs", "1"], seconds=70, label=label)


class TestPage:
    @pytest.fixture
    def root(self, tmp_path):
        """The folder that holds ``book/``."""
        (tmp_path / "book" / "records").mkdir(parents=True)
        return tmp_path

    def test_a_saved_comparison_is_whole_and_read_again(self, root, monkeypatch):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
        path = save_example(root / "book" / "records", label="avx2")
        assert path.name == "tiny-avx2.json"
        content = records.read(path)
        assert content["command"] == (
            "ATEN_CPU_CAPABILITY=avx2 losslandscape study diff tiny --epochs 1"
        )
        assert content["runs"][0]["differences"][0] == {
            "quantity": "train_loss",
            "place": "epoch 1",
            "recorded": 1.0,
            "fresh": 1.0,
            "tolerance": pytest.approx(APART * 0.1 + FLOOR),
            "deviation": pytest.approx(0.1),
            "seeds": 3,
            "outcome": "same",
        }

    def test_it_is_told_in_words(self, root):
        save_example(root / "book" / "records", loss=2.6)
        (saved,) = report.load(root)
        assert saved.title == "tiny"
        text = " ".join(saved.sentences)
        assert "The first epoch of 2 runs (a, seeds 0 and 1) was repeated on " in text
        assert "1.2 minutes of processor time" in text
        assert (
            "Of 4 numbers, 2 are the same to the last bit, 0 moved within the tolerance and "
            "2 are outside. Those that moved did so by 16 standard deviations" in text
        )
        assert "3 recorded seeds" in text
        assert "stale" not in text

    def test_the_finding_adds_up_what_has_one_label(self, root):
        assert report.finding(root) == ""
        save_example(root / "book" / "records", loss=2.6)
        save_example(root / "book" / "records", label="other")
        assert report.finding(root) == (
            "Repeated as they were recorded, of 4 numbers 2 are the same to the last bit, 0 moved "
            "within their tolerance, and 2 outside. Labelled other, of 4 numbers 3 are the same "
            "to the last bit, 1 moved within their tolerance, and 0 outside."
        )

    def test_the_largest_movers_come_first(self, root):
        save_example(root / "book" / "records", loss=2.6)
        (saved,) = report.load(root)
        headings, lines = saved.movers
        assert headings[0] == "run"
        assert [line[0] for line in lines] == ["a, seed 0", "a, seed 1"]
        assert lines[0][1:4] == ["train_loss, epoch 1", "1", "2.6"]
        assert lines[0][4:] == ["1.6e+00 (16 SD)", "1.4e+00 (14 SD)", "outside"]
        assert lines[1][-1] == "outside"

    def test_nothing_moved_nothing_to_list(self, root):
        path = save_example(root / "book" / "records", loss=1.1)
        content = json.loads(path.read_text())
        content["runs"] = content["runs"][1:]
        path.write_text(json.dumps(content))
        (saved,) = report.load(root)
        assert saved.movers == ([], [])
        assert "Of 2 numbers, 2 are the same" in " ".join(saved.sentences)

    def test_declared_tolerances_and_stale_records_are_named(self, root):
        save_example(root / "book" / "records", seeds=2, stale=True)
        (saved,) = report.load(root)
        text = " ".join(saved.sentences)
        assert "fewer than three recorded seeds" in text
        assert "2 of the records are stale" in text

    def test_both_machines_stand_side_by_side(self, root):
        save_example(root / "book" / "records")
        (saved,) = report.load(root)
        headings, lines = saved.machines
        assert headings == ["", "record", "repeated"]
        table = {line[0]: line[1:] for line in lines}
        assert table["Processor"][0] == "A"
        assert table["PyTorch"][0] == "2.1"
        assert table["Instructions"][0] == "-"
        assert table["Date"][0] == "2026-01-02"

    def test_the_page_is_built_from_the_files_alone(self, root, monkeypatch):
        pytest.importorskip("sphinx")
        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace

        monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
        save_example(root / "book" / "records", loss=2.6)
        save_example(root / "book" / "records", label="other")
        shutil.copy(ROOT / "book" / "diff.md", root / "diff.md")
        warnings = io.StringIO()
        with docutils_namespace():
            Sphinx(
                srcdir=root,
                confdir=None,
                outdir=root / "_out",
                doctreedir=root / "_trees",
                buildername="html",
                confoverrides={
                    "extensions": ["myst_nb", "diff_report"],
                    "root_doc": "diff",
                    "nitpicky": True,
                    "exclude_patterns": ["_out", "_trees"],
                    "suppress_warnings": ["myst.xref_missing", "ref.doc"],
                },
                status=None,
                warning=warnings,
            ).build()
        page = (root / "_out" / "diff.html").read_text("utf-8")
        assert page.count("Of 4 numbers, ") == 2
        text = re.sub("<[^>]*>", "", page)
        assert "losslandscape study diff tiny \\\n    --epochs 1" in text
        assert page.count("<table") == 4
        assert "tiny (other)" in page
        assert warnings.getvalue() == ""

    def test_nothing_saved_yet(self, root):
        assert report.load(root) == []

    def test_a_damaged_file_is_named(self, root):
        folder = root / "book" / "records" / "diffs"
        folder.mkdir()
        (folder / "tiny.json").write_text("{")
        with pytest.raises(ValueError, match=r"tiny\.json"):
            report.load(root)

    def test_a_comparison_comes_before_its_variants(self, root):
        for label in ("other", ""):
            save_example(root / "book" / "records", label=label)
        assert [saved.title for saved in report.load(root)] == ["tiny", "tiny (other)"]

    def test_what_the_page_says_of_adam_is_in_the_file(self):
        path = ROOT / "book" / "records" / diffs.FOLDER / "three_configurations-avx2.json"
        moved = [
            abs(row["fresh"] - row["recorded"]) / row["deviation"]
            for run in records.read(path)["runs"]
            for row in run["differences"]
            if run["configuration"] == "Adam_Default" and row["place"] == "epoch 1"
        ]
        assert statistics.median(moved) > 0.5
        assert max(moved) > 2

    def test_the_page_states_the_rule_of_the_code(self):
        page = (ROOT / "book" / "diff.md").read_text("utf-8")
        assert diffs.CONFIDENCE == 0.99
        assert "in 99 of 100 cases" in page
        assert "With three seeds that is 14 standard deviations, with ten 4.6." in page
        assert diffs.LEAST_SEEDS == 3
        assert "fewer than three seeds" in page


@pytest.mark.parametrize(
    "path", sorted((ROOT / "book" / "records" / diffs.FOLDER).glob("*.json")), ids=lambda p: p.stem
)
def test_what_is_committed_is_whole_and_says_what_it_counts(path):
    content = records.read(path)
    for run in content["runs"]:
        for row in run["differences"]:
            outcome = row.pop("outcome")
            assert diffs.Difference(**row).outcome == outcome
