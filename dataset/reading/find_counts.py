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
    keys = _keys(root)
    if not keys:
        raise CellFileError(
            f"{path}: no matrix of cells by genes: neither X nor raw nor a layer; expected raw "
            "counts in one of them"
        )
    searched = {}
    if counts != "auto":
        key = counts if counts in ("X", "raw") else f"layers/{counts.removeprefix('layers/')}"
        if key not in keys:
            raise CellFileError(
                f"{path}: counts: {counts}: no such matrix; the file has {shortened(keys)}"
            )
        found = _inspect(root, path, key)
        if found.kind in ("raw counts", "no values"):
            return (
                key,
                found.text,
                [f"{path.name}: {key} holds {found.text}, as configured"],
            )
        searched = {key: found}
    names = {key.removeprefix("layers/").lower(): key for key in reversed(keys)}
    known: list[str] = [key for key in ("X", "raw") if key in keys]
    known += [names[name] for name in COUNT_LAYERS if names.get(name, "").startswith("layers/")]
    for key in known + [key for key in keys if key not in known]:
        found = searched.get(key) or _inspect(root, path, key)
        searched[key] = found
        if found.kind == "raw counts":
            break
    if counts == "auto" and found.kind == "raw counts" and key in known:
        passed = [f"{p} holds {f.text}" for p, f in searched.items() if p != key]
        note = f" ({'; '.join(passed)})" if passed else ""
        return (
            key,
            found.text,
            [f"{path.name}: counts are read from {key}: {found.text}{note}"],
        )
    listed = "; ".join(f"{p} holds {f.text}" for p, f in searched.items()) or "no matrix at all"
    if found.kind == "raw counts":
        advice = f"say counts: {key.removeprefix('layers/')}, if those are the counts"
    else:
        advice = (
            "nanocell needs raw counts, whole numbers from 0: get the file with the counts in X, "
            "in raw or in a layer"
        )
    raise CellFileError(
        f"{path}: no raw counts in {counts}. Found: {listed}. What to do: {advice}"
    )


def _keys(root: Any) -> list[str]:
    """List where the file keeps matrices of cells by genes: X, raw, then its layers."""
    keys = ["X"] if "X" in root and not _is_null(root["X"]) else []
    if "raw" in root and not _is_null(root["raw"]) and "X" in root["raw"]:
        keys.append("raw")
    if "layers" in root and not hasattr(root["layers"], "shape"):
        keys += [f"layers/{name}" for name in sorted(map(str, root["layers"]))]
    return keys


def _is_null(node: Any) -> bool:
    """Return whether anndata wrote None here."""
    return node.attrs.get("encoding-type") == "null"


def _inspect(root: Any, path: CellPath, key: str) -> Found:
    with named_errors(path, f"reading {key}"):
        try:
            check_matrix_chunks(node_of(root, key))
            matrix = open_matrix(node_of(root, key))
        except EncodingError as error:
            return Found("not read", f"something else ({error})")
        if 0 in matrix.shape:
            return Found("no values", f"{matrix.shape[0]} cells x {matrix.shape[1]} genes")
        blocks = matrix.peek(PEEK_CELLS)
        return describe_values(blocks, rows_are_cells=not isinstance(matrix, CscRows))
