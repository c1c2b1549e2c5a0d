"""Check that a folder that is there already is the one that is wanted."""

from pathlib import Path
from typing import Any

import numpy as np

from configs.base import ConfigError
from dataset.config import PreprocessConfig
from dataset.encode_error import EncodeError
from dataset.store.count_store import CountStore
from dataset.store.encoded_folder import EncodedFolder

# What does not change a byte of the output; the input's bytes are compared by their hash.
NOT_COMPARED: dict[str, Any] = {
    "input": True,
    "data_dir": True,
    "n_threads": True,
    "cluster": True,
    "quality_control": {"max_dropped_fraction"},
}


OTHER = "choose another name in the config, or pass overwrite=True"


def open_same_config(folder: Path, config: PreprocessConfig) -> EncodedFolder:
    """Open a folder that is there, if it was made from this config, whatever its input.

    Raises
    ------
    EncodeError, EncodedFolderError
        If it was made from another config, or is damaged.
    """
    encoded = EncodedFolder(folder)
    try:
        made = PreprocessConfig.load(folder / "config.yaml")
    except ConfigError as error:
        reason = " ".join(str(error).split())
        raise EncodeError(
            f"{folder}: was written by another version of this code ({reason}): {OTHER}"
        ) from None
    made_with, wanted = (c.model_dump(mode="json", exclude=NOT_COMPARED) for c in (made, config))
    differ = [k for k in wanted if wanted[k] != made_with[k]]
    if differ:
        found = "; ".join(f"{k}: {made_with[k]!r}, now {wanted[k]!r}" for k in differ)
        raise EncodeError(f"{folder}: was made with another config ({found}): {OTHER}")
    return encoded


def check_files(encoded: EncodedFolder, store: CountStore) -> None:
    """Raise unless a folder was made from these files, their genes named as they are in the store.

    Raises
    ------
    EncodeError
        If it was made from others, or by another ``gene_map``.
    """
    made_of = [file["sha256"] for file in encoded.meta["source"]["files"]]
    if made_of != [file.sha256 for file in store.files]:
        raise EncodeError(f"{encoded.path}: was made from other files: {OTHER}")
    if not np.array_equal(CountStore(encoded.path / "counts").gene_ids, store.gene_ids):
        raise EncodeError(f"{encoded.path}: was made with another gene_map: {OTHER}")
