"""The benchmark's record, its judge and its tables: what they say is what was measured."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from losslandscape.lab import records
from losslandscape.lab.records import Record
from losslandscape.report import benchmarks, running, scale

ROOT = Path(__file__).parents[1]
ROUNDING = 1e-5


def eigen(seconds, error=1e-6, says=True, verdict="true", products=8):
    return {
        "seed": 0,
        "seconds": seconds,
        "gradient_seconds": 0.1,
        "products": products,
        "error": error,
        "says": says,
        "tol": 1e-3 if says is not None else None,
        "true_residual": 1e-4,
        "verdict": verdict,
    }


def row(tool, rounds, task="lambda_max", status="ok", **more):
    return {"task": task, "tool": tool, "call": "solve", "status": status, "rounds": rounds, **more}


def record(rows=(), scaling=()):
    reference = {"values": [10.0, 5.0], "smallest": -1.0, "trace": 50.0, "loss": 0.1}
    return Record(
        study="benchmarks",
        configuration="mnist",
        seed=0,
        fingerprint="f",
        recipe={},
        settings={"images": 2048, "parameters": 7, "dtype": "float32"},
        dataset={"name": "mnist", "sha256": "d"},
        environment={
            "python": "3",
            "torch": "2",
            "numpy": "2",
            "packages": {"PyHessian": "not installed"},
            "machine": "m",
            "processor": "p",
            "threads": 1,
            "allocator": "default",
            "commit": "c" * 40 + "+",
        },
        timing={
            "finished": "2026-01-02T03:04:05+00:00",
            "cpu_seconds": 60.0,
            "load_before": 0.1,
            "load_after": 0.2,
        },
        results={"reference": reference, "rows": list(rows), "scaling": list(scaling)},
    )


def scaled(images, seconds, peak, history, says=True, verdict="true", passes=5.0):
    return {
        "images": images,
        "seconds": seconds,
        "memory_before": 10,
        "memory_peak": peak,
        "data_bytes": 100,
        "counted_products": len(history),
        "passes": passes,
        "value": history[-1][1],
        "residual": 1e-4,
        "says": says,
        "history": history,
        "true_residual": 1e-4,
        "verdict": verdict,
    }


HISTORY = [[1, 8.0, 1.0], [2, 9.995, 0.1], [3, 10.0, 0.01]]


class TestTables:
    def test_ratios_are_taken_within_a_round(self):
        ours = row("losslandscape", [eigen(1.0), eigen(2.0), eigen(10.0)])
        peer = row("PyHessian", [eigen(1.0), eigen(8.0), eigen(9.0)])
        assert benchmarks.ratio(peer, ours) == 1.0  # of 1, 4 and 0.9; the medians would give 4
        assert benchmarks.ratio(row("PyHessian", []), ours) is None

    def test_a_tool_is_right_only_if_it_was_in_every_round(self):
        assert benchmarks.meets(row("x", [eigen(1, error=1e-3)]))
        assert not benchmarks.meets(row("x", [eigen(1, error=1e-6), eigen(1, error=1.1e-3)]))
        assert not benchmarks.meets(row("x", []))

    def test_the_finding_counts_what_the_tables_show(self):
        text = benchmarks.finding(
            record(
                [
                    row("losslandscape", [eigen(1.0), eigen(1.0, products=9)]),
                    row("boaster", [eigen(1.0), eigen(1.0, error=0.1, verdict="false")]),
                    row("mute", [eigen(2.0, says=None, verdict="unknown")] * 2),
                    row("absent", [], status="not installed"),
                ]
            )
        )
        assert "certified after at most 9 products and it takes 0.75 times the CPU time" in text
        assert "Of 2 calls of other tools for the same eigenvalue, 1 say nothing" in text
        assert "and 1 claim one that they do not have" in text
        assert text.endswith("1 are met and 1 missed.")
        unproven = record([row("losslandscape", [eigen(1.0, verdict="false")])])
        assert "lambda_max is not certified" in benchmarks.finding(unproven)

    def test_a_missing_and_a_failing_tool_are_lines(self):
        table = benchmarks.eigen_table(
            record(
                [
                    row("losslandscape", [eigen(1.0)]),
                    row("PyHessian", [], status="not installed"),
                    row("curvlinops", [], status="raises", message="TypeError: no"),
                ]
            )
        )
        assert table.loc[("PyHessian", "solve"), "products"] == "not installed"
        assert table.loc[("curvlinops", "solve"), "products"] == "TypeError: no"
        assert table.loc[("curvlinops", "solve"), "CPU s"] == "-"

    def test_one_false_certificate_is_enough(self):
        told = [eigen(1), eigen(1, verdict="false")]
        assert benchmarks.truthful(row("x", told)) == "no"
        assert benchmarks.truthful(row("x", [eigen(1)])) == "yes"
        assert benchmarks.truthful(row("x", [eigen(1, says=None, verdict="nothing said")])) == "-"
        nothing = [eigen(1, says=None, verdict="nothing said")]
        assert benchmarks.says(row("x", nothing)) == "nothing"
        assert benchmarks.says(row("x", told)).endswith("; no")

    def test_every_directive_table_has_a_text_for_every_heading(self, tmp_path):
        one = {"mass": 1.0, "mean": 1.0, "square": 9.0, "density_right": False}
        dense = eigen(1) | one | {"quadrature_right": True}
        traced = eigen(1) | {"values": [49.0], "stderr": None}
        full = record(
            [
                row("losslandscape", [eigen(1.0)]),
                row("losslandscape", [eigen(1.0)], task="top_5"),
                row("losslandscape", [eigen(1.0)], task="product", error=1e-6),
                row("losslandscape", [eigen(1.0)], task="warm"),
                row("losslandscape", [dense], task="density"),
                row("losslandscape", [traced], task="trace"),
            ],
            [scaled(2000, 1.0, 200, HISTORY)],
        )
        spent = {"convolution": 3.0, "ReLU": 1.0, "other": 0.0}
        profiled = replace(
            full,
            configuration=benchmarks.PROFILE,
            results={"product": spent, "gradient": {**spent, "convolution": 1.0}},
        )
        for one_record in (full, profiled):
            records.save(one_record, tmp_path / "book" / "records" / "benchmarks")
        assert benchmarks.load(tmp_path).configuration == full.configuration
        assert benchmarks.profile_table(tmp_path)[1][-1] == ["together", "4", "2", "2.0"]
        for name, table in benchmarks.TABLES.items():
            if name in {**running.TABLES, **scale.TABLES}:
                continue  # they have records of their own: TestRunning, test_scale
            headings, lines = table(tmp_path)
            assert lines, name
            for line in lines:
                assert len(line) == len(headings), name
                assert all(isinstance(text, str) and text for text in line), name

    def test_before_the_first_benchmark_there_is_nothing(self, tmp_path):
        (tmp_path / "book" / "records").mkdir(parents=True)
        assert all(table(tmp_path) == ([], []) for table in benchmarks.TABLES.values())


class TestGoals:
    def test_the_limits_are_those_set_before_the_first_measurement(self):
        limits = [limit for _, limit, _, _ in benchmarks.goals(record())]
        assert limits == [10, 0.25, 2.0, 2, 4, 5.5, 1.2, 1.2, 0.5, 3]

    def test_what_is_not_measured_is_not_met(self):
        assert set(benchmarks.goals_table(record())["verdict"]) == {"not measured"}

    @pytest.mark.parametrize(("products", "verdict"), [(10, "met"), (11, "missed")])
    def test_a_miss_is_called_one(self, products, verdict):
        ours = row("losslandscape", [eigen(1.0), eigen(1.0, products=products)])
        assert benchmarks.goals_table(record([ours]))["verdict"].iloc[0] == verdict

    @pytest.mark.parametrize("change", [{"says": False}, {"verdict": "false"}])
    def test_products_without_a_true_certificate_do_not_count(self, change):
        ours = row("losslandscape", [eigen(1.0), {**eigen(1.0), **change}])
        assert benchmarks.goals_table(record([ours]))["verdict"].iloc[0] == "not measured"

    def test_the_fastest_peer_is_right_and_not_half_ours(self):
        def share(*peers):
            ours = row("losslandscape", [eigen(1.0)])
            return benchmarks.share_of_fastest_peer(
                record([ours, *peers]), "lambda_max", lambda entry: entry["error"] <= 1e-3
            )

        wrong = row("PyHessian", [eigen(0.1, error=1e-2)])
        half = row("SciPy on our operator", [eigen(0.2)])
        assert share(wrong, half) is None
        assert share(wrong, half, row("curvlinops", [eigen(5.0)]), row("x", [eigen(4.0)])) == 0.25

    def test_a_wrong_answer_of_ours_is_no_fast_one(self):
        ours = row("losslandscape", [eigen(1.0, error=1.0)])
        told = record([ours, row("curvlinops", [eigen(5.0)])])
        assert benchmarks.goals(told)[1][2] is None

    def test_scaling_compares_the_largest_with_the_smallest(self):
        runs = [
            scaled(2000, 1.0, 200, HISTORY),
            scaled(60_000, 45.0, 210, HISTORY, passes=5.6),
        ]
        told = {name: (m, limit) for name, limit, m, _ in benchmarks.goals(record([], runs))}
        values = [m for m, _ in told.values()][3:8]
        assert values == [2, 3, 5.6, 1.5, 1.1]

    def test_a_value_that_leaves_again_has_not_arrived(self):
        history = [[1, 10.0, 1.0], [2, 9.0, 0.1], [3, 10.0, 0.01]]
        assert benchmarks._passes_to_value(scaled(9, 1, 1, history)) == 3


@pytest.fixture
def judge(monkeypatch):
    """The benchmark's own module, which no package holds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("judge")


class TestJudge:
    exact = torch.diag(torch.tensor([10.0, 5.0, 1.0], dtype=torch.float64))

    def answer(self, judge, tilt, converged, tol=1e-3):
        vector = torch.tensor([[1.0], [tilt], [0.0]])
        return judge.certificate(self.exact, judge.Answer([10.0], vector, converged, tol))

    def test_verdicts(self, judge):
        # The residual of (1, t, 0) is about 5 t, relative to 10: t / 2.
        assert self.answer(judge, 1e-3, True)["verdict"] == "true"
        assert self.answer(judge, 1e-2, True)["verdict"] == "false"
        assert self.answer(judge, 1e-2, False)["verdict"] == "true"
        assert self.answer(judge, 1e-3, False)["verdict"] == "too modest"
        assert self.answer(judge, 1e-2, None)["verdict"] == "nothing said"
        assert self.answer(judge, 1e-2, True)["true_residual"] == pytest.approx(5e-3, rel=1e-3)

    def test_products_are_counted_by_columns_and_by_size(self, judge):
        import losslandscape as ll

        model = torch.nn.Linear(2, 1)
        data = torch.ones(4, 2), torch.ones(4, 1)
        whole = ll.HessianOperator(model, torch.nn.functional.mse_loss, data)
        half = ll.HessianOperator(
            model, torch.nn.functional.mse_loss, tuple(part[:2] for part in data)
        )
        with judge.counting(4) as count:
            whole @ torch.ones(3)
            whole @ torch.ones(3, 5)
            half @ torch.ones(3, 3)
        whole @ torch.ones(3)
        assert (count.products, count.passes) == (6, 7.5)

    def test_a_density_is_right_when_mass_and_moments_are(self, judge):
        grid = torch.linspace(-1, 3, 4001, dtype=torch.float64)
        bump = torch.exp(-((grid - 1) ** 2) / 0.02) / (0.02 * torch.pi) ** 0.5
        reference = {
            "trace": 3.0,
            "frobenius2": 3.03,
            "probe_trace_sd": 0.01,
            "probe_square_sd": 0.01,
        }
        problem = SimpleNamespace(reference=reference, size=3)

        def told(**extra):
            answer = judge.Answer([], extra={"probes": 4, "grid": grid, "density": bump, **extra})
            return judge.density(problem, answer)

        assert told()["density_right"]
        assert told()["quadrature_right"]
        reference["frobenius2"] = 3.3
        assert not told()["density_right"]
        # A curve too narrow by 0.1 squared: no smoothing can be taken off to make it right.
        assert not told(sigma=0.1)["quadrature_right"]
        reference["frobenius2"] = 3.0
        assert not told()["density_right"]
        assert told(sigma=0.1)["quadrature_right"]


def loops(**seconds):
    """A record of training loops: seconds per round, by loop, with one network of 10 parameters."""
    names = {"ours": running.OURS, "tutorial": running.TUTORIAL, "plain": running.IN_MEMORY[0]}
    rows = [
        {"network": "net", "parameters": 10, "loop": names[k], "images": 100, "seconds": v}
        for k, v in seconds.items()
    ]
    alone = {"network": "none", "parameters": None, "loop": running.TUTORIAL, "images": 200}
    results = {"rows": [*rows, {**alone, "seconds": [1.0, 1.0]}]}
    return replace(record(), configuration=running.TRAINING, results=results)


def scheduled(ran, waited, wall=100.0, peak=2**30):
    processes = [{"ran": ran, "waited": waited, "memory": 2**29}] * 2
    results = {
        "busy": {"runs": 9, "wall_seconds": wall, "processes": processes},
        "memory": {"peak": peak},
    }
    return replace(record(), configuration=running.SCHEDULER, results=results)


class TestRunning:
    @pytest.fixture
    def kept(self, tmp_path):
        """Return a function that stores records and gives the folder that holds ``book/``."""

        def keep(*made):
            for item in made:
                records.save(item, tmp_path / "book" / "records" / "benchmarks")
            return tmp_path

        return keep

    def test_nothing_recorded_is_nothing_shown(self, kept):
        root = kept(record())
        assert {name: table(root)[1] for name, table in running.TABLES.items()} == {
            name: [] for name in running.TABLES
        }

    def test_the_record_of_the_tools_is_not_mistaken(self, kept):
        root = kept(loops(ours=[1.0]), scheduled(1, 1))
        assert benchmarks.load(root) is None
        assert benchmarks.load(kept(record())).configuration == "mnist"

    def test_ratios_are_of_pairs_and_loading_is_a_share(self, kept):
        root = kept(loops(ours=[1.0, 2.0, 4.0], tutorial=[6.0, 8.0, 4.0]))
        headings, lines = running.throughput_table(root)
        assert headings == [
            *("network", "loop", "images per CPU second", "times our time", "of it, loading")
        ]
        ours, tutorial, alone = lines
        assert ours == ["net (10 parameters)", running.OURS, "50 [25, 100]", "-", "-"]
        # Of 6, 4 and 1; three pairs decide nothing at 95 %, so the interval has no ends.
        assert tutorial[2:4] == ["17 [12, 25]", "4.00 [nan, nan]"]
        # 100 images take 6 seconds, of which loading them takes half a second.
        assert tutorial[4] == "8%"
        assert alone[2:] == ["200 [200, 200]", "-", "-"]

    @pytest.mark.parametrize(
        ("times", "verdict"),
        [
            ([6.0] * 20, "met"),
            ([5.0] * 20, "met"),
            ([4.0] * 20, "missed"),
            ([4.0, 6.0] * 10, "undecided"),
            ([5.5] * 2, "undecided"),
        ],
    )
    def test_a_goal_is_judged_by_the_interval(self, kept, times, verdict):
        root = kept(loops(ours=[1.0] * len(times), tutorial=times, plain=times))
        _, lines = running.goals_table(root)
        assert lines[0][:2] == [
            f"net: our speed, in speeds of {running.TUTORIAL}",
            "at least 5",
        ]
        assert lines[0][-1] == verdict
        assert lines[1][-1] == ("met" if len(times) > 2 else "undecided")

    def test_the_interval_covers_the_median(self):
        # Ranks 6 and 15 of 20 hold the median with a probability of 95.9 %.
        pairs = [float(n) for n in range(1, 21)]
        found = loops(ours=[1.0] * 20, tutorial=pairs).results["rows"]
        assert running.times_ours(found, found[1]) == (10.5, 6.0, 15.0)

    def test_waiting_for_a_core_is_not_idle(self, kept):
        root = kept(scheduled(ran=50, waited=45))
        assert running.scheduler_table(root)[1] == [
            ["1", "50%", "45%", "5%", "0.5 GiB"],
            ["2", "50%", "45%", "5%", "0.5 GiB"],
        ]
        assert [line[1:] for line in running.goals_table(root)[1]] == [
            ["at least 90%", "95.0%", "met"],
            ["less than 3 GiB", "1 GiB", "met"],
        ]

    def test_a_miss_of_the_scheduler_is_said(self, kept):
        root = kept(scheduled(ran=50, waited=39, peak=3 * 2**30))
        assert [line[-1] for line in running.goals_table(root)[1]] == ["missed", "missed"]

    def test_the_load_of_the_machine_is_shown(self, kept):
        _, lines = running.about(kept(loops(ours=[1.0])))
        assert lines == [
            [
                *("training", "2026-01-02", "p", "torch 2", "c" * 12 + "+"),
                "0.1 before, 0.2 after",
            ]
        ]


@pytest.fixture(scope="module")
def recorded():
    found = benchmarks.load(ROOT)
    if found is None:
        pytest.skip("no benchmark is recorded yet: run make bench")
    return found


class TestRecord:
    def test_it_was_made_as_the_page_says(self, recorded):
        assert recorded.environment["threads"] == 1
        assert recorded.environment["allocator"] == "default"
        assert "not installed" not in recorded.environment["packages"].values()
        assert recorded.settings["images"] == 2048 or recorded.dataset["name"] == "digits"

    def test_every_part_and_every_tool_is_there(self, recorded):
        rows = recorded.results["rows"]
        tasks = {"lambda_max", "top_5", "density", "trace", "warm", "product"}
        assert {r["task"] for r in rows} == tasks
        for task in ("lambda_max", "top_5", "density", "trace", "product"):
            tools = {r["tool"] for r in rows if r["task"] == task}
            assert tools >= {"losslandscape", "PyHessian", "hessian-eigenthings", "curvlinops"}
        if recorded.dataset["name"] == "mnist":
            assert recorded.results["scaling"][-1]["images"] == 60_000

    def test_every_call_was_measured_in_every_round_or_says_why_not(self, recorded):
        for r in recorded.results["rows"]:
            if r["status"] == "ok":
                assert len(r["rounds"]) == recorded.settings["rounds"][r["task"]], r
                assert all(entry["seconds"] > 0 for entry in r["rounds"])
            else:
                assert r["status"] == "not installed" or r["message"], r

    def test_errors_follow_from_the_values(self, recorded):
        truth = recorded.results["reference"]["values"]
        for r in recorded.results["rows"]:
            if r["task"] in ("lambda_max", "top_5"):
                for entry in r["rounds"]:
                    errors = [
                        abs(v - t) / abs(t) for v, t in zip(entry["values"], truth, strict=False)
                    ]
                    assert entry["error"] == pytest.approx(max(errors))

    def test_verdicts_follow_from_the_true_residuals(self, recorded):
        for r in recorded.results["rows"]:
            for entry in r["rounds"]:
                if entry.get("says") is True:
                    holds = entry["true_residual"] <= entry["tol"] + ROUNDING
                    assert entry["verdict"] == ("true" if holds else "false")

    def test_what_we_certify_is_true(self, recorded):
        ours = [r for r in recorded.results["rows"] if r["tool"] == "losslandscape"]
        for r in ours:
            assert all(entry.get("verdict", "true") != "false" for entry in r["rounds"]), r
        assert all(run["verdict"] != "false" for run in recorded.results.get("scaling", []))

    def test_the_reference_is_what_it_claims(self, recorded):
        reference = recorded.results["reference"]
        for value, residual in zip(reference["values"], reference["residuals"], strict=True):
            assert residual <= 1e-10 * abs(value)
        # The exact trace against the mean of Rademacher probes, which knows nothing of the theory.
        scatter = reference["probe_trace_sd"] / 10
        assert abs(reference["probe_trace"] - reference["trace"]) <= 4 * scatter

    def test_no_path_of_a_machine_is_in_it(self, recorded):
        text = json.dumps(recorded.results) + json.dumps(recorded.environment)
        assert not re.search(r'"[^"]*/(?:home|tmp|root|usr|work|opt|Users)/', text)


@pytest.mark.parametrize("configuration", [running.TRAINING, running.SCHEDULER])
class TestRunningRecord:
    @pytest.fixture
    def made(self, configuration):
        found = running.recorded(ROOT, configuration)
        if found is None:
            pytest.skip(f"not recorded yet: run benchmarks/{configuration}.py")
        return found

    def test_it_was_made_as_the_page_says(self, made):
        assert made.environment["threads"] == 1
        assert made.dataset["name"] == "mnist"

    def test_what_it_holds_is_shown(self, made, configuration):
        goals = running.goals_table(ROOT)[1]
        if configuration == running.TRAINING:
            rounds = made.settings["rounds"]
            assert all(len(r["seconds"]) == rounds for r in made.results["rows"])
            assert made.results["rows"][0]["parameters"] == 421_642
            assert len([line for line in goals if "our speed" in line[0]]) == 4
        else:
            assert len(made.results["busy"]["processes"]) == 2
            assert 0 < running.busy_share(made) <= 1
            assert len([line for line in goals if "process" in line[0]]) == 2

    def test_no_path_of_a_machine_is_in_it(self, made):
        text = json.dumps(made.results) + json.dumps(made.environment)
        assert not re.search(r'"[^"]*/(?:home|tmp|root|usr|work|opt|Users)/', text)
