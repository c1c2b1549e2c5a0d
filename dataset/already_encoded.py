"""Whether a folder that is there already is the one that is wanted."""

from pathlib import Path
from typing import Any

from configs.base import ConfigError
from dataset.config import PreprocessConfig
from dataset.encode_error import EncodeError
from dataset.store.encoded_folder import EncodedFolder

# What does not change a byte of the output; the input's bytes are compared by their hash.
NOT_COMPARED: dict[str, Any] = {
    "input": True,
    "data_dir": True,
    "n_threads": True,
    "cluster": True,
    "quality_control": {"max_dropped_fraction"},
}


def check_same(folder: Path, config: PreprocessConfig, hashes: list[str]) -> None:
    """Raise unless the folder holds what a config and files give.

    Parameters
    ----------
    folder
        That is there.
    config
        What is wanted.
    hashes
        sha256 of each of its files.

    Raises
    ------
    EncodeError, EncodedFolderError
        If it was made from another config or other files, or is damaged.
    """
    other = "choose another name in the config, or pass overwrite=True"
    done = EncodedFolder(folder)
    if [file.get("sha256") for file in done.meta["source"]["files"]] != hashes:
        raise EncodeError(f"{folder}: was made from other files: {other}")
    try:
        made = PreprocessConfig.load(folder / "config.yaml")
    except ConfigError as error:
        reason = " ".join(str(error).split())
        raise EncodeError(
            f"{folder}: was written by another version of this code ({reason}): {other}"
        ) from None
    made_with, wanted = (c.model_dump(mode="json", exclude=NOT_COMPARED) for c in (made, config))
    differ = [k for k in wanted if wanted[k] != made_with[k]]
    if differ:
        found = "; ".join(f"{k}: {made_with[k]!r}, now {wanted[k]!r}" for k in differ)
        raise EncodeError(f"{folder}: was made with another config ({found}): {other}")
