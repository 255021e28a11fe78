"""What of a Python source decides its results: the code, without its comments and docstrings."""

from __future__ import annotations

import ast
import io
import tokenize

# Python 3.12 and 3.14 split f- and t-strings into several tokens; older versions lack the names.
_OPENING = {
    getattr(tokenize, name)
    for name in ("FSTRING_START", "TSTRING_START")
    if hasattr(tokenize, name)
}
_CLOSING = {
    getattr(tokenize, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(tokenize, name)
}


def normalised_source(text: str) -> str:
    r"""Return ``text`` without comments, docstrings, blank lines and trailing space.

    Two sources with the same normal form compute the same numbers, so fingerprints are taken of
    it. Only positions are read from the parser: the result does not depend on the Python version.
    String literals, however many lines they span, are kept to the letter.

    >>> normalised_source('x = 1  # one\n\n\ny = 2\n')
    'x = 1\ny = 2\n'
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    inside_string: set[int] = set()
    cuts = _docstrings(text, lines)
    opened: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row, last = token.start[0] - 1, token.end[0] - 1
        if token.type == tokenize.COMMENT:
            cuts.append((row, token.start[1], row, token.end[1]))
        elif token.type == tokenize.STRING:
            inside_string.update(range(row, last))
        elif token.type in _OPENING:
            opened.append(row)
        elif token.type in _CLOSING:
            inside_string.update(range(opened.pop(), last))
    for first, start, last, end in sorted(cuts, reverse=True):
        lines[first] = lines[first][:start] + lines[last][end:]
        for row in range(first + 1, last + 1):
            lines[row] = ""
        inside_string.difference_update(range(first, last))
    kept = []
    for row, line in enumerate(lines):
        if row in inside_string:
            kept.append(line)
        elif line.strip():
            kept.append(line.rstrip())
    return "\n".join(kept) + "\n"


def _docstrings(text: str, lines: list[str]) -> list[tuple[int, int, int, int]]:
    """Return (row, column, last row, end column) of each docstring, from 0, in characters."""
    spans = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is None:
            continue
        doc = node.body[0]
        assert doc.end_lineno is not None
        assert doc.end_col_offset is not None
        first, last = doc.lineno - 1, doc.end_lineno - 1
        spans.append(
            (
                first,
                _characters(lines[first], doc.col_offset),
                last,
                _characters(lines[last], doc.end_col_offset),
            )
        )
    return spans


def _characters(line: str, utf8_offset: int) -> int:
    """Turn the parser's byte offset into a character offset."""
    return len(line.encode()[:utf8_offset].decode())
