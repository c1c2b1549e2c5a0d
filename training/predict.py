"""What a network says of every cell of a split, each process predicting its share."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from configs.schema import TrainConfig
from dataset.batches import NpyDataset, collate, cut_to_budget, even_rounds, to_device
from dataset.store.encoded_folder import EncodedSplit
from training.distributed import Ranks, gather_rows, mixed_precision


class Predictions(NamedTuple):
    """What a model says of each cell of a split, in the split's order."""

    probabilities: np.ndarray  # (n_cells, n_classes), float32
    embeddings: np.ndarray | None  # (n_cells, d), float32


class Fitted(NamedTuple):
    """A model after training, be it a network or a baseline."""

    val: Predictions
    test: Predictions
    weights: dict[str, np.ndarray] | None  # of a network: on the first process
    facts: dict  # seconds, best_epoch, n_parameters; of a network cells_per_second too
    step: int = 0


@torch.no_grad()
def predict(
    network: nn.Module, cells: EncodedSplit, config: TrainConfig, ranks: Ranks
) -> Predictions:
    """Predict every cell once, each process its share, and put the shares together."""
    order = np.argsort(cells.lengths, kind="stable")  # cells of like length need little padding
    shares = [order[rank :: ranks.world_size] for rank in range(ranks.world_size)]
    budget, size = config.optim.tokens_per_batch, 2 * config.optim.batch_size
    if budget is None:
        cut = [np.split(share, range(size, len(share), size)) for share in shares]
    else:
        cut = [cut_to_budget(share, cells, budget) for share in shares]
    rows = NpyDataset(cells)
    network.eval()
    probabilities, embeddings = [], []
    with mixed_precision(config.precision, ranks.device):
        for some in even_rounds(cut, ranks.rank):  # with no share, empty batches
            output = network(to_device(collate(rows.__getitems__(some)), ranks.device))
            probabilities.append(output.logits.float().softmax(dim=1))
            embeddings.append(output.cell_embedding.float())
    back, n = np.argsort(order, kind="stable"), len(order)
    return Predictions(
        gather_rows(probabilities, n, ranks)[back], gather_rows(embeddings, n, ranks)[back]
    )
