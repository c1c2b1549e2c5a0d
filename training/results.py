"""The end of a run: its scores, its files, and what is said of it."""

import logging
from collections.abc import Sequence

import numpy as np

from dataset.store.encoded_folder import EncodedFolder
from evaluation import METRICS, scaled_scores
from evaluation.calibration import fit_temperature
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


def temperature_of(val: Arrays, labels: np.ndarray) -> float | None:
    """Return the temperature that the val cells ask for; None where no classes are predicted."""
    return fit_temperature(labels, val["probabilities"]) if "probabilities" in val else None


def write_results(
    config: TrainConfig,
    data: EncodedFolder,
    run: RunWriter,
    ranks: Ranks,
    tracker: Tracker,
    fitted: Fitted,
) -> None:
    """Make the partial folder a finished run, log its scores, show it in W&B."""
    metrics: dict = {"temperature": temperature_of(fitted.val, data.split("val").labels)}
    predicted = {"val": fitted.val} | ({} if fitted.test is None else {"test": fitted.test})
    for name, predictions in predicted.items():
        cells = data.split(name)
        metrics[name] = score(config.objectives, predictions, cells.labels)
        if (temperature := metrics["temperature"]) is not None:
            probabilities = predictions["probabilities"]
            metrics[name] |= scaled_scores(cells.labels, probabilities, temperature)
        run.write_predictions(name, cells, predictions)
    run.write_weights(fitted.weights)
    if fitted.bank is not None:
        run.write_bank(data.split("train"), fitted.bank)
    if config.test:
        tracker.log({f"test/{k}": v for k, v in metrics["test"].items()}, fitted.step)
    hashes = {key: data.meta[key] for key in ("data_sha256", "split_sha256")}
    metrics |= fitted.summary | hashes | {"seed": config.seed}
    if tracker.url is not None:
        metrics["wandb_url"] = tracker.url
    metrics["train_class_sizes"] = np.asarray(data.facts.class_sizes).tolist()
    packages = getattr(config.model, "packages", ())
    run.finish(environment(ranks.device, packages) | metrics)  # a committee's memory: its members'
    if run.data_were_replaced(data):
        logger.warning(
            "%s: was encoded again or moved while this run trained; the run is of the cells that "
            "it began with",
            data.path,
        )
    for name in predicted:
        shown = ", ".join(f"{key} {value:.4f}" for key, value in list(metrics[name].items())[:3])
        logger.info("%s: %s %s", run.final, name, shown)
    final = {f"{name}/{k}": v for name in predicted for k, v in metrics[name].items()}
    tracker.summarize(final | {"seconds": metrics["seconds"]})
    name, last = list(predicted.items())[-1]  # test, unless it is not to be seen yet
    if "probabilities" in last:
        arrays = data.split(name).labels, last["probabilities"], last.get("embeddings")
        tracker.report(run.final, name, data.class_names, *arrays)
    tracker.finish()
