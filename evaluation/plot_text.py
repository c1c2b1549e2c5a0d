"""Text of the data in a figure: a cell type may have any name."""


def plain(text: object, *, max_length: int = 40) -> str:
    """Return text as matplotlib shows it: one line, not too long, and never read as mathematics.

    Parameters
    ----------
    text
        What is to be shown: a cell type, a donor, the name of a run.
    max_length
        Most characters that are shown; a longer text is cut and ends in an ellipsis.
    """
    line = " ".join(str(text).split())
    if len(line) > max_length:
        line = line[: max_length - 1].rstrip() + "…"
    return line.replace("$", r"\$")
