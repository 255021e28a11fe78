"""What holds for every test."""

from __future__ import annotations

import pytest
import torch

# Doctests are looked for in every module, and notebooks/ has one of this name too.
collect_ignore = ["conftest.py"]


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test draws the same numbers alone and after others, so that a failure can be repeated."""
    torch.manual_seed(0)
