"""Files from others: whatever they hold, our loaders raise our errors and execute nothing."""

import contextlib
import copy
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from losslandscape.framework import Assessment, assess
from losslandscape.lab import data, records
from losslandscape.lab.models import mlp
from losslandscape.report import ledger, registration

BOOK = Path(__file__).parent.parent / "book"
RECORD = next(iter(sorted((BOOK / "records" / "three_configurations").glob("*.json"))))
quick = settings(
    max_examples=60,
    derandomize=True,  # a test fails on the change that broke it, not by luck
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
)


class Armed:
    """What a pickle would execute."""

    def __reduce__(self):
        return (pytest.fail, ("a file was executed",))


def places(content, path=()):
    """Where something can be changed: the path of each entry."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, part in items:
        if isinstance(part, (dict, list)):
            yield from places(part, (*path, key))
        else:
            yield (*path, key)


def changed(content, path, new):
    """A copy with another value at ``path``; without the entry if it is ``KeyError``."""
    if not path:
        return new
    content = copy.deepcopy(content)
    part = content
    for key in path[:-1]:
        part = part[key]
    if new is KeyError:
        del part[path[-1]]
    else:
        part[path[-1]] = new
    return content


@quick
@given(st.binary(max_size=300) | st.just(pickle.dumps(Armed())) | st.just(b"[" * 100_000))
def test_bytes_are_no_record(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(records.RecordError):
        records.load(path)


@quick
@given(st.data())
def test_a_record_with_one_byte_changed_is_refused(tmp_path, draw):
    whole = RECORD.read_bytes()
    place = draw.draw(st.integers(0, len(whole) - 1))
    byte = draw.draw(st.integers(0, 255))
    path = tmp_path / "a.json"
    path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    with contextlib.suppress(records.RecordError):
        same = records.load(path)  # white space, or the same byte
        assert same == records.load(RECORD)


@quick
@given(st.data())
def test_a_record_of_the_wrong_kinds_is_refused_or_loaded_whole(tmp_path, draw):
    content = records.read(RECORD)
    top = [path for path in places(content) if len(path) <= 1]
    content = changed(content, draw.draw(st.sampled_from(top)), draw.draw(anything))
    path = tmp_path / "a.json"
    try:
        body = {"schema": 1, **content}
        path.write_text(json.dumps({**body, "sha256": records._checksum(body)}))
        found = records.load(path)
    except (TypeError, ValueError):  # what was drawn is no content of a file
        return
    except records.RecordError:
        return
    assert isinstance(found.results, dict)
    assert isinstance(found.seed, int)


@quick
@given(st.data())
def test_a_damaged_idx_file_is_refused_before_it_is_read(tmp_path, draw):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name in data.MNIST_FILES:
        (raw / name).write_bytes(draw.draw(st.binary(max_size=64)))
    with pytest.raises(data.DataError):
        data.load_dataset("mnist", tmp_path)


@pytest.fixture(scope="module")
def assessment():
    model = mlp((2, 3, 2), activation=nn.ReLU, seed=0)
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = assess(model, cross_entropy, (x, (x[:, 0] > 0).long()), probes=2, progress=False)
    return json.loads(json.dumps(found.to_dict()))


@settings(quick, max_examples=150)
@given(st.data())
def test_an_assessment_with_one_entry_changed_is_refused_or_shown(assessment, draw):
    path = draw.draw(st.sampled_from(list(places(assessment))))
    new = draw.draw(anything | st.just(KeyError) if path else anything)
    try:
        found = Assessment.from_dict(changed(assessment, path, new))
    except ValueError:
        return
    assert str(found)
    assert found._repr_html_()
    json.dumps(found.to_dict())


def test_an_unknown_invariance_is_refused(assessment):
    wrong = changed(assessment, ("measures", "trace", "invariant"), "")
    with pytest.raises(ValueError, match="this is no assessment"):
        str(Assessment.from_dict(wrong))


@settings(quick, max_examples=40)
@given(st.data())
def test_a_registration_with_one_entry_changed_is_refused_or_read(draw):
    content = registration.load(BOOK)
    path = draw.draw(st.sampled_from(list(places(content))))
    new = draw.draw(anything | st.just(KeyError) if path else anything)
    text = yaml.safe_dump(changed(content, path, new))
    with contextlib.suppress(registration.RegistrationError):
        found = registration.parse(text)
        assert all(claim["id"] and claim["data"] is not None for claim in found["claims"])


@quick
@given(st.text(max_size=100) | st.just("!!python/object/apply:os.getcwd []") | st.just("[" * 5000))
def test_text_is_no_registration(text):
    with pytest.raises(registration.RegistrationError):
        registration.parse(text)


@quick
@given(st.data())
def test_verdicts_with_one_entry_changed_are_refused(tmp_path, draw):
    content = json.loads((BOOK / "verdicts.json").read_text())
    path = draw.draw(st.sampled_from(list(places(content["verdicts"]))))
    content["verdicts"] = changed(content["verdicts"], path, "something else")
    (tmp_path / "verdicts.json").write_text(json.dumps(content))
    with pytest.raises(records.RecordError):
        ledger.load(tmp_path)


def test_no_loader_of_ours_can_execute():
    risky = r"pickle|torch\.load|yaml\.(unsafe_)?load\(|(?<![\w.])(eval|exec)\("
    package = BOOK.parent / "src" / "losslandscape"
    found = {
        path.relative_to(package).as_posix(): re.findall(rf".*(?:{risky}).*", path.read_text())
        for path in package.rglob("*.py")
        if re.search(risky, path.read_text())
    }
    # Dask sends code to its workers: the client's own, in memory, and nothing is unpickled here.
    assert set(found) == {"lab/cluster.py"}
    sent = re.findall(r"(?:cloud)?pickle\.\w+\W", (package / "lab" / "cluster.py").read_text())
    assert sent == ["pickle.loads,", "cloudpickle.dumps("]
