"""Fit a baseline: the other side of the script's one fork."""

import time

from configs.schema import TrainConfig
from dataset.encoded_folder import EncodedFolder
from training.predict import Fitted, Predictions


def fit_baseline(config: TrainConfig, data: EncodedFolder) -> Fitted:
    """Fit a baseline on the train cells' expression; it tunes itself on val."""
    train, val = data.split("train"), data.split("val")
    start = time.perf_counter()
    val_expression = data.expression("val")
    fitted = config.model.fit(  # type: ignore[union-attr]  # a network's config has no fit
        *data.expression("train"),
        train.labels,
        n_classes=len(data.class_names),
        val=(*val_expression, val.labels),
        seed=config.seed,
    )
    seconds = time.perf_counter() - start
    return Fitted(
        val=Predictions(fitted.predict_proba(*val_expression), None),
        test=Predictions(fitted.predict_proba(*data.expression("test")), None),
        weights=fitted.to_arrays(),
        facts={"seconds": round(seconds, 2), "best_epoch": None, "n_parameters": None},
    )
