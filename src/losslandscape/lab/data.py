"""The two data sets of the report: digits (embedded) and MNIST (through torchvision)."""

from __future__ import annotations

import hashlib
import importlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor

DATASETS = ("digits", "mnist")

# SHA-256 and size of MNIST's four uncompressed files, as published by LeCun, Cortes and Burges.
MNIST_FILES = {
    "train-images-idx3-ubyte": (
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
DIGITS_TEST_IMAGES = 360


class DataError(RuntimeError):
    """A data set is unknown, missing or damaged; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images and labels, ready for a network.

    Attributes:
        name: ``"digits"`` or ``"mnist"``.
        x_train, x_test: ``(n, 1, h, w)`` floats, standardised with training-set constants.
        y_train, y_test: ``(n,)`` int64 labels.
        classes: Number of classes.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of all four tensors' bytes."""
        digest = hashlib.sha256()
        for part in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(np.ascontiguousarray(part.numpy()).tobytes())
        return digest.hexdigest()

    def to(self, dtype: torch.dtype) -> Dataset:
        """The same images in another floating type."""
        return replace(self, x_train=self.x_train.to(dtype), x_test=self.x_test.to(dtype))

    def stratified_subset(self, size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """``size`` training images, as many of each class as its share asks for, in fixed order.

        Raises:
            ValueError: ``size`` is not between the number of classes and the training-set size.
        """
        if not self.classes <= size <= len(self.y_train):
            raise ValueError(
                f"a subset of {self.name} needs {self.classes} to {len(self.y_train)} images, "
                f"got {size}"
            )
        if size == len(self.y_train):
            return self.x_train, self.y_train
        from sklearn.model_selection import train_test_split

        rows = np.arange(len(self.y_train))
        chosen, _ = train_test_split(
            rows, train_size=size, random_state=seed, stratify=self.y_train.numpy()
        )
        chosen = torch.from_numpy(np.sort(chosen))
        return self.x_train[chosen], self.y_train[chosen]


def load_dataset(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Load ``"digits"`` (no files needed) or ``"mnist"``.

    Args:
        name: One of :data:`DATASETS`.
        root: Folder that holds, or will hold, ``MNIST/raw``.
            Default: the environment variable ``LOSSLANDSCAPE_DATA``, else the user's cache folder.

    Raises:
        DataError: The name is unknown, or MNIST is damaged, or missing and not downloadable.
    """
    if name == "digits":
        return _digits()
    if name == "mnist":
        return _mnist(Path(root) if root is not None else default_root())
    raise DataError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")


def default_root() -> Path:
    """Where MNIST is looked for when no folder is given."""
    configured = os.environ.get("LOSSLANDSCAPE_DATA")
    return Path(configured) if configured else Path(platformdirs.user_cache_dir("losslandscape"))


def _digits() -> Dataset:
    """1,797 images of 8 x 8 pixels from scikit-learn's wheel, split once and for all."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=DIGITS_TEST_IMAGES, random_state=0, stratify=labels
    )
    mean, std = float(x_train.mean()), float(x_train.std())

    def tensor(pixels: np.ndarray) -> Tensor:
        standardised = torch.as_tensor((pixels - mean) / std, dtype=torch.float32)
        return _channels_last(standardised.reshape(-1, 1, 8, 8))

    def integers(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64)

    return Dataset(
        "digits", tensor(x_train), integers(y_train), tensor(x_test), integers(y_test), 10
    )


def _mnist(root: Path) -> Dataset:
    datasets = _torchvision_datasets()
    raw = root / "MNIST" / "raw"
    if any((raw / name).is_file() for name in MNIST_FILES):
        _verify(raw)
    else:
        _download(datasets, root)
    train = datasets.MNIST(str(root), train=True)
    test = datasets.MNIST(str(root), train=False)

    def tensor(pixels: Tensor) -> Tensor:
        return _channels_last(((pixels.float() / 255 - MNIST_MEAN) / MNIST_STD)[:, None])

    return Dataset("mnist", tensor(train.data), train.targets, tensor(test.data), test.targets, 10)


def _channels_last(images: Tensor) -> Tensor:
    """The same numbers, declared channels-last, so that CPU convolutions take the fast layout.

    With one channel both layouts are the same memory, and only the strides tell them apart.
    """
    n, channels, height, width = images.shape
    return images.contiguous().as_strided(
        (n, channels, height, width), (height * width, 1, width, 1)
    )


def _download(datasets: Any, root: Path) -> None:
    try:
        datasets.MNIST(str(root), download=True)
    except Exception as error:  # torchvision lets urllib, OS and its own errors through
        raise DataError(
            f"MNIST is not in {root} and could not be downloaded: set LOSSLANDSCAPE_DATA to a "
            "folder with MNIST's four idx files in MNIST/raw, or connect once"
        ) from error
    _verify(root / "MNIST" / "raw")


def _verify(raw: Path) -> None:
    """Refuse a missing, truncated or altered file before torchvision reads it."""
    for name, (size, sha256) in MNIST_FILES.items():
        path = raw / name
        if not path.is_file():
            raise DataError(f"{path} is missing: delete the folder {raw} and load MNIST again")
        found = path.stat().st_size
        if found != size:
            raise DataError(
                f"{path} has {found} bytes instead of {size}: delete the folder {raw} and load "
                "MNIST again"
            )
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise DataError(
                f"{path} is corrupt (wrong SHA-256): delete the folder {raw} and load MNIST again"
            )


def _torchvision_datasets() -> Any:
    """Import ``torchvision.datasets``, also beside a torch build its wheel was not made for.

    With a CPU-only torch the compiled operators of the torchvision wheel do not load, and the
    import stops because ``torchvision::nms`` is unknown.
    Declaring the two operators' signatures is all the import needs; data sets never call them.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # The declaration lives as long as the library object.
    _torchvision_datasets.library = library  # type: ignore[attr-defined]
    return importlib.import_module("torchvision.datasets")
