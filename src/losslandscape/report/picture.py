"""The one picture that stands outside the chapters: on the landing page and in the README."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

from PIL import Image

from losslandscape.lab.source import normalised_source
from losslandscape.report import figures
from losslandscape.report.headline import STUDY
from losslandscape.report.tables import recorded, reported

_KEY = "Description"  # the PNG text field that holds the fingerprint


def draw(path: Path, root: Path) -> None:
    """Draw the picture from the records below ``root``, stamped with what it was drawn from."""
    figure = figures.training.landing(recorded(STUDY, root), reported(root))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A white ground: the README's page may be dark, and has no style sheet of ours.
    figure.savefig(path, facecolor="white", dpi=180, metadata={_KEY: fingerprint(root)})


def fingerprint(root: Path) -> str:
    """Hash of the records, the reported numbers and the code that draws."""
    digest = hashlib.sha256(normalised_source(inspect.getsource(figures.training.landing)).encode())
    files = [root.parent / "reported.yml", *sorted((root / STUDY).glob("*.json"))]
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_fresh(path: Path, root: Path) -> bool:
    """Whether the picture was drawn from today's records by today's code."""
    if not path.is_file():
        return False
    with Image.open(path) as image:
        return bool(image.info.get(_KEY) == fingerprint(root))
