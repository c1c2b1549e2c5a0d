import json

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from configs.base import ConfigError
from dataset.batches import BatchReader, to_device
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.sources import synthetic_cells
from dataset.store.encoded_folder import EncodedFolder
from dataset.vocabulary import N_SPECIALS
from evaluation.annotate import annotate
from models.cellplm import (
    GRID,
    POSITION_SCALE,
    CellPLM,
    CellPLMConfig,
    on_grid,
    position_sinusoids,
)
from models.flow_attention import flow_attention
from models.learner import Learner
from models.network import CellSets, TrainCells
from models.objectives.classify import ClassifyConfig
from tests.made_up import N_GENES, N_TOKENS, facts, network, ragged

SIZES = {"n_vocabulary": N_SPECIALS + N_GENES, "row_length": N_TOKENS}
PLACES = torch.tensor([[0.0, 0.0], [4.0, 1.0], [2.0, 2.0], [1.0, 1.0], [3.0, 5.0]])


def build(n_segments: int = 1, **fields) -> CellPLM:
    torch.manual_seed(0)
    config = CellPLMConfig(**({"d_model": 16, "n_heads": 2, "sample_key": "field"} | fields))
    return network(config, n_segments=n_segments, **SIZES).eval()


def in_sets(batch, *sizes):
    return batch | {"sets": torch.tensor([0, *sizes]).cumsum(0), "positions": PLACES[: sum(sizes)]}


def test_a_cell_sees_its_set_and_no_other(rows, batch):
    model = build(cell_position="sinusoidal")
    found = model(in_sets(batch, 3, 2)).cell_embedding
    first = model(in_sets(ragged(rows, [0, 1, 2]), 3)).cell_embedding
    torch.testing.assert_close(found[:3], first)
    together = model(in_sets(batch, 5)).cell_embedding
    assert (together - found).abs().max() > 1e-3


def test_the_order_of_the_cells_does_not_matter(rows, batch):
    model, order = build(cell_position="sinusoidal"), [3, 0, 4, 2, 1]
    turned = in_sets(ragged(rows, order), 5) | {"positions": PLACES[order]}
    found = model(turned).cell_embedding
    torch.testing.assert_close(found, model(in_sets(batch, 5)).cell_embedding[order])


def test_the_forward_pass_is_the_formula(batch):
    model = build(n_layers=1, n_heads=1, cell_position="sinusoidal")
    rows = zip(batch["offsets"][:-1], batch["offsets"][1:], strict=True)
    genes = model.gene_embedding.weight
    x = []
    for i, (start, stop) in enumerate(rows):
        expression = torch.log1p(batch["counts"][start:stop] * 1e4 / batch["library_size"][i, 0])
        x.append(expression @ genes[batch["token_ids"][start:stop]])
    x = model.expression_norm(torch.stack(x))
    frequency = 10_000.0 ** -(torch.arange(4) / 4)
    step = PLACES * 20  # the longer side of the set is 5
    for cell in range(5):
        waves = [
            f(step[cell, axis] * frequency) for axis in (0, 1) for f in (torch.sin, torch.cos)
        ]
        x[cell] += POSITION_SCALE * torch.cat(waves)
    (block,) = model.blocks
    q, k, v = (z[:, None] for z in block.attention.to_qkv(block.norm_attention(x)).chunk(3, 1))
    x = x + block.attention.to_out(flow_attention(q, k, v)[:, 0])
    x = x + block.feed_forward(block.norm_feed_forward(x))
    torch.testing.assert_close(model(in_sets(batch, 5)).cell_embedding, model.norm(x))


def test_positions_are_those_within_the_field(batch):
    model = build(cell_position="sinusoidal")
    batch = in_sets(batch, 5)
    found = model(batch).cell_embedding
    moved = model(batch | {"positions": 7 * PLACES - 100}).cell_embedding
    torch.testing.assert_close(moved, found, atol=1e-4, rtol=0)
    turned = model(batch | {"positions": PLACES.flip(1)}).cell_embedding
    assert (turned - found).abs().max() > 1e-2
    assert on_grid(PLACES).max() == GRID
    assert on_grid(PLACES[:1]).tolist() == [[0, 0]]


def test_a_cell_without_a_position_has_the_learned_one(batch):
    model, blind = build(cell_position="sinusoidal"), build()
    nowhere = torch.full((5, 2), torch.nan)
    batch = in_sets(batch, 5)
    expected = blind(batch).cell_embedding  # does not look
    found = model(batch | {"positions": nowhere}).cell_embedding
    torch.testing.assert_close(found, expected)
    half = torch.where(torch.arange(5)[:, None] < 3, PLACES, nowhere)
    found = model.embed(batch | {"positions": half}, [5]) - model.embed(
        batch | {"positions": nowhere}, [5]
    )
    assert not found[3:].any()
    expected = position_sinusoids(on_grid(PLACES[:3]), 16) - model.missing_position
    torch.testing.assert_close(found[:3], expected)
    model.zero_grad()
    model(batch | {"positions": half}).cell_embedding.pow(3).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("n_segments", [1, 2])
def test_gradient_reaches_every_parameter(batch, two_segments, n_segments):
    model = build(n_segments)
    output = model(in_sets(batch if n_segments == 1 else two_segments, 5))
    output.cell_embedding.pow(3).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("cell_position", ["none", "sinusoidal"])
def test_a_batch_without_cells_has_gradients_of_zero(rows, cell_position):
    model = build(cell_position=cell_position).train()
    output = model(in_sets(ragged(rows, [])))
    output.cell_embedding.sum().backward()
    for name, parameter in model.named_parameters():
        assert not parameter.grad.any(), name


def test_it_starts_from_the_train_cells(rng, batch):
    counts = csr_matrix(rng.poisson(1.0, (40, N_GENES)))
    train = TrainCells(lambda: (counts, np.asarray(counts.sum(1)).ravel()), lambda _: batch)
    model = build()
    CellPLMConfig(d_model=16, sample_key="field").start(model, train, rng)
    given = model.embed(in_sets(batch, 5), [5]) - model.missing_position
    assert not given.mean(dim=0).abs().gt(1e-5).any()
    assert given.var(dim=0).mean().item() == pytest.approx(1, abs=1e-4)


def test_cells_are_looked_at_with_those_of_their_sample():
    assert CellPLMConfig(sample_key="field", cells_per_set=7).cell_sets == CellSets("field", 7)
    assert CellPLMConfig(sample_key=None, cells_per_set=7).cell_sets == CellSets(None, 7)


def test_what_it_needs_is_said():
    with pytest.raises(ValueError, match="d_model 18 is not divisible"):
        CellPLMConfig(d_model=18, n_heads=2, sample_key="field")
    config = CellPLMConfig(sample_key="field", cell_position="sinusoidal")
    with pytest.raises(ConfigError, match="needs positions"):
        Learner(config, [ClassifyConfig()], facts(conditions={"field": ["a"]}))
    with pytest.raises(ConfigError, match="sets of cells by the obs column 'field'"):
        Learner(config, [ClassifyConfig()], facts(conditions={"donor": ["a"]}))


# Of three cells of field fov1 among forty, their first four dimensions.
GOLDEN = [
    [-0.415808, -0.689909, 0.683300, 1.104528],
    [-0.376229, -0.648459, 0.705990, 1.124442],
    [-0.356747, -0.524331, 0.675127, 1.017290],
]


def preprocess(path, folder, **more) -> PreprocessConfig:
    return PreprocessConfig(
        **{
            "name": "cells", "input": str(path), "label_key": "cell_type",
            "condition_keys": ["fov"], "position_keys": ["x", "y"], "split": {"key": "fov"},
            "quality_control": {"min_genes": 5}, "data_dir": str(folder),
            "tokenizer": {"kind": "rank", "n_tokens": 256}, **more,
        }
    )  # fmt: skip


def test_embeddings_of_real_cells_have_not_drifted(real_cells, tmp_path):
    path = real_cells("starmap_mpfc_spatial")
    split = {"key": "fov", "val": ["fov1"], "test": ["fov2"]}
    data = EncodedFolder(
        encode(preprocess(path, tmp_path, ignore_labels=["NA"], split=split), progress=False)
    )
    config = CellPLMConfig(d_model=16, sample_key="fov", cell_position="sinusoidal")
    model = Learner(config, [ClassifyConfig()], data.facts).network.eval()
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):  # numbers that no generator can change
            n = torch.arange(weight.numel()).reshape(weight.shape)
            weight.copy_(torch.sin(n + i) / (weight.shape[-1] if weight.ndim == 2 else 1))
        batch = to_device(BatchReader(data.split("val")).read([np.arange(40)]), "cpu")
        found = model(batch).cell_embedding[:3, :4]
    np.testing.assert_allclose(found, GOLDEN, atol=1e-5)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Encode made-up cells of eight fields; the type of a cell is where it lies, and no gene."""
    folder, rng = tmp_path_factory.mktemp("fields"), np.random.default_rng(0)
    cells = synthetic_cells(rng, n_cells=640, n_genes=40, n_types=2)
    cells.obs["fov"] = [f"fov{i % 8}" for i in range(640)]
    cells.obs[["x", "y"]] = rng.random((640, 2)) * [6, 3] + 10
    cells.obs["cell_type"] = np.where(cells.obs["x"] > 13, "deep", "shallow")
    cells.write_h5ad(folder / "cells.h5ad")
    encode(preprocess(folder / "cells.h5ad", folder), progress=False)
    return folder


@pytest.fixture(scope="module")
def runs(fields, make_run):
    """Train with positions, and without them or fields of view."""
    words = (
        "model.d_model=32", "model.cells_per_set=40",
        "optim.max_epochs=20", "optim.lr=3e-3", "optim.batch_size=40",
    )  # fmt: skip
    return {
        kind: make_run(
            f"cellplm_{kind}",
            "cellplm_starmap",
            f"model.cell_position={kind}",
            f"model.sample_key={sample_key}",
            *words,
            data=fields / "cells",
        )
        for kind, sample_key in (("sinusoidal", "fov"), ("none", "null"))
    }


def test_a_type_that_only_the_position_tells_is_learned(runs):
    scores = {
        kind: json.loads((run / "metrics.json").read_text())["val"]["accuracy"]
        for kind, run in runs.items()
    }
    assert scores["sinusoidal"] > 0.9
    assert scores["none"] < 0.65  # chance is a half


@pytest.mark.parametrize("kind", ["sinusoidal", "none"])
def test_new_cells_get_the_answer_of_training(fields, runs, tmp_path, kind):
    data = EncodedFolder(fields / "cells")
    cells = ad.read_h5ad(fields / "cells.h5ad")[data.split("test").cell_names]
    cells.write_h5ad(tmp_path / "test.h5ad")
    annotate(runs[kind], tmp_path / "test.h5ad", tmp_path / "annotated.h5ad")
    found = ad.read_h5ad(tmp_path / "annotated.h5ad").obsm["X_nanocell"]
    expected = np.load(runs[kind] / "predictions_test.npz")["embeddings"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
