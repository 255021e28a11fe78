"""The registered tests, ``book/claims.yml``: read, or refused in one line if out of order."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NAME = "claims.yml"  # below book/
PARTS = ("definitions", "rules", "verdicts", "falsifiers", "claims")
# The texts that pages and verdicts read.
CLAIM = ("id", "statement", "place", "kind", "statistic", "threshold", "verdict")
FALSIFIER = ("id", "statement", "test", "threshold")


class RegistrationError(ValueError):
    """The file is missing or not in order; the message says where."""


def load(book: Path) -> dict[str, Any]:
    """``book/claims.yml``.

    Args:
        book: The folder ``book``.

    Raises:
        RegistrationError: The file is missing, no YAML, or an entry lacks a text.
    """
    path = book / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RegistrationError(
            f"book/{NAME} is missing or cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise RegistrationError(f"book/{NAME} is not UTF-8 text") from error
    return parse(text)


@functools.cache
def parse(text: str) -> dict[str, Any]:
    """The content of the file.

    Raises:
        RegistrationError: It is no YAML, or an entry lacks a text.
    """
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RegistrationError(f"book/{NAME}{where}: this is no YAML") from error
    if not isinstance(content, dict):
        raise RegistrationError(f"book/{NAME} must hold {', '.join(PARTS)}")
    for part in PARTS:
        entries = content.get(part)
        kind = list if part in ("falsifiers", "claims") else dict
        if not isinstance(entries, kind):
            raise RegistrationError(f"book/{NAME}: {part!r} must be a {kind.__name__}")
    for part, texts in (("claims", CLAIM), ("falsifiers", FALSIFIER)):
        for number, entry in enumerate(content[part], start=1):
            _check(entry, texts, f"{part}, entry {number}")
    for claim in content["claims"]:
        data = claim.get("data")
        if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
            raise RegistrationError(f"book/{NAME}: {claim['id']} needs a list of data")
        evidence = claim.get("evidence", [])
        if not isinstance(evidence, list):
            raise RegistrationError(f"book/{NAME}: the evidence of {claim['id']} must be a list")
        for cell in evidence:
            _check(cell, ("chapter", "cell"), f"evidence of {claim['id']}")
    return content


def amendments(entry: Mapping[str, Any]) -> list[str]:
    """What the file says of an entry beside its rule: what was made explicit, what was changed.

    >>> amendments({"changed": [{"date": "2026-11-25", "from": "a", "to": "b", "why": "Open."}]})
    ['Changed on 2026-11-25, from "a" to "b". Open.']
    """
    explicit = entry.get("check", "").strip()
    changes = [
        f'Changed on {one["date"]}, from "{one["from"].strip()}" to "{one["to"].strip()}". '
        f"{one['why'].strip()}"
        for one in entry.get("changed", [])
    ]
    return [*([explicit] if explicit else []), *changes]


def _check(entry: Any, texts: tuple[str, ...], where: str) -> None:
    if not isinstance(entry, dict):
        raise RegistrationError(f"book/{NAME}: {where} is no entry with names")
    for name in texts:
        if not isinstance(entry.get(name), str):
            raise RegistrationError(f"book/{NAME}: {where} ({entry.get('id', '?')}) lacks {name!r}")
