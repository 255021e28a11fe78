"""Where the time of one product goes: ``python benchmarks/profile_product.py``.

PyTorch's profiler sees a few products with a kept graph and as many gradients, on the network of
the benchmark; the record holds the share of each kind of operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import routes
import torch
from problem import load_problem
from run import Clock, assemble, environment, publish
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import losslandscape as ll

REPEATS = 5
# Operations of PyTorch by what they are in the network.
KINDS = {
    "convolution": ("conv", "thnn"),
    "ReLU": ("threshold", "clamp_min", "relu"),
    "pooling": ("max_pool", "gather", "scatter"),
    "fully connected": ("mm", "linear"),
    "copies, sums and zeros": ("copy_", "add", "fill_", "zero_", "mul", "sum"),
}


def shares(action: Callable[[], Any]) -> dict[str, float]:
    """CPU milliseconds of one call by kind of operation."""
    action()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(REPEATS):
            action()
    spent = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in seen.key_averages():
        name = event.key.removeprefix("aten::")
        kind = next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "other")
        spent[kind] += event.self_cpu_time_total / 1e3 / REPEATS
    return spent


def main() -> None:
    """Profile and write ``book/records/benchmarks/profile-seed0.json``."""
    torch.set_num_threads(1)
    began, about = Clock(), environment()
    problem = load_problem(None)
    model = problem.fresh_model()
    H = ll.HessianOperator(model, cross_entropy, problem.batches)
    vector = routes.probe_vector(problem)
    results = {
        "product": shares(lambda: H @ vector),
        "gradient": shares(routes.gradient(problem, model)),
    }
    record = assemble(problem, about, began, results)
    publish(replace(record, configuration="profile"))


if __name__ == "__main__":
    main()
