"""The normal form of a source: what changes numbers stays, what cannot is gone."""

import ast
from pathlib import Path

import pytest

import losslandscape
from losslandscape.lab.source import normalised_source

PLAIN = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "decorated",
    [
        '"""Module."""\n' + PLAIN,
        "# licence\n\n\n" + PLAIN,
        'def f(x):\n    """Doc."""\n    return x + 1  # why\n',
        'def f(x):\n    """Doc\n\n    in lines: é ü.   \n    """\n\n    return x + 1   \n\n\n',
        "\ufeffdef f(x):\r\n    return x + 1\r\n",
        "def f(x):\n    r'''Doc.'''  # comment after it\n    return x + 1",
        'def f(x):\n    "Two" " parts"\n    return x + 1\n',
        'def f(x):\n    ("Two"  # a comment between\n\n     " parts")\n    return x + 1\n',
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_count(decorated):
    cleaned = normalised_source(decorated).replace("    (\n", "").replace("     )\n", "")
    assert cleaned == PLAIN


@pytest.mark.parametrize(
    "changed",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x):\n    return (x + 1)\n",
        "def f(x, y):\n    return x + 1\n",
        "@g\ndef f(x):\n    return x + 1\n",
    ],
)
def test_code_counts(changed):
    assert normalised_source(changed) != PLAIN


@pytest.mark.parametrize(
    "text",
    [
        'x = "# not a comment"\n',
        "x = '''a  \n\n  # kept\n'''\n",
        "x = f'''a  \n\n  # kept {y!r:#x}\n'''\n",
        "x = f'{f(\"#\")}'\n",
        'x = 1\n"""a string that is no docstring: é"""\n',
    ],
)
def test_strings_are_kept_to_the_letter(text):
    assert normalised_source(text) == text


def test_non_ascii_text_before_a_comment():
    assert normalised_source('x = "λ₁"  # λ\n') == 'x = "λ₁"\n'


def test_a_docstring_on_the_line_of_its_function():
    assert normalised_source('def f(): "doc"; return 1\n') == "def f(): ; return 1\n"


def test_it_is_idempotent_and_keeps_the_tree_of_every_module():
    """On this package's own sources: only docstrings may be missing from the tree."""
    for path in Path(losslandscape.__file__).parent.rglob("*.py"):
        once = normalised_source(path.read_text(encoding="utf-8"))
        if '"""' in once:  # a function whose whole body is a docstring no longer parses
            continue
        try:
            tree = ast.parse(once)
        except IndentationError:
            continue
        assert normalised_source(once) == once
        assert ast.dump(tree) == ast.dump(_without_docstrings(path.read_text(encoding="utf-8")))


def _without_docstrings(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body.pop(0)
    return tree
