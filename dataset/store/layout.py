"""Files of an encoded folder, and the check that a folder may be replaced."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dataset.store.atomic import FolderError
from dataset.store.checksums import CHECKSUMS, read_checksums

SPLITS = ("train", "val", "test")
FACTS = ("meta.json", "vocabulary.json", "class_names.json", "conditions.json", "cells.csv")
OF_COUNTS = ("store.json", "cells.h5ad", "indptr.npy", "gene_index.npy", "counts.npy")
OF_EXPRESSION = ("rows", "columns", "library_size")
OF_HISTORY = (
    "loadings", "center", "first_ancestor", "epsilon", "embedding", "potential", "library",
)  # fmt: skip
OF_SPLIT = ("lengths", "labels", "rows", "library_size", "conditions")
# What a tokenizer's array cannot be called: of every split, of some, or added in a batch.
RESERVED = (*OF_SPLIT, "positions", "sets", "offsets", "cell_index")
# Every folder has these; the tokenizer names the rest (``tokenizer_files``).
FILES = (
    *FACTS,
    "config.yaml",
    "dropped.csv",
    *(f"counts/{name}" for name in (*OF_COUNTS, CHECKSUMS)),
    *(f"expression/{name}.npy" for name in OF_EXPRESSION),
    *(f"{split}/{name}.npy" for split in SPLITS for name in OF_SPLIT),
)
# And these, where the profile of the time point before is worked out.
HISTORY_FILES = (
    "history/history.json",
    *(f"history/{name}.npy" for name in OF_HISTORY),
    *(f"history/ancestors/{name}.npy" for name in ("indptr", "gene_index", "counts")),
)
# And these, where cells have positions.
POSITIONS_FILES = tuple(f"{split}/positions.npy" for split in SPLITS)
OURS = frozenset((*FILES, *HISTORY_FILES, *POSITIONS_FILES, CHECKSUMS))
ARRAY_NAME = re.compile("[a-z][a-z0-9_]*")


def check_array_names(names: Iterable[str]) -> None:
    """Raise unless a tokenizer's arrays may be called so: they become names of files.

    Raises
    ------
    ValueError
        If a name is not plain, or is that of another array.
    """
    for name in names:
        if not ARRAY_NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(
                f"array {name!r}: expected lower-case letters, digits and underscores, and not "
                f"{', '.join(RESERVED)}"
            )


def tokenizer_files(meta: dict[str, Any]) -> list[str]:
    """Return the files that hold what the tokenizer learned and wrote, by the content of meta."""
    learned = [f"learned/{name}.npy" for name in meta["learned"]]
    return learned + [f"{split}/{name}.npy" for split in SPLITS for name in meta["arrays"]]


def check_replaceable(folder: Path) -> None:
    """Raise unless the folder was made by ``encode`` and holds nothing else.

    Raises
    ------
    FolderError
        If it is something else, or holds a file that ``encode`` does not write.
    """
    advice = "choose another name in the config, or move what is there elsewhere"
    meta, checksums = _ours(folder), _checksums(folder)
    if not folder.is_dir() or not (meta or set(FILES) <= checksums):
        raise FolderError(
            f"{folder}: has no meta.json of an encoded folder, so it may hold something else and "
            f"is not replaced: {advice}"
        )
    # Its checksums name whatever a version before this one wrote.
    known = OURS | checksums | set(tokenizer_files({"learned": (), "arrays": (), **meta}))
    foreign = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in known:
            foreign.append(name)
    if foreign:
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise FolderError(
            f"{folder}: holds files that encode does not write ({', '.join(foreign[:3])}{more}) "
            f"and is not replaced: {advice}"
        )


def _ours(folder: Path) -> dict[str, Any]:
    """Return the content of meta.json, empty if it is not one of ours."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = {"schema_version", "tokenizer", "n_cells", "split_sha256"}
    return meta if isinstance(meta, dict) and ours <= meta.keys() else {}


def _checksums(folder: Path) -> set[str]:
    """Return the files that have a checksum, none if the checksums are not ours."""
    try:
        return set(read_checksums(folder))
    except (OSError, ValueError):
        return set()
