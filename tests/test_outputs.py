"""Two executions of a chapter, compared in words."""

from __future__ import annotations

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from losslandscape.report import outputs
from losslandscape.report.execute import KEY


def printed(text, *tags):
    cell = new_code_cell("print(x)", metadata={"tags": list(tags)})
    cell.outputs = [new_output("stream", name="stdout", text=text)]
    return cell


def shown(**data):
    cell = new_code_cell("show")
    data = {kind.replace("_", "/"): text for kind, text in data.items()}
    cell.outputs = [new_output("display_data", data)]
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
    assert text == "cell 2: 'b' instead of 'a'"


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
    assert outputs.summary(found) == ("3 chapters executed: 1 same, 1 differs, 1 not compared")


def test_a_copy_is_not_called_an_execution(tmp_path):
    stored, fresh = tmp_path / "stored.ipynb", tmp_path / "fresh.ipynb"
    nbformat.write(book(printed("1\n"), seconds=1.0), stored)
    fresh.write_bytes(stored.read_bytes())
    found = outputs.compare_files(stored, fresh)
    assert (found.word, found.text) == ("as stored", "not executed for this copy")
    assert outputs.summary([found]) == "0 chapters executed; 1 as stored"
    nbformat.write(book(printed("1\n"), seconds=1.1), fresh)
    assert outputs.compare_files(stored, fresh).word == "same"
