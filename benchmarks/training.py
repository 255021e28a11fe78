"""Training throughput: ``python benchmarks/training.py`` (needs MNIST).

The loop of the studies (``losslandscape.lab.training.fit``) beside the loop of the usual tutorial,
which decodes and transforms each image anew, and beside plain loops over tensors in memory.
Every round runs each loop once over the same images, in another order; times are process CPU
seconds with one thread. The record keeps each of them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import click
import torch
from run import Clock, about_data, environment, interleaved, publish, record_of, timed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset, TensorDataset

from losslandscape.lab import training
from losslandscape.lab.data import (
    MNIST_MEAN,
    MNIST_STD,
    Dataset,
    _torchvision_datasets,
    default_root,
    load_dataset,
)
from losslandscape.lab.models import cnn, mlp
from losslandscape.lab.training import Recipe

BATCH, LR, SEED, ROUNDS = 64, 0.1, 0, 20
# Networks and the images of a round: enough for a tenth of a second or more.
MODELS: dict[str, tuple[Callable[[Dataset], nn.Module], int]] = {
    "CNN of the studies": (lambda data: cnn(data, seed=SEED), 1280),
    "small CNN": (lambda data: cnn(data, seed=SEED, channels=(8, 16), hidden=32), 3200),
    "one hidden layer": (
        lambda data: mlp((784, 100, 10), activation=nn.ReLU, seed=SEED, dtype=torch.float32),
        12_800,
    ),
}
OURS, TUTORIAL, LOADER = (
    "losslandscape",
    "DataLoader, torchvision transforms",
    "DataLoader, tensors",
)
SLICED, CHANNELS_LAST = "slices of tensors", "slices of tensors, channels last"
LOOPS = (OURS, TUTORIAL, LOADER, SLICED, CHANNELS_LAST)
ALONE = "no network: loading alone"

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Row:
    """One loop with one network, in the form that :func:`run.interleaved` shows."""

    call: str
    tool: str
    images: int


def sources(data: Dataset, images: int) -> dict[str, Callable[[], Batches]]:
    """One epoch of batches by every way to get them but ours."""
    # PyTorch's usual strides; contiguous() would keep ours, as both are the same memory.
    inputs, targets = torch.empty(data.x_train.shape).copy_(data.x_train), data.y_train
    pairs = TensorDataset(inputs, targets)
    pictures = Subset(torchvision_mnist(), range(images))

    def slices(source: Tensor) -> Batches:
        for rows in torch.randperm(images).split(BATCH):
            yield source[rows], targets[rows]

    last = inputs.to(memory_format=torch.channels_last)
    return {
        TUTORIAL: lambda: DataLoader(pictures, batch_size=BATCH, shuffle=True),
        LOADER: lambda: DataLoader(pairs, batch_size=BATCH, shuffle=True),
        SLICED: lambda: slices(inputs),
        CHANNELS_LAST: lambda: slices(last),
    }


def torchvision_mnist() -> Any:
    """The data set as in PyTorch's own example for MNIST."""
    datasets = _torchvision_datasets()
    from torchvision import transforms

    steps = [transforms.ToTensor(), transforms.Normalize((MNIST_MEAN,), (MNIST_STD,))]
    return datasets.MNIST(str(default_root()), train=True, transform=transforms.Compose(steps))


def epoch_of(loop: str, model: nn.Module, data: Dataset, images: int) -> Callable[[], Any]:
    """One epoch of training, ready to be timed."""
    if loop == OURS:
        recipe = Recipe("throughput", "sgd", lr=LR, batch_size=BATCH, epochs=1)
        return lambda: training.fit(model, recipe, data, seed=SEED, progress=False, on_epoch=None)
    if loop == CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    batches = sources(data, images)[loop]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def epoch() -> None:
        model.train()
        for inputs, targets in batches():
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()

    return epoch


def loading_of(loop: str, data: Dataset, images: int) -> Callable[[], Any]:
    """One epoch of batches that nobody uses."""
    batches = sources(data, images)[loop]
    return lambda: sum(len(targets) for _, targets in batches())


def check_the_same_images(data: Dataset) -> None:
    """All loops train on the same numbers."""
    for picture, ours in zip(Subset(torchvision_mnist(), range(64)), data.x_train, strict=False):
        torch.testing.assert_close(picture[0], ours)


def measure(data: Dataset, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of every loop with every network, round by round."""
    ready: dict[Row, Callable[[], Any]] = {}
    sizes = {}
    for name, (build, images) in MODELS.items():
        part = replace(data, x_train=data.x_train[:images], y_train=data.y_train[:images])
        for loop in LOOPS:
            model = build(data)
            sizes[name] = sum(p.numel() for p in model.parameters())
            ready[Row(name, loop, images)] = epoch_of(loop, model, part, images)
    images = MODELS["one hidden layer"][1]
    part = replace(data, x_train=data.x_train[:images], y_train=data.y_train[:images])
    for loop in LOOPS[1:]:
        ready[Row(ALONE, loop, images)] = loading_of(loop, part, images)
    for epoch in ready.values():  # the first call of each is slower
        epoch()
    seconds: dict[Row, list[float]] = {row: [] for row in ready}
    for _, row in interleaved(list(ready), rounds, "training"):
        gc.collect()
        seconds[row].append(timed(ready[row])[1])
    return [
        {
            "network": row.call,
            "parameters": sizes.get(row.call),
            "loop": row.tool,
            "images": row.images,
            "seconds": seconds[row],
        }
        for row in ready
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=ROUNDS, show_default=True)
def main(rounds: int) -> None:
    """Measure and write ``book/records/benchmarks/training-seed0.json``."""
    torch.set_num_threads(1)
    began, about = Clock(), environment(("torchvision",))
    data = load_dataset("mnist")
    check_the_same_images(data)
    # Loss, accuracy and gradient after an epoch are measurements, which the plain loops lack.
    with mock.patch.object(training, "evaluate", return_value={}):
        rows = measure(data, rounds)
    record = record_of(
        "training",
        began,
        about,
        {"rows": rows},
        recipe=asdict(Recipe("throughput", "sgd", lr=LR, batch_size=BATCH, epochs=1)),
        settings={"rounds": rounds, "dtype": "float32"},
        dataset=about_data(data),
    )
    publish(record)


if __name__ == "__main__":
    main()
