"""Products of one process, of a group of one and of a group of two, in rounds of one run.

    python benchmarks/ranks.py

Two processes talk over the loopback interface with gloo, one thread each. While one computes alone
the other sleeps in a barrier. Times are wall seconds: what a rank waits for the other counts.
Graphs are not kept, as with data that do not fit into memory.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import torch
from run import Clock, environment, publish, record_of
from torch import distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

import losslandscape as ll
from losslandscape.distributed import fingerprint
from losslandscape.lab.data import Dataset
from losslandscape.lab.models import cnn, mlp

RANKS = 2
ROUNDS = 15
CALIBRATION = 512  # images: the seconds per image come from these, on one process
SIZES = (1024, 2048)
LENGTHS = (10_000, 100_000, 1_000_000, 10_000_000)  # numbers all-reduced, or read for a checksum
SHAPE = (1, 28, 28)


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images of the size of MNIST's, and labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *SHAPE, generator=generator), torch.arange(count) % 10


def networks() -> dict[str, nn.Module]:
    """A network that computes much for each weight, and one that computes little."""
    few = Dataset("", *images(10), *images(10), 10)
    wide = mlp((784, 1024, 1024, 10), seed=0, dtype=torch.float32)
    return {"CNN": cnn(few, seed=0, channels=(8, 16), hidden=32), "MLP": wide}


def seconds(call: Callable[[], Any]) -> float:
    """Wall seconds of a call that both ranks begin together."""
    dist.barrier()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def alone(rank: int, call: Callable[[], Any]) -> float | None:
    """Wall seconds of a call that rank 0 makes while rank 1 sleeps."""
    found = seconds(call) if rank == 0 else seconds(lambda: None)
    dist.barrier()
    return found if rank == 0 else None


def operator(model: nn.Module, data: Any, group: Any = None) -> ll.HessianOperator:
    """The Hessian, with no graph kept."""
    return ll.HessianOperator(model, cross_entropy, data, memory_budget=0, group=group)


def measure(model: nn.Module, rank: int, lonely: Any) -> dict[str, Any]:
    """Rounds of one network; strong scaling shares the images, weak scaling gives all to each."""
    rows: dict[str, list[Any]] = {}
    jobs: dict[str, Callable[[], float | None]] = {}
    for count in (CALIBRATION, *SIZES):
        x, y = images(count)
        shard = (x[rank::RANKS], y[rank::RANKS])
        plain, two = operator(model, (x, y)), operator(model, shard, dist.group.WORLD)
        v = torch.ones(plain.shape[0])
        jobs[f"one process, {count}"] = lambda op=plain, v=v: alone(rank, lambda: op @ v)
        jobs[f"two ranks, {count}"] = lambda op=two, v=v: seconds(lambda: op @ v)
        if count == SIZES[0]:
            single = operator(model, (x, y), lonely) if rank == 0 else None
            jobs["one rank"] = lambda op=single, v=v: alone(rank, lambda: op @ v)
            twice = operator(model, (x, y), dist.group.WORLD)
            jobs["two ranks, weak"] = lambda op=twice, v=v: seconds(lambda: op @ v)
    for number in range(ROUNDS + 1):
        for name in sorted(jobs, key=lambda name: hash_of(name, number)):
            found = jobs[name]()
            if number:  # the first round warms up
                rows.setdefault(name, []).append(found)
    return {"parameters": plain.shape[0], "seconds": rows}


def hash_of(name: str, number: int) -> int:
    """Another order in every round, the same on all ranks."""
    return int.from_bytes(f"{number}{name}".encode(), "big") * 2654435761 % 2**32


def by_length(call: Callable[[torch.Tensor], Any]) -> dict[str, list[float]]:
    """Seconds of a call on vectors of several lengths."""
    rows: dict[str, list[float]] = {}
    for number in range(ROUNDS + 1):
        for length in LENGTHS:
            vector = torch.ones(length)
            found = seconds(lambda vector=vector: call(vector))  # type: ignore[misc]
            if number:
                rows.setdefault(str(length), []).append(found)
    return rows


def work(rank: int, out: str) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    lonely = dist.new_group([0])
    told: dict[str, Any] = {
        "networks": {},
        "all_reduce": by_length(dist.all_reduce),
        "checksum": by_length(lambda vector: fingerprint([vector])),
    }
    for name, model in networks().items():
        told["networks"][name] = measure(model, rank, lonely)
        if rank == 0:
            print(f"{name}: measured", file=sys.stderr)
    if rank == 0:
        Path(out).write_text(json.dumps(told))
    dist.destroy_process_group()


def start() -> dict[str, Any]:
    """Run both processes and read what the first one wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "told.json")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(RANKS)}
        shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, __file__, "--rank"]
        processes = [
            subprocess.Popen(
                [*command, str(rank), "--out", out],
                env={**os.environ, **shared, "RANK": str(rank)},
            )
            for rank in range(RANKS)
        ]
        if any([process.wait() for process in processes]):
            raise click.ClickException("a rank failed: see above")
        found: dict[str, Any] = json.loads(Path(out).read_text())
        return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rank", type=int, hidden=True)
@click.option("--out", hidden=True)
def main(rank: int | None, out: str | None) -> None:
    """Measure and write ``book/records/benchmarks/ranks-seed0.json``."""
    if rank is not None and out is not None:
        work(rank, out)
        return
    began, about = Clock(), environment(())
    results = start()
    record = record_of(
        "ranks",
        began,
        about,
        results,
        recipe={"networks": {name: repr(model) for name, model in networks().items()}},
        settings={"rounds": ROUNDS, "sizes": SIZES, "calibration": CALIBRATION},
        dataset={"name": "random images"},
    )
    publish(record)


if __name__ == "__main__":
    main()
