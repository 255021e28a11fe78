"""Products over several processes: the single-process result, or an error with a rank's number."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as dist
from torch.nn.functional import cross_entropy

import losslandscape as ll
from losslandscape import objective
from losslandscape.distributed import fingerprint

PROGRAM = Path(__file__).parent / "programs" / "ranks.py"
sys.path.insert(0, str(PROGRAM.parent))
import ranks  # noqa: E402

SHARDS = {"equal": [45, 45], "unequal": [13, 77], "empty": [0, 90], "empty last": [90, 0]}
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
ALONE = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}
PATIENCE = 300  # seconds: machines that test are busy


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(job, shards, out, **environment):
    """Two ranks, as processes."""
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": "2", **ALONE, **environment}
    command = [sys.executable, str(PROGRAM), job, json.dumps(shards), str(out)]
    return [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]


def finish(processes):
    try:
        for process in processes:
            _, error = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, error.decode()[-2000:]
    finally:
        for process in processes:
            process.kill()


def answers(out):
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def run(tmp_path, job, shards, **environment):
    finish(start(job, shards, tmp_path, **environment))
    return answers(tmp_path)


class Shards:
    """Stands for a group without processes: each rank's part is computed by itself."""

    def __init__(self, group):
        self.group = group
        self.counts, self.rank = group
        self.size = len(self.counts)

    def gather(self, number, shared=None, device="cpu"):
        assert number() == self.counts[self.rank]
        return self.counts

    def sum(self, part, like, shared=None):
        return part()


@pytest.mark.parametrize("operator", [ll.HessianOperator, ll.GaussNewtonOperator])
@settings(deadline=None, max_examples=15)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), chunk=st.integers(1, 5)
)
def test_the_parts_of_all_shards_add_up(operator, counts, chunk):
    model, x, y = ranks.problem()
    total = sum(counts)
    whole = operator(model, cross_entropy, (x[:total], y[:total]))
    v = torch.randn(whole.shape[0], 2, dtype=torch.float64)
    parts, losses = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "Ranks", Shards)
        for rank, count in enumerate(counts):
            first = sum(counts[:rank])
            data = (x[first : first + count], y[first : first + count])
            mine = operator(model, cross_entropy, data, chunk_size=chunk, group=(counts, rank))
            assert mine.examples == whole.examples == total
            parts.append(mine @ v)
            losses.append(mine.objective.value())
    assert torch.allclose(sum(parts), whole @ v, rtol=1e-12, atol=1e-12)
    assert sum(losses) == pytest.approx(whole.objective.value(), rel=1e-12)


@pytest.fixture(scope="module")
def agreement(tmp_path_factory):
    """What both ranks found, under torchrun as a user starts it."""
    out = tmp_path_factory.mktemp("agree")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += [
        "--master-port",
        str(free_port()),
        str(PROGRAM),
        "agree",
        json.dumps(SHARDS),
        str(out),
    ]
    environment = {**os.environ, **ALONE}
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE, capture_output=True)
    return answers(out)


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_two_processes_give_the_result_of_one(agreement, shards, dtype, rtol):
    model, x, y = ranks.problem(dtype)
    alone = ranks.measured((x, y), model)
    for found in agreement:
        for name, value in found[f"{shards}, {dtype}"].items():
            mine, theirs = torch.tensor(value).double(), torch.tensor(alone[name]).double()
            assert (mine - theirs).norm() <= rtol * theirs.norm(), name


def test_both_ranks_hold_the_same_bits(agreement):
    assert agreement[0] == agreement[1]


def test_a_product_costs_one_all_reduce(tmp_path):
    assert run(tmp_path, "count", {"all": [45, 45]}) == [{"all, torch.float64": 4}] * 2


def test_mistakes_of_one_rank_are_named_on_the_other(tmp_path):
    first, second = (
        found["all, torch.float64"] for found in run(tmp_path, "mistakes", {"all": [40, 50]})
    )
    for said in (first, second):
        assert said["another vector"].startswith("RankError: the vector on rank 1 is not that of")
        assert said["other weights"].startswith("RankError: the model on rank 1 is not that of")
        assert said["other weights from the start"] == said["other weights"]
        assert said["nobody has data"].startswith("ValueError: the data are empty")
        assert said["all is well"] == "nothing"
    assert first["a sum"] == "RankError: rank 1 of 2 failed: see what it raised"
    assert "is not the mean over its examples" in second["a sum"]
    assert first["not a number"] == "RankError: rank 1 of 2 failed: see what it raised"
    assert second["not a number"] == (
        "ValueError: the product is not finite: the inputs of chunk 0 hold NaN or infinity"
    )


@pytest.mark.parametrize("mishap", ["death", "hang"])
def test_a_rank_that_dies_or_hangs_is_named_within_the_time_limit(tmp_path, mishap):
    processes = start("lost", {"all": [45, 45]}, tmp_path, MISHAP=mishap, LIMIT="4")
    try:
        processes[0].communicate(timeout=PATIENCE)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    found = json.loads((tmp_path / "0.json").read_text())["all, torch.float64"]
    assert found["said"].startswith("rank 1 of 2 does not answer: ")
    assert found["seconds"] < 4 + 5 + 10


def test_a_group_needs_a_process_group():
    model, x, y = ranks.problem()
    with pytest.raises(ValueError, match=r"call torch\.distributed\.init_process_group"):
        ll.HessianOperator(model, cross_entropy, (x, y), group=object())


def test_a_group_of_one_is_this_process_alone(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, x, y = ranks.problem()
        alone = ll.HessianOperator(model, cross_entropy, (x, y))
        group = ll.HessianOperator(model, cross_entropy, (x, y), group=dist.group.WORLD)
        v = torch.ones(alone.shape[0], dtype=torch.float64)
        assert torch.equal(group @ v, alone @ v)
        assert group.objective.value() == alone.objective.value()
        with pytest.raises(ValueError, match="the product is not finite"):
            group @ (v / 0)
    finally:
        dist.destroy_process_group()


def test_fingerprints_tell_tensors_apart():
    a = torch.arange(1.0, 9.0)
    others = [a[:4], a * (1 + 1e-7), a.double() * (1 + 1e-15), -a, torch.zeros(8), torch.zeros(0)]
    prints = {fingerprint([t]) for t in (a, *others)}
    assert len(prints) == 7
    assert all(1 <= p <= 2**22 and p == float(torch.tensor(float(p))) for p in prints)
    assert fingerprint([a, a[:4]]) != fingerprint([a[:4], a])
    column = torch.stack([a, -a], dim=1)[:, 0].double()
    assert fingerprint([column]) == fingerprint([a.double()])
    assert fingerprint([torch.stack([a, -a], dim=1).double()[:, 0]]) == fingerprint([column])


def test_fingerprints_see_every_bit_and_place():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(200_000, generator=generator)  # more than are read at once
    known = fingerprint([whole])
    far, near = whole.clone(), whole.clone()
    far[:65_536], far[65_536:131_072] = whole[65_536:131_072], whole[:65_536]
    near[[3, 70_000]] = near[[70_000, 3]]
    others = (far, near, -whole, 2 * whole, whole.flip(0))
    assert len({known, *(fingerprint([other]) for other in others)}) == 6
    for bit in range(32):
        other = whole.clone()
        place = int(torch.randint(len(whole), (), generator=generator))
        other.view(torch.int32)[place] ^= 1 << bit if bit < 31 else -(1 << 31)
        assert fingerprint([other]) != known
