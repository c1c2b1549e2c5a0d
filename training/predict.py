"""A network's predictions for every cell of a split, sharded over the processes."""

from typing import NamedTuple

import numpy as np
import torch

from dataset.batches import Batch, BatchReader, BatchRows, EncodedCells, flat, to_device
from dataset.store.encoded_folder import EncodedSplit
from models.learner import Learner
from training.config import TrainConfig
from training.counter_random import draw_for, update_key
from training.distributed import Ranks, gather_rows, mixed_precision
from training.updates import cut_to_budget, pad_with_empty_batches, samples_of

# Of each cell of a split, in its order, by name, each (n_cells, ...): "embeddings" of a network,
# "probabilities" of what names classes, and whatever else an objective predicts
Arrays = dict[str, np.ndarray]


class Fitted(NamedTuple):
    """A model after training, be it a network or a baseline."""

    val: Arrays
    test: Arrays
    weights: dict[str, np.ndarray] | None  # of a network: on the first process
    facts: dict  # seconds, best_epoch, n_parameters; of a network cells_per_second too
    step: int = 0


def predict(learner: Learner, cells: EncodedSplit, config: TrainConfig, ranks: Ranks) -> Arrays:
    """Predict every cell of a split, in batches such as the config trains on."""
    return predict_cells(
        learner,
        cells,
        ranks,
        batch_size=2 * config.optim.batch_size,
        tokens_per_batch=config.optim.tokens_per_batch,
        precision=config.precision,
        seed=config.seed,
        sets=None if (samples := samples_of(learner, cells)) is None else samples.sets(),
    )


@torch.no_grad()
def predict_cells(
    learner: Learner,
    cells: EncodedSplit | EncodedCells,
    ranks: Ranks,
    *,
    batch_size: int,
    tokens_per_batch: int | None = None,
    precision: str = "float32",
    seed: int | None = None,
    sets: list[np.ndarray] | None = None,
) -> Arrays:
    """Predict every cell once, each process its shard, and put the shards together.

    Parameters
    ----------
    learner
        On the ranks' device; left in evaluation mode.
    cells
        Of an encoded folder, or encoded in memory.
    ranks
        All of them predict.
    batch_size, tokens_per_batch
        Cells computed at a time, or with ``tokens_per_batch`` as many as have so many tokens.
        Neither changes a cell's answer, nor do cells outside of its set; float sums may differ in
        the last digits.
    precision
        As of ``mixed_precision``.
    seed
        Of what objectives hide from the network; None: nothing is hidden, and only what is
        predicted of whole cells is returned.
    sets
        Cells that the network looks at together; None: it looks at each by itself.
    """
    # Cells of one length after another: attention takes them at once.
    order: BatchRows = np.argsort(cells.lengths, kind="stable") if sets is None else sets
    shards = [order[rank :: ranks.world_size] for rank in range(ranks.world_size)]
    if tokens_per_batch is None:
        each_one = np.ones(len(cells), dtype=np.int32)
        batches = [cut_to_budget(shard, each_one, batch_size) for shard in shards]
    else:
        batches = [cut_to_budget(shard, cells.lengths, tokens_per_batch) for shard in shards]
    reader = BatchReader(cells)
    learner.eval()
    parts = []
    with mixed_precision(precision, ranks.device):
        for rows in pad_with_empty_batches(batches, ranks.rank):
            batch = to_device(reader.read(rows), ranks.device)
            parts.append(predict_batch(learner, batch, seed))
    rows_of = [flat(shard) for shard in shards]
    n_rows, back = [len(rows) for rows in rows_of], np.argsort(np.concatenate(rows_of))
    return {
        name: gather_rows([part[name] for part in parts], n_rows, ranks)[back] for name in parts[0]
    }


def predict_batch(learner: Learner, batch: Batch, seed: int | None) -> dict[str, torch.Tensor]:
    """Return what a learner says of a batch: of the whole cells, and of what objectives hide.

    What is hidden of a cell follows from ``seed`` and the cell alone, so that scores of two epochs
    compare.
    """
    seen = [o.kind for o in learner.objectives if not o.hides]
    found: dict[str, torch.Tensor] = learner(batch, predict=seen)
    for objective in learner.objectives:
        if objective.hides and seed is not None:
            draw = draw_for(batch, update_key(seed, 0))
            hidden = objective.hide(batch, draw, learner.facts)
            found = learner(hidden, predict=[objective.kind]) | found
    return found
