"""What this computer lacks for making and testing the book, and what to do about it.

Run as a file by any Python, before anything is installed: only the standard library is imported.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
OLDEST = (3, 11)
ROOM = 4.0  # GB that the environment and the built book take with the CPU build of PyTorch
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")  # two of MNIST's four files
LISTED = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        state: ``"ok"``, ``"missing"`` (a command of the README would fail) or ``"optional"``.
        found: What was looked at and found.
        advice: What to do; empty if all is well.
    """

    state: str
    found: str
    advice: str = ""


def checks(venv: Path, root: Path = ROOT) -> Iterator[Check]:
    """Every check in the order in which a newcomer needs it."""
    yield interpreter()
    yield from tools()
    yield room(root)
    yield environment(venv, root)
    yield browser()
    yield mnist()
    yield built(root)


def interpreter(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """The Python that runs this file."""
    found = "Python " + ".".join(map(str, version))
    if version < OLDEST:
        return Check("missing", found, "install Python 3.11 or newer: make setup PYTHON=python3.12")
    try:
        import ensurepip  # noqa: F401, Debian packs it apart
    except ImportError:
        return Check("missing", f"{found} without venv", "install the package python3-venv")
    return Check("ok", found)


def tools() -> Iterator[Check]:
    """Programs that the commands call."""
    for name, use in (("make", "runs the commands"), ("git", "names the commit of records")):
        path = shutil.which(name)
        yield (
            Check("ok", f"{name}: {path}")
            if path
            else Check("missing", f"no {name}", f"install {name}, which {use}")
        )


def room(root: Path, free: float | None = None) -> Check:
    """Disk space where the clone lies, ``free`` in GB."""
    free = shutil.disk_usage(root).free / 1e9 if free is None else free
    found = f"{free:.0f} GB of disk are free"
    if free < ROOM:
        return Check("missing", found, f"free {ROOM:.0f} GB: the environment is large")
    return Check("ok", found)


def environment(venv: Path, root: Path = ROOT) -> Check:
    """Whether the environment holds what is pinned."""
    python = next(
        (p for p in (venv / "bin/python", venv / "Scripts/python.exe") if p.exists()), None
    )
    if python is None:
        advice = "make setup (make book and make test begin with it)"
        return Check("optional", f"no environment in {venv} yet", advice)
    listed = subprocess.run(
        [str(python), "-c", LISTED], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        return Check("missing", f"{python} does not start", f"delete {venv}, then make setup")
    there = {_plain(line.split()[0]): line.split()[1] for line in listed.stdout.splitlines()}
    if "losslandscape" not in there:
        return Check("missing", f"{venv} has no losslandscape", "make setup")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (root / "constraints.txt").read_text(), re.M))
    # A local label says how a version was built, such as 2.13.0+cpu.
    off = [
        f"{name} {there[_plain(name)]} instead of {version}"
        for name, version in pins.items()
        if _plain(name) in there and there[_plain(name)].split("+")[0] != version.split("+")[0]
    ]
    if off:
        more = f" and {len(off) - 3} more" if len(off) > 3 else ""
        return Check(
            "missing", f"{venv}: {', '.join(off[:3])}{more}", f"delete {venv}, then make setup"
        )
    cuda = sum(name.startswith("nvidia-") for name in there)
    if cuda:
        advice = "nothing here needs them; see PyTorch without CUDA in book/reproduce.md"
        return Check("optional", f"{venv} as pinned, with {cuda} CUDA packages", advice)
    return Check("ok", f"{venv}: all versions as pinned")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def find_browser() -> str | None:
    """Path of Chromium or Chrome; the variable CHROMIUM names another one."""
    named = os.environ.get("CHROMIUM", "")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)


def browser() -> Check:
    """Chromium, for the tests of the built pages and for the book on paper."""
    path = find_browser()
    if path:
        return Check("ok", f"browser: {path}")
    named = os.environ.get("CHROMIUM", "")
    advice = "install Chromium, or name one in CHROMIUM; without it no page tests and no `make pdf`"
    return Check("optional", f"no browser {named}".rstrip(), advice)


def mnist() -> Check:
    """MNIST, for chapters with DATASET=mnist and for new runs of the studies."""
    folder = os.environ.get("LOSSLANDSCAPE_DATA", "")
    if folder:
        raw = Path(folder, "MNIST", "raw")
        if all((raw / name).is_file() for name in IDX):
            return Check("ok", f"MNIST: {raw}")
        return Check("optional", f"no MNIST in {raw}", "correct or unset LOSSLANDSCAPE_DATA")
    return Check("ok", "MNIST: downloaded when it is first asked for (LOSSLANDSCAPE_DATA is unset)")


def built(root: Path) -> Check:
    """Whether there are pages to open."""
    page = root / "_build" / "html" / "index.html"
    if page.is_file():
        return Check("ok", f"the book: {page}")
    return Check("optional", "the book is not built", "make book")


def main(arguments: list[str] | None = None) -> int:
    """Print all checks; 1 if a command of the README would fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment")
    venv = parser.parse_args(arguments).venv
    found = list(checks(venv.absolute()))
    width = max(len(check.state) for check in found)
    for check in found:
        print(f"{check.state:{width}}  {check.found}")
        if check.advice:
            print(f"{'':{width}}  -> {check.advice}")
    missing = sum(check.state == "missing" for check in found)
    print(f"\n{missing} missing" if missing else "\nNothing is missing.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
