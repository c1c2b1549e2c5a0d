"""The end of a run: its scores, its files, and what is said of it."""

import logging
from collections.abc import Sequence

import numpy as np

from dataset.store.encoded_folder import EncodedFolder
from evaluation import METRICS
from models.objectives.base import Objective
from training.config import TrainConfig
from training.distributed import Ranks
from training.predict import Arrays, Fitted
from training.run_writer import RunWriter, environment
from training.tracking import Tracker

logger = logging.getLogger("train")


def score(
    objectives: Sequence[Objective], predictions: Arrays, labels: np.ndarray
) -> dict[str, float]:
    """Return scores by name: of the probabilities, whoever predicts them, and each objective's."""
    scores: dict[str, float] = {}
    if (probabilities := predictions.get("probabilities")) is not None:
        scores = {name: float(metric(labels, probabilities)) for name, metric in METRICS.items()}
    for objective in objectives:
        scores |= objective.score(predictions, labels)
    return scores


def write_results(
    config: TrainConfig,
    data: EncodedFolder,
    run: RunWriter,
    ranks: Ranks,
    tracker: Tracker,
    fitted: Fitted,
) -> None:
    """Make the partial folder a finished run, log its scores, show it in W&B."""
    metrics: dict = {}
    for name, predictions in (("val", fitted.val), ("test", fitted.test)):
        cells = data.split(name)
        metrics[name] = score(config.objectives, predictions, cells.labels)
        run.write_predictions(name, cells, predictions)
    if fitted.weights is not None:
        run.write_weights(fitted.weights)
    if fitted.bank is not None:
        run.write_bank(data.split("train"), fitted.bank)
    tracker.log({f"test/{k}": v for k, v in metrics["test"].items()}, fitted.step)
    hashes = {key: data.meta[key] for key in ("data_sha256", "split_sha256")}
    metrics |= fitted.summary | hashes | {"seed": config.seed}
    run.finish(metrics | environment(ranks.device))
    if run.data_were_replaced(data):
        logger.warning(
            "%s: was encoded again or moved while this run trained; the run is of the cells that "
            "it began with",
            data.path,
        )
    for name in ("val", "test"):
        shown = ", ".join(f"{key} {value:.4f}" for key, value in list(metrics[name].items())[:3])
        logger.info("%s: %s %s", run.final, name, shown)
    if "probabilities" in fitted.test:
        arrays = fitted.test["probabilities"], fitted.test.get("embeddings")
        tracker.report(run.final, data.class_names, data.split("test").labels, *arrays)
    tracker.finish()
