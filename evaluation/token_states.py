"""States of a cell's genes within a network: what Geneformer's analyses are made of.

Theodoris et al. 2023, Methods: a gene's embedding in a cell is the state of its token after the
second-to-last layer, which is more general than the last one's, and a cell's embedding the mean
over its genes. Special tokens are left out of the mean.

Legend: ``n`` cells, ``m`` gene tokens of them that the network reads, ``d`` width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from dataset.batches import Batch, BatchReader, cell_of_token, to_device
from dataset.vocabulary import N_SPECIALS
from evaluation.annotated_file import AnnotationError
from evaluation.trained_model import TrainedModel
from models.network import Encoded, Network
from models.objectives.base import mean_of_cells


class TokenStates(NamedTuple):
    """The genes of some cells as a network sees them, cell by cell in the order of the ranks."""

    rows: NDArray[np.int64]  # (n,), of the cells that were given
    cell: Tensor  # (m,), of the ``n`` cells that each gene is of
    gene: Tensor  # (m,), in the vocabulary
    states: Tensor  # (m, d), after the second-to-last layer
    encoded: Encoded  # the network's own output for the cells

    def cell_means(self) -> Tensor:
        """Return the mean state of each cell's genes, ``(n, d)``; 0 without any."""
        return mean_of_cells(self.states, self.cell, len(self.rows))


def check_reads_tokens(model: TrainedModel) -> None:
    """Raise an AnnotationError if the model's network has no states of single genes to look at."""
    path = model.run.path
    if not model.run.is_network:
        raise AnnotationError(f"{path}: is no network; expected the run of one that reads tokens")
    if not hasattr(getattr(model.learner.network, "encoder", None), "blocks"):
        kind = model.config.model.kind
        raise AnnotationError(f"{path}: {kind} has no layers of tokens; expected a transformer")
    if model.tokenizer.n_segments != 1 or model.cell_sets is not None:
        raise AnnotationError(
            f"{path}: reads two time points or several cells at once; expected a network that "
            "reads each cell by itself"
        )


@torch.no_grad()
def token_states(
    model: TrainedModel,
    counts: csr_matrix,
    library_size: NDArray,
    conditions: NDArray[np.int64] | None = None,
    *,
    batch_size: int = 64,
) -> Iterator[TokenStates]:
    """Encode cells and yield the states of their genes, a batch at a time.

    Parameters
    ----------
    model
        That ``check_reads_tokens`` lets pass.
    counts
        Raw counts, ``(n_cells, n_genes)``, columns in vocabulary order.
    library_size
        Counts of each cell over all its genes, ``(n_cells,)``.
    conditions
        Codes known to the run, ``(n_cells, k)``; None: all unknown.
    batch_size
        Cells computed at a time; cells of like length come together.
    """
    cells = model.encode([(counts, library_size)], conditions)
    reader, order = BatchReader(cells), np.argsort(cells.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = to_device(reader.read(rows), model.device)
        encoded, states = second_to_last(model.learner.network, batch)
        token, cell = batch["token_ids"], cell_of_token(batch)
        if encoded.token_index is not None:
            token, cell = token[encoded.token_index], cell[encoded.token_index]
        is_gene = token >= N_SPECIALS
        gene = token[is_gene] - N_SPECIALS
        yield TokenStates(rows, cell[is_gene], gene, states[is_gene].float(), encoded)


def second_to_last(network: Network, batch: Batch) -> tuple[Encoded, Tensor]:
    """Return a network's output, and what its last block is given, ``(tokens read, d)``.

    Of a network of one layer that is the embedding of the tokens.
    """
    given: list[Tensor] = []
    encoder: Any = network.encoder
    hook = encoder.blocks[-1].register_forward_pre_hook(
        lambda _, arguments: given.append(arguments[0])
    )
    try:
        encoded = network(batch, tokens=True)
    finally:
        hook.remove()
    return encoded, given[0]
