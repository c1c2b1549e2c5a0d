"""Train one network or fit one baseline on an encoded dataset.

    python 02_train_model.py --config configs/train/smoke.yaml optim.lr=1e-4 seed=1
    torchrun --nproc_per_node=2 02_train_model.py --config configs/train/smoke.yaml
    sbatch configs/slurm.sh --config configs/train/smoke.yaml    (several machines)

Leaves runs/<name>/: the resolved config, metrics.jsonl (curves), metrics.json (scores), the
predictions of val and test, the weights, and what is needed to use them on new cells. Interrupted,
the same command carries on from the last epoch, on any number of processes; finished, it says so
and does nothing.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial

# Threads that wait for work sleep. Spinning, they fight over the cores with whatever else runs:
# on two shared cores an update then took 5 times as long. OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from pydantic import TypeAdapter
from scipy.sparse import csr_matrix
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from configs.base import ConfigError
from configs.schema import TrainConfig
from dataset import TokenizerConfig
from dataset.batches import (
    Batch,
    LengthBucketSampler,
    NpyDataset,
    Update,
    collate,
    deal_updates,
    to_device,
)
from dataset.store.encoded_folder import EncodedFolder, EncodedFolderError
from evaluation import METRICS
from models.objectives import balanced_class_weights, classify
from models.transformer import compile_blocks
from training.alarms import (
    TrainingError,
    refuse_batches,
    refuse_what_is_no_number,
    warn_of_collapse,
)
from training.augment import augment
from training.baseline import fit_baseline
from training.checkpoint import CheckpointError
from training.clock import Clock
from training.counter_random import update_key
from training.curve import Curve
from training.distributed import (
    Ranks,
    averaging,
    mixed_precision,
    seed_everything,
    start_ranks,
    stop_ranks,
    wait_for_all,
    wrap,
)
from training.optim import clip_gradients, learning_rate, make_optimizer, set_learning_rate
from training.predict import Fitted, predict
from training.run_folder import RunFolder, RunFolderError, environment
from training.sharding import share
from training.state import Training
from training.tracking import MetricsError, Tracker, leave

logger = logging.getLogger("train")
LOG_EVERY = 10  # optimiser updates between two points of the training curve
# What is told in one sentence; anything else is a fault of this project and shows its traceback.
USER_ERRORS = (
    ConfigError,
    EncodedFolderError,
    RunFolderError,
    CheckpointError,
    MetricsError,
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


def training_updates(
    data: EncodedFolder, config: TrainConfig, epoch: int, ranks: Ranks
) -> Iterator[Update]:
    """Deal an epoch's cells: every process gets its share of each update."""
    cells, optim = data.split("train"), config.optim
    sampler = LengthBucketSampler(
        cells.lengths, optim.batch_size, config.seed, epoch, ranks.rank, ranks.world_size
    )
    return deal_updates(sampler, cells, optim.tokens_per_batch)


# ============================================================================= model


def build_network(config: TrainConfig, data: EncodedFolder) -> nn.Module:
    """Build the network for this folder's vocabulary and classes."""
    torch.manual_seed(config.seed)
    return config.model.build(
        n_vocabulary=data.vocabulary.n_tokens,
        n_classes=len(data.class_names),
        n_tokens=data.n_tokens,
        n_segments=data.n_segments,
    )


def start_from_cells(
    network: nn.Module, config: TrainConfig, data: EncodedFolder, clock: Clock
) -> None:
    """Fit on the training cells what starts from them."""
    cells = data.split("train")

    def read_expression() -> tuple[csr_matrix, np.ndarray]:
        with clock.paused():
            return data.expression("train")

    def read_cells(n_most: int) -> Batch:
        with clock.paused():
            rows = np.linspace(0, len(cells) - 1, min(n_most, len(cells))).astype(int)
            return to_device(collate(NpyDataset(cells).__getitems__(rows)), "cpu")

    rng = np.random.default_rng(config.seed)
    with clock.running():
        config.model.initialize(network, read_expression, read_cells, rng)
    clock.start_seconds = clock.seconds


# ========================================================================== evaluate


def score(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Every metric of evaluation/, by name."""
    return {name: float(metric(labels, probabilities)) for name, metric in METRICS.items()}


# ============================================================================== loop


def fit_network(
    config: TrainConfig, data: EncodedFolder, run: RunFolder, ranks: Ranks, tracker: Tracker
) -> Fitted:
    """Train until val macro-F1 stops rising; leave the network as it was at its best."""
    optim, val = config.optim, data.split("val")
    refuse_batches(optim, data.n_tokens, ranks.world_size)
    network, clock = build_network(config, data), Clock()
    is_begun = share(run.checkpoint.exists(), ranks)
    if not is_begun:
        start_from_cells(network, config, data, clock)
    model = wrap(network, ranks, config.parallel, config.precision)
    if config.compile:
        compile_blocks(network)
    optimizer = make_optimizer(network, lr=optim.lr, weight_decay=optim.weight_decay)
    training = Training(network, model, optimizer, ranks, clock=clock)
    if is_begun:
        training.resume(run.checkpoint)
        tracker.forget_after(training.step)
        logger.info("%s: carrying on after epoch %d", run.partial, training.epoch)
    n_train = len(data.split("train"))
    n_steps = optim.max_epochs * -(-n_train // optim.batch_size)
    bar = tqdm(desc=config.name, total=n_steps, initial=training.step, disable=not ranks.is_first)
    with bar, logging_redirect_tqdm():
        while training.epoch < optim.max_epochs:
            if training.epoch - training.best_epoch > optim.patience:
                logger.info("val macro-F1 has not risen for %d epochs: stopping", optim.patience)
                break
            with training.clock.running():
                train_epoch(training, config, data, tracker, bar)
                probabilities = predict(network, val, config, ranks).probabilities
            refuse_what_is_no_number(f"epoch {training.epoch + 1}: the answers", probabilities)
            scores = score(val.labels, probabilities)
            tracker.log({f"val/{name}": value for name, value in scores.items()}, training.step)
            warn_of_collapse(probabilities, data.class_names, training.epoch)
            training.rate((scores["macro_f1"], -scores["log_loss"]))  # ties: the lower loss
            training.epoch += 1
            training.save(run.checkpoint)
    training.return_to_best()
    clock = training.clock
    return Fitted(
        val=predict(network, val, config, ranks),
        test=predict(network, data.split("test"), config, ranks),  # read here and nowhere else
        weights={name: t.numpy() for name, t in training.best_weights.items()},
        facts={
            "seconds": round(clock.seconds, 2),
            "start_seconds": round(clock.start_seconds, 2),
            "cells_per_second": round(
                training.epoch * n_train / (clock.seconds - clock.start_seconds), 1
            ),
            "best_epoch": training.best_epoch + 1,
            "n_parameters": sum(p.numel() for p in network.parameters()),
        },
        step=training.step,
    )


def train_epoch(
    training: Training, config: TrainConfig, data: EncodedFolder, tracker: Tracker, bar: tqdm
) -> None:
    """Make one pass over the training cells."""
    optim, cells, ranks = config.optim, data.split("train"), training.ranks
    rows = NpyDataset(cells)
    tokenizer = TypeAdapter(TokenizerConfig).validate_python(data.meta["tokenizer"])
    learned = {k: torch.tensor(v).to(ranks.device) for k, v in data.facts.learned.items()}
    reorder = partial(tokenizer.reorder, learned=learned)
    class_weights = None
    if optim.class_balanced:
        class_weights = balanced_class_weights(cells.labels, len(data.class_names))
        class_weights = class_weights.to(ranks.device)
    training.network.train()
    with training.clock.paused():  # on a card its speed is measured, the first time
        curve = Curve(training.network, config.precision, ranks)
    for update in training_updates(data, config, training.epoch, ranks):
        seed_everything(config.seed, training.step, ranks.rank)
        key = update_key(config.seed, training.step)
        for i, some in enumerate(update.batches):
            # Read here: rows come out of a memory map faster than from a worker process.
            with curve.waiting(), training.clock.paused():
                batch = collate(rows.__getitems__(some))
            batch = to_device(batch, ranks.device)
            batch = augment(batch, reorder, key=key, **dict(config.augment))
            with averaging(training.model, now=i == len(update.batches) - 1):
                with mixed_precision(config.precision, ranks.device):
                    output = training.model(batch)
                losses = classify(
                    output,
                    batch,
                    class_weights=class_weights,
                    label_smoothing=optim.label_smoothing,
                )
                # Mean over the update's cells. The gradients of all processes are averaged: undo
                # that division.
                (losses.sum() * (ranks.world_size / update.n_cells)).backward()
            curve.add(losses, batch["lengths"])
        norm = clip_gradients(training.network, optim.gradient_clip)
        lr = learning_rate(
            training.step, peak=optim.lr, n_steps=bar.total, warmup_fraction=optim.warmup_fraction
        )
        set_learning_rate(training.optimizer, lr)
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
        training.step += 1
        bar.update()
        if training.step % LOG_EVERY == 0:
            point = curve.read() | {"optim/lr": lr, "optim/gradient_norm": float(norm)}
            tracker.log(point, training.step)
            best = max(training.best_rating[0], 0.0)
            bar.set_postfix(loss=f"{point['train/loss']:.3f}", val_macro_f1=f"{best:.3f}")


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
    if run.data_were_replaced(data):
        logger.warning(
            "%s: was encoded again or moved while this run trained; the run is of the cells that "
            "it began with",
            data.path,
        )
    for name in ("val", "test"):
        shown = (metrics[name]["accuracy"], metrics[name]["macro_f1"])
        logger.info("%s: %s accuracy %.4f, macro-F1 %.4f", run.final, name, *shown)
    tracker.report(run.final, data.class_names, data.split("test").labels, *fitted.test)
    tracker.finish()


def train(config: TrainConfig, ranks: Ranks) -> None:
    """Go from a config to a finished run folder: the parts above, in order."""
    run = RunFolder(config)
    if run.is_finished():
        logger.info("%s is finished: nothing to do", run.final)
        return
    data = EncodedFolder(config.data)
    wait_for_all(ranks)  # they have looked at the folder: now the first one may change it
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
