"""Made-up cells for networks: padded rows, and the batches that are read from them."""

import numpy as np
import pytest
import torch

from dataset.batches import Batch
from dataset.vocabulary import CLS, N_SPECIALS, PAD, SEP
from tests.made_up import N_GENES, N_TOKENS, ragged


@pytest.fixture
def batch(rows) -> Batch:
    return ragged(rows)


@pytest.fixture
def two_segments(rows_of_two) -> Batch:
    return ragged(rows_of_two)


@pytest.fixture
def rows(rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return padded rows of five cells of falling length; the last has no gene at all."""
    token_ids = np.full((5, N_TOKENS), PAD)
    counts = np.zeros((5, N_TOKENS), dtype=np.int64)
    token_ids[:, 0] = CLS
    for cell, n in enumerate((12, 9, 5, 2, 0)):
        token_ids[cell, 1 : n + 1] = N_SPECIALS + rng.permutation(N_GENES)[:n]
        counts[cell, 1 : n + 1] = rng.integers(1, 50, n)
    return {
        "token_ids": torch.from_numpy(token_ids),
        "counts": torch.from_numpy(counts),
        "library_size": torch.from_numpy(np.maximum(counts.sum(1, keepdims=True), 1)).float(),
    }


@pytest.fixture
def rows_of_two(rows) -> dict[str, torch.Tensor]:
    """Each cell above, with the genes of the next one as its previous profile."""
    token_ids, counts = torch.full((5, 2 * N_TOKENS), PAD), torch.zeros(5, 2 * N_TOKENS).long()
    for cell in range(5):
        now = rows["token_ids"][cell][rows["token_ids"][cell] != PAD]
        previous = rows["token_ids"][(cell + 1) % 5, 1:]
        previous = previous[previous != PAD]
        n = len(now) + 1 + len(previous)
        token_ids[cell, :n] = torch.cat([now, torch.tensor([SEP]), previous])
        counts[cell, :n] = torch.cat(
            [
                rows["counts"][cell, : len(now)],
                torch.tensor([0]),
                rows["counts"][(cell + 1) % 5, 1 : len(previous) + 1],
            ]
        )
    size = rows["library_size"]
    return {
        "token_ids": token_ids,
        "counts": counts,
        "library_size": torch.cat([size, size.roll(-1, 0)], dim=1),
    }
