"""Golden embeddings: what tokenizer, network and their order of sums make of a few real cells.

A difference is a change of the encoding or of the network. Where that is meant, the numbers here
are those that the failing test found.
"""

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from dataset.batches import BatchReader, EncodedCells, to_device
from dataset.store.csr_file import Rows
from dataset.tokenizers.gene_values import GeneValuesConfig
from dataset.tokenizers.tokenizer import CellCounts
from dataset.tokenizers.variable_genes import highly_variable
from dataset.vocabulary import N_SPECIALS
from dataset.workers import start_workers
from models.value_transformer import ValueTransformerConfig
from tests.made_up import network

# The first four numbers of three cells, by what a value is and how it is embedded.
GOLDEN = {
    ("bins", "mlp"): [
        [0.051569, -0.137444, -0.014400, -0.243382],
        [0.052545, -0.149609, -0.072437, -0.169396],
        [0.059851, -0.138469, -0.004872, -0.174219],
    ],
    ("bins", "bins"): [
        [0.049474, -0.129525, 0.030616, -0.141314],
        [0.049934, -0.145013, -0.038728, -0.139960],
        [0.054941, -0.132149, 0.036800, -0.098668],
    ],
    ("log1p", "soft_bins"): [
        [0.051777, -0.130139, 0.012355, -0.188054],
        [0.049836, -0.145734, -0.048282, -0.163661],
        [0.058446, -0.132903, 0.013795, -0.155613],
    ],
}


@pytest.fixture(scope="module")
def counts(real_cells) -> csr_matrix:
    return csr_matrix(ad.read_h5ad(real_cells("pbmc_3tech_small")).X[:300]).astype(np.int64)


@pytest.mark.parametrize("choice", GOLDEN, ids=str)
def test_embeddings_of_real_cells_are_what_they_were(counts, choice):
    values, value_embedding = choice
    tokenizer = GeneValuesConfig(n_top_genes=200, values=values)
    n_cells, n_genes = counts.shape
    library_size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    train = CellCounts(Rows.from_csr(counts), library_size)
    with start_workers(1) as workers:
        chosen = highly_variable(workers, [lambda: [train]], n_cells, n_genes, n_top_genes=200)
    few = CellCounts(Rows.from_csr(counts[:3]), library_size[:3])
    dtypes = tokenizer.arrays(n_genes, np.dtype(np.uint16))
    tokens = tokenizer.encode([few], {"is_variable": chosen}, dtypes)
    codes = np.array([[0], [1], [-1]])
    cells = EncodedCells(
        tokens.arrays, tokens.lengths, library_size[:3, None].astype(np.float32),
        np.zeros(3, dtype=np.int64), codes,
    )  # fmt: skip
    config = ValueTransformerConfig(
        d_model=16, n_heads=2, value_embedding=value_embedding, conditions=["donor"]
    )
    model = network(
        config,
        n_vocabulary=N_SPECIALS + n_genes,
        row_length=201,
        conditions={"donor": ["a", "b"]},
        tokenizer=tokenizer.model_dump(mode="json"),
    ).eval()
    # numpy's numbers are the same in every version; torch's need not be.
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight.copy_(torch.from_numpy(0.3 * rng.standard_normal(weight.shape)))
        embedding = model(to_device(BatchReader(cells).read(np.arange(3)), "cpu")).cell_embedding
    np.testing.assert_allclose(embedding[:, :4].numpy(), GOLDEN[choice], atol=1e-5, rtol=0)
