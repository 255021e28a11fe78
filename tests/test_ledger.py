"""The claims ledger: the committed verdicts are those of today's code and records, and its page."""

import io
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import test_book_pages
from hypothesis import given
from hypothesis import strategies as st
from test_book_pages import DESK, HTML, PHONE, browser, why_not  # noqa: F401

from losslandscape.lab import records
from losslandscape.lab.studies import STUDIES
from losslandscape.report import falsifiers, ledger, registration, rules
from losslandscape.report.figures import ledger as drawing
from losslandscape.report.live_claims import LIVE, leaves
from losslandscape.report.rules import WORDS
from losslandscape.report.statistics import Interval
from losslandscape.report.sweep import Power

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
JUDGING = sorted(p for p in ROOT.glob("notebooks/[0-9]*.md") if ".judge" in p.read_text("utf-8"))
AGAIN = "run `python -m losslandscape.report.ledger` and look at what has changed"


@pytest.fixture(scope="module")
def committed():
    return records.read(BOOK / ledger.VERDICTS)


@pytest.fixture
def book(tmp_path):
    """Return a copy of what the pages are made from."""
    for name in ("claims.yml", str(ledger.VERDICTS)):
        shutil.copy(BOOK / name, tmp_path / name)
    return tmp_path


class TestCommitted:
    def test_each_claim_has_one_judge(self):
        names = {entry["id"] for entry in registration.load(BOOK)["claims"]}
        assert set(LIVE) | set(rules.JUDGES) | {"C38"} == names
        assert not set(LIVE) & set(rules.JUDGES)

    def test_rules_give_the_committed_verdicts(self, committed):
        """Every rule on today's records, and on the stored numbers of the live measurements."""
        for row in ledger.evaluate(BOOK, committed["measured"]):
            stored = committed["verdicts"][row.verdict.claim]
            assert (row.verdict.word, row.verdict.condition) == (
                stored["word"],
                stored["condition"],
            ), f"{row.verdict.claim}: {AGAIN}"
            fresh = ledger._plain(row.verdict)["effects"]
            assert ledger.agrees(fresh, stored["effects"], 1e-9), f"{row.verdict.claim}: {AGAIN}"
            assert list(row.data) == stored["data"], f"{row.verdict.claim}: {AGAIN}"

    def test_falsifiers_say_what_is_committed(self, committed):
        fresh = ledger.outcomes(BOOK, committed["measured"])
        words = {name: [(o["subject"], o["word"]) for o in found] for name, found in fresh.items()}
        assert words == {
            name: [(o["subject"], o["word"]) for o in found]
            for name, found in committed["falsifiers"].items()
        }, AGAIN

    @pytest.mark.parametrize("claim", [name for name, live in LIVE.items() if not live.slow])
    def test_quick_measurements_give_the_committed_numbers(self, committed, claim):
        stored = committed["measured"][claim]["numbers"]
        assert ledger.agrees(LIVE[claim].measure(), stored, LIVE[claim].slack), AGAIN

    @pytest.mark.parametrize("claim", [name for name, live in ledger.MEASURED.items() if live.slow])
    def test_slow_measurements_were_made_by_todays_code(self, committed, claim):
        code = ledger.code_of(ledger.MEASURED[claim])
        assert committed["measured"][claim]["code"] == code, AGAIN

    @pytest.mark.parametrize("chapter", JUDGING, ids=lambda path: path.stem)
    def test_a_chapter_names_the_studies_of_the_claims_it_judges(self, committed, chapter):
        """Only new runs of a study that its text names make it stale."""
        text = chapter.read_text(encoding="utf-8")
        for claim in sorted(set(re.findall(r'"(C\d+)"', text))):
            for source in committed["verdicts"][claim]["data"]:
                study = source.partition(",")[0]
                assert study not in STUDIES or study in text, f"{claim} is read from {study}"

    def test_the_picture_shows_the_committed_verdicts(self):
        assert ledger.is_drawn(BOOK), AGAIN

    def test_every_word_is_known(self):
        rows = ledger.load(BOOK)
        assert sum(ledger.counts(rows).values()) == len(rows) == 38
        for row in rows:
            assert row.verdict.word in WORDS
            assert row.verdict.condition or row.verdict.word not in ("waits", "holds if")
            assert row.data


class TestTolerance:
    @given(st.floats(-1e6, 1e6), st.floats(-0.019, 0.019))
    def test_two_per_cent_are_allowed(self, value, share):
        assert ledger.agrees({"a": [value * (1 + share)]}, {"a": [value]})

    @given(st.floats(1e-3, 1e6), st.sampled_from([-0.03, 0.03]))
    def test_three_are_not(self, value, share):
        assert not ledger.agrees({"a": value * (1 + share)}, {"a": value})

    def test_slack_is_for_residuals_and_shapes_must_agree(self):
        assert ledger.agrees({"a": 1e-16}, {"a": 5e-16}, 1e-12)
        assert not ledger.agrees({"a": 1e-16}, {"a": 5e-16})
        assert not ledger.agrees({"a": [1.0]}, {"a": [1.0, 1.0]})
        assert not ledger.agrees({"a": 1.0}, {"b": 1.0})
        assert not ledger.agrees({"a": 1.0}, {"a": [1.0]})
        assert not ledger.agrees({"a": float("nan")}, {"a": 1.0})


class TestFile:
    def test_effects_come_back_as_they_were(self, book):
        intervals = [
            value
            for row in ledger.load(book)
            for value in row.verdict.effects.values()
            if isinstance(value, Interval)
        ]
        assert intervals
        assert all(interval.low <= interval.mean <= interval.high for interval in intervals)

    def test_every_kind_of_effect_comes_back(self, book):
        effects = {"a": Interval(1.0, 0.5, 1.5, 10), "b": Power(0.4, 0.9, 200), "c": 3, "d": 0.5}
        path = book / ledger.VERDICTS
        content = records.read(path)
        content["verdicts"]["C5"] |= ledger._plain(rules.Verdict("C5", "holds", "", effects))
        records.write(content, path)
        (row,) = (row for row in ledger.load(book) if row.verdict.claim == "C5")
        assert row.verdict.effects == effects
        assert "is seen in 90 % of 200" in ledger.show(row.verdict.effects["b"])

    def test_a_verdict_written_by_hand_is_refused(self, book):
        path = book / ledger.VERDICTS
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"word": "refuted"', '"word": "holds"', 1), encoding="utf-8")
        with pytest.raises(records.RecordError, match="checksum disagree"):
            ledger.load(book)

    def test_a_missing_claim_is_named(self, book):
        content = records.read(book / ledger.VERDICTS)
        del content["verdicts"]["C7"]
        records.write(content, book / ledger.VERDICTS)
        with pytest.raises(ValueError, match=r"no verdict on C7: run python -m"):
            ledger.load(book)

    def test_an_update_keeps_what_has_not_changed(self, book, committed, monkeypatch):
        """Slow measurements with today's code are not made again; digits stay."""
        shutil.copytree(BOOK / "records", book / "records")
        shutil.copy(BOOK / "reported.yml", book / "reported.yml")
        live = {
            name: replace(old, measure=lambda: pytest.fail("measured"), slow=True)
            for name, old in ledger.MEASURED.items()
        }
        live["C10"] = replace(
            LIVE["C10"],
            measure=lambda: {
                name: [1.01 * value for value in values]
                for name, values in committed["measured"]["C10"]["numbers"].items()
            },
        )
        stored = {name: committed["measured"][name]["code"] for name in live}
        monkeypatch.setattr(ledger, "MEASURED", live)
        monkeypatch.setattr(
            ledger, "code_of", lambda one: next(stored[n] for n, o in live.items() if o is one)
        )
        before = (book / ledger.VERDICTS).read_bytes()
        ledger.update(book)
        assert (book / ledger.VERDICTS).read_bytes() == before
        assert ledger.is_drawn(book)


class TestPicture:
    def test_each_claim_is_one_tile_with_the_sign_of_its_verdict(self):
        tiles = ledger._tiles(ledger.load(BOOK))
        figure = drawing.verdicts(tiles)
        texts = [text.get_text() for text in figure.axes[0].texts]
        for claim, section, word in tiles:
            assert section in drawing.SECTIONS
            assert texts.count(f"{claim} {drawing.LOOKS[word][0]}") == 1
        assert set(drawing.LOOKS) == set(WORDS)
        assert len({sign for sign, *_ in drawing.LOOKS.values()}) == len(WORDS)

    def test_the_description_names_each_claim_once(self):
        rows = ledger.load(BOOK)
        said = ledger.describe(rows)
        for word, count in ledger.counts(rows).items():
            assert f"{count} {word}: " in said
        assert sorted(re.findall(r"\bC\d+", said)) == sorted(row.verdict.claim for row in rows)

    def test_another_verdict_makes_another_picture(self, book):
        (book / "figures").mkdir()
        shutil.copy(BOOK / ledger.PICTURE, book / ledger.PICTURE)
        assert ledger.is_drawn(book)
        content = records.read(book / ledger.VERDICTS)
        content["verdicts"]["C3"]["word"] = "refuted"
        records.write(content, book / ledger.VERDICTS)
        assert not ledger.is_drawn(book)


PAGE = """# Page

```{verdict-figure} fig-all
All *verdicts*.
```

```{verdict-counts}
```

```{claims-ledger}
```

```{falsifiers}
```
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return a function that builds book/page.md with the real verdicts: warnings, HTML."""
    pytest.importorskip("sphinx")
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    monkeypatch.syspath_prepend(BOOK / "_ext")
    (tmp_path / "book" / "figures").mkdir(parents=True)
    for name in ("claims.yml", ledger.VERDICTS, ledger.PICTURE):
        shutil.copy(BOOK / name, tmp_path / "book" / name)
    (tmp_path / "book" / "page.md").write_text(PAGE, encoding="utf-8")

    def run():
        warnings = io.StringIO()
        with docutils_namespace():
            Sphinx(
                srcdir=tmp_path,
                confdir=None,
                outdir=tmp_path / "_out",
                doctreedir=tmp_path / "_trees",
                buildername="html",
                confoverrides={
                    "extensions": ["myst_nb", "claims_ledger"],
                    "nb_execution_mode": "off",
                    "root_doc": "book/page",
                    "exclude_patterns": ["_out", "_trees"],
                    "nitpicky": True,
                    "nitpick_ignore_regex": [("std:ref", "test-.*")],
                },
                status=None,
                warning=warnings,
            ).build()
        return warnings.getvalue(), (tmp_path / "_out/book/page.html").read_text("utf-8")

    run.book = tmp_path / "book"
    return run


class TestPage:
    def test_each_claim_and_falsifier_is_a_row_with_its_anchor_and_word(self, build):
        warnings, html = build()
        assert warnings == ""
        for row in ledger.load(BOOK):
            line = re.search(rf'<tr[^>]* id="{row.verdict.claim.lower()}">.*?</tr>', html, re.S)
            text = " ".join(unescape(re.sub(r"<[^>]+>", " ", line[0])).split())
            assert f"{row.verdict.word} {row.verdict.condition}".strip() in text
            for name, value in row.verdict.effects.items():
                assert f"{name}: {ledger.show(value)}" in text
            assert 'class="stub"' in line[0]  # a heading of its row
        assert [html.count(f'id="f{number}"') for number in range(1, 7)] == [1] * 6
        wholes = re.findall(r"Both arms: <strong>(.*?)</strong>", html)
        by_arm = [o for entry, o in ledger.load_falsifiers(BOOK) if entry["id"] not in ("F4", "F6")]
        assert [unescape(whole) for whole in wholes] == [falsifiers.together(o) for o in by_arm]

    def test_the_picture_is_described_by_the_data(self, build):
        _, html = build()
        assert f'alt="{ledger.describe(ledger.load(BOOK))}"' in html
        assert "All <em>verdicts</em>." in html

    def test_the_page_follows_the_verdicts(self, build):
        build()
        content = records.read(build.book / ledger.VERDICTS)
        content["verdicts"]["C3"] |= {"word": "holds if", "condition": "pigs fly"}
        records.write(content, build.book / ledger.VERDICTS)
        assert "pigs fly" in build()[1]

    def test_a_damaged_file_is_an_error_that_names_it(self, build):
        (build.book / ledger.VERDICTS).write_text("{")
        warnings, _ = build()
        assert "verdicts.json: not a whole record" in warnings


LEDGER = HTML / "book" / "claims.html"
REASON = why_not() or ("" if LEDGER.is_file() else "the book has no ledger yet")
SHOWN = "() => [...document.querySelectorAll('.claims-ledger tbody tr')].filter((r) => " \
    "r.checkVisibility()).map((r) => r.id)"  # fmt: skip


@pytest.mark.skipif(bool(REASON), reason=REASON)
class TestBrowser:
    @pytest.fixture
    def tab(self, browser):  # noqa: F811
        tab = browser.new_page(viewport=DESK, reduced_motion="reduce")
        tab.set_default_timeout(test_book_pages.PATIENCE)
        tab.goto(LEDGER.as_uri(), wait_until="load")
        yield tab
        tab.close()

    def test_the_keyboard_filters_by_verdict_and_words(self, tab):
        rows = ledger.load(BOOK)
        word, count = next(iter(ledger.counts(rows).items()))
        button = tab.get_by_role("button", name=f"{word} ({count})", exact=True)
        button.press("Enter")
        named = [row.verdict.claim.lower() for row in rows if row.verdict.word == word]
        assert tab.evaluate(SHOWN) == named
        assert button.get_attribute("aria-pressed") == "true"
        tab.get_by_role("status").filter(has_text=f"{count} of 38 claims shown").wait_for()
        tab.get_by_role("button", name="all (38)").press("Space")
        field = tab.get_by_label("Show claims that contain these words")
        field.press_sequentially("langevin stationary")
        assert tab.evaluate(SHOWN) == []
        tab.get_by_role("status").filter(has_text="No claim fits").wait_for()
        field.fill("langevin")
        assert "c11" in tab.evaluate(SHOWN)
        field.press("Escape")
        assert len(tab.evaluate(SHOWN)) == 38

    def test_a_link_to_a_filtered_claim_shows_it(self, tab):
        tab.get_by_label("Show claims that contain these words").fill("langevin")
        tab.evaluate("location.hash = '#c1'")
        tab.wait_for_function("document.querySelector('#c1').checkVisibility()")
        box = tab.locator("#c1").bounding_box()
        assert 0 <= box["y"] < DESK["height"]

    def test_paper_has_every_row(self, tab):
        tab.get_by_label("Show claims that contain these words").fill("langevin")
        tab.emulate_media(media="print")
        assert len(tab.evaluate(SHOWN)) == 38
        assert not tab.locator(".ledger-filter").is_visible()

    def test_a_phone_shows_cards_with_the_roles_of_a_table(self, tab):
        tab.set_viewport_size(PHONE)
        assert tab.locator("#c1").evaluate("row => getComputedStyle(row).display") == "block"
        assert tab.get_by_role("rowheader", name=re.compile("^C1 ")).count() == 1
        assert tab.get_by_role("table").count() == 2

    def test_without_script_the_table_is_complete(self, browser):  # noqa: F811
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(LEDGER.as_uri())
        assert page.locator(".claims-ledger tbody tr").count() == 38
        assert page.locator(".claims-ledger tbody tr").last.is_visible()
        assert page.locator(".ledger-filter").count() == 0
        context.close()


def test_leaves_of_committed_numbers_are_finite(committed):
    assert all(
        abs(x) < 1e12 for x in leaves([m["numbers"] for m in committed["measured"].values()])
    )
