"""Results in the text are substitutions: a typed number must be a setting, a threshold or a quote.

A decimal or a percentage in a sentence counts as explained when the code of the page has it too,
when the registration or the paper does, or when it is arithmetic of an exercise. What is left is
listed here with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from losslandscape import eigen
from losslandscape.framework import cost, hessian_set

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("notebooks/[0-9]*.md")), *sorted(ROOT.glob("book/*.md"))]
REGISTERED = [ROOT / "book/claims.yml", ROOT / "book/reported.yml"]
EXPLAINED = {
    "book/diff.md": {
        "99.5": "the quantile that defines the tolerance",
        "4.6": "that quantile of Student's t with nine degrees of freedom, times the root of 2",
        "0.035": "the root of the machine epsilon of single precision, in per cent",
    },
    "book/intro.md": {"3.11": "version of Python"},
    "book/reproduce.md": {"3.11": "version of Python"},
}
HEAD = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
FENCE = re.compile(r"(`{3,}|:{3,})(?:\{([\w:-]+)\}.*|([a-z]*))")
OPTION = re.compile(r":[\w-]+:( |$)")
INSTEAD = re.compile(  # roles, substitutions, inline code, addresses of links
    r"\{[\w:-]+\}`[^`]*`|\{\{.*?\}\}|`[^`\n]*`|\]\([^)]*\)|https?://\S+"
)
NUMBER = re.compile(
    r"(?<![\w.,])(?:\d+\.\d+(?!\w|\.\d)|\d+(?:\.\d+)?(?= ?\\?%| times\b| points\b))"
)
ANY = re.compile(r"(?<![\w.])(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?(?![\w])")


def parts(text: str) -> Iterator[tuple[str, str]]:
    """("prose", "code" or "exercise", line) for each line but fences, options and headings.

    A fence closes the innermost open one of its kind that is not longer; else it opens one.
    A directive holds prose, and whatever stands below "## Exercises" is an exercise.
    """
    open_fences: list[tuple[str, str]] = []
    chapter = "prose"
    for line in HEAD.sub("", text).splitlines():
        kind = open_fences[-1][1] if open_fences else chapter
        fence = FENCE.fullmatch(line)
        if open_fences and set(line) == {line[:1]} and line.startswith(open_fences[-1][0]):
            open_fences.pop()
        elif fence and kind != "code":
            name = fence[2]
            code = name in (None, "code-cell", "eval-rst")
            inner = "code" if code else "exercise" if name in ("exercise", "solution") else kind
            open_fences.append((fence[1], inner))
        elif kind == "code":
            yield kind, line
        elif line.startswith("## "):
            chapter = "exercise" if line == "## Exercises" else "prose"
        elif not (open_fences and OPTION.match(line)):
            yield kind, line
    assert not open_fences, f"never closed: {open_fences}"


def typed(text: str) -> list[tuple[str, str]]:
    """(number, its line) for each number typed in a sentence."""
    prose = "\n".join(line for kind, line in parts(text) if kind == "prose")
    lines = [line for line in INSTEAD.sub("", prose).splitlines() if not line.startswith(">")]
    return [(found[0], line) for line in lines for found in NUMBER.finditer(line)]


def numbers(text: str) -> set[float]:
    return {float(found) for found in ANY.findall(text)}


KNOWN = set().union(*(numbers(path.read_text(encoding="utf-8")) for path in REGISTERED))


def unexplained(text: str, page: str) -> list[str]:
    """What is typed on a page without a reason."""
    settings = set().union(*(numbers(line) for kind, line in parts(text) if kind == "code"))
    explained = EXPLAINED.get(page, {})
    return [
        f"{number}: {line.strip()[:110]}"
        for number, line in typed(text)
        if not {float(number), float(number) / 100} & (settings | KNOWN) and number not in explained
    ]


@pytest.mark.parametrize("path", PAGES, ids=[path.stem for path in PAGES])
def test_a_typed_number_is_explained(path):
    left = unexplained(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    assert left == [], "let the code say it (glue), or give the reason in EXPLAINED"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The loss is 0.4837 nats.", 1),
        ("It falls by 48.37 % in 7.31 times as many steps.", 2),
        ("It is $\\lambda = 3.917$ there.", 1),
        ("The loss is {glue:text}`loss` nats, or {{ ll_loss }}, or `0.4837`.", 0),
        ("```{code-cell} python3\nx = 0.4837\n```\nFrom 0.4837 on.", 0),
        ("## Exercises\nSo it is 0.4837.\n## Next\n", 0),
        ("## Exercises\nSo it is 0.4837.\n## Next\nNow 0.4838.", 1),
        ("```{figure} a.png\n:width: 80.5%\n```\nSo it is 0.4837.\n```bash\nls\n```", 1),
        ("````{prf:proof}\n```{figure} a.png\nIt is 0.4837.\n```\nAnd 0.4838.\n````", 2),
        ("```{exercise}\nSo it is 0.4837.\n```", 0),
        ("> The paper says 0.4837.", 0),
        ("The paper reports 246.19.", 0),
        ("Section 3.2.1 of version 1.0.4.", 0),
    ],
)
def test_the_scan_sees_what_it_should(text, count):
    assert len(unexplained(text, "page")) == count


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("03_power_iteration", f"where there are at least {eigen._COARSE_FROM:,} images"),
        ("03_power_iteration", {15: "takes a fifteenth,"}[eigen._COARSE_SHARE]),
        ("16_your_own_model", f"on all examples up to {hessian_set._ALL_UP_TO:,},"),
        ("16_your_own_model", f"else on {hessian_set._OF_MORE:,} of them,"),
        ("16_your_own_model", f"but at least {cost.LEAST_STEPS} steps,"),
        ("16_your_own_model", f"then {cost.LAST_STEPS} steps of plain SGD;"),
    ],
)
def test_a_default_told_is_the_default(page, sentence):
    assert sentence in (ROOT / f"notebooks/{page}.md").read_text(encoding="utf-8")
