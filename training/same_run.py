"""Which runs are of one model: the one rule for resuming a run, and for averaging over seeds."""

import json
from collections.abc import Sequence
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
# Where the cells, the weights of init_from and a committee's members lie does not matter: all are
# compared by checksum.
MAY_DIFFER: dict[str, Any] = {
    "tracking": True,
    "runs_dir": True,
    "device": True,
    "compile": True,
    "parallel": True,
    "data": True,
    "init_from": True,
    "model": {"members"},
    "optim": {"tokens_per_batch"},
}
SAME_CELLS = ("data_sha256", "split_sha256", "tokenizer", "position_keys")


def resolve(config: TrainConfig, device: torch.device) -> TrainConfig:
    """Return the config with what it leaves to device and disk written out, to be compared.

    ``precision`` becomes what ``auto`` means on this device (of a baseline or a committee, which
    compute on the CPU, always float32), ``init_from_sha256`` the checksum of the weights to begin
    with, and ``members_sha256`` of a committee those of its members' weights.

    Raises
    ------
    ConfigError
        If the config has a checksum, as that of a finished run does, and it is of other weights.
    """
    precision = resolve_precision(config.precision, device) if config.is_network else "float32"
    checksum, model = config.init_from_sha256, config.model
    if config.init_from is not None:
        checksum = _weights_sha256("init_from", config.init_from, checksum)
    if config.members:
        known = getattr(model, "members_sha256", None) or [None] * len(config.members)
        pairs = zip(config.members, known, strict=True)
        sums = [_weights_sha256("model.members", member, expected) for member, expected in pairs]
        model = model.model_copy(update={"members_sha256": sums})
    update = {"precision": precision, "init_from_sha256": checksum, "model": model}
    return config.model_copy(update=update)


def _weights_sha256(setting: str, run: str, expected: str | None) -> str | None:
    """Return the checksum of a run's weights; where they are gone, the one that is expected."""
    path = Path(run) / WEIGHTS
    if not path.is_file():
        return expected
    checksum = file_checksum(path)
    if expected not in (None, checksum):
        raise ConfigError(
            f"{setting}: {path} has other weights than this config began with (checksum "
            f"{checksum[:12]}, expected {expected[:12]}); restore that run, or say "
            f"{setting}_sha256=null"
        )
    return checksum


def with_recorded_checksums(config: TrainConfig, found: TrainConfig) -> TrainConfig:
    """Return a config of ``resolve`` with the checksums of a run for all weights that are gone."""
    update: dict[str, Any] = {}
    if config.init_from is not None and config.init_from_sha256 is None:
        update["init_from_sha256"] = found.init_from_sha256
    ours, theirs = (getattr(c.model, "members_sha256", None) for c in (config, found))
    if ours and theirs and len(ours) == len(theirs):
        sums = [our or their for our, their in zip(ours, theirs, strict=True)]
        update["model"] = config.model.model_copy(update={"members_sha256": sums})
    return config.model_copy(update=update)


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


def model_key(
    config: TrainConfig,
    data: Path,
    *,
    history: bool = True,
    members: Sequence[str] = (),
    began_with: str | None = None,
) -> str:
    """Return the identity of a run's model as text: without name and seed, tested or not.

    Parameters
    ----------
    config, data
        As in ``identity``.
    history
        Whether the time point before in a cell's tokens is a part of the model.
    members
        Keys of a committee's members, which stand for their weights: those are of one seed.
    began_with
        Checksum of the key of the run of ``init_from``, which stands for its weights, as above.
    """
    parts = identity(config, data)
    del parts["name"], parts["seed"], parts["test"]
    if members:
        parts["model"]["members_sha256"] = sorted(members)
    if began_with is not None:
        parts["init_from_sha256"] = began_with
    if not history and isinstance(parts["data"]["tokenizer"], dict):
        parts["data"]["tokenizer"] = {**parts["data"]["tokenizer"], "previous": None}
        parts = {key: part for key, part in parts.items() if not key.startswith("data/history/")}
    return json.dumps(parts, sort_keys=True)


def folds_key(config: TrainConfig, data: Path, *, members: Sequence[str] = ()) -> str:
    """Return what the runs of one model and seed share in all folds of a data set, as text.

    ``members`` are the keys of a committee's, which stand for their weights.
    """
    settings = config.model_dump(mode="json", exclude=MAY_DIFFER)
    del settings["name"]
    if members:
        settings["model"]["members_sha256"] = sorted(members)
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
