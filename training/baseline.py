"""Fit a baseline or a comparator: the other side of the script's one fork."""

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from configs.base import ConfigError
from dataset.store.encoded_folder import EncodedFolder
from models.baselines.base import BaselineConfig, LabeledCells
from models.comparators.base import package
from training.clock import Clock
from training.config import TrainConfig
from training.predict import Fitted


def fit_baseline(config: TrainConfig, data: EncodedFolder) -> Fitted:
    """Fit a baseline on the train cells' expression; it tunes itself on val."""
    if not data.class_names:
        raise ConfigError(
            f"model: {config.model.kind} needs labels, and these cells were encoded without any "
            "(label_key: null)"
        )
    for module in getattr(config.model, "modules", ()):
        package(module)
    if config.is_transductive:
        return _fit_transductive(config, data)
    train, val = (
        LabeledCells(*data.expression(split), data.split(split).labels)
        for split in ("train", "val")
    )
    assert isinstance(config.model, BaselineConfig)
    clock = Clock()
    with clock.running():
        fitted = config.model.fit(train, val, n_classes=len(data.class_names), seed=config.seed)
    return Fitted(
        val={"probabilities": fitted.predict_proba(val.counts, val.library_size)},
        test={"probabilities": fitted.predict_proba(*data.expression("test"))}
        if config.test
        else None,
        weights=fitted.to_arrays(),
        summary=_summary(clock),
    )


def _fit_transductive(config: TrainConfig, data: EncodedFolder) -> Fitted:
    """Fit and predict at once: val and test cells are seen without their labels."""
    names = ["train", "val", *(["test"] if config.test else [])]
    splits = [data.split(name) for name in names]
    counts, library_sizes = zip(*(data.expression(name) for name in names), strict=True)
    hidden = [np.full(len(split), -1) for split in splits[1:]]
    labels = np.concatenate([splits[0].labels, *hidden])
    cells = LabeledCells(csr_matrix(vstack(counts)), np.concatenate(library_sizes), labels)
    batches = np.concatenate([split.batches for split in splits])
    model: Any = config.model
    clock = Clock()
    with clock.running():
        probabilities = model.fit_predict(
            cells, batches, len(data.class_names), config.seed, config.device
        )
    of_splits = np.split(probabilities, np.cumsum([len(split) for split in splits])[:-1])
    return Fitted(
        val={"probabilities": of_splits[1]},
        test={"probabilities": of_splits[2]} if config.test else None,
        weights={},
        summary=_summary(clock),
    )


def _summary(clock: Clock) -> dict[str, Any]:
    return {"seconds": round(clock.seconds, 2), "best_epoch": None, "n_parameters": None}
