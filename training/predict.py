"""A network's predictions for every cell of a split, each process predicting its share."""

from typing import NamedTuple

import numpy as np
import torch

from configs.schema import TrainConfig
from dataset.batches import Batch, NpyDataset, collate, cut_to_budget, even_rounds, to_device
from dataset.store.encoded_folder import EncodedSplit
from models.learner import Learner
from training.counter_random import draw_for, update_key
from training.distributed import Ranks, gather_rows, mixed_precision

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


@torch.no_grad()
def predict(learner: Learner, cells: EncodedSplit, config: TrainConfig, ranks: Ranks) -> Arrays:
    """Predict every cell once, each process its share, and put the shares together."""
    order = np.argsort(cells.lengths, kind="stable")  # cells of like length need little padding
    shares = [order[rank :: ranks.world_size] for rank in range(ranks.world_size)]
    budget, size = config.optim.tokens_per_batch, 2 * config.optim.batch_size
    if budget is None:
        cut = [np.split(share, range(size, len(share), size)) for share in shares]
    else:
        cut = [cut_to_budget(share, cells, budget) for share in shares]
    rows = NpyDataset(cells)
    learner.eval()
    parts = []
    with mixed_precision(config.precision, ranks.device):
        for some in even_rounds(cut, ranks.rank):  # with no share, empty batches
            batch = to_device(collate(rows.__getitems__(some)), ranks.device)
            parts.append(predict_batch(learner, batch, config.seed))
    back, n = np.argsort(order, kind="stable"), len(order)
    return {name: gather_rows([part[name] for part in parts], n, ranks)[back] for name in parts[0]}


def predict_batch(learner: Learner, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
    """Return what a learner says of a batch: of the whole cells, and of what objectives hide.

    What is hidden of a cell follows from ``seed`` and the cell alone, so that scores of two epochs
    compare.
    """
    seen = [o.kind for o in learner.objectives if not o.hides]
    found: dict[str, torch.Tensor] = learner(batch, predict=seen)
    for objective in learner.objectives:
        if objective.hides:
            draw = draw_for(batch, update_key(seed, 0))
            hidden = objective.hide(batch, draw, learner.facts)
            found = learner(hidden, predict=[objective.kind]) | found
    return found
