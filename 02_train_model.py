"""Train one network or fit one baseline on an encoded dataset.

    python 02_train_model.py --config configs/train/smoke.yaml optim.lr=1e-4 seed=1
    torchrun --nproc_per_node=2 02_train_model.py --config configs/train/smoke.yaml

Leaves runs/<name>/: the resolved config, metrics.jsonl (curves), metrics.json (scores), the
predictions of val and test, the weights, and what is needed to use them on new cells. Interrupted,
the same command carries on from the last epoch; finished, it says so and does nothing.
"""

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# Threads that wait for work sleep. Spinning, they fight over the cores with whatever else runs:
# on two shared cores an update then took 5 times as long. OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from configs.base import ConfigError
from configs.schema import TrainConfig
from dataset.encoded_folder import EncodedFolder, EncodedFolderError, EncodedSplit
from dataset.npy_dataset import Batch, LengthBucketSampler, NpyDataset, collate, to_device
from dataset.vocabulary import N_SPECIALS
from evaluation import METRICS
from models.objectives import balanced_class_weights, classify
from training import checkpoint
from training.augment import augment
from training.counter_random import update_key
from training.distributed import (
    Ranks,
    gather_rows,
    mixed_precision,
    seed_everything,
    start_ranks,
    stop_ranks,
    sum_over_ranks,
    wrap,
)
from training.optim import learning_rate, make_optimizer, set_learning_rate
from training.run_folder import RunFolder, RunFolderError, environment
from training.tracking import Curve, Tracker, leave

logger = logging.getLogger("train")
LOG_EVERY = 10  # optimiser updates between two points of the training curve


class TrainingError(ValueError):
    """The loss is not a number any more."""


# What is told in one sentence; anything else is a fault of this project and shows its traceback.
USER_ERRORS = (
    ConfigError,
    EncodedFolderError,
    RunFolderError,
    checkpoint.CheckpointError,
    TrainingError,
    OSError,
)


# ============================================================================ config


def read_config(arguments: list[str] | None) -> TrainConfig:
    """Read ``--config FILE`` and the ``key=value`` words, which win over it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="configs/train/*.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optim.lr=1e-4")
    words = parser.parse_intermixed_args(arguments)
    return TrainConfig.load(words.config, words.overrides)


# ============================================================================== data


def training_batches(
    data: EncodedFolder, config: TrainConfig, epoch: int, ranks: Ranks
) -> DataLoader:
    """Deal an epoch's batches: every process gets its share of each, of cells of like length."""
    cells = data.split("train")
    sampler = LengthBucketSampler(
        cells.lengths,
        batch_size=config.optim.batch_size,
        seed=config.seed,
        epoch=epoch,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    # No worker processes: rows come out of a memory map faster than they cross between processes.
    return DataLoader(NpyDataset(cells), batch_sampler=sampler, collate_fn=collate)


def timed(loader: DataLoader) -> Iterator[tuple[Batch, float]]:
    """Yield each batch with the seconds it was waited for."""
    batches = iter(loader)
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - start


# ============================================================================= model


def build_network(config: TrainConfig, data: EncodedFolder) -> nn.Module:
    """Build the network for this folder's vocabulary and classes, at its starting point."""
    torch.manual_seed(config.seed)
    network = config.model.build(
        n_vocabulary=data.vocabulary.n_tokens,
        n_classes=len(data.class_names),
        n_tokens=data.n_tokens,
        n_segments=data.n_segments,
    )
    cells = data.split("train")

    def read_cells(n_most: int) -> Batch:
        rows = np.linspace(0, len(cells) - 1, min(n_most, len(cells))).astype(int)
        return to_device(collate(NpyDataset(cells).__getitems__(rows)), "cpu")

    rng = np.random.default_rng(config.seed)
    config.model.initialize(network, lambda: data.expression("train"), read_cells, rng)
    return network


# ========================================================================== evaluate


class Predictions(NamedTuple):
    """What a model says of each cell of a split, in the split's order."""

    probabilities: np.ndarray  # (n_cells, n_classes), float32
    embeddings: np.ndarray | None  # (n_cells, d), float32


def predict(
    network: nn.Module, cells: EncodedSplit, config: TrainConfig, ranks: Ranks
) -> Predictions:
    """Predict every cell once, each process its share, and put the shares together."""
    order = np.argsort(cells.lengths, kind="stable")  # cells of like length need little padding
    mine = order[ranks.rank :: ranks.world_size]
    size = 2 * config.optim.batch_size
    rows = NpyDataset(cells)
    network.eval()
    probabilities, embeddings = [], []
    with torch.inference_mode(), mixed_precision(config.precision, ranks.device):
        for start in range(0, max(len(mine), 1), size):  # with no share, an empty batch
            batch = collate(rows.__getitems__(mine[start : start + size]))
            output = network(to_device(batch, ranks.device))
            probabilities.append(output.logits.float().softmax(dim=1))
            embeddings.append(output.cell_embedding.float())
    back = np.argsort(order, kind="stable")
    n = len(order)
    return Predictions(
        gather_rows(probabilities, n, ranks)[back], gather_rows(embeddings, n, ranks)[back]
    )


def score(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Every metric of evaluation/, by name."""
    return {name: float(metric(labels, probabilities)) for name, metric in METRICS.items()}


# ============================================================================== loop


class Fitted(NamedTuple):
    """A model after training, as both sides of the fork leave it."""

    val: Predictions
    test: Predictions
    weights: dict[str, np.ndarray] | None
    facts: dict  # seconds, best_epoch, n_parameters
    step: int = 0


@dataclass
class Training:
    """What the loop changes, and what its checkpoint therefore holds."""

    network: nn.Module
    model: nn.Module  # the network as the loop calls it: itself, or wrapped for several processes
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs done
    step: int = 0  # optimiser updates done
    seconds: float = 0.0
    best_epoch: int = -1
    best_rating: tuple[float, float] = (-1.0, -math.inf)  # val macro-F1, then minus val loss
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a checkpoint. It needs no random state: see ``seed_everything``."""
        names = ("epoch", "step", "seconds", "best_epoch", "best_rating")
        checkpoint.save_tensors(
            path,
            {f"model/{name}": t for name, t in self.network.state_dict().items()}
            | {f"best/{name}": t for name, t in self.best_weights.items()}
            | checkpoint.optimizer_tensors(self.optimizer, self.network, "optimizer/"),
            header={name: getattr(self, name) for name in names},
        )

    def resume(self, path: Path) -> None:
        """Go on where ``save`` left off."""
        tensors, header = checkpoint.load_tensors(path)
        checkpoint.load_weights(self.network, checkpoint.take(tensors, "model/"), path)
        checkpoint.load_optimizer(
            self.optimizer, self.network, checkpoint.take(tensors, "optimizer/")
        )
        self.best_weights = checkpoint.take(tensors, "best/")
        for name, value in header.items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)


def fit_network(
    config: TrainConfig, data: EncodedFolder, run: RunFolder, ranks: Ranks, tracker: Tracker
) -> Fitted:
    """Train until val macro-F1 stops rising; leave the network as it was at its best."""
    optim, val = config.optim, data.split("val")
    network = build_network(config, data).to(ranks.device)
    optimizer = make_optimizer(network, lr=optim.lr, weight_decay=optim.weight_decay)
    training = Training(network, wrap(network, ranks), optimizer)
    if run.checkpoint.exists():
        training.resume(run.checkpoint)
        tracker.forget_after(training.step)
        logger.info("%s: carrying on after epoch %d", run.partial, training.epoch)
    n_steps = optim.max_epochs * len(training_batches(data, config, 0, ranks))
    bar = tqdm(desc=config.name, total=n_steps, initial=training.step, disable=not ranks.is_first)
    with bar, logging_redirect_tqdm():
        while training.epoch < optim.max_epochs:
            if training.epoch - training.best_epoch > optim.patience:
                logger.info("val macro-F1 has not risen for %d epochs: stopping", optim.patience)
                break
            start = time.perf_counter()
            train_epoch(training, config, data, ranks, tracker, bar)
            probabilities = predict(network, val, config, ranks).probabilities
            if not np.isfinite(probabilities).all():
                raise TrainingError(
                    f"epoch {training.epoch + 1}: the network's answers are not numbers any more; "
                    "lower optim.lr, or say precision=float32"
                )
            scores = score(val.labels, probabilities)
            tracker.log({f"val/{name}": value for name, value in scores.items()}, training.step)
            warn_of_collapse(probabilities, data.class_names, training.epoch)
            rating = (scores["macro_f1"], -scores["log_loss"])  # ties go to the lower loss
            if rating > training.best_rating:
                training.best_rating, training.best_epoch = rating, training.epoch
                weights = network.state_dict().items()
                training.best_weights = {k: v.detach().cpu().clone() for k, v in weights}
            training.epoch += 1
            training.seconds += time.perf_counter() - start
            if ranks.is_first:
                training.save(run.checkpoint)
    checkpoint.load_weights(network, training.best_weights, run.checkpoint)
    return Fitted(
        val=predict(network, val, config, ranks),
        test=predict(network, data.split("test"), config, ranks),  # read here and nowhere else
        weights={name: t.numpy() for name, t in training.best_weights.items()},
        facts={
            "seconds": round(training.seconds, 2),
            "best_epoch": training.best_epoch + 1,
            "n_parameters": sum(p.numel() for p in network.parameters()),
        },
        step=training.step,
    )


def train_epoch(
    training: Training,
    config: TrainConfig,
    data: EncodedFolder,
    ranks: Ranks,
    tracker: Tracker,
    bar: tqdm,
) -> None:
    """Make one pass over the training cells."""
    optim, cells = config.optim, data.split("train")
    medians = np.concatenate([np.ones(N_SPECIALS, np.float32), data.gene_medians])
    medians = torch.from_numpy(medians).to(ranks.device)
    class_weights = None
    if optim.class_balanced:
        class_weights = balanced_class_weights(cells.labels, len(data.class_names))
        class_weights = class_weights.to(ranks.device)
    training.network.train()
    curve = Curve(ranks)
    for batch, waited in timed(training_batches(data, config, training.epoch, ranks)):
        seed_everything(config.seed, training.step, ranks.rank)
        n_tokens = int(cells.lengths[batch["cell_index"]].sum())
        key = update_key(config.seed, training.step)
        batch = augment(to_device(batch, ranks.device), medians, key=key, **dict(config.augment))
        with mixed_precision(config.precision, ranks.device):
            output = training.model(batch)
        losses = classify(
            output, batch, class_weights=class_weights, label_smoothing=optim.label_smoothing
        )
        # Mean over the cells of all processes. DDP averages their gradients: undo its division.
        (n_cells,) = sum_over_ranks([len(losses)], ranks)
        (losses.sum() * (ranks.world_size / n_cells)).backward()
        norm = nn.utils.clip_grad_norm_(training.network.parameters(), optim.gradient_clip)
        lr = learning_rate(
            training.step, peak=optim.lr, n_steps=bar.total, warmup_fraction=optim.warmup_fraction
        )
        set_learning_rate(training.optimizer, lr)
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
        training.step += 1
        curve.add(losses, n_tokens=n_tokens, waited=waited)
        bar.update()
        if training.step % LOG_EVERY == 0:
            point = curve.read() | {"optim/lr": lr, "optim/gradient_norm": float(norm)}
            tracker.log(point, training.step)
            best = max(training.best_rating[0], 0.0)
            bar.set_postfix(loss=f"{point['train/loss']:.3f}", val_macro_f1=f"{best:.3f}")


def warn_of_collapse(probabilities: np.ndarray, class_names: list[str], epoch: int) -> None:
    """Sound the alarm when, after the first epochs, all val cells are given to one class."""
    predicted = np.unique(probabilities.argmax(axis=1))
    if epoch >= 2 and len(predicted) == 1 < len(class_names):
        logger.warning(
            "epoch %d: every val cell is called %r; if it stays so, lower optim.lr or start from "
            "model.gene_init=svd",
            epoch + 1,
            class_names[predicted[0]],
        )


def fit_baseline(config: TrainConfig, data: EncodedFolder) -> Fitted:
    """Fit a baseline on the train cells' expression; it tunes itself on val."""
    train, val = data.split("train"), data.split("val")
    start = time.perf_counter()
    val_expression = data.expression("val")
    fitted = config.model.fit(
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


# ============================================================================= final


def write_results(
    config: TrainConfig,
    data: EncodedFolder,
    run: RunFolder,
    ranks: Ranks,
    tracker: Tracker,
    fitted: Fitted,
) -> None:
    """Make the partial folder a finished run, say how good it is, show it in W&B."""
    metrics: dict = {}
    for name, predictions in (("val", fitted.val), ("test", fitted.test)):
        cells = data.split(name)
        metrics[name] = score(cells.labels, predictions.probabilities)
        run.write_predictions(name, cells, predictions.probabilities, predictions.embeddings)
    if fitted.weights is not None:
        run.write_weights(fitted.weights)
    tracker.log({f"test/{k}": v for k, v in metrics["test"].items()}, fitted.step)
    hashes = {key: data.meta[key] for key in ("data_sha256", "split_sha256")}
    run.finish(metrics | fitted.facts | hashes | {"seed": config.seed} | environment(ranks.device))
    for name in ("val", "test"):
        scores = metrics[name]
        logger.info(
            "%s: %s accuracy %.4f, macro-F1 %.4f",
            run.final,
            name,
            scores["accuracy"],
            scores["macro_f1"],
        )
    tracker.report(run.final, data.class_names, data.split("test").labels, *fitted.test)
    tracker.finish()


def train(config: TrainConfig, ranks: Ranks) -> None:
    """Go from a config to a finished run folder: the parts above, in order."""
    run = RunFolder(config)
    if run.is_finished():
        logger.info("%s is finished: nothing to do", run.final)
        return
    data = EncodedFolder(config.data)
    is_baseline = hasattr(config.model, "fit")
    if is_baseline and not ranks.is_first:
        return  # one process is enough
    with run.begun(data, writes=ranks.is_first):
        tracker = Tracker(run.partial / "metrics.jsonl", config, writes=ranks.is_first)
        if is_baseline:
            fitted = fit_baseline(config, data)
        else:
            fitted = fit_network(config, data, run, ranks, tracker)
        if ranks.is_first:
            write_results(config, data, run, ranks, tracker, fitted)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, train, and turn what the user can mend into one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = read_config(arguments)
        ranks = start_ranks(config.device)
        if not ranks.is_first:
            logging.disable(logging.CRITICAL)
        train(config, ranks)
    except KeyboardInterrupt:
        print("interrupted: the same command carries on from the last epoch", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        stop_ranks()
    return 0


if __name__ == "__main__":
    leave(main())
