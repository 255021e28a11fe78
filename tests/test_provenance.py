"""The provenance tables: what the files say, and a dash where they say nothing."""

import json

import nbformat
import pytest
from nbformat.v4 import new_notebook

from losslandscape.report import provenance


@pytest.mark.parametrize("kind", sorted(provenance.TABLES))
def test_every_row_has_a_text_for_every_heading(kind, tmp_path):
    headings, rows = provenance.TABLES[kind](tmp_path)
    for row in rows:
        assert len(row) == len(headings)
        assert all(isinstance(text, str) and text for text in row)


def test_a_notebook_is_described_by_its_stamp(tmp_path):
    (tmp_path / "notebooks").mkdir()
    stamp = {
        "inputs": "0123456789abcdef",
        "seconds": 12.34,
        "parameters": {"dataset": "digits", "seeds": 3},
        "defaults": True,
        "environment": {"python": "3.11.7", "torch": "2.13.0", "system": "Linux"},
    }
    stamp["environment"] |= {"processor": "A Chip", "instructions": "AVX2"}
    told = new_notebook(metadata={"losslandscape": stamp})
    nbformat.write(told, tmp_path / "notebooks/01_told.ipynb")
    nbformat.write(new_notebook(), tmp_path / "notebooks/02_silent.ipynb")
    _, rows = provenance.notebooks(tmp_path)
    assert rows[0] == [
        "01_told",
        "12.3 s",
        "0123456789ab",
        "dataset = 'digits', seeds = 3",
        "yes",
        "python 3.11.7, torch 2.13.0, A Chip, AVX2",
    ]
    assert rows[1] == ["02_silent", "-", "-", "none", "-", "-"]


def test_a_study_is_summed_over_its_runs_wherever_they_keep_a_value(tmp_path):
    folder = tmp_path / "book/records/first_study"
    folder.mkdir(parents=True)
    runs = [
        {"provenance": {"commit": "abc", "date": "2026-01-02T10:00", "cpu_seconds": 3000}},
        {"commit": "abc", "created": "2026-01-05", "cpu_seconds": 4200.0, "device": "cpu"},
        {"seed": 3},
    ]
    for number, run in enumerate(runs):
        (folder / f"{number}.json").write_text(json.dumps(run))
    (tmp_path / "book/records/empty_study").mkdir()
    _, rows = provenance.studies(tmp_path)
    assert rows == [["first_study", "3", "abc", "2026-01-02 to 2026-01-05", "2.0 h", "cpu"]]
