"""Markdown of text that others chose: a cell type or a run may have any name."""

import html
import re

import pandas as pd


def escape(text: object) -> str:
    """Return text that Markdown shows as it is, on one line: no HTML, no marks, no table border.

    Underscores within words and brackets around numbers mean nothing to Markdown and are kept,
    so that what is written can be read and searched as text too.
    """
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*|~$#!])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    line = re.sub(r"\[(?![-+.\d])", r"\\[", line)
    line = re.sub(r"\](?=[(\[:])", r"\\]", line)
    return html.escape(line, quote=False)


def code(text: object, *, in_table: bool = False) -> str:
    """Return text as code, on one line."""
    line = " ".join(str(text).split())
    if in_table:
        line = line.replace("|", r"\|")  # a table is cut at its borders before code is looked for
    longest = max((len(ticks) for ticks in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{line}{space}{fence}"


def table(frame: pd.DataFrame, *, code_columns: tuple[str, ...] = ()) -> list[str]:
    """Return the lines of a table, its index first."""
    frame = frame.reset_index()
    for name in frame.columns:
        write = (lambda text: code(text, in_table=True)) if name in code_columns else escape
        frame[name] = frame[name].map(write)
    rows = [[escape(name) for name in frame.columns], ["---"] * frame.shape[1]]
    rows += frame.to_numpy().tolist()
    return ["| " + " | ".join(row) + " |" for row in rows]
