"""Make a committee of finished runs: their predictions are averaged, and nothing is trained."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.base import ConfigError
from dataset.store.checksums import CHECKSUMS
from dataset.store.encoded_folder import EncodedFolder
from dataset.store.link_files import link_files
from evaluation.calibration import apply_temperature
from training.budget import seconds
from training.config import TrainConfig
from training.predict import Arrays, Fitted
from training.runs import Run, member_folders


def fit_committee(config: TrainConfig, data: EncodedFolder, folder: Path) -> Fitted:
    """Average the members' predictions, and take the members into the run's folder.

    Raises
    ------
    ConfigError, RunFolderError
        If a member is no finished run, or one of other cells, another split or other classes.
    """
    members = [_open(path, data, config) for path in config.members]
    for member, name in zip(members, member_folders(config), strict=True):
        link_files(member.path, folder / name, [*member.checksums, CHECKSUMS])
    model: Any = config.model
    val = [_calibrated(member, "val", data) for member in members]
    test = [_calibrated(member, "test", data) for member in members] if config.test else None
    weights = model.fit(
        data.split("val").labels,
        [member["probabilities"] for member in val],
        [member.config.model.kind for member in members],
    )
    return Fitted(
        val=_averaged(model, weights, val),
        test=None if test is None else _averaged(model, weights, test),
        weights={"weights": weights},
        summary=_cost([member.metrics for member in members])
        | {
            "best_epoch": None,
            "members": dict(zip(config.members, weights.tolist(), strict=True)),
        },
    )


def _open(path: str, data: EncodedFolder, config: TrainConfig) -> Run:
    member = Run(path)
    if member.config.members:
        raise ConfigError(f"model.members: {path} is itself a committee; list its members instead")
    if member.config.is_transductive:
        raise ConfigError(
            f"model.members: {path} is transductive: it saw the cells that it predicts, and a "
            "committee with it could predict no others; leave it out"
        )
    if config.test and not member.config.test:
        raise ConfigError(
            f"model.members: {path} was trained with test: false; train it with test: true, or "
            "say test=false here too"
        )
    facts = {
        "cells": (member.metrics["data_sha256"], data.meta["data_sha256"]),
        "split": (member.metrics["split_sha256"], data.meta["split_sha256"]),
        "classes": (member.class_names, data.class_names),
    }
    for what, (theirs, ours) in facts.items():
        if theirs != ours:
            raise _other(path, what, data)
    return member


def _calibrated(member: Run, split: str, data: EncodedFolder) -> Arrays:
    """Return a member's predictions, its probabilities at its own temperature."""
    found, cells = member.predictions(split), data.split(split)
    if not found.has_classes:
        raise ConfigError(
            f"model.members: {member.path} predicts no classes; expected runs that classify"
        )
    same = np.array_equal(found.cell_names, np.asarray(cells.cell_names, dtype=np.str_))
    if not (same and np.array_equal(found.labels, cells.labels)):
        raise _other(member.path, f"{split} cells", data)
    calibrated = apply_temperature(found.probabilities, member.metrics["temperature"])
    return found.arrays | {"probabilities": calibrated}


def _other(member: str | Path, what: str, data: EncodedFolder) -> ConfigError:
    return ConfigError(
        f"model.members: {member} has other {what} than {data.path}: train it on these cells, or "
        "leave it out"
    )


def _averaged(model: Any, weights: NDArray, members: list[Arrays]) -> Arrays:
    probabilities = model.average(weights, [member["probabilities"] for member in members])
    embeddings = [member["embeddings"] for member in members if "embeddings" in member]
    averaged: Arrays = {"probabilities": probabilities}
    return averaged | ({"embeddings": embeddings[0]} if embeddings else {})


def _cost(members: list[dict[str, Any]]) -> dict[str, Any]:
    sizes = [metrics["n_parameters"] for metrics in members if metrics["n_parameters"] is not None]
    return {
        "seconds": round(sum(map(seconds, members)), 2),
        "n_parameters": sum(sizes) if sizes else None,
        "peak_memory_mb": max(metrics["peak_memory_mb"] for metrics in members),
    }
