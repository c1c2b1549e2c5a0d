"""Fit a baseline: the other side of the script's one fork."""

from configs.base import ConfigError
from dataset.store.encoded_folder import EncodedFolder
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
    train, val = data.split("train"), data.split("val")
    expression, val_expression = data.expression("train"), data.expression("val")
    clock = Clock()
    with clock.running():
        fitted = config.model.fit(  # type: ignore[union-attr]  # a network's config has no fit
            *expression,
            train.labels,
            n_classes=len(data.class_names),
            val=(*val_expression, val.labels),
            seed=config.seed,
        )
    return Fitted(
        val={"probabilities": fitted.predict_proba(*val_expression)},
        test={"probabilities": fitted.predict_proba(*data.expression("test"))},
        weights=fitted.to_arrays(),
        summary={"seconds": round(clock.seconds, 2), "best_epoch": None, "n_parameters": None},
    )
