"""Facts of data that do not exist, a learner for them, and cells whose counts are kept."""

from pathlib import Path

import anndata as ad
from scipy.sparse import csr_matrix, vstack

from dataset.config import PreprocessConfig
from dataset.keep_counts import keep_counts
from dataset.reading.cells import Cells
from dataset.store.count_store import CountStore
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import N_SPECIALS, Vocabulary
from models.learner import Learner
from models.network import NetworkConfig
from models.objectives.classify import ClassifyConfig
from models.transformer import initialize_weights


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
