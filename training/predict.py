"""What a network says of every cell of a split, each process predicting its share."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from configs.schema import TrainConfig
from dataset.batches import (
    EncodedCells,
    NpyDataset,
    collate,
    cut_to_budget,
    even_rounds,
    to_device,
)
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


def predict(
    network: nn.Module, cells: EncodedSplit, config: TrainConfig, ranks: Ranks
) -> Predictions:
    """Predict every cell of a split, in batches such as the config trains on."""
    return predict_cells(
        network,
        cells,
        ranks,
        batch_size=2 * config.optim.batch_size,
        tokens_per_batch=config.optim.tokens_per_batch,
        precision=config.precision,
    )


@torch.no_grad()
def predict_cells(
    network: nn.Module,
    cells: EncodedSplit | EncodedCells,
    ranks: Ranks,
    *,
    batch_size: int,
    tokens_per_batch: int | None = None,
    precision: str = "float32",
) -> Predictions:
    """Predict every cell once, each process its share, and put the shares together.

    Parameters
    ----------
    network
        On the ranks' device; left in evaluation mode.
    cells
        Of an encoded folder, or encoded in memory.
    ranks
        All of them predict.
    batch_size, tokens_per_batch
        Cells computed at a time, or with ``tokens_per_batch`` as of ``cut_to_budget``. Neither
        changes a cell's answer, nor do its neighbors; float sums may differ in the last digits.
    precision
        As of ``mixed_precision``.
    """
    order = np.argsort(cells.lengths, kind="stable")  # attention takes cells of one length at once
    shares = [order[rank :: ranks.world_size] for rank in range(ranks.world_size)]
    if tokens_per_batch is None:
        cut = [np.split(share, range(batch_size, len(share), batch_size)) for share in shares]
    else:
        cut = [cut_to_budget(share, cells, tokens_per_batch) for share in shares]
    rows = NpyDataset(cells)
    network.eval()
    probabilities, embeddings = [], []
    with mixed_precision(precision, ranks.device):
        for some in even_rounds(cut, ranks.rank):  # with no share, empty batches
            output = network(to_device(collate(rows.__getitems__(some)), ranks.device))
            probabilities.append(output.logits.float().softmax(dim=1))
            embeddings.append(output.cell_embedding.float())
    back, n = np.argsort(order, kind="stable"), len(order)
    return Predictions(
        gather_rows(probabilities, n, ranks)[back], gather_rows(embeddings, n, ranks)[back]
    )
