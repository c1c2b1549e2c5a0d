"""What is done to training cells only: leave tokens out, thin the counts.

Both keep a row as the tokeniser would have written it: ``<cls>`` first, genes by falling rank,
``<sep>`` where it was, padding at the end and nowhere else.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dataset.vocabulary import N_SPECIALS, PAD, SEP
from training.counter_random import binomial, uniform

if TYPE_CHECKING:
    from dataset.batches import Batch


def augment(
    batch: "Batch",
    gene_medians: Tensor,
    *,
    key: int,
    token_dropout: float = 0.0,
    count_thinning: float = 0.0,
) -> "Batch":
    """Return changed copies of the batch's cells.

    What becomes of a cell follows from ``key`` and from its ``cell_index``: it does not depend on
    the other cells of the batch, nor on the process that has it.

    Parameters
    ----------
    batch
        Cells as ``to_device`` gives them.
    gene_medians
        Median of every token's gene, ``(n_vocabulary,)``, 1 for the special tokens.
    key
        Of the update, from ``counter_random.update_key``.
    token_dropout
        Each gene token is left out with this probability; ``<cls>`` and ``<sep>`` never are.
    count_thinning
        Each cell keeps every count with a probability drawn from [1 - count_thinning, 1], as if
        it had been sequenced less deeply. Genes that lose all counts leave the row and the others
        are ranked again, as the tokeniser would; genes beyond the row's end do not move up into
        it, for their counts are not in the batch. The library size shrinks by the same factor.
    """
    is_empty = len(batch["token_ids"]) == 0  # a process without a share of the last batch
    if is_empty or (token_dropout == 0 and count_thinning == 0):
        return batch
    token_ids, counts = batch["token_ids"], batch["counts"].float()
    library_size, cells, t = batch["library_size"], batch["cell_index"], token_ids.shape[1]
    is_gene = token_ids >= N_SPECIALS
    keep = token_ids != PAD
    if count_thinning > 0:
        kept_share = 1 - count_thinning * uniform(key, cells, 1, stream=0)
        counts = binomial(counts, kept_share.expand_as(counts), uniform(key, cells, t, stream=1))
        library_size = library_size * kept_share
        keep &= ~is_gene | (counts > 0)
    if token_dropout > 0:
        keep &= ~is_gene | (uniform(key, cells, t, stream=2) >= token_dropout)

    # Sort by (half, falling value), padding last. Stable sorts from the last key to the first;
    # <cls> and <sep> open their halves, so their value is infinite.
    value = torch.where(is_gene, counts / gene_medians[token_ids], torch.inf)
    half = (token_ids == SEP).cumsum(dim=1)
    half = torch.where(keep, half, half.max() + 1)
    order = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
    if count_thinning > 0:  # dropout alone leaves the order as it is
        order = token_ids.argsort(dim=1, stable=True)  # ties go by gene index
        by_value = value.gather(1, order).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, by_value)
    order = order.gather(1, half.gather(1, order).argsort(dim=1, stable=True))
    keep = keep.gather(1, order)
    n_tokens = int(keep.sum(dim=1).max())  # the longest row has become shorter
    changed: Batch = {
        **batch,
        "token_ids": torch.where(keep, token_ids.gather(1, order), PAD)[:, :n_tokens],
        "counts": torch.where(keep, counts.gather(1, order), 0)[:, :n_tokens],
        "library_size": library_size,
    }
    return changed
