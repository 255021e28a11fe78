"""Two executions of a chapter, compared in words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from losslandscape.report import outputs
from losslandscape.report.execute import KEY

ROOT = Path(__file__).parents[1]
TAG = "rtol-2e-1"


def printed(text, *tags):
    cell = new_code_cell("print(x)", metadata={"tags": list(tags)})
    cell.outputs = [new_output("stream", name="stdout", text=text)]
    return cell


def shown(**data):
    cell = new_code_cell("show")
    data = {kind.replace("_", "/"): text for kind, text in data.items()}
    cell.outputs = [new_output("display_data", data)]
    return cell


def glued(**values):
    cell = new_code_cell("glue")
    for name, value in values.items():
        kind = "application/papermill.record/"
        metadata = {"scrapbook": {"mime_prefix": kind, "name": name}}
        output = new_output("display_data", {f"{kind}text/plain": repr(value)}, metadata=metadata)
        cell.outputs.append(output)
    return cell


def tagged(cell, *tags):
    cell.metadata["tags"] = list(tags)
    return cell


def book(*cells, **stamp):
    return new_notebook(cells=[new_markdown_cell("text"), *cells], metadata={KEY: stamp})


@pytest.mark.parametrize(
    ("stored", "fresh", "word"),
    [
        (printed("loss 1.0\n"), printed("loss 1.0\n"), "same"),
        (printed("loss 1.0\n"), printed("loss 1.1\n"), "differs"),
        (printed("loss 1.0\n", "rtol-0.2"), printed("loss 1.1\n", "rtol-0.2"), "within tolerance"),
        (printed("loss 1.0\n", "rtol-0.2"), printed("loss 1.3\n", "rtol-0.2"), "differs"),
        (printed("loss 1.0\n", "rtol-0.2"), printed("rise 1.1\n", "rtol-0.2"), "differs"),
        (printed("3 s\n", outputs.FREE), printed("5 s\n", outputs.FREE), "same"),
        (printed("at 0x7f0000aa11\n"), printed("at 0x7f1111bb22\n"), "same"),
        (shown(image_png="AAAA"), shown(image_png="BBBB"), "same"),
        (shown(text_html="<td>1</td>"), shown(text_html="<td>2</td>"), "differs"),
        (printed("loss 1.0\n"), new_code_cell("print(x)"), "differs"),
        (printed("x"), new_code_cell("print(y)"), "not compared"),
        (printed("x"), new_markdown_cell("print(x)"), "not compared"),
    ],
)
def test_the_word(stored, fresh, word):
    assert outputs.compare(book(stored), book(fresh))[0] == word


def test_a_difference_after_a_tolerated_one_is_found():
    stored = book(printed("1.0\n", "rtol-0.2"), printed("a\n"))
    fresh = book(printed("1.1\n", "rtol-0.2"), printed("b\n"))
    word, text = outputs.compare(stored, fresh)
    assert word == "differs"
    assert text == "cell 1: 'b' instead of 'a'"


@pytest.mark.parametrize(
    ("stored", "fresh", "tags", "text"),
    [
        # The number and the spaces in front are within tolerance, the words are not.
        ("x 9.8\na b\n", "x 10.1\nb a\n", [TAG], "'b a' instead of 'a b'"),
        ("3.8\n", "4.9\n", [TAG], "4.9 instead of 3.8, a change of 28.9 % where 20 % is allowed"),
        (
            "x  3.8 3.8\n",
            "x  3.9 4.9\n",
            [TAG],
            "4.9 instead of 3.8, a change of 28.9 % where 20 % is allowed, in 'x 3.9 4.9'",
        ),
        ("3.8\n", "3.9\n", [], "3.9 instead of 3.8, a change of 2.63 % where none is allowed"),
        ("0\n", "1\n", [TAG], "1 instead of 0, where 20 % is allowed"),
        ("0.1\n", "nan\n", [TAG], "nan instead of 0.1, where 20 % is allowed"),
        ("a\n", "a\nb\n", [TAG], "'b' instead of nothing"),
        ("a\nb\n", "a\n", [], "nothing instead of 'b'"),
        ("a b\n", "a  b\n", [], "'a  b' instead of 'a b'"),
        ("1.0\n", "1.00\n", [], "'1.00' instead of '1.0'"),
        ("a\n", "a\n\n", [], "outputs of another kind"),
        (f"{'a' * 99}b\n", f"{'a' * 99}c\n", [], f"'...{'a' * 30}c' instead of '...{'a' * 30}b'"),
        (f"b{'a' * 99}\n", f"c{'a' * 99}\n", [], f"'c{'a' * 59}...' instead of 'b{'a' * 59}...'"),
    ],
)
def test_what_is_named_is_outside_the_tolerance(stored, fresh, tags, text):
    cells = (printed(output, *tags) for output in (stored, fresh))
    assert outputs.compare(*map(book, cells)) == ("differs", f"cell 0: {text}")


def test_of_a_table_its_row_is_named():
    parts = [{"text_html": f"<th>a</th>\n<td>{n}</td>", "text_plain": f"  x\na {n}"} for n in "12"]
    _, text = outputs.compare(*(book(shown(**part)) for part in parts))
    assert text == "cell 0: 2 instead of 1, a change of 100 % where none is allowed, in 'a 2'"


def test_all_cells_that_differ_are_named_up_to_five():
    stored, fresh = ([printed(f"{text}{n}\n") for n in range(8)] for text in ("a", "b"))
    stored[1] = fresh[1]
    texts = [f"cell {n}: 'b{n}' instead of 'a{n}'" for n in (0, 2, 3, 4, 5)]
    assert outputs.compare(book(*stored[:6]), book(*fresh[:6]))[1] == "; ".join(texts)
    assert outputs.compare(book(*stored[:7]), book(*fresh[:7]))[1].endswith("; and 1 more cell")
    texts += ["and 2 more cells"]
    assert outputs.compare(book(*stored), book(*fresh))[1] == "; ".join(texts)


def test_how_far_numbers_moved_within_tolerance():
    stored = book(printed("1.0\n", TAG), printed("2.0\n-4.0 1\n", "rtol-3e-1"), printed("1\n", TAG))
    fresh = book(printed("1.1\n", TAG), printed("2.1\n-5.0 1\n", "rtol-3e-1"), printed("1\n", TAG))
    text = "2 cells, at most 25 % where 30 % is allowed, in cell 1"
    assert outputs.compare(stored, fresh) == ("within tolerance", text)


def test_spaces_that_moved_within_tolerance():
    pair = (book(printed(text, TAG)) for text in ("x 1\n", "x  1\n"))
    text = "1 cell, at most 0 % where 20 % is allowed, in cell 0"
    assert outputs.compare(*pair) == ("within tolerance", text)


def test_what_is_not_compared_is_counted():
    free = [tagged(shown(image_png=""), outputs.FREE), printed("3 s\n", outputs.FREE)]
    empty = tagged(new_code_cell("pass"), outputs.FREE)
    picture, other = (shown(image_png=text, text_plain="<Figure>") for text in "AB")
    same = book(*free, empty, picture, printed("1\n"))
    assert outputs.compare(same, same) == ("same", "not compared: 2 cells, 1 picture")
    assert outputs.compare(*[book(picture, other)] * 2)[1] == "not compared: 2 pictures"
    stored, fresh = (book(printed(text), picture) for text in "ab")
    assert outputs.compare(stored, fresh)[1].endswith("instead of 'a'; not compared: 1 picture")


def test_a_glued_value_is_named_by_its_key():
    stored, fresh = (glued(first="same", flat_live_late=text) for text in ("3.8", "4.9"))
    text = "4.9 instead of 3.8, a change of 28.9 % where none is allowed"
    assert outputs.compare(book(stored), book(fresh))[1] == f"cell 0 (flat_live_late): {text}"
    word, text = outputs.compare(*(book(tagged(cell, "rtol-0.3")) for cell in (stored, fresh)))
    assert word == "within tolerance"
    assert text.endswith("in cell 0 (flat_live_late)")


def test_a_cell_is_named_by_the_heading_above_it():
    start, end = new_markdown_cell("# Title\n\ntext"), new_markdown_cell("## The end")
    middle = new_markdown_cell("## First\n\ntext\n\n### What $\\lambda_{\\max}$ says\n\ntext")
    stored, fresh = (
        book(start, printed(text), middle, printed(text), printed(text), end) for text in "ab"
    )
    wheres = [part.split(":")[0] for part in outputs.compare(stored, fresh)[1].split("; ")]
    under = '(under "What lambda_max says")'
    assert wheres == ["cell 0", f"cell 1 {under}", f"cell 2 {under}"]


def test_cells_are_numbered_as_nbval_numbers_them(tmp_path):
    stored, fresh = (book(printed("x\n"), new_markdown_cell("y"), printed(text)) for text in "ab")
    nbformat.write(stored, tmp_path / "book.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--collect-only", "-q", "book.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    last = re.findall(r"::(Cell \d+)", done.stdout)[-1]
    assert outputs.compare(stored, fresh)[1] == f"{last.lower()}: 'b' instead of 'a'"


def test_the_page_has_the_readers_own_copy_first():
    page = (ROOT / "book" / "diff.md").read_text("utf-8")
    directives = re.findall(r"^```\{([\w-]+)\}", page, re.MULTILINE)
    assert directives == ["build-diff", "provenance-sentence", "diff-report"]
    assert outputs.FREE in page
    assert all(word in page.lower() for word in outputs.WORDS)
    assert outputs.MOST_CELLS == 5
    assert "at most five" in page


def test_other_parameters_are_named_and_not_compared():
    fresh = book(printed("2\n"), defaults=False, parameters={"dataset": "mnist"})
    assert outputs.compare(book(printed("1\n")), fresh) == (
        "not compared",
        "executed with dataset = mnist",
    )


def test_folders(tmp_path):
    stored, fresh = tmp_path / "stored", tmp_path / "fresh"
    for folder, texts in ((stored, ("1\n", "2\n")), (fresh, ("1\n", "3\n", "4\n"))):
        folder.mkdir()
        for number, text in enumerate(texts, 1):
            nbformat.write(book(printed(text)), folder / f"0{number}_name.ipynb")
    found = outputs.compare_folders(stored, fresh)
    assert [finding.word for finding in found] == ["same", "differs", "not compared"]
    assert found[2].text == "there is no stored notebook of this name"
    assert outputs.summary(found) == "2 chapters compared: 1 same, 1 differs; 1 not compared"


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([15, 1, 1, 0, 0], "17 chapters compared: 15 same, 1 within tolerance, 1 differs"),
        ([0, 0, 2, 0, 15], "2 chapters compared: 2 differ; 15 as stored"),
        ([1, 0, 0, 2, 1], "1 chapter compared: 1 same; 2 not compared; 1 as stored"),
        ([0, 0, 0, 1, 0], "0 chapters compared; 1 not compared"),
    ],
)
def test_a_summary_counts_what_was_compared(counts, text):
    pairs = zip(counts, outputs.WORDS, strict=True)
    found = [outputs.Finding("name", word) for count, word in pairs for _ in range(count)]
    assert outputs.summary(found) == text


def test_a_copy_is_not_called_an_execution(tmp_path):
    stored, fresh = tmp_path / "stored.ipynb", tmp_path / "fresh.ipynb"
    nbformat.write(book(printed("1\n"), seconds=1.0), stored)
    fresh.write_bytes(stored.read_bytes())
    found = outputs.compare_files(stored, fresh)
    assert (found.word, found.text) == ("as stored", "not executed for this copy")
    assert outputs.summary([found]) == "0 chapters compared; 1 as stored"
    nbformat.write(book(printed("1\n"), seconds=1.1), fresh)
    assert outputs.compare_files(stored, fresh).word == "same"


def test_odd_numbers_are_told_apart():
    assert not outputs.close("1.0", "inf", 0.1)
    assert not outputs.close("-inf", "inf", 0.1)
    assert outputs.close("inf", "inf", 0.1)
    assert outputs.snap("a # b", "a 1 b", 0.1) == "a # b"
