"""The folds of a data set: encoded folders beside each other; each says which one it is."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from dataset.cut_list import cut_list
from dataset.store.encoded_folder import EncodedFolder, EncodedFolderError

FOLD = "fold_"


def fold_name(held_out: str) -> str:
    """Return the name of a fold's folder, by the group or the number that is its test split."""
    return FOLD + re.sub(r"[^A-Za-z0-9._-]+", "_", held_out)


def fold_paths(folder: str | Path) -> list[Path]:
    """Return the encoded folders of all folds, in order; without folds, the folder itself.

    Raises
    ------
    EncodedFolderError
        If a fold is missing, or is of another split or other cells than the others.
    """
    folder = Path(folder)
    found = {path: _fold_of(path) for path in sorted(folder.glob(f"{FOLD}*"))}
    folds = {path: fold for path, fold in found.items() if fold is not None}
    if not folds or (folder / "meta.json").exists():
        return [folder]
    first = next(iter(folds.values()))
    if other := [path for path, fold in folds.items() if fold["sha256"] != first["sha256"]]:
        raise EncodedFolderError(
            f"{other[0]}: is a fold of other cells or settings than {next(iter(folds))}; encode "
            "again (01_preprocess_sc_data.ipynb, overwrite)"
        )
    paths = [folder / fold_name(name) for name in first["of"]]
    if missing := [path.name for path in paths if path not in folds]:
        raise EncodedFolderError(
            f"{folder}: {cut_list(missing)} of {len(paths)} folds not encoded yet; run "
            "01_preprocess_sc_data.ipynb again, which encodes what is missing"
        )
    return paths


def open_folds(folder: str | Path) -> list[EncodedFolder]:
    """Open what ``fold_paths`` returns."""
    return [EncodedFolder(path) for path in fold_paths(folder)]


def fold_table(folders: list[EncodedFolder]) -> pd.DataFrame:
    """Return the cells of each split, the types and the genes of every folder, one a row."""
    rows = {
        folder.path.name: {
            **{f"{split} cells": n_cells for split, n_cells in folder.n_cells.items()},
            "types in train": len(folder.class_names),
            "genes in train": folder.vocabulary.n_genes,
        }
        for folder in folders
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _fold_of(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "meta.json").read_text(encoding="utf-8"))["fold"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
