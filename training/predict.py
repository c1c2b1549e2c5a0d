"""A network's predictions for every cell of a split, sharded over the processes."""

from typing import Any, NamedTuple

import numpy as np
import torch

from dataset.batches import Batch, BatchReader, BatchRows, EncodedCells, flat, to_device
from dataset.store.encoded_folder import EncodedSplit
from models.learner import Learner
from models.objectives.base import Bank
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
    test: Arrays | None  # None: the config says test: false
    weights: dict[str, np.ndarray]  # of a network: on the first process
    summary: dict  # for metrics.json: seconds, best_epoch, n_parameters and others
    step: int = 0
    bank: Bank | None = None  # the train cells that an objective looks up to predict


def predict(learner: Learner, cells: EncodedSplit, config: TrainConfig, ranks: Ranks) -> Arrays:
    """Predict every cell of a split, in batches such as the config trains on."""
    return predict_cells(
        learner, cells, ranks, seed=config.seed, **_as_trained(learner, cells, config)
    )


def embed(
    learner: Learner, cells: EncodedSplit, rows: np.ndarray, config: TrainConfig, ranks: Ranks
) -> np.ndarray:
    """Return the embeddings of some cells of a split, ``(len(rows), d)``."""
    settings = _as_trained(learner, cells, config)
    return predict_cells(learner, cells, ranks, embed=rows, **settings)["embeddings"]


def _as_trained(learner: Learner, cells: EncodedSplit, config: TrainConfig) -> dict[str, Any]:
    return {
        "batch_size": 2 * config.optim.batch_size,
        "tokens_per_batch": config.optim.tokens_per_batch,
        "precision": config.precision,
        "sets": None if (samples := samples_of(learner, cells)) is None else samples.sets(),
    }


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
    embed: np.ndarray | None = None,
) -> Arrays:
    """Predict every cell once, sharded over the processes, and gather the predictions.

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
        Neither changes a cell's prediction, nor do cells outside of its set, but for rounding.
    precision
        As of ``mixed_precision``.
    seed
        Of what objectives hide from the network; None: nothing is hidden, and only what is
        predicted of whole cells is returned.
    sets
        Cells that the network looks at together; None: it looks at each by itself.
    embed
        Rows of the cells whose embeddings are wanted, ``(m,)``, and of no cell a prediction.
    """
    wanted = np.arange(len(cells)) if embed is None else embed
    order: BatchRows
    if sets is None:
        order = wanted[np.argsort(cells.lengths[wanted], kind="stable")]  # like lengths at once
    else:
        order = [of_set for of_set in sets if np.isin(of_set, wanted).any()]
    shards = [order[rank :: ranks.world_size] for rank in range(ranks.world_size)]
    if tokens_per_batch is None:
        n_each = np.ones(len(cells), dtype=np.int32)
        batches = [cut_to_budget(shard, n_each, batch_size) for shard in shards]
    else:
        batches = [cut_to_budget(shard, cells.lengths, tokens_per_batch) for shard in shards]
    reader = BatchReader(cells)
    learner.eval()
    parts = []
    with mixed_precision(precision, ranks.device):
        for rows in pad_with_empty_batches(batches, ranks.rank):
            batch = to_device(reader.read(rows), ranks.device)
            only = embed is not None
            parts.append(
                learner(batch, predict=()) if only else predict_batch(learner, batch, seed)
            )
    of_ranks = [flat(shard) for shard in shards]
    n_rows, place = [len(rows) for rows in of_ranks], np.empty(len(cells), dtype=np.int64)
    place[np.concatenate(of_ranks)] = np.arange(sum(n_rows))
    return {
        name: gather_rows([part[name] for part in parts], n_rows, ranks)[place[wanted]]
        for name in parts[0]
    }


def predict_batch(learner: Learner, batch: Batch, seed: int | None) -> dict[str, torch.Tensor]:
    """Return the predictions of all objectives: of whole cells first, then of hidden tokens.

    What is hidden of a cell follows from ``seed`` and the cell alone, so that scores of two epochs
    compare.
    """
    seen = [o.kind for o in learner.objectives if not o.hides]
    predictions: dict[str, torch.Tensor] = learner(batch, predict=seen)
    for objective in learner.objectives:
        if objective.hides and seed is not None:
            draw = draw_for(batch, update_key(seed, 0))
            hidden = learner.hide(batch, draw, [objective.kind])
            predictions = learner(hidden, predict=[objective.kind]) | predictions
    return predictions
