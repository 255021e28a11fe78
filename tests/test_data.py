"""Both data sets, and every way in which MNIST's files can be wrong."""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from losslandscape.lab import data
from losslandscape.lab.data import DataError, default_root, load_dataset


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def test_digits_are_split_once_and_for_all(digits):
    assert digits.x_train.shape == (1437, 1, 8, 8)
    assert digits.x_test.shape == (360, 1, 8, 8)
    assert (digits.x_train.dtype, digits.y_train.dtype) == (torch.float32, torch.int64)
    assert digits.classes == 10
    assert digits.checksum == load_dataset("digits").checksum
    together = torch.cat([digits.x_train, digits.x_test]).flatten(1)
    assert len(together.unique(dim=0)) == 1797, "an image is in both sets, or twice in one"


def test_digits_are_standardised_with_training_constants(digits):
    assert abs(float(digits.x_train.mean())) < 1e-6
    assert abs(float(digits.x_train.std()) - 1) < 1e-3
    assert abs(float(digits.x_test.mean())) > 1e-4


def test_every_class_has_its_share_of_the_test_set(digits):
    counts = torch.bincount(digits.y_test, minlength=10)
    assert int(counts.min()) >= 34
    assert int(counts.max()) <= 38


def test_a_stratified_subset_keeps_the_shares(digits):
    x, y = digits.stratified_subset(500)
    assert x.shape == (500, 1, 8, 8)
    shares = torch.bincount(y, minlength=10) / 500
    expected = torch.bincount(digits.y_train, minlength=10) / 1437
    assert float((shares - expected).abs().max()) < 0.01
    again, _ = digits.stratified_subset(500)
    assert torch.equal(x, again)
    assert digits.stratified_subset(1437)[0] is digits.x_train


@pytest.mark.parametrize("size", [0, 9, 1438])
def test_a_subset_of_impossible_size_is_refused(digits, size):
    with pytest.raises(ValueError, match="needs 10 to 1437 images"):
        digits.stratified_subset(size)


def test_to_float64_keeps_the_numbers(digits):
    double = digits.to(torch.float64)
    assert double.x_train.dtype == torch.float64
    assert torch.equal(double.x_train.float(), digits.x_train)


def test_unknown_name():
    with pytest.raises(DataError, match="unknown data set 'cifar': choose one of digits, mnist"):
        load_dataset("cifar")


def test_the_root_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("LOSSLANDSCAPE_DATA", "somewhere")
    assert default_root() == Path("somewhere")
    monkeypatch.delenv("LOSSLANDSCAPE_DATA")
    assert default_root().name == "losslandscape"


def idx(array):
    """The idx format: two zeros, type code 8 (unsigned byte), rank, sizes, bytes."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A folder in MNIST's layout with 20 + 10 images, known to the loader by their checksums."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    known = {}
    for part, n in (("train", 20), ("t10k", 10)):
        for kind, array in (
            ("images-idx3", generator.integers(0, 256, (n, 28, 28))),
            ("labels-idx1", generator.integers(0, 10, n)),
        ):
            content = idx(array)
            name = f"{part}-{kind}-ubyte"
            (raw / name).write_bytes(content)
            known[name] = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(data, "MNIST_FILES", known)
    return tmp_path


def test_mnist_is_read_through_torchvision(tiny_mnist):
    mnist = load_dataset("mnist", tiny_mnist)
    assert mnist.x_train.shape == (20, 1, 28, 28)
    assert mnist.y_test.shape == (10,)
    pixels = (tiny_mnist / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:]
    expected = (np.frombuffer(pixels, np.uint8) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(mnist.x_test.numpy().ravel(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(data.MNIST_FILES))
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-5], "bytes instead of"),
        (lambda content: content + b"x", "bytes instead of"),
        (lambda content: b"", "has 0 bytes"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "corrupt"),
    ],
)
def test_damaged_files_are_named(tiny_mnist, name, damage, message):
    path = tiny_mnist / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("mnist", tiny_mnist)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tiny_mnist):
    (tiny_mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is missing"):
        load_dataset("mnist", tiny_mnist)


def test_no_files_and_no_network_is_one_clear_line(tmp_path, monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(data._torchvision_datasets().mnist, "download_and_extract_archive", offline)
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        load_dataset("mnist", tmp_path)
    assert "LOSSLANDSCAPE_DATA" in str(caught.value)
    assert "\n" not in str(caught.value)


mnist_root = os.environ.get("LOSSLANDSCAPE_DATA")


@pytest.mark.skipif(
    not (mnist_root and (Path(mnist_root) / "MNIST" / "raw").is_dir()),
    reason="MNIST is not here: set LOSSLANDSCAPE_DATA to the folder that holds MNIST/raw",
)
def test_the_real_mnist():
    mnist = load_dataset("mnist")
    assert mnist.x_train.shape == (60_000, 1, 28, 28)
    assert mnist.x_test.shape == (10_000, 1, 28, 28)
    assert abs(float(mnist.x_train.mean())) < 1e-3
    assert abs(float(mnist.x_train.std()) - 1) < 1e-3
