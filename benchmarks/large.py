"""A transformer of more than ten million weights: what a product costs, and a certified eigenvalue.

    python benchmarks/large.py

Handwritten digits are read as sixteen patches each. Every part runs in a process of its own,
because peak memory never falls again; one thread each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from run import Clock, about_data, environment, publish, record_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import losslandscape as ll
from losslandscape.lab.records import peak_memory

WIDTH, LAYERS, HEADS, PATCH = 512, 4, 8, 2
BATCH, TRAINING_BATCH, STEPS = 64, 32, 60
TOL, BASIS_BYTES = 1e-3, 400 << 20
PARTS = ("plain", "recomputed", "eigenvalue", "precision")


class Patches(nn.Module):
    """A small vision transformer: patches, positions, layers, a mean and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (8 // PATCH) ** 2, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(n, 10)`` of images ``(n, 1, 8, 8)``."""
        x = self.embed(x).flatten(2).mT + self.positions
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.head(x.mean(dim=1))
        return scores


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The images of all products."""
    data = ll.load_dataset("digits")
    return data.x_train[:BATCH].to(dtype), data.y_train[:BATCH]


def train(path: str) -> dict[str, Any]:
    """Some steps of Adam from initialisation; keep the weights."""
    torch.manual_seed(0)
    data, model = ll.load_dataset("digits"), Patches()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(STEPS):
        picked = torch.randint(len(data.y_train), (TRAINING_BATCH,))
        loss = cross_entropy(model(data.x_train[picked]), data.y_train[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    torch.save(model.state_dict(), path)
    return {"parameters": sum(p.numel() for p in model.parameters()), "losses": losses}


def trained(path: str) -> Patches:
    """The network with the weights in a file."""
    model = Patches().eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def product(path: str, recompute: bool) -> dict[str, Any]:
    """Memory and seconds of products whose graph is not kept, beside those of gradients."""
    model, data = trained(path), batch()
    layers = model.layers if recompute else ()
    H = ll.HessianOperator(
        *(model, cross_entropy, data), chunk_size=BATCH, memory_budget=0, recompute=layers
    )
    v = torch.randn(H.shape[0], generator=torch.Generator().manual_seed(1))
    before = peak_memory()
    times, slopes = [], []
    for _ in range(3):
        began = time.process_time()
        image = H @ v
        times.append(time.process_time() - began)
    peak = peak_memory()
    for _ in range(3):
        began = time.process_time()
        loss = cross_entropy(model(data[0]), data[1])
        torch.autograd.grad(loss, list(model.parameters()))
        slopes.append(time.process_time() - began)
    return {
        "before": before,
        "peak": peak,
        "seconds": times,
        "gradient_seconds": slopes,
        "replaced": list(H.replaced),
        "norm": float(image.norm()),
    }


def eigenvalue(path: str) -> dict[str, Any]:
    """The largest eigenvalue on the batch, with a bounded basis."""
    model = trained(path)
    before, began = peak_memory(), time.process_time()
    top = ll.top_eigenpairs(
        *(model, cross_entropy, batch(), 1), tol=TOL, basis_bytes=BASIS_BYTES, memory_budget=0
    )
    return {
        "value": float(top.values[0]),
        "residual": float(top.residuals[0] / top.values[0].abs()),
        "products": top.products,
        "converged": bool(top.converged[0]),
        "seconds": time.process_time() - began,
        "before": before,
        "peak": peak_memory(),
    }


def precision(path: str) -> dict[str, Any]:
    """The error of a product in lower precision, relative to the product in float64."""
    model = trained(path)
    double = ll.HessianOperator(trained(path).double(), cross_entropy, batch(torch.float64))
    single = ll.HessianOperator(model, cross_entropy, batch(), memory_budget=0)
    top = ll.top_eigenpairs(model, cross_entropy, batch(), 1, tol=1e-2, progress=False)
    noise = torch.randn(single.shape[0], generator=torch.Generator().manual_seed(1))
    told: dict[str, Any] = {}
    for name, v in (("random vector", noise), ("top eigenvector", top.vectors[:, 0])):
        exact = double @ v.double()
        with torch.autocast("cpu", torch.bfloat16):
            half = single @ v
        for kind, image in (("float32", single @ v), ("bfloat16", half)):
            error = (image.double() - exact).norm() / exact.norm()
            told.setdefault(kind, {})[name] = float(error)
    return told


def part(name: str, path: str) -> dict[str, Any]:
    """One part of the results."""
    if name in ("plain", "recomputed"):
        return product(path, recompute=name == "recomputed")
    return {"train": train, "eigenvalue": eigenvalue, "precision": precision}[name](path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--part", "name", hidden=True)
@click.option("--weights", hidden=True)
def main(name: str | None, weights: str | None) -> None:
    """Measure and write ``book/records/benchmarks/large-seed0.json``."""
    torch.set_num_threads(1)
    if name is not None and weights is not None:
        click.echo(json.dumps(part(name, weights)))
        return
    began, about, results = Clock(), environment(()), {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.pt")
        for name in ("train", *PARTS):
            command = [sys.executable, __file__, "--part", name, "--weights", path]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[name] = json.loads(done.stdout)
            click.echo(f"{name}: measured", err=True)
    data = ll.load_dataset("digits")
    record = record_of(
        "large",
        began,
        about,
        results,
        recipe={"width": WIDTH, "layers": LAYERS, "heads": HEADS, "patch": PATCH, "steps": STEPS},
        settings={"batch": BATCH, "tol": TOL, "basis_bytes": BASIS_BYTES},
        dataset=about_data(data),
    )
    publish(record)


if __name__ == "__main__":
    main()
