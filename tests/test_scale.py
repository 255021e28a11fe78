"""The cost model of distributed products, its simulation, and its tables."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from losslandscape.lab import records
from losslandscape.report import scale

DEVICE = scale.Device(operations=1e12, memory=40e9, bandwidth=1e10, latency=1e-3, loader=1e8)
WORK = scale.Work(parameters=1e9, tokens=1e6, token_bytes=2)


def test_the_parts_of_a_product_by_hand():
    found = scale.seconds(WORK, DEVICE, [1, 4])
    # 18 operations per weight and token.
    np.testing.assert_allclose(found["compute"], [18e3, 4.5e3])
    # Twice three quarters of 4e9 bytes, and six steps of the ring; nothing to send alone.
    np.testing.assert_allclose(found["all-reduce"], [0, 0.6 + 0.006])
    np.testing.assert_allclose(found["loader"], [0.02, 0.005])


def test_efficiency_is_what_the_sum_and_the_loader_leave():
    assert scale.efficiency(WORK, DEVICE, 1) == pytest.approx(1)
    assert scale.efficiency(WORK, DEVICE, 4) == pytest.approx(4500 / 4500.606)
    slow = dataclasses.replace(DEVICE, loader=2e6 / 36e3)  # loading takes twice the computing
    assert scale.efficiency(WORK, slow, 1) == pytest.approx(0.5)


def test_most_devices_lies_at_the_crossing():
    device = dataclasses.replace(DEVICE, latency=0)
    # 18 D T / (p F) = 8 D / B (1 - 1/p): p - 1 = 18 T B / (8 F).
    crossing = 1 + 18 * WORK.tokens * device.bandwidth / (8 * device.operations)
    found = scale.most_devices(WORK, device)
    assert found <= crossing < 2 * found
    assert scale.most_devices(WORK, dataclasses.replace(device, loader=1e-3)) == 0


def test_vectors_that_fit():
    assert scale.vectors_that_fit(WORK, DEVICE) == 10 - 4
    assert scale.vectors_that_fit(scale.Work(11e9, 1), DEVICE) == 0


SECONDS = {
    "one process, 100": [1.0, 1.2, 0.9],  # calibration
    "two ranks, 100": [1.8, 1.8, 1.8],
    "one process, 200": [2.0, 2.0, 2.0],
    "one process, 400": [4.0, 4.4, 3.6],
    "two ranks, 200": [1.5, 1.6, 1.4],
    "two ranks, 400": [2.5, 2.75, 2.25],
    "one rank": [2.08, 2.2, 2.0],
    "two ranks, weak": [2.5, 2.5, 2.5],
}


def recorded(root: Path, configuration, results, settings):
    about = {"processor": "p", "torch": "2", "commit": "0123456789abcdef+", "packages": {}}
    timing = {"finished": "2026-01-02T00:00", "load_before": 0.1, "load_after": 1.0}
    record = records.Record(
        study="benchmarks",
        configuration=configuration,
        seed=0,
        fingerprint="f",
        recipe={},
        settings=settings,
        dataset={},
        environment=about,
        timing=timing,
        results=results,
    )
    records.save(record, root / "book" / "records" / "benchmarks")
    return record


@pytest.fixture
def ranks(tmp_path):
    results = {
        "networks": {"net": {"parameters": 1000, "seconds": SECONDS}},
        "all_reduce": {"500": [0.1] * 3, "1500": [0.3, 0.2, 0.9]},
        "checksum": {"500": [5.0] * 3, "1500": [0.3] * 3},  # the longest counts
    }
    settings = {"calibration": 100, "sizes": [200, 400], "rounds": 3}
    return recorded(tmp_path, scale.RANKS, results, settings)


def test_predictions_from_constants_measured_apart(ranks):
    found = {row.what: row for row in scale.compared(ranks)}
    assert "one process, 100" not in found
    assert found["one process, 400"].predicted == pytest.approx(4 * 1.0)
    checks = 2 * 1000 * 0.3 / 1500
    assert found["one rank, 200"].predicted == pytest.approx(2)
    assert found["two ranks, 100"].predicted == pytest.approx(0.5 + checks + 0.2)
    assert found["two ranks, 400"].predicted == pytest.approx(2 + checks + 0.2)  # interpolated
    assert found["two ranks, 200 each"].predicted == pytest.approx(2 + checks + 0.2)
    assert found["one process, 400"].ratio == pytest.approx(1)


def test_ratios_are_taken_within_a_round(ranks):
    found = scale.ratios(ranks, "net")
    np.testing.assert_allclose(found["strong"], [0.8, 0.8, 0.8])
    np.testing.assert_allclose(found["weak"], [0.8] * 3)
    np.testing.assert_allclose(found["overhead"], [0.04, 0.1, 0.0], atol=1e-12)


def test_goals_are_judged(ranks, tmp_path):
    _, lines = scale.goals_table(tmp_path)
    assert [line[-1] for line in lines] == ["missed", "missed", "met"]
    assert lines[0][-2] == "80% [80%, 80%]"
    assert lines[2][2:4] == ["at most 5%", "4% [0%, 10%]"]
    _, rows = scale.compared_table(tmp_path)
    assert ["net", "one process, 400", "4.00", "4.00 [3.60, 4.40]", "1.00"] in rows


def test_the_large_network(tmp_path):
    part = {"before": 2**20, "peak": 5 * 2**20, "seconds": [6.0, 9.0, 7.0]}
    part["gradient_seconds"] = [2.0, 1.0, 2.0]
    recorded(tmp_path, scale.LARGE, {"plain": part, "recomputed": part}, {})
    _, rows = scale.large_table(tmp_path)
    assert rows[0] == ["all activations kept", "4 MiB", "7.0", "3.5"]
    _, (about,) = scale.TABLES["benchmark-about-scale"](tmp_path)
    assert about[0] == "large"
    assert about[4] == "0123456789ab+"


def test_nothing_is_said_before_the_first_measurement(tmp_path):
    assert all(table(tmp_path) == ([], []) for table in scale.TABLES.values())
