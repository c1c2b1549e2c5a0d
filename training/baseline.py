"""Fit a baseline: the other side of the script's one fork."""

from configs.base import ConfigError
from dataset.store.encoded_folder import EncodedFolder
from models.baselines.base import BaselineConfig, LabeledCells
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
        summary={"seconds": round(clock.seconds, 2), "best_epoch": None, "n_parameters": None},
    )
