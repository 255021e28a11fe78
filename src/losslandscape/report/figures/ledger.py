"""The verdicts on all claims in one picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from losslandscape.report.figures.style import panels

Tile = tuple[str, str, str]  # claim, section of the paper, word of its verdict

# Section -> its subject, from top to bottom; section 3 has Table 1 only.
SECTIONS = {
    "1.1": "Taylor model",
    "1.2": "Sharpness",
    "1.3": "SGD noise",
    "2": "Methods",
    "3": "Table 1",
    "3.2": "Analysis",
    "3.3": "Table 2",
    "4.1": "Framework",
    "4.2": "Architecture",
    "4.3": "Conclusion",
    "abstract": "Abstract",
}
# A sign, a fill and a line for each word: the sign and the line are enough without colours.
LOOKS = {
    "holds": ("\u2713", "#0072B2", "-"),
    "holds if": ("(\u2713)", "#9ecae1", "-"),
    "not supported": ("\u2013", "#fdd0a2", "-"),
    "refuted": ("\u2717", "#a84300", "-"),
    "untestable here": ("?", "#ffffff", "-"),
    "waits": ("\u2026", "#ffffff", ":"),
}
_DARK = ("holds", "refuted")  # fills that take white letters
_WIDTH, _HEIGHT, _GAP = 1.0, 1.0, 0.08


def verdicts(tiles: Sequence[Tile]) -> Figure:
    """One tile for each claim, a row for each section, and the signs with their counts below."""
    rows = [
        (f"{name}  {subject}" if name != "abstract" else subject, here)
        for name, subject in SECTIONS.items()
        if (here := [tile for tile in tiles if tile[1] == name])
    ]
    signs = [word for word in LOOKS if any(tile[2] == word for tile in tiles)]
    deep = len(rows) + 0.5 + (len(signs) + 1) // 2
    figure, axes = panels(height=0.34 * deep + 0.1)
    axes.set_axis_off()
    for down, (title, here) in enumerate(rows):
        axes.text(-0.15, down + 0.45, title, ha="right", va="center", fontsize=9)
        for across, (claim, _, word) in enumerate(here):
            _tile(axes, across, down, f"{claim} {LOOKS[word][0]}", word)
    for number, word in enumerate(signs):
        left, top = -2.4 + 4.4 * (number % 2), len(rows) + 0.5 + number // 2
        count = sum(tile[2] == word for tile in tiles)
        _tile(axes, left, top, LOOKS[word][0], word)
        axes.text(left + 1.05, top + 0.45, f"{word} ({count})", va="center", fontsize=9)
    axes.set(xlim=(-2.5, 6.05), ylim=(deep, -0.1))
    return figure


def _tile(axes: Axes, across: float, down: float, text: str, word: str) -> None:
    _, fill, line = LOOKS[word]
    axes.add_patch(
        Rectangle(
            (across, down),
            _WIDTH - _GAP,
            _HEIGHT - _GAP,
            facecolor=fill,
            edgecolor="black",
            linestyle=line,
            linewidth=0.9,
        )
    )
    axes.text(
        across + (_WIDTH - _GAP) / 2,
        down + (_HEIGHT - _GAP) / 2,
        text,
        ha="center",
        va="center",
        fontsize=8.5,
        color="white" if word in _DARK else "black",
    )
