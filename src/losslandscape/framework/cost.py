"""What an assessment will cost, told beforehand, and how far it is."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from losslandscape.objective import Batch, LossFunction
from losslandscape.operators import HessianOperator

_TYPICAL_LANCZOS = 20
_TYPICAL_BOTTOM = 50
LAST_STEPS = 100
LEAST_STEPS = 100


@dataclass(frozen=True)
class Plan:
    """What will be done: sizes, expected products with the Hessian set, seconds."""

    examples: int
    rescalings: int
    polish_steps: int
    products: int
    seconds: float
    notes: tuple[str, ...]


def make_plan(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch,
    wanted: int,
    probes: int,
    rescalings: int,
    budget: float | None,
    chunk_size: int,
) -> Plan:
    """Time a product on a few examples, and cut down what a budget does not allow."""
    trial = min(2 * chunk_size, len(data[1]))
    inputs, targets = (part[:trial] for part in data)
    op = HessianOperator(model, loss_fn, (inputs, targets), chunk_size=chunk_size)
    vector = torch.ones(op.shape[0], dtype=op.dtype, device=op.device)
    op @ vector

    def seconds_of_a_product() -> float:
        begin = time.perf_counter()
        op @ vector
        return time.perf_counter() - begin

    each = min(seconds_of_a_product() for _ in range(2)) / trial  # per example and product
    steps = max(math.ceil(len(data[1]) / batch_size(data)), LEAST_STEPS)

    def cost(examples: int, draws: int, polish: int) -> tuple[int, float]:
        products = 6 * _TYPICAL_LANCZOS + 2 * _TYPICAL_BOTTOM + 2 * probes + 4
        per_draw = 2 * _TYPICAL_LANCZOS + probes
        small = min(examples, 1024) / examples
        total = round(products + draws * per_draw * small)
        gradients = (polish + LAST_STEPS) * batch_size(data) / 2 + 2 * len(data[1])
        return total, each * (total * examples + gradients)

    examples, draws, polish = wanted, rescalings, steps
    if budget is not None:
        while examples > 512 and cost(examples, draws, polish)[1] > budget:
            examples = max(512, examples // 2)
        while draws and cost(examples, draws, polish)[1] > budget:
            draws -= 1
        while polish > LEAST_STEPS and cost(examples, draws, polish)[1] > budget:
            polish = max(LEAST_STEPS, polish // 2)
    products, seconds = cost(examples, draws, polish)
    notes = []
    if examples < wanted:
        notes.append(f"Hessian set cut from {wanted} to {examples} examples by the time budget")
    if draws < rescalings:
        notes.append(f"rescalings cut from {rescalings} to {draws} by the time budget")
    if polish < steps:
        notes.append(f"polish cut from {steps} to {polish} steps by the time budget")
    if budget is not None and seconds > budget:
        notes.append(f"the least that can be done takes {_time(seconds)}")
    return Plan(examples, draws, polish, products, seconds, tuple(notes))


class Meter:
    """Counts products, in units of the Hessian set, and shows a bar."""

    def __init__(self, plan: Plan, progress: bool) -> None:
        self.plan = plan
        self._count = 0.0
        self._bar = tqdm(total=plan.products, desc="assess", unit="product", disable=not progress)
        if progress:
            self._bar.write(
                f"assess: up to about {plan.products} Hessian products over {plan.examples:,} "
                f"examples and {plan.polish_steps + LAST_STEPS} training steps, "
                f"{_time(plan.seconds)}"
            )
            for note in plan.notes:
                self._bar.write(f"assess: {note}")

    @property
    def products(self) -> int:
        """Products so far, in passes over the Hessian set."""
        return math.ceil(self._count)

    def add(self, products: float) -> None:
        """Count products."""
        before = self.products
        self._count += products
        self._bar.update(self.products - before)

    def say(self, what: str) -> None:
        """Name the stage beside the bar."""
        self._bar.set_description(what)

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:  # fewer products than expected are a full bar too
            self._bar.total = self.products
        self._bar.close()


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"


def batch_size(data: Batch) -> int:
    """Examples per training step of the polish."""
    return min(64, len(data[1]))
