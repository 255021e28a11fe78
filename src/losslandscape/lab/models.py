"""The networks of the report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from losslandscape.lab.data import Dataset


def cnn(
    dataset: Dataset,
    *,
    seed: int,
    channels: tuple[int, int] = (32, 64),
    hidden: int = 128,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU and max-pooling, then two fully connected layers.

    The paper says only "a CNN"; this is the plain reading of it, sized to the images.
    On MNIST it has 421,642 parameters.

    Args:
        dataset: Gives image size and number of classes.
        seed: Seed of PyTorch's default initialisation; the global random state is left untouched.
        channels: Channels of the two convolutions.
        hidden: Units of the hidden fully connected layer.
        dtype: Type of the parameters.
    """
    height, width = dataset.x_train.shape[-2:]
    first, second = channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (height // 4) * (width // 4), hidden),
            nn.ReLU(),
            nn.Linear(hidden, dataset.classes),
        )
    return model.to(dtype)


def mlp(
    sizes: Sequence[int],
    *,
    activation: type[nn.Module] = nn.Tanh,
    seed: int,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """A fully connected network on flattened inputs, for identities on small problems.

    Args:
        sizes: Units per layer, input and output included, for instance ``(64, 20, 10)``.
        activation: Between the layers; ``nn.Tanh`` is smooth, ``nn.ReLU`` has kinks.
        seed: Seed of PyTorch's default initialisation; the global random state is left untouched.
        dtype: Type of the parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes[:-1]):
            layers += [nn.Linear(inputs, outputs), activation()]
        layers.append(nn.Linear(sizes[-2], sizes[-1]))
    return nn.Sequential(*layers).to(dtype)
