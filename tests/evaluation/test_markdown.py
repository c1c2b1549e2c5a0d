"""What others named is shown by Markdown as it is."""

import html
import re

import pandas as pd
import pytest

from evaluation.markdown import code, escape, table

NAMES = [
    "<script>alert(1)</script>",
    "a | b",
    "two\nlines\r\nand\u2028more",
    "`code` ``more``",
    "[link](http://x.y)",
    "[1](http://x.y)",
    "![image](x.png)",
    "**bold** _it_ ~~gone~~ # head",
    "$\\frac{$",
    "R&D &lt;",
    "back\\slash",
]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_name_is_markup(name):
    text = escape(name)
    assert "\n" not in text
    assert "\r" not in text
    assert not re.search(r"[<>]", text)
    assert not re.search(r"(?<!\\)[`*|~$#]", text)
    assert not re.search(r"(?<!\\)\](?=[(\[:])", text)
    assert not re.search(r"(?<!\\)!(?=\\?\[)", text)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_the_name(name):
    shown = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escape(name).replace("\\\\", "\0"))
    assert html.unescape(shown.replace("\0", "\\")) == " ".join(name.split())


def test_plain_names_and_numbers_are_left_as_they_are():
    for text in ("logistic_regression", "0.972 [0.961, 0.981]", "[+0.01, +0.02]", "CD4+ T cell"):
        assert escape(text) == text


def test_code_is_closed_where_it_should_be():
    assert code("a b") == "`a b`"
    assert code("a `b` c") == "`` a `b` c ``"
    assert code("a\nb | c", in_table=True) == r"`a b \| c`"


@pytest.mark.parametrize("name", NAMES)
def test_a_table_stays_a_table(name):
    frame = pd.DataFrame({"n": [1, 2], "run": [name, "x"]}, index=pd.Index([name, "b"], name="t"))
    lines = table(frame, code_columns=("run",))
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
