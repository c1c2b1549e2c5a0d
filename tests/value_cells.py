"""Cells of genes and values, made up so that a part of each follows from the rest."""

import numpy as np
import torch

from dataset.vocabulary import CLS, N_SPECIALS
from models.value_transformer import ValueTransformerConfig
from training.counter_random import draw_for
from training.optim import clip_gradients, learning_rate

N_GENES = 12
SIZES = {
    "n_vocabulary": N_SPECIALS + N_GENES, "row_length": N_GENES + 1, "n_classes": 2,
    "tokenizer": {"kind": "gene_values", "values": "bins", "n_bins": 11},
    "conditions": {"batch": ["a", "b"]},
}  # fmt: skip
CONFIG = ValueTransformerConfig(
    d_model=16, n_heads=2, n_layers=1, dropout=0.0, gene_init="random", cls_init="learned"
)


def cells_of(genes: np.ndarray, values: np.ndarray, labels=None, batches=None) -> dict:
    """Lay cells end to end; ``genes`` and their ``values`` are ``(cells, genes of each)``."""
    b, n = genes.shape
    opening = np.zeros((b, 1), dtype=np.int64)
    token_ids = np.concatenate([opening + CLS, genes + N_SPECIALS], axis=1).ravel()
    values = np.concatenate([opening, values], axis=1).ravel()
    nothing = np.zeros(b, dtype=np.int64)
    return {
        "token_ids": torch.from_numpy(token_ids),
        "values": torch.from_numpy(values),
        "counts": torch.from_numpy(3.0 * values).float(),
        "offsets": torch.arange(0, b * (n + 1) + 1, n + 1, dtype=torch.int32),
        "lengths": [n + 1] * b,
        "library_size": torch.full((b, 1), 100.0),
        "labels": torch.from_numpy(nothing if labels is None else labels),
        "conditions": torch.from_numpy(nothing if batches is None else batches)[:, None],
        "cell_index": torch.arange(b),
    }


def pairs(rng: np.random.Generator, n_cells: int) -> dict:
    """Make cells of three pairs of genes; the two values of a pair add up to eleven."""
    chosen = np.array([rng.permutation(N_GENES // 2)[:3] for _ in range(n_cells)])
    values = rng.integers(1, 11, (n_cells, 3))
    genes = np.concatenate([2 * chosen, 2 * chosen + 1], axis=1)
    return cells_of(genes, np.concatenate([values, 11 - values], axis=1))


def train(model, cells, n_steps: int, lr: float) -> None:
    """Train as 02 does, on what ``cells()`` returns for each update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    weights = torch.tensor([o.weight for o in model.objectives])
    for step in range(n_steps):
        batch = cells()
        losses = model.train()(model.hide(batch, draw_for(batch, step)))
        rate = learning_rate(step, peak=lr, n_steps=n_steps, warmup_fraction=0.1)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (losses * weights).sum(dim=1).mean().backward()
        clip_gradients(model, 1.0)
        optimizer.step()
