import json

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.utils.flop_counter import FlopCounterMode

from dataset.vocabulary import CLS, N_SPECIALS
from evaluation.annotate import annotate
from models.network import TrainCells
from models.objectives.masked_gene import MaskedGeneConfig
from models.rank_transformer import RankTransformerConfig
from models.residual_mlp import ResidualMLP, ResidualMLPConfig
from tests.made_up import N_GENES, N_TOKENS, learner, network, ragged
from training.counter_random import draw_for
from training.runs import Run

SIZES = {"n_vocabulary": N_SPECIALS + N_GENES, "row_length": N_TOKENS}


def build(n_segments: int = 1, **fields) -> ResidualMLP:
    torch.manual_seed(0)
    config = ResidualMLPConfig(**({"d_model": 16} | fields))
    return network(config, n_segments=n_segments, **SIZES).eval()


def test_a_cell_is_one_row_whoever_stands_beside_it(rows, batch):
    model = build()
    together = model(batch).cell_embedding
    assert together.shape == (5, 16)
    alone = torch.cat([model(ragged(rows, [i])).cell_embedding for i in range(5)])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=1e-5)
    encoded = model(batch, tokens=True)
    assert encoded.token_states.shape == (len(batch["token_ids"]), 16)
    assert torch.equal(encoded.token_states[batch["offsets"][:-1].long()], together)


def test_it_starts_where_cls_of_the_transformer_does(rng, batch):
    counts = csr_matrix(rng.poisson(1.0, (40, N_GENES)))
    library_size = np.asarray(counts.sum(axis=1)).ravel()
    train = TrainCells(lambda: (counts, library_size), lambda _: batch)
    config = RankTransformerConfig(d_model=16, n_heads=2, rank_position="none")
    transformer, mlp = network(config, **SIZES).eval(), build()
    with torch.no_grad():  # these stay random
        transformer.gene_embedding.weight[:N_SPECIALS] = mlp.gene_embedding.weight[:N_SPECIALS]
    config.start(transformer, train, np.random.default_rng(0))
    ResidualMLPConfig(d_model=16).start(mlp, train, np.random.default_rng(0))
    embedded, cells, _ = transformer.embed(batch)
    torch.testing.assert_close(mlp.embed(batch), embedded[cells.first])
    given = mlp.embed(batch) - mlp.gene_embedding.weight[CLS]
    torch.testing.assert_close(given.var(dim=0).mean(), torch.tensor(1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_segments", [1, 2])
def test_gradient_reaches_every_parameter(batch, two_segments, n_segments):
    model = build(n_segments)
    output = model(batch if n_segments == 1 else two_segments)
    output.cell_embedding.pow(3).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("n_segments", [1, 2])
def test_a_batch_without_cells_has_gradients_of_zero(rows, rows_of_two, n_segments):
    model = build(n_segments).train()
    output = model(ragged(rows if n_segments == 1 else rows_of_two, []))
    output.cell_embedding.sum().backward()
    for name, parameter in model.named_parameters():
        assert not parameter.grad.any(), name


def test_it_sees_counts_and_no_order(batch):
    model = build()
    first = slice(1, 13)  # the genes of the first cell
    turned = {k: v.clone() for k, v in batch.items() if k in ("token_ids", "counts")}
    for array in turned.values():
        array[first] = array[first].flip(0)
    found = model(batch).cell_embedding
    torch.testing.assert_close(model(batch | turned).cell_embedding, found)
    doubled = batch | {"counts": 2 * batch["counts"], "library_size": 2 * batch["library_size"]}
    torch.testing.assert_close(model(doubled).cell_embedding, found)
    other = batch | {"counts": torch.where(batch["counts"] > 0, 60 - batch["counts"], 0)}
    assert (model(other).cell_embedding - found).abs().max() > 1e-4


def test_the_previous_profile_is_told_from_the_present_one(rows_of_two, two_segments):
    model = build(2)
    found = model(two_segments).cell_embedding
    size = two_segments["library_size"]
    other = two_segments | {"library_size": torch.stack([size[:, 0], 3 * size[:, 1]], dim=1)}
    assert (model(other).cell_embedding - found)[0].abs().max() > 1e-4


@pytest.mark.parametrize("n_segments", [1, 2])
def test_flop_are_those_that_torch_counts_of_a_training_step(batch, two_segments, n_segments):
    model = build(n_segments, n_layers=3, d_feed_forward=24)
    batch = batch if n_segments == 1 else two_segments
    counter = FlopCounterMode(display=False)
    with counter:
        model(batch).cell_embedding.square().sum().backward()
    found = model.training_flop(np.array(batch["lengths"]))
    assert found.model == found.hardware == counter.get_total_flops()
    assert model.training_flop([]) == (0, 0)


def test_it_learns_masked_genes_from_the_rest_of_the_cell(batch):
    torch.manual_seed(0)
    model = learner(
        ResidualMLPConfig(d_model=16), [MaskedGeneConfig(masked_fraction=0.5)], **SIZES
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(model.hide(batch, draw_for(batch, 0))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture(scope="module")
def run(make_run):
    words = ("optim.max_epochs=6", "optim.batch_size=16", "optim.lr=3e-3", "model.d_model=32")
    return make_run("mlp", "mlp_baron_human", "augment.token_dropout=0.2", *words)


def test_new_cells_are_annotated_with_it(run, synthetic_h5ad, tmp_path):
    annotate(run, synthetic_h5ad, tmp_path / "annotated.h5ad")
    found = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert np.mean(found.obs["predicted_cell_type"] == found.obs["cell_type"]) > 0.9
    assert found.obsm["X_nanocell"].shape == (300, 32)


def test_another_network_starts_from_its_genes(run, make_run):
    words = (f"init_from={run}", "model.d_model=32", "optim.max_epochs=1")
    report = Run(make_run("from_mlp", "smoke", *words)).metrics["init_from"]
    assert report["genes_matched"] == report["n_genes"]
    assert not any("gene_embedding" in name for name in report["not_found"])
    again = make_run("mlp_from_mlp", "mlp_baron_human", *words)
    report = json.loads((again / "metrics.json").read_text())["init_from"]
    assert report["copied"] == report["n_weights"]
