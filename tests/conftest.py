"""Cells made up for the tests, the same in every run; nothing here reaches the network."""

import os
from pathlib import Path

import numpy as np
import pytest

from configs.schema import PreprocessConfig
from dataset.encode import encode
from dataset.sources import synthetic_cells

# A folder of real .h5ad files; the tests that want one are skipped without it.
REAL_CELLS = Path(os.environ.get("NANOCELL_REAL_CELLS", "data/real"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cells_adata():
    """Return 120 cells x 60 genes of 3 types, 4 donors and 2 times: raw counts in X."""
    rng = np.random.default_rng(1)
    return synthetic_cells(
        rng, n_cells=120, n_genes=60, n_types=3, n_times=2, counts_per_cell=200.0
    )


@pytest.fixture(scope="session")
def synthetic_h5ad(tmp_path_factory):
    """Write the 300 cells of the source named synthetic, and return the path."""
    path = tmp_path_factory.mktemp("cells") / "synthetic.h5ad"
    synthetic_cells(np.random.default_rng(0)).write_h5ad(path, compression="gzip")
    return path


@pytest.fixture(scope="session")
def real_cells():
    """Return the path of a real file by its name; without the real files the test is skipped."""

    def path_of(name):
        path = REAL_CELLS / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"{path} is not here")
        return path

    return path_of


@pytest.fixture(scope="session")
def preprocess_config(tmp_path_factory, synthetic_h5ad):
    """Return the config of ``encoded_folder``: 300 cells, 4 types, donors kept together."""
    return PreprocessConfig(
        name="synthetic_rank",
        input=str(synthetic_h5ad),
        label_key="cell_type",
        quality_control={"min_genes": 5},
        split={"key": "donor"},
        tokenizer={"kind": "rank", "n_tokens": 96},
        data_dir=str(tmp_path_factory.mktemp("data")),
    )


@pytest.fixture(scope="session")
def encoded_folder(preprocess_config):
    """Encode the synthetic cells once; not to be changed by a test. Return the folder's path."""
    return encode(preprocess_config, progress=False)
