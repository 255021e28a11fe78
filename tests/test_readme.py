"""The README's Python runs as it stands, and says what it says of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import losslandscape as ll

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_blocks_run_in_their_order_and_the_verdict_is_the_one_named(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert any("ll.assess(" in block for block in blocks)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    (named,) = set(re.findall(r"the verdict is `([\w-]+)`", README))
    assert named in ll.framework.VERDICTS
    assert named in said
    assert names["top"].converged.all()
