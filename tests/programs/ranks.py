"""One rank of a group, started by tests/test_distributed.py: ``ranks.py JOB SHARDS OUT``.

The environment has what torch.distributed reads: MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

import losslandscape as ll
from losslandscape.distributed import RankError
from losslandscape.spectrum import estimate_trace, spectral_density

EXAMPLES = 90


def problem(dtype=torch.float64):
    """The same network and data everywhere; one loud example stands last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    x = torch.randn(EXAMPLES, 5, dtype=torch.float64)
    x[-1] *= 10
    y = torch.randint(3, (EXAMPLES,))
    return model, x.to(dtype), y


def measured(data, model, group=None):
    """What one process and a group must agree on."""
    options = {"chunk_size": 7, "group": group}
    H = ll.HessianOperator(model, cross_entropy, data, **options)
    G = ll.GaussNewtonOperator(model, cross_entropy, data, **options)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(H.shape[0], 2, generator=generator, dtype=torch.float64).to(H.dtype)
    density = spectral_density(H, probes=2, steps=8)
    top = ll.lambda_max(model, cross_entropy, data, coarse_examples=30, tol=1e-6, **options)
    return {
        "Hv": (H @ v).tolist(),
        "Gv": (G @ v).tolist(),
        "loss": H.objective.value(),
        "start": H.curved_start().tolist(),
        "part": (H.subsample(11) @ v[:, 0]).tolist(),
        "lambda_max": top.values.tolist(),
        "products": [top.products],
        "trace": [estimate_trace(H, probes=6).value],
        "density": density.density.tolist(),
    }


def agree(data, model, group):
    return measured(data, model, group)


def count(data, model, group):
    """All-reduces of three products of one vector and one of a block."""
    H = ll.HessianOperator(model, cross_entropy, data, group=group)
    calls, real = [], dist.all_reduce
    dist.all_reduce = lambda *args, **options: (calls.append(1), real(*args, **options))[1]
    v = torch.ones(H.shape[0], dtype=H.dtype)
    for vectors in (v, v, v, torch.stack([v, -v], dim=1)):
        H @ vectors
    return len(calls)


def mistakes(data, model, group):
    """Each mistake of rank 1, and what the ranks raise; the group works on afterwards."""
    rank, said = dist.get_rank(group), {}

    def note(name, call):
        try:
            call()
            said[name] = "nothing"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"

    def made(data, loss_fn=cross_entropy):
        return ll.HessianOperator(model, loss_fn, data, group=group)

    x, y = data
    H = made(data)
    v = torch.ones(H.shape[0], dtype=H.dtype)
    note("another vector", lambda: H @ (v + rank))
    with torch.no_grad():
        model[0].weight[0, 0] += rank
    note("other weights", lambda: H @ v)
    note("other weights from the start", lambda: made(data))
    with torch.no_grad():
        model[0].weight[0, 0] -= rank
    summed = nn.CrossEntropyLoss(reduction="sum" if rank else "mean")
    note("a sum", lambda: made(data, summed))
    before = x[0, 0].item()
    x[0, 0] = float("nan") if rank else before
    note("not a number", lambda: H @ v)
    x[0, 0] = before
    note("nobody has data", lambda: made((x[:0], y[:0])))
    note("all is well", lambda: H @ v)
    return said


def lost(data, model, group):
    """Rank 1 dies, or hangs, as MISHAP says, in the second product."""
    H = ll.HessianOperator(model, cross_entropy, data, group=group)
    v = torch.ones(H.shape[0], dtype=H.dtype)
    H @ v
    if dist.get_rank(group) == 1:
        if os.environ["MISHAP"] == "death":
            os.kill(os.getpid(), 9)
        time.sleep(60)
    began = time.monotonic()
    try:
        H @ v
    except RankError as error:
        return {"said": str(error), "seconds": time.monotonic() - began}
    return {"said": "nothing"}


def main(job, shards, out):
    torch.set_num_threads(1)
    limit = float(os.environ.get("LIMIT", "60"))
    dist.init_process_group("gloo", timeout=timedelta(seconds=limit))
    rank = dist.get_rank()
    found = {}
    for name, sizes in json.loads(shards).items():
        for dtype in (torch.float64, torch.float32):
            model, x, y = problem(dtype)
            first = sum(sizes[:rank])
            shard = slice(first, first + sizes[rank])
            data = (x[shard].clone(), y[shard])
            found[f"{name}, {dtype}"] = globals()[job](data, model, dist.group.WORLD)
            if job != "agree":
                break
    Path(out, f"{rank}.json").write_text(json.dumps(found))
    if job != "lost":
        dist.destroy_process_group()
    # The answers are written. A thread of PyTorch that still runs when the interpreter ends would
    # abort the process, as it did once on a busy machine.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
