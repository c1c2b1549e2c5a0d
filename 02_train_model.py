"""Train one network or fit one baseline on an encoded dataset.

    python 02_train_model.py --config configs/train/smoke.yaml optim.lr=1e-4 seed=1
    torchrun --nproc_per_node=2 02_train_model.py --config configs/train/smoke.yaml
    sbatch configs/slurm.sh --config configs/train/smoke.yaml    (several machines)

Leaves runs/<name>/: the resolved config, metrics.jsonl (curves), metrics.json (scores), the
predictions of val and test, the weights, and what is needed to use them on new cells. Interrupted,
the same command resumes from the last epoch, on any number of processes; finished, it says so
and does nothing.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial

# Threads that wait for work sleep. Spinning, they fight over the cores with whatever else runs:
# on two shared cores an update then took 5 times as long. OpenMP reads this when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from scipy.sparse import csr_matrix
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from configs.base import ConfigError
from dataset import read_tokenizer
from dataset.batches import Batch, BatchReader, BatchRows, to_device
from dataset.store.encoded_folder import EncodedFolder, EncodedFolderError
from models.learner import Learner
from models.network import TrainCells
from models.objectives.base import Objective
from models.transformer import compile_blocks
from training.alarms import (
    TrainingError,
    check_finite,
    refuse_batches,
    warn_of_collapse,
)
from training.augment import augment
from training.baseline import fit_baseline
from training.checkpoint import CheckpointError
from training.clock import Clock
from training.config import TrainConfig
from training.counter_random import draw_for, update_key
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
from training.init_from import init_from
from training.monitor import monitored, rating
from training.optim import clip_gradients, learning_rate, make_optimizer, set_learning_rate
from training.predict import Arrays, Fitted, predict
from training.run_writer import RunWriter, environment
from training.runs import RunFolderError, is_baseline
from training.sharding import share
from training.state import Training
from training.tracking import MetricsError, Tracker, leave
from training.updates import rows_of_updates, samples_of, shard_updates

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


def rows_of_epoch(
    learner: Learner, config: TrainConfig, data: EncodedFolder, epoch: int
) -> list[BatchRows]:
    """Return the cells of each update of an epoch, the same for any number of processes."""
    cells = data.split("train")
    return rows_of_updates(
        cells.lengths,
        config.optim.batch_size,
        seed=config.seed,
        epoch=epoch,
        samples=samples_of(learner, cells),
    )


# ============================================================================= model


def build_learner(config: TrainConfig, data: EncodedFolder) -> Learner:
    """Build the network and its objectives' heads for this folder's vocabulary and classes."""
    torch.manual_seed(config.seed)
    return Learner(config.model, config.objectives, data.facts)


def start_from_cells(
    learner: Learner, config: TrainConfig, data: EncodedFolder, clock: Clock
) -> None:
    """Fit on the training cells what starts from them."""
    cells = data.split("train")

    def read_expression() -> tuple[csr_matrix, np.ndarray]:
        with clock.paused():
            return data.expression("train")

    def read_cells(n_most: int) -> Batch:
        with clock.paused():
            rows = np.linspace(0, len(cells) - 1, min(n_most, len(cells))).astype(int)
            return to_device(BatchReader(cells).read(rows), "cpu")

    rng = np.random.default_rng(config.seed)
    with clock.running():
        config.model.start(learner.network, TrainCells(read_expression, read_cells), rng)
    clock.start_seconds = clock.seconds


# ========================================================================== evaluate


def score(
    objectives: Sequence[Objective], predictions: Arrays, labels: np.ndarray
) -> dict[str, float]:
    """Return the scores of every objective, by name."""
    found: dict[str, float] = {}
    for objective in objectives:
        found |= objective.score(predictions, labels)
    return found


# ============================================================================== loop


def fit_network(
    config: TrainConfig, data: EncodedFolder, run: RunWriter, ranks: Ranks, tracker: Tracker
) -> Fitted:
    """Train until the val score stops improving; leave the network as it was at its best."""
    optim, val = config.optim, data.split("val")
    refuse_batches(optim, data.n_tokens, ranks.world_size)
    learner, clock = build_learner(config, data), Clock()
    # 1. An interrupted run is resumed; 2. else it starts from init_from; 3. else from scratch.
    is_begun = share(run.checkpoint.exists(), ranks)
    matched: dict = {}
    if not is_begun:
        start_from_cells(learner, config, data, clock)
        if config.init_from is not None:
            matched = init_from(learner, config.init_from, data.facts)
    model = wrap(learner, ranks, config.parallel, config.precision)
    if config.compile:
        compile_blocks(learner)
    optimizer = make_optimizer(learner, lr=optim.lr, weight_decay=optim.weight_decay)
    training = Training(learner, model, optimizer, ranks, clock=clock, init_from=matched)
    if is_begun:
        training.resume(run.checkpoint)
        tracker.forget_after(training.step)
        logger.info("%s: resuming after epoch %d", run.partial, training.epoch)
    n_train = len(data.split("train"))
    n_steps = optim.max_epochs * len(rows_of_epoch(learner, config, data, epoch=0))
    bar = tqdm(desc=config.name, total=n_steps, initial=training.step, disable=not ranks.is_first)
    with bar, logging_redirect_tqdm():
        while training.epoch < optim.max_epochs:
            if training.epoch - training.best_epoch > optim.patience:
                logger.info("val has not improved for %d epochs: stopping", optim.patience)
                break
            with training.clock.running():
                train_epoch(training, config, data, tracker, bar)
                found = predict(learner, val, config, ranks)
            check_finite(f"epoch {training.epoch + 1}: the predictions", *found.values())
            scores = score(config.objectives, found, val.labels)
            tracker.log({f"val/{name}": value for name, value in scores.items()}, training.step)
            if "probabilities" in found:
                warn_of_collapse(found["probabilities"], data.class_names, training.epoch)
            name = monitored(scores, config.monitor)
            training.keep_if_best(rating(scores, name))
            bar.set_postfix({f"val_{name}": f"{scores[name]:.3f}"})
            training.epoch += 1
            training.save(run.checkpoint)
    training.return_to_best()
    clock = training.clock
    return Fitted(
        val=predict(learner, val, config, ranks),
        test=predict(learner, data.split("test"), config, ranks),  # read here and nowhere else
        weights={name: t.numpy() for name, t in training.best_weights.items()},
        facts={
            "seconds": round(clock.seconds, 2),
            "start_seconds": round(clock.start_seconds, 2),
            "cells_per_second": round(
                training.epoch * n_train / (clock.seconds - clock.start_seconds), 1
            ),
            "best_epoch": training.best_epoch + 1,
            "n_parameters": sum(p.numel() for p in learner.parameters()),
        }
        | ({"init_from": training.init_from} if training.init_from else {}),
        step=training.step,
    )


def train_epoch(
    training: Training, config: TrainConfig, data: EncodedFolder, tracker: Tracker, bar: tqdm
) -> None:
    """Make one pass over the training cells."""
    optim, cells, ranks = config.optim, data.split("train"), training.ranks
    reader = BatchReader(cells)
    learned = {k: torch.tensor(v).to(ranks.device) for k, v in data.facts.learned.items()}
    reorder = partial(read_tokenizer(data.meta["tokenizer"]).reorder, learned=learned)
    weights = torch.tensor([o.weight for o in config.objectives], device=ranks.device)
    training.learner.train()
    with training.clock.paused():  # on a card its speed is measured, the first time
        curve = Curve(training.learner, config.precision, ranks)
    updates = shard_updates(
        rows_of_epoch(training.learner, config, data, training.epoch),
        cells.lengths,
        optim.tokens_per_batch,
        ranks.rank,
        ranks.world_size,
    )
    for update in updates:
        seed_everything(config.seed, training.step, ranks.rank)
        key = update_key(config.seed, training.step)
        for i, rows in enumerate(update.batches):
            # Read here: rows come out of a memory map faster than from a worker process.
            with curve.waiting(), training.clock.paused():
                batch = reader.read(rows)
            batch = to_device(batch, ranks.device)
            batch = augment(batch, reorder, key=key, **dict(config.augment))
            batch = training.learner.hide(batch, draw_for(batch, key))
            with averaging(training.model, now=i == len(update.batches) - 1):
                with mixed_precision(config.precision, ranks.device):
                    losses = training.model(batch)  # (b, objectives)
                # Mean over the update's cells. The gradients of all processes are averaged: undo
                # that division.
                total = (losses * weights).sum()
                (total * (ranks.world_size / update.n_cells)).backward()
            curve.add(losses, batch["lengths"])
        norm = clip_gradients(training.learner, optim.gradient_clip)
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
            bar.set_postfix(loss=f"{point['train/loss']:.3f}")


# ============================================================================= final


def write_results(
    config: TrainConfig,
    data: EncodedFolder,
    run: RunWriter,
    ranks: Ranks,
    tracker: Tracker,
    fitted: Fitted,
) -> None:
    """Make the partial folder a finished run, say how good it is, show it in W&B."""
    metrics: dict = {}
    for name, predictions in (("val", fitted.val), ("test", fitted.test)):
        cells = data.split(name)
        metrics[name] = score(config.objectives, predictions, cells.labels)
        run.write_predictions(name, cells, predictions)
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
        shown = ", ".join(f"{key} {value:.4f}" for key, value in list(metrics[name].items())[:3])
        logger.info("%s: %s %s", run.final, name, shown)
    if "probabilities" in fitted.test:
        found = fitted.test["probabilities"], fitted.test.get("embeddings")
        tracker.report(run.final, data.class_names, data.split("test").labels, *found)
    tracker.finish()


def train(config: TrainConfig, ranks: Ranks) -> None:
    """Go from a config to a finished run folder: the parts above, in order."""
    run = RunWriter(config)
    if run.is_finished():
        logger.info("%s is finished: nothing to do", run.final)
        return
    data = EncodedFolder(config.data)
    wait_for_all(ranks)  # they have looked at the folder: now the first one may change it
    fits = is_baseline(config)
    if fits and not ranks.is_first:
        return  # one process is enough
    with run.open(data, writes=ranks.is_first):
        tracker = Tracker(run.curves, config, writes=ranks.is_first)
        if fits:
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
        print("interrupted: the same command resumes from the last epoch", file=sys.stderr)
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
