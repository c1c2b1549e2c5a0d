"""Which runs are of one model: the one rule for resuming a run, and for averaging over seeds."""

import json
from pathlib import Path
from typing import Any

import torch

from configs.base import ConfigError
from dataset.store.checksums import file_checksum
from dataset.store.data_facts import learned_files
from dataset.store.folds import fold_name
from training.checkpoint import WEIGHTS
from training.config import TrainConfig
from training.distributed import resolve_precision

# How a run is watched, where it runs, and how much of an update is computed at once: no more than
# the last digits of a number depend on it. The precision is not among it, for it changes numbers.
# Where the cells and the weights of init_from lie does not matter: both are compared by checksum.
MAY_DIFFER: dict[str, Any] = {
    "tracking": True,
    "runs_dir": True,
    "device": True,
    "compile": True,
    "parallel": True,
    "data": True,
    "init_from": True,
    "optim": {"tokens_per_batch"},
}
SAME_CELLS = ("data_sha256", "split_sha256", "tokenizer", "position_keys")


def resolve(config: TrainConfig, device: torch.device) -> TrainConfig:
    """Return the config with what it leaves to device and disk written out, to be compared.

    ``precision`` becomes what ``auto`` means on this device (of a baseline, which computes on the
    CPU, always float32), and ``init_from_sha256`` the checksum of the weights to begin with.

    Raises
    ------
    ConfigError
        If the config has a checksum, as that of a finished run does, and it is of other weights.
    """
    precision = "float32" if config.is_baseline else resolve_precision(config.precision, device)
    checksum = config.init_from_sha256
    if config.init_from is not None and (path := Path(config.init_from) / WEIGHTS).is_file():
        checksum = file_checksum(path)
        if config.init_from_sha256 not in (None, checksum):
            raise ConfigError(
                f"init_from: {path} has other weights than this config began with (checksum "
                f"{checksum[:12]}, expected {config.init_from_sha256[:12]}); restore that run, or "
                "say init_from_sha256=null"
            )
    return config.model_copy(update={"precision": precision, "init_from_sha256": checksum})


def identity(config: TrainConfig, data: Path) -> dict[str, Any]:
    """Return all that determines a run's numbers, by name: equal in two runs, they are the same.

    Parameters
    ----------
    config
        Of the run, as of ``resolve``.
    data
        The encoded folder, or a run's copy of what was learned in it.

    Returns
    -------
    Settings of the config, ``data`` (hashes of cells and split, tokenizer, positions), and a
    checksum of every file that was learned from the train cells.
    """
    meta = read_meta(data)
    cells = {"data": {key: meta.get(key) for key in SAME_CELLS}}
    files = {f"data/{name}": file_checksum(data / name) for name in learned_files(data)}
    return config.model_dump(mode="json", exclude=MAY_DIFFER) | cells | files


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Name what differs between two identities; empty if they are of the same run."""
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def model_key(config: TrainConfig, data: Path, *, history: bool = True) -> str:
    """Return the identity of a run's model as text: that of the run without its name and seed.

    Parameters
    ----------
    config, data
        As in ``identity``.
    history
        Whether the time point before in a cell's tokens is a part of the model.
    """
    parts = identity(config, data)
    del parts["name"], parts["seed"]
    if not history and isinstance(parts["data"]["tokenizer"], dict):
        parts["data"]["tokenizer"] = {**parts["data"]["tokenizer"], "previous": None}
        parts = {key: part for key, part in parts.items() if not key.startswith("data/history/")}
    return json.dumps(parts, sort_keys=True)


def folds_key(config: TrainConfig, data: Path) -> str:
    """Return what the runs of one model and seed share in all folds of a data set, as text."""
    settings = config.model_dump(mode="json", exclude=MAY_DIFFER)
    del settings["name"]
    fold = read_meta(data)["fold"]
    started_from = Path(config.init_from or "").name
    if started_from.endswith(ending := f"_{fold_name(fold['name'])}"):  # other weights in each
        settings["init_from_sha256"] = started_from.removesuffix(ending)
    return json.dumps([settings, fold["sha256"]], sort_keys=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """Return meta.json of an encoded folder or of a run's copy; empty if it cannot be read."""
    try:
        found = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
