"""Augmentation of training cells: token dropout and count thinning.

Both keep a row as the tokenizer would have written it: ``<cls>`` first, ``<sep>`` where it was,
and the genes in the tokenizer's order, which is up to the tokenizer.
"""

from collections.abc import Callable

import torch

from dataset.batches import Batch, cell_of_token, keep_tokens
from dataset.vocabulary import N_SPECIALS
from training.counter_random import binomial, uniform


def augment(
    batch: Batch,
    reorder: Callable[[Batch], Batch],
    *,
    key: int,
    token_dropout: float = 0.0,
    count_thinning: float = 0.0,
) -> Batch:
    """Return augmented copies of the batch's cells.

    How a cell is changed follows from ``key`` and from its ``cell_index``: it does not depend on
    the other cells of the batch, nor on the process that has it.

    Parameters
    ----------
    batch
        Cells as ``to_device`` gives them.
    reorder
        The tokenizer's: makes tokens whose counts have changed, or are 0 now, a row of its own
        again.
    key
        Of the update, from ``counter_random.update_key``.
    token_dropout
        Each gene token is left out with this probability; ``<cls>`` and ``<sep>`` never are.
    count_thinning
        Each cell keeps every count with a probability drawn from [1 - count_thinning, 1], as if
        it had been sequenced less deeply. What becomes of genes that lose all counts, and of the
        others, is up to the tokenizer; genes beyond the row's end do not move up into it, for
        their counts are not in the batch. The library size shrinks by the same factor.
    """
    is_empty = not batch["lengths"]  # a process without cells of the last batch
    if is_empty or (token_dropout == 0 and count_thinning == 0):
        return batch
    cell = cell_of_token(batch)  # (n,)
    position = torch.arange(len(cell), device=cell.device) - batch["offsets"][cell]  # in its row
    if token_dropout > 0:
        index = batch["cell_index"][cell]
        is_kept = uniform(key, index, position, stream=2) >= token_dropout
        is_kept |= batch["token_ids"] < N_SPECIALS
        batch, cell, position = keep_tokens(batch, is_kept), cell[is_kept], position[is_kept]
    if count_thinning > 0:
        cells = batch["cell_index"]
        kept_fraction = 1 - count_thinning * uniform(key, cells, torch.zeros_like(cells), stream=0)
        counts = binomial(
            batch["counts"], kept_fraction[cell], uniform(key, cells[cell], position, stream=1)
        )
        library_size = batch["library_size"] * kept_fraction[:, None]
        batch = {**batch, "counts": counts, "library_size": library_size}
    return reorder(batch) if count_thinning > 0 else batch
