"""Train one network, fit one baseline or make one committee on an encoded dataset.

    python 02_train_model.py --config configs/train/smoke.yaml optim.lr=1e-4 seed=1
    torchrun --nproc_per_node=2 02_train_model.py --config configs/train/smoke.yaml
    sbatch configs/slurm.sh --config configs/train/smoke.yaml    (several machines)

Writes runs/<name>/: the resolved config, metrics.jsonl (curves), metrics.json (scores), the
predictions of val and test, the weights, and what is needed to use them on new cells. Interrupted,
the same command resumes from the last epoch, on any number of processes; finished, it says so
and does nothing. Where data is a folder of folds it does so for each of them, in a run of its own.
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

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from configs.user_error import UserError
from dataset import read_tokenizer
from dataset.batches import BatchReader, to_device
from dataset.store.encoded_folder import EncodedFolder
from models.learner import Learner
from training.alarms import check_batch_sizes, check_finite, warn_of_collapse
from training.augment import augment
from training.bank import remember
from training.baseline import fit_baseline
from training.clock import Clock
from training.committee import fit_committee
from training.config import TrainConfig
from training.counter_random import draw_for, update_key
from training.curve import Curve
from training.distributed import (
    Ranks,
    barrier,
    compile_blocks,
    gradient_sync,
    mixed_precision,
    seed_everything,
    start_ranks,
    stop_ranks,
    wrap,
)
from training.folds import config_of_each_fold
from training.init_from import check_held_out, init_from, initialize_from_train_cells
from training.monitor import monitored, rating
from training.optim import clip_gradients, freeze, learning_rate, make_optimizer, set_learning_rate
from training.predict import Fitted, predict
from training.results import score, write_results
from training.run_writer import RunWriter
from training.same_run import resolve
from training.sharding import broadcast
from training.state import Training
from training.tracking import Tracker, exit_process
from training.updates import Update, rows_of_updates, samples_of, shard_updates

logger = logging.getLogger("train")
LOG_EVERY = 10  # optimizer updates between two points of the training curve


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


def epoch_updates(
    learner: Learner, data: EncodedFolder, config: TrainConfig, epoch: int, ranks: Ranks
) -> Iterator[Update]:
    """Return the updates of an epoch: which cells this process reads for each, in batches."""
    cells, optim = data.split("train"), config.optim
    samples = samples_of(learner, cells)
    rows = rows_of_updates(cells.lengths, optim.batch_size, config.seed, epoch, samples)
    return shard_updates(rows, cells.lengths, optim.tokens_per_batch, ranks)


# ============================================================================= model


def build_learner(config: TrainConfig, data: EncodedFolder) -> Learner:
    """Build the network and its objectives' heads for this folder's vocabulary and classes."""
    torch.manual_seed(config.seed)
    return Learner(config.model, config.objectives, data.facts)


def build_training(
    config: TrainConfig, data: EncodedFolder, run: RunWriter, ranks: Ranks, tracker: Tracker
) -> Training:
    """Build learner and optimizer on every process, with the weights that training begins with."""
    learner, clock, matched = build_learner(config, data), Clock(), {}
    optim = config.optim
    # 1. An interrupted run is resumed; 2. else it starts from init_from; 3. else from scratch.
    is_resumed = broadcast(run.checkpoint.exists(), ranks)
    if not is_resumed:
        initialize_from_train_cells(learner.network, config, data, clock)
        if config.init_from is not None:
            check_held_out(config.init_from, data)
            matched = init_from(learner, config.init_from, data.facts)
    factors = dict.fromkeys(learner.gene_embeddings, optim.gene_embedding_lr)
    for name in learner.network.first_layers(optim.frozen_layers):
        factors[f"network.{name}"] = 0.0
    freeze(learner, factors)
    model = wrap(learner, ranks, config.parallel, config.precision)
    if config.compile:
        compile_blocks(learner)
    optimizer = make_optimizer(
        learner, lr=optim.lr, weight_decay=optim.weight_decay, lr_factors=factors
    )
    training = Training(
        learner, model, optimizer, ranks, optim.weight_averaging, clock=clock, init_from=matched
    )
    if is_resumed:
        training.resume(run.checkpoint)
        tracker.forget_after(training.step)
        logger.info("%s: resuming after epoch %d", run.partial, training.epoch)
    return training


# ============================================================================== loop


def fit_network(
    config: TrainConfig, data: EncodedFolder, run: RunWriter, ranks: Ranks, tracker: Tracker
) -> Fitted:
    """Train until the val score stops improving, or to the end; predict with the weights kept."""
    optim, val, train = config.optim, data.split("val"), data.split("train")
    check_batch_sizes(optim, data.n_tokens, ranks.world_size)
    training = build_training(config, data, run, ranks, tracker)
    learner = training.learner
    n_updates = len([*epoch_updates(learner, data, config, 0, ranks)])  # in every epoch
    n_steps = optim.max_epochs * n_updates
    bar = tqdm(desc=config.name, total=n_steps, initial=training.step, disable=not ranks.is_first)
    with bar, logging_redirect_tqdm():
        with training.clock.running(), training.averaged():
            remember(learner, train, config, ranks)  # for the first epoch, or after a resume
        while training.epoch < optim.max_epochs:
            if training.epoch - training.best_epoch > optim.patience:
                logger.info("val has not improved for %d epochs: stopping", optim.patience)
                break
            with training.clock.running():
                train_epoch(training, config, data, tracker, bar)
                with training.averaged():
                    remember(learner, train, config, ranks)  # for the next epoch too
                    predictions = predict(learner, val, config, ranks)
            check_finite(f"epoch {training.epoch + 1}: the predictions", *predictions.values())
            scores = score(config.objectives, predictions, val.labels)
            tracker.log({f"val/{name}": value for name, value in scores.items()}, training.step)
            warn_of_collapse(predictions.get("probabilities"), data.class_names, training.epoch)
            name, latest = monitored(scores, config.monitor), (float(training.epoch), 0.0)
            training.keep_if_best(latest if config.ends_with_last_epoch else rating(scores, name))
            bar.set_postfix({f"val_{name}": f"{scores[name]:.3f}"})
            training.epoch += 1
            training.save(run.checkpoint)
    training.restore_best()
    bank = remember(learner, train, config, ranks)
    test = data.split("test") if config.test else None  # read here only
    return Fitted(
        val=predict(learner, val, config, ranks),
        test=None if test is None else predict(learner, test, config, ranks),
        weights={name: t.numpy() for name, t in training.best_weights.items()},
        summary=training.summary(len(train)),
        step=training.step,
        bank=bank,
    )


def train_epoch(
    training: Training, config: TrainConfig, data: EncodedFolder, tracker: Tracker, bar: tqdm
) -> None:
    """Make one pass over the training cells."""
    optim, ranks, reader = config.optim, training.ranks, BatchReader(data.split("train"))
    learned = {k: torch.tensor(v).to(ranks.device) for k, v in data.facts.learned.items()}
    reorder = partial(read_tokenizer(data.meta["tokenizer"]).reorder, learned=learned)
    weights = torch.tensor([o.weight for o in config.objectives], device=ranks.device)
    training.learner.train()
    with training.clock.paused():  # on a GPU its speed is measured, the first time
        curve = Curve(training.learner, config.precision, ranks)
    for update in epoch_updates(training.learner, data, config, training.epoch, ranks):
        seed_everything(config.seed, training.step, ranks.rank)
        key = update_key(config.seed, training.step)
        for i, rows in enumerate(update.batches):
            # Read here: rows come out of a memory map faster than from a worker process.
            with curve.waiting(), training.clock.paused():
                batch = reader.read(rows)
            batch = to_device(batch, ranks.device)
            batch = augment(batch, reorder, key=key, **dict(config.augment))
            batch = training.learner.hide(batch, draw_for(batch, key))
            with gradient_sync(training.model, enabled=i == len(update.batches) - 1):
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
        training.end_update()
        bar.update()
        if training.step % LOG_EVERY == 0:
            point = curve.read() | {"optim/lr": lr, "optim/gradient_norm": float(norm)}
            tracker.log(point, training.step)
            bar.set_postfix(loss=f"{point['train/loss']:.3f}")


# ============================================================================= final


def train(config: TrainConfig, ranks: Ranks) -> None:
    """Go from a config to a finished run folder: the parts above, in order."""
    if not config.is_network and not ranks.is_first:
        return  # one process is enough
    config = resolve(config, ranks.device)
    run = RunWriter(config)
    if run.is_finished():
        logger.info("%s is finished: nothing to do", run.final)
        return
    data = EncodedFolder(config.data)
    if config.is_network:
        barrier(ranks)  # all have looked at the run's folder: now the first one may change it
    with run.open(data, writes=ranks.is_first):
        tracker = Tracker(run.curves, config, writes=ranks.is_first)
        if config.is_baseline:
            fitted = fit_baseline(config, data)
        elif config.members:
            fitted = fit_committee(config, data, run.partial)
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
        for of_fold in config_of_each_fold(config):
            train(of_fold, ranks)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes from the last epoch", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:  # anything else is a bug, and shows its traceback
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        stop_ranks()
    return 0


if __name__ == "__main__":
    exit_process(main())
