"""Find the raw counts of a file: X, raw or a layer, judged by the values in it."""

from typing import Any

from dataset.nearest_names import shortened
from dataset.reading.cell_file import CellFileError, EncodingError, named_errors
from dataset.reading.cell_url import CellPath
from dataset.reading.count_values import Found, describe_values
from dataset.reading.matrix_rows import CscRows, open_matrix
from dataset.reading.missing_chunks import check_matrix_chunks

# Layers that "auto" looks in, in this order, after X and raw.
COUNT_LAYERS = ("counts", "raw_counts", "raw", "count", "umi", "umis", "umi_counts", "spliced")
PEEK_CELLS = 256


def node_of(root: Any, location: str) -> Any:
    """Return the stored matrix at ``X``, ``raw`` or ``layers/NAME`` of an open file."""
    return root["raw/X" if location == "raw" else location]


def find_counts(root: Any, path: CellPath, counts: str) -> tuple[str, str, list[str]]:
    """Look for raw counts.

    Parameters
    ----------
    root, path
        The open file.
    counts
        ``X``, ``raw``, the name of a layer, or ``auto``.

    Returns
    -------
    Where they are, what was found there, and messages.

    Raises
    ------
    CellFileError
        If there are none, or a matrix that was looked at is damaged.
    """
    places = _places(root)
    if not places:
        raise CellFileError(
            f"{path}: no matrix of cells by genes: neither X nor raw nor a layer; expected raw "
            "counts in one of them"
        )
    searched = {}
    if counts != "auto":
        place = counts if counts in ("X", "raw") else f"layers/{counts.removeprefix('layers/')}"
        if place not in places:
            raise CellFileError(
                f"{path}: counts: {counts}: no such matrix; the file has {shortened(places)}"
            )
        found = _inspect(root, path, place)
        if found.kind in ("raw counts", "no values"):
            return place, found.text, [f"{path.name}: {place} holds {found.text}, as configured"]
        searched = {place: found}
    names = {place.removeprefix("layers/").lower(): place for place in reversed(places)}
    known: list[str] = [place for place in ("X", "raw") if place in places]
    known += [names[name] for name in COUNT_LAYERS if names.get(name, "").startswith("layers/")]
    for place in known + [place for place in places if place not in known]:
        found = searched.get(place) or _inspect(root, path, place)
        searched[place] = found
        if found.kind == "raw counts":
            break
    if counts == "auto" and found.kind == "raw counts" and place in known:
        passed = [f"{p} holds {f.text}" for p, f in searched.items() if p != place]
        note = f" ({'; '.join(passed)})" if passed else ""
        return (
            place,
            found.text,
            [f"{path.name}: counts are read from {place}: {found.text}{note}"],
        )
    listed = "; ".join(f"{p} holds {f.text}" for p, f in searched.items()) or "no matrix at all"
    if found.kind == "raw counts":
        advice = f"say counts: {place.removeprefix('layers/')}, if those are the counts"
    else:
        advice = (
            "nanocell needs raw counts, whole numbers from 0: get the file with the counts in X, "
            "in raw or in a layer"
        )
    raise CellFileError(
        f"{path}: no raw counts in {counts}. Found: {listed}. What to do: {advice}"
    )


def _places(root: Any) -> list[str]:
    """List where the file keeps matrices of cells by genes: X, raw, then its layers."""
    places = ["X"] if "X" in root and not _is_null(root["X"]) else []
    if "raw" in root and not _is_null(root["raw"]) and "X" in root["raw"]:
        places.append("raw")
    if "layers" in root and not hasattr(root["layers"], "shape"):
        places += [f"layers/{name}" for name in sorted(map(str, root["layers"]))]
    return places


def _is_null(node: Any) -> bool:
    """Return whether anndata wrote None here."""
    return node.attrs.get("encoding-type") == "null"


def _inspect(root: Any, path: CellPath, place: str) -> Found:
    with named_errors(path, f"reading {place}"):
        try:
            check_matrix_chunks(node_of(root, place))
            matrix = open_matrix(node_of(root, place))
        except EncodingError as error:
            return Found("not read", f"something else ({error})")
        if 0 in matrix.shape:
            return Found("no values", f"{matrix.shape[0]} cells x {matrix.shape[1]} genes")
        blocks = matrix.peek(PEEK_CELLS)
        return describe_values(blocks, rows_are_cells=not isinstance(matrix, CscRows))
