"""One download with everything that the numbers of the book were read from."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ARCHIVE = Path("_downloads", "loss-landscape-geometry.zip")  # below the pages
PATTERNS = (
    "book/records/**/*.json",
    "book/claims.yml",
    "book/reported.yml",
    "book/verdicts.json",
    "notebooks/*.ipynb",
)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip file knows: same content, same bytes


def pack(app: Sphinx, error: Exception | None) -> None:
    """Put records, registration, verdicts and executed notebooks into one file."""
    if error or app.builder.format != "html":
        return
    source, target = Path(app.srcdir), Path(app.outdir) / ARCHIVE
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted({path for pattern in PATTERNS for path in source.glob(pattern)}):
            entry = zipfile.ZipInfo(path.relative_to(source).as_posix(), EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def setup(app: Sphinx) -> dict[str, Any]:
    """Pack when all pages are written."""
    app.connect("build-finished", pack)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
