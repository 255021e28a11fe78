"""``lambda_max`` on the first ``n`` training images, in a process of its own.

    python benchmarks/scaling.py IMAGES.npy LABELS.npy WEIGHTS.npy

prints one JSON object: time, peak memory, work in passes over the data, and the certificate judged
in float64.
A fresh process, because peak memory never falls again.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from judge import Answer, certificate, counting
from problem import CHANNELS, HIDDEN, SEED, set_weights
from torch.nn.functional import cross_entropy

import losslandscape as ll
from losslandscape.lab.data import Dataset, _channels_last
from losslandscape.lab.models import cnn
from losslandscape.lab.records import peak_memory

TOL = 1e-3
# Graphs kept for the next product: memory grows up to that bound, so it is one that the smallest
# set of images fills already. The default is 1 GiB.
MEMORY_BUDGET = 1 << 27


def main(images: str, labels: str, weights: str) -> None:
    """Run, measure, print."""
    torch.set_num_threads(1)
    inputs = _channels_last(torch.from_numpy(np.load(images)))
    targets = torch.from_numpy(np.load(labels))
    model = cnn(
        Dataset("", inputs, targets, inputs, targets, 10),
        seed=SEED,
        channels=CHANNELS,
        hidden=HIDDEN,
    ).eval()
    set_weights(model, np.load(weights))
    before = peak_memory()
    began = time.process_time()
    with counting(len(targets)) as count:
        result = ll.lambda_max(
            model, cross_entropy, (inputs, targets), tol=TOL, memory_budget=MEMORY_BUDGET
        )
    seconds = time.process_time() - began
    told = {
        "images": len(targets),
        "seconds": seconds,
        "memory_before": before,
        "memory_peak": peak_memory(),
        "data_bytes": inputs.nbytes + targets.nbytes,
        "products": result.products,
        "counted_products": count.products,
        "passes": count.passes,
        "value": float(result.values[0]),
        "residual": float(result.residuals[0] / result.values[0].abs()),
        "says": bool(result.converged[0]),
        "history": result.history.tolist(),
    }
    exact = ll.HessianOperator(model.double(), cross_entropy, (inputs.double(), targets))
    answer = Answer([told["value"]], result.vectors, told["says"], TOL)
    print(json.dumps(told | certificate(exact, answer)))


if __name__ == "__main__":
    main(*sys.argv[1:])
