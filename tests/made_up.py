"""Facts of data that do not exist, a learner for them, and cells whose counts are kept."""

from pathlib import Path

import anndata as ad
import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from dataset.batches import Batch, EncodedCells, NpyDataset, collate, to_device
from dataset.config import PreprocessConfig
from dataset.keep_counts import keep_counts
from dataset.reading.cells import Cells
from dataset.store.count_store import CountStore
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import N_SPECIALS, PAD, Vocabulary
from models.learner import Learner
from models.network import NetworkConfig
from models.objectives.classify import ClassifyConfig
from models.transformer import initialize_weights

N_GENES, N_TOKENS = 30, 13  # of the padded rows that networks are tested on


def facts(n_vocabulary=21, n_classes=4, row_length=12, n_segments=1, **more) -> DataFacts:
    genes = tuple(f"gene{i}" for i in range(n_vocabulary - N_SPECIALS))
    names = [f"type{i}" for i in range(n_classes)]
    return DataFacts(Vocabulary(genes, genes), names, row_length, n_segments, {}, **more)


def network(config: NetworkConfig, **sizes):
    """Build a network alone, started as in a learner."""
    built = config.build(facts(**sizes))
    initialize_weights(built)
    built.initialize()
    return built


def learner(config: NetworkConfig, objectives=None, **sizes) -> Learner:
    """Build a network and its heads; by default it classifies."""
    return Learner(config, objectives or [ClassifyConfig()], facts(**sizes))


def ragged(rows: dict[str, torch.Tensor], cells=None) -> Batch:
    """Read cells out of padded rows, as a network is given them."""
    b = len(rows["token_ids"])
    encoded = EncodedCells(
        arrays={name: rows[name].numpy() for name in ("token_ids", "counts")},
        lengths=(rows["token_ids"] != PAD).sum(1).numpy(),
        library_size=rows["library_size"].numpy(),
        labels=np.arange(b) % 4,
        conditions=np.zeros((b, 0), dtype=np.int64),
    )
    cells = range(b) if cells is None else cells
    return to_device(collate(NpyDataset(encoded).__getitems__(cells)), "cpu")


def store_of(adata: ad.AnnData, folder: Path) -> CountStore:
    """Write cells into a new folder, and keep their counts."""
    folder.mkdir()
    adata.write_h5ad(folder / "cells.h5ad")
    config = PreprocessConfig(
        name="set",
        input=str(folder / "cells.h5ad"),
        label_key=None,
        tokenizer={"kind": "rank", "n_tokens": 8},
        data_dir=str(folder),
    )
    return keep_counts(config, progress=False)


def counts_of(cells: Cells) -> csr_matrix:
    """Read the counts of all cells."""
    return vstack([block for _, block in cells.blocks()], "csr")
