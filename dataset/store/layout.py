"""Which files an encoded folder is made of, and whether a folder is one that we may replace."""

import json
from pathlib import Path

from dataset.store.atomic import FolderError
from dataset.store.checksums import CHECKSUMS, read_checksums

SPLITS = ("train", "val", "test")
FACTS = ("meta.json", "vocabulary.json", "class_names.json", "gene_medians.npy", "cells.csv")
OF_EXPRESSION = ("indptr", "gene_index", "counts", "library_size")
OF_HISTORY = (
    "loadings", "center", "first_ancestor", "epsilon", "embedding", "potential", "library",
)  # fmt: skip
OF_SPLIT = ("token_ids", "counts", "lengths", "labels", "rows", "library_size")
# Every folder has these.
FILES = (
    *FACTS,
    "config.yaml",
    "dropped.csv",
    *(f"expression/{name}.npy" for name in OF_EXPRESSION),
    *(f"{split}/{name}.npy" for split in SPLITS for name in OF_SPLIT),
)
# And these, where the profile of the time point before is worked out.
HISTORY_FILES = (
    "history/history.json",
    *(f"history/{name}.npy" for name in OF_HISTORY),
    *(f"history/ancestors/{name}.npy" for name in ("indptr", "gene_index", "counts")),
)
OURS = frozenset((*FILES, *HISTORY_FILES, CHECKSUMS))


def check_replaceable(folder: Path) -> None:
    """Raise unless the folder was made by ``encode`` and holds nothing else.

    Raises
    ------
    FolderError
        If it is something else, or holds a file that ``encode`` does not write.
    """
    advice = "choose another name in the config, or move what is there elsewhere"
    if not folder.is_dir() or not (_is_meta(folder) or _is_checksums(folder)):
        raise FolderError(
            f"{folder}: has no meta.json of an encoded folder, so it may hold something else and "
            f"is not replaced: {advice}"
        )
    foreign = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in OURS:
            foreign.append(name)
    if foreign:
        more = f" and {len(foreign) - 3:,} more" if len(foreign) > 3 else ""
        raise FolderError(
            f"{folder}: holds files that encode does not write ({', '.join(foreign[:3])}{more}) "
            f"and is not replaced: {advice}"
        )


def _is_meta(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = {"schema_version", "tokenizer", "n_cells", "split_sha256"}
    return isinstance(meta, dict) and ours <= meta.keys()


def _is_checksums(folder: Path) -> bool:
    try:
        return set(FILES) <= read_checksums(folder).keys()
    except (OSError, ValueError):
        return False
