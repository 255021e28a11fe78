"""The pre-registration of the claims: complete, well formed, and never silently changed."""

import datetime
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BOOK = yaml.safe_load((ROOT / "book" / "claims.yml").read_text(encoding="utf-8"))
CLAIMS = BOOK["claims"]
KINDS = {"numeric", "records", "identity", "definition", "literature"}
TEXTS = ("statement", "place", "statistic", "threshold", "verdict")
REQUIRED = {"id", "kind", "data", *TEXTS}
OPTIONAL = {"data_details", "check", "changed", "evidence"}

each_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.get("id")))


def test_the_file_has_its_parts():
    assert {"version", "registered", "paper", "definitions", "rules", "verdicts"} <= set(BOOK)
    assert isinstance(BOOK["registered"], datetime.date)
    assert set(BOOK["verdicts"]) == {
        "holds",
        "holds if",
        "not supported",
        "refuted",
        "untestable here",
    }


def test_the_claims_are_c1_to_c38_in_order():
    assert [claim["id"] for claim in CLAIMS] == [f"C{n}" for n in range(1, 39)]


@each_claim
def test_a_claim_has_the_required_keys_and_no_other(claim):
    assert set(claim) >= REQUIRED, f"missing: {REQUIRED - set(claim)}"
    assert set(claim) <= REQUIRED | OPTIONAL, f"unknown: {set(claim) - REQUIRED - OPTIONAL}"
    assert claim["kind"] in KINDS


@each_claim
@pytest.mark.parametrize("key", TEXTS)
def test_a_claim_says_what_it_must(claim, key):
    assert isinstance(claim[key], str)
    assert claim[key].strip()


@each_claim
def test_the_data_of_a_claim_are_defined(claim):
    assert claim["data"]
    assert set(claim["data"]) <= set(BOOK["definitions"])


@each_claim
def test_the_rule_of_a_claim_ends_in_a_known_verdict(claim):
    rule = claim["verdict"].lower()
    by_rule = ("interval rule", "by rule", "rule p")
    assert any(verdict in rule for verdict in (*BOOK["verdicts"], *by_rule)), claim["verdict"]


@pytest.mark.parametrize("entry", [*CLAIMS, *BOOK["falsifiers"]], ids=lambda entry: entry["id"])
def test_a_change_is_dated_and_explained(entry):
    for change in entry.get("changed", []):
        assert set(change) == {"date", "from", "to", "why"}
        assert isinstance(change["date"], datetime.date)
        assert change["date"] >= BOOK["registered"]
        assert change["from"] != change["to"]
        assert str(change["why"]).strip()


def test_the_falsifiers_are_f1_to_f6_in_order():
    assert [falsifier["id"] for falsifier in BOOK["falsifiers"]] == [f"F{n}" for n in range(1, 7)]
    for falsifier in BOOK["falsifiers"]:
        assert set(falsifier) - {"changed", "check"} == {"id", "statement", "test", "threshold"}
        assert all(str(text).strip() for text in falsifier.values())


def test_the_conclusions_give_every_claim_its_verdict_once():
    text = (ROOT / "book" / "conclusions.md").read_text(encoding="utf-8")
    first, *rest = re.findall(r"\{verdict\}`(C\d+)`", text)
    assert first == "C5", "the question of the book comes first, and again in its place"
    assert sorted(rest) == sorted(claim["id"] for claim in CLAIMS)


def test_pages_that_say_what_the_sweep_found_say_what_the_ledger_says():
    """Landing page and conclusions tell the outcome in words; these are the words."""
    verdicts = json.loads((ROOT / "book" / "verdicts.json").read_text())["verdicts"]
    words = {name: (verdicts[name]["word"], verdicts[name]["condition"]) for name in verdicts}
    assert words["C5"] == (
        "holds if",
        "flatness is measured by normalised sharpness",
    )
    assert words["C37"][0] == "untestable here"
    assert words["C36"] == ("holds if", "only ln lambda is meant")
    effects = verdicts["C36"]["effects"]
    assert effects["omega squared, strategy, of ln lambda"]["low"] > 0.9
    assert effects["omega squared, strategy, of gap"]["high"] < 0.5
    lam, relative = (
        [verdicts["C5"]["effects"][f"Psi({name}, gap), {arm} arm"] for arm in ("clean", "noisy")]
        for name in ("lambda", "B5-lambda")
    )
    assert all(effect["low"] < 0.2 < effect["high"] for effect in lam), "smaller or larger"
    assert all(effect["low"] > 0.2 for effect in relative)


def test_chapters_show_only_registered_claims():
    known = {claim["id"] for claim in CLAIMS}
    pages = [*(ROOT / "notebooks").glob("[0-9]*.md"), *(ROOT / "book").glob("*.md")]
    for page in pages:
        shown = re.findall(r"^[`:]{3,}\{claim\} *(\S+)", page.read_text(encoding="utf-8"), re.M)
        assert set(shown) <= known, page.name


@pytest.mark.parametrize(
    ("claim", "entry"),
    [(claim["id"], entry) for claim in CLAIMS for entry in claim.get("evidence", [])],
)
def test_evidence_is_a_labelled_section_that_runs_code(claim, entry):
    assert set(entry) == {"chapter", "cell"}
    text = (ROOT / "notebooks" / f"{entry['chapter']}.md").read_text(encoding="utf-8")
    found = re.search(
        rf"^\({re.escape(entry['cell'])}\)=\n+#+ [^\n]*\n(.*?)(?=^#+ |\Z)", text, re.M | re.S
    )
    assert found, f"{claim}: no heading labelled {entry['cell']} in {entry['chapter']}"
    assert "{code-cell}" in found[1]


def test_every_box_in_a_chapter_has_its_evidence_or_says_that_it_waits():
    settled = {
        claim["id"] for claim in CLAIMS if claim.get("evidence") or claim["data"] == ["paper"]
    }
    for chapter in (ROOT / "notebooks").glob("[0-9]*.md"):
        text = chapter.read_text(encoding="utf-8")
        for name, body in re.findall(r"^```\{claim\} *(\S+)\n(.*?)^```", text, re.M | re.S):
            waits = re.search("waits|study|needs", body)
            assert name in settled or waits, (chapter.name, name)


def test_the_reported_numbers_are_those_of_the_registration():
    """book/reported.yml, which the pages read, agrees with the definition T1."""
    reported = yaml.safe_load((ROOT / "book" / "reported.yml").read_text(encoding="utf-8"))
    registered = [float(number) for number in re.findall(r"\d*\.\d+", BOOK["definitions"]["T1"])]
    rows = reported["configurations"].values()
    assert [100 * row["test_accuracy"] for row in rows] == pytest.approx(registered[:3])
    assert [row["test_loss"] for row in rows] == registered[3:6]
    assert [row["lambda_max"] for row in rows] == registered[6:]
