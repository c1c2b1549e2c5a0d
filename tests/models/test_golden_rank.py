"""Stored embeddings of three real cells: drift in tokenizer, network or checkpoint is seen."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset.reading.cells import open_cells
from dataset.tokenizers.rank import rank_tokens
from dataset.vocabulary import N_SPECIALS
from models.rank_transformer import RankTransformerConfig
from tests.made_up import network, ragged

GOLDEN = np.array([
    [0.2169338, -0.0447048, 0.0447334, 0.4045379, 0.889132, -0.0194412, 0.1705957, -0.7381598],
    [0.2147364, -0.0356622, 0.0447224, 0.4426, 0.7887042, -0.0110228, 0.1739441, -0.7926142],
    [0.2144621, -0.087884, 0.0447545, 0.3119911, 0.9671108, 0.0140132, 0.1732892, -0.7407845],
])  # fmt: skip


@pytest.fixture
def rows(real_cells):
    """Tokenize three cells of pbmc3k by medians of its first two hundred."""
    _, counts = next(open_cells(real_cells("pbmc3k_labelled")).blocks(200))
    dense = counts.toarray().astype(float)
    dense[dense == 0] = np.nan
    dense *= 1e4 / np.nansum(dense, axis=1, keepdims=True)
    seen = ~np.isnan(dense).all(axis=0)
    medians = np.nanmedian(dense[:, seen], axis=0).astype(np.float32)
    counts = counts[:, seen]
    ranked = rank_tokens(counts[[0, 70, 150]], medians, n_tokens=256)
    size = np.asarray(counts[[0, 70, 150]].sum(axis=1))
    return counts.shape[1], {
        "token_ids": torch.from_numpy(ranked.token_ids.astype(np.int64)),
        "counts": torch.from_numpy(ranked.counts.astype(np.int64)),
        "library_size": torch.from_numpy(size).float(),
    }


def test_real_cells_have_the_embeddings_they_had(rows, tmp_path):
    n_genes, rows = rows
    config = RankTransformerConfig(d_model=8, n_heads=2, n_layers=2, gene_init="random")
    built = network(config, n_vocabulary=N_SPECIALS + n_genes, row_length=257).eval()
    rng = np.random.default_rng(0)
    weights = {
        name: torch.from_numpy(rng.normal(scale=0.3, size=tuple(weight.shape)).astype(np.float32))
        for name, weight in sorted(built.state_dict().items())
    }
    save_file(weights, tmp_path / "model.safetensors")
    built.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        found = built(ragged(rows)).cell_embedding.numpy()
    np.testing.assert_allclose(found, GOLDEN, atol=1e-5)
