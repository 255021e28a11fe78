"""Two names with one explanation in a docstring, as in ``dtype, device: Of the parameters``.

Sphinx takes the first of two words in a field for a type; without the space between them they are
one word, and shown as they are written.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

SECTIONS = ("Args:", "Attributes:")
JOINT = re.compile(r"^    (\w+(?:, \w+)+)(?=: )")


def join(lines: list[str]) -> list[str]:
    """The docstring with joint names as one word each, in its sections of fields only.

    >>> join(["Attributes:", "    low, high: The ends, a, b: c.", "Example:", "    a, b: c"])
    ['Attributes:', '    low,high: The ends, a, b: c.', 'Example:', '    a, b: c']
    """
    found, inside = [], False
    for line in lines:
        if line and not line.startswith(" "):
            inside = line in SECTIONS
        if inside:
            line = JOINT.sub(lambda names: names[0].replace(", ", ","), line)
        found.append(line)
    return found


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = join(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Run before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
