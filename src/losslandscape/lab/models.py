"""The networks of the report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

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


class ConvolutionLayer(nn.Module):
    """A 3x3 convolution and ReLU, with what may be between them and around them.

    ``relu(x + norm(conv(x)))`` with a shortcut, else without ``x``; a convolution before batch
    normalisation has no bias, which the normalisation would take out again.
    """

    def __init__(self, inputs: int, outputs: int, *, batchnorm: bool, shortcut: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batchnorm)
        self.norm = nn.BatchNorm2d(outputs) if batchnorm else nn.Identity()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(n, inputs, h, w)`` to ``(n, outputs, h, w)``."""
        y: Tensor = self.norm(self.conv(x))
        return torch.relu(x + y if self.shortcut else y)


def convolutional(
    dataset: Dataset,
    *,
    seed: int,
    convolutions: int,
    batchnorm: bool,
    residual: bool,
    channels: int = 16,
    dtype: torch.dtype = torch.float32,
) -> nn.Sequential:
    """So many 3x3 convolutions, with or without batch normalisation and residual connections.

    Max-pooling follows the first and the last of them, one linear layer ends the network. A
    residual connection leads around every convolution but the first, which changes the number of
    channels (He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016,
    around one convolution instead of two).

    Args:
        dataset: Gives image size and number of classes.
        seed: Seed of PyTorch's default initialisation; the global random state is left untouched.
        convolutions: At least 2.
        batchnorm: Whether batch normalisation follows every convolution.
        residual: Whether there are residual connections.
        channels: Channels of every convolution.
        dtype: Type of the parameters.

    Raises:
        ValueError: Fewer than two convolutions.
    """
    if convolutions < 2:
        raise ValueError(f"convolutions must be at least 2, got {convolutions}")
    height, width = dataset.x_train.shape[-2:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = ConvolutionLayer(1, channels, batchnorm=batchnorm, shortcut=False)
        others = [
            ConvolutionLayer(channels, channels, batchnorm=batchnorm, shortcut=residual)
            for _ in range(convolutions - 1)
        ]
        model = nn.Sequential(
            first,
            nn.MaxPool2d(2),
            *others,
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(channels * (height // 4) * (width // 4), dataset.classes),
        )
    return model.to(dtype)
