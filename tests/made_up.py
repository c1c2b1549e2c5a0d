"""Facts of data that do not exist, a learner for them, and cells whose counts are kept."""

from pathlib import Path
from typing import Literal

import anndata as ad
import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack

from configs.base import Config
from dataset.batches import Batch, BatchReader, EncodedCells, to_device
from dataset.config import PreprocessConfig
from dataset.keep_counts import keep_counts
from dataset.reading.cells import Cells
from dataset.store.count_store import CountStore
from dataset.store.data_facts import DataFacts
from dataset.tokenizers.tokenizer import Tokens
from dataset.vocabulary import N_SPECIALS, PAD, Vocabulary
from models.learner import Learner
from models.network import NetworkConfig
from models.objectives.classify import ClassifyConfig
from models.transformer import initialize_weights

N_GENES, N_TOKENS = 30, 13  # of the padded rows that networks are tested on


def facts(n_vocabulary=21, n_classes=4, row_length=12, n_segments=1, **more) -> DataFacts:
    genes = tuple(f"gene{i}" for i in range(n_vocabulary - N_SPECIALS))
    names = [f"type{i}" for i in range(n_classes)]
    more = {"learned": {}, "tokenizer": {"kind": "rank"}} | more
    return DataFacts(Vocabulary(genes, genes), names, row_length, n_segments, **more)


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
    return to_device(BatchReader(encoded).read(np.asarray(cells, dtype=np.int64)), "cpu")


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


class Presence(Config):
    """Detected genes in the order of the vocabulary; its learned table has two columns."""

    kind: Literal["presence"] = "presence"
    previous: None = None
    n_segments: int = 1
    row_length: int = 12

    def fit(self, train, workers):
        n_cells, total = np.zeros(train.n_genes), np.zeros(train.n_genes)
        for block in (block for group in train.groups(workers.n_workers) for block in group()):
            assert (block.library_size > 0).all()
            np.add.at(n_cells, block.rows.gene_index, 1)
            np.add.at(total, block.rows.gene_index, block.rows.counts)
        return {"sums": np.stack([n_cells, total], axis=1), "known": n_cells > 0}

    def arrays(self, n_genes, counts_dtype):
        return {"token_ids": np.dtype(np.int32), "is_rare": np.dtype(bool)}

    def encode(self, segments, learned, dtypes):
        (cells,) = segments
        n = np.minimum(np.diff(cells.rows.indptr), self.row_length)
        arrays = {name: np.zeros((len(n), self.row_length), d) for name, d in dtypes.items()}
        for row, start in enumerate(cells.rows.indptr[:-1]):
            genes = cells.rows.gene_index[start : start + n[row]]
            arrays["token_ids"][row, : n[row]] = genes + N_SPECIALS
            arrays["is_rare"][row, : n[row]] = learned["sums"][genes, 0] < 20
        return Tokens(arrays, n.astype(np.int32))


LABELS = np.arange(2000) % 4  # of cells whose predictions ``named`` makes up


def named(n_wrong, start=0):
    """Return probabilities of four types; so many cells from ``start`` on are named wrong."""
    classes = LABELS.copy()
    wrong = np.arange(start, start + n_wrong)
    classes[wrong] = (classes[wrong] + 1) % 4
    return 0.94 * np.eye(4)[classes] + 0.015
