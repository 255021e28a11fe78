"""Records: whole or refused, and stale when the code that shapes them changes."""

import dataclasses
import importlib
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from losslandscape.lab import records
from losslandscape.lab.records import Record, RecordError, UnreadableRecordError


def example(**changes):
    values = {
        "study": "demo",
        "configuration": "Adam_Default",
        "seed": 3,
        "fingerprint": "f" * 64,
        "recipe": {"lr": 0.1},
        "settings": {"channels": [8, 16]},
        "dataset": {"name": "digits"},
        "environment": {"torch": "2"},
        "timing": {"cpu_seconds": 1.5},
        "results": {"lambda_max": {"value": 0.1 + 0.2}},
    }
    return Record(**{**values, **changes})


def test_what_is_saved_is_loaded(tmp_path):
    path = records.save(example(), tmp_path)
    assert path.name == "Adam_Default-seed3.json"
    assert records.load(path) == example()


def test_a_study_is_loaded_in_order(tmp_path):
    for seed in (2, 0, 1):
        records.save(example(seed=seed), tmp_path / "demo")
    assert [r.seed for r in records.load_study("demo", tmp_path)] == [0, 1, 2]
    assert records.load_study("other", tmp_path) == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_part_of_a_file_reads_as_whole(tmp_path_factory, data):
    path = records.save(example(), tmp_path_factory.mktemp("records"))
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(RecordError, match=str(path.name)):
        records.load(path)


def test_an_altered_number_is_refused(tmp_path):
    path = records.save(example(), tmp_path)
    content = json.loads(path.read_text())
    content["results"]["lambda_max"]["value"] = 0.31
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match="checksum disagree"):
        records.load(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{}", '{"sha256": "x"}', "[" * 100_000])
def test_other_json_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"x\.json"):
        records.load(path)


def test_a_pickle_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "x.json"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(RecordError):
        records.load(path)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_file(tmp_path):
    with pytest.raises(RecordError, match="no such record"):
        records.load(tmp_path / "none.json")


def test_nan_is_never_written(tmp_path):
    with pytest.raises(RecordError, match="not finite"):
        records.save(example(results={"x": float("nan")}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_renamed_record_is_noticed(tmp_path):
    path = records.save(example(), tmp_path / "demo")
    path.rename(path.with_name("Flat_SGD_LowLR-seed3.json"))
    with pytest.raises(RecordError, match="holds demo/Adam_Default-seed3"):
        records.load_study("demo", tmp_path)


def test_a_write_that_fails_leaves_the_old_record(tmp_path, monkeypatch):
    path = records.save(example(), tmp_path)

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(RecordError, match=r"cannot be written \(disk full\): make room"):
        records.save(example(results={"other": 1}), tmp_path)
    assert records.load(path) == example()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_without_room_nothing_is_left(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    for attempt in (records.check_room, lambda folder: records.save(example(), folder)):
        with pytest.raises(RecordError, match=r"\(No space left on device\): make room"):
            attempt(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        records.check_room(tmp_path / "file" / "demo")
    with pytest.raises(RecordError, match="cannot be written"):
        records.save(example(), tmp_path / "file" / "demo")


def test_room_is_checked_without_a_trace(tmp_path):
    records.check_room(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []


def newer(path):
    """A record of a format to come, which may follow other rules for its checksum."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema": records.SCHEMA + 1, "sha256": "other"}))
    return path.read_bytes()


def test_a_newer_record_says_so_and_is_never_replaced(tmp_path):
    path = records.save(example(), tmp_path)
    content = newer(path)
    with pytest.raises(
        UnreadableRecordError, match=r"newer version .* \(format 2, this one reads 1"
    ):
        records.load(path)
    with pytest.raises(UnreadableRecordError, match="update losslandscape"):
        records.save(example(), tmp_path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_record_without_permission_says_so_and_is_never_replaced(tmp_path, monkeypatch):
    path = records.save(example(), tmp_path)

    def refuse(self):  # root may read everything, so the mode of the file is no test
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for attempt in (records.load, lambda _: records.save(example(), tmp_path)):
        with pytest.raises(
            UnreadableRecordError, match=r"cannot be read \(Permission denied\): check its perm"
        ):
            attempt(path)
    monkeypatch.undo()
    assert records.load(path) == example()


@pytest.mark.parametrize("damage", ["{", "", "[]"])
def test_a_damaged_record_is_replaced(tmp_path, damage):
    path = records.save(example(), tmp_path)
    path.write_text(damage)
    records.save(example(), tmp_path)
    assert records.load(path) == example()


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300))
def test_garbage_is_a_record_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("records") / "x.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"x\.json"):
        records.load(path)


def test_outside_a_clone_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError, match="run inside a clone"):
        records.records_root()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A module outside the package whose function is fingerprinted."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "toy_lab.py").write_text(text)
        sys.modules.pop("toy_lab", None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        import linecache

        linecache.clearcache()
        module = importlib.import_module("toy_lab")
        code = records.shaping_code(module.measure, package="toy_lab")
        return "".join(f"{name}\n{text}" for name, text in sorted(code.items()))

    yield write
    sys.modules.pop("toy_lab", None)


TOY = '''
SCALE = 2.0
def helper(x):
    return SCALE * x
def measure(x):
    """Doc."""
    return helper(x)  # note
def unrelated(x):
    return 3 * x
'''


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("SCALE = 2.0", "SCALE = 3.0", True),
        ("SCALE * x", "SCALE + x", True),
        ("return helper(x)", "return helper(x + 1)", True),
        ("3 * x", "4 * x", False),
        ("# note", "# another note", False),
        ("Doc.", "A longer text.", False),
    ],
)
def test_the_fingerprint_follows_the_code_that_is_called(toy, old, new, changes):
    before = toy(TOY)
    after = toy(TOY.replace(old, new))
    assert (before != after) is changes


TABLE = """
def double(x):
    return 2 * x
RULES = {"double": double, "none": abs}
def measure(x):
    return RULES["double"](x)
"""


def test_functions_in_a_constant_count_by_their_code_and_not_by_their_address(toy):
    first = toy(TABLE)
    assert " at 0x" not in first
    assert first == toy("hidden = [object() for _ in range(1000)]" + TABLE)
    assert first != toy(TABLE.replace("2 * x", "3 * x"))


def test_the_fingerprint_follows_plain_values():
    first = records.fingerprint({"lr": 0.1}, records.now)
    assert first == records.fingerprint({"lr": 0.1}, records.now)
    assert first != records.fingerprint({"lr": 0.2}, records.now)


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().seed = 1
