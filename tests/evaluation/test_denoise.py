"""Denoising and imputation of planted cells, by one run; and of cells without structure."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import nbinom

from dataset.batches import BatchReader, to_device
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.vocabulary import N_SPECIALS
from evaluation import denoise, impute
from evaluation.hidden_genes import decode, hide
from evaluation.trained_model import TrainedModel
from evaluation.trained_on import trained_on
from training.runs import Run

N_CELLS, N_GENES = 320, 40


def cells_of(rng) -> ad.AnnData:
    """Four programs of ten genes each, of which every cell has more or less."""
    weight = rng.gamma(0.5, 1.0, (N_CELLS, 4)) + 0.05
    rate = np.repeat(weight / weight.sum(axis=1, keepdims=True), N_GENES // 4, axis=1)
    counts = rng.poisson(rate * 60).astype(np.float32)
    obs = pd.DataFrame({"donor": [f"d{i // 80}" for i in range(N_CELLS)]})
    obs.index = [f"c{i}" for i in range(N_CELLS)]
    return ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


GENES = [f"G{i}" for i in range(N_GENES)]


def trained(adata, name, folder, make_run):
    path = folder / f"{name}.h5ad"
    adata.write_h5ad(path)
    config = PreprocessConfig(
        name=name,
        input=str(path),
        label_key=None,
        condition_keys=["donor"],
        quality_control={"min_genes": 1},
        split={"key": "donor"},
        tokenizer={"kind": "rank", "n_tokens": N_GENES},
        data_dir=str(folder),
    )
    words = ("model.d_model=32", "model.n_heads=2", "model.n_layers=1", "model.cells_per_set=16")
    words = (*words, "optim.batch_size=16", "optim.max_epochs=40", "optim.lr=5e-3")
    words = (*words, "objectives=[{kind: masked_counts, d_latent: 8, free_nats: 10}]")
    return make_run(
        name, "denoise_baron_human", *words, "tracking.wandb=disabled",
        data=encode(config, progress=False),
    ), path  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory, make_run):
    adata = cells_of(np.random.default_rng(0))
    return trained(adata, "programs", tmp_path_factory.mktemp("programs"), make_run)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory, make_run):
    """Each gene's counts are dealt anew to the cells: no gene says anything of another."""
    rng = np.random.default_rng(1)
    adata = cells_of(rng)
    adata.X = csr_matrix(rng.permuted(adata.X.toarray(), axis=0))
    return trained(adata, "shuffled", tmp_path_factory.mktemp("shuffled"), make_run)


def of_decoder(found, metric, method):
    table = found.scores[(found.scores["genes"] == "all") & (found.scores["metric"] == metric)]
    return table.set_index("method").loc[method]


@pytest.mark.parametrize("what", ["denoise", "impute"])
def test_genes_that_others_determine_are_restored(planted, what):
    run, path = planted
    found = denoise.denoise(run) if what == "denoise" else impute.impute(run, path)
    for metric in ("rmse", "mae", "pearson", "cosine"):
        assert of_decoder(found, metric, "mean")["decoder_is"] == "better", metric
    assert of_decoder(found, "pearson", "decoder")["score"] > 0.5
    assert (
        of_decoder(found, "rmse", "decoder")["score"]
        < 0.8 * of_decoder(found, "rmse", "mean").score
    )
    assert len(found.genes) > 0.9 * N_GENES


@pytest.mark.parametrize("what", ["denoise", "impute"])
def test_genes_that_nothing_determines_are_not(shuffled, what):
    run, path = shuffled
    found = denoise.denoise(run) if what == "denoise" else impute.impute(run, path)
    assert of_decoder(found, "rmse", "mean")["decoder_is"] != "better"
    for method in ("decoder", "kNN", "linear"):
        assert abs(of_decoder(found, "pearson", method)["score"]) < 0.15


def test_the_decoder_is_shown_what_is_shown(planted):
    """Neither hidden counts nor how many they are reach the network; sets are whole."""
    run, path = planted
    model = TrainedModel(run, device="cpu", needs_classes=False)
    counts = csr_matrix(ad.read_h5ad(path)[:50, list(model.vocabulary.gene_ids)].X)
    is_shown = np.random.default_rng(0).random((50, N_GENES)) < 0.7
    found = decode(model, hide(counts, is_shown))
    other = counts.toarray()
    other[~is_shown] = 9
    np.testing.assert_array_equal(decode(model, hide(csr_matrix(other), is_shown)), found)
    few = decode(model, hide(counts, is_shown), batch_size=1)  # one set at a time
    np.testing.assert_allclose(few, found, rtol=1e-4)


def test_others_learn_from_train_cells_and_all_are_judged_on_test_cells(planted, monkeypatch):
    run, path = planted
    seen = {}

    def hiding(counts, is_shown):
        seen["test"] = counts.toarray()
        return hide(counts, is_shown)

    def learning(train, draw, rng):
        seen["train"] = train.toarray()
        return {}

    monkeypatch.setattr(denoise, "hide", hiding)
    monkeypatch.setattr(denoise, "baselines", learning)
    denoise.denoise(run, device="cpu")
    folder = trained_on(Run(run))
    genes = TrainedModel(run, device="cpu", needs_classes=False).vocabulary.gene_ids
    file = ad.read_h5ad(path)
    for split, found in seen.items():
        names = folder.split(split).cell_names
        expected = file[list(names), list(genes)].X.toarray()
        assert sorted(map(tuple, found)) == sorted(map(tuple, expected)), split


def test_what_the_decoder_says_is_the_mean_of_its_distribution(planted):
    run, path = planted
    model = TrainedModel(run, device="cpu", needs_classes=False)
    counts = csr_matrix(ad.read_h5ad(path)[:12, list(model.vocabulary.gene_ids)].X)
    is_shown = np.random.default_rng(0).random((12, N_GENES)) < 0.7
    cells = hide(counts, is_shown)
    encoded = model.encode([(csr_matrix(cells.shown, dtype=np.int32), cells.size)])
    batch = to_device(BatchReader(encoded).read([np.arange(12)]), "cpu")  # one set
    head = model.learner.heads["masked_counts"]
    with torch.no_grad():
        latent = head.encode(model.learner.network(batch).cell_embedding)
        share = head.log_share(latent.mean, batch).exp().double().numpy()
        theta = head.log_theta[N_SPECIALS:].exp().double().numpy()[:, None]
    expected, count = [], np.arange(3000)
    for i, j in zip(cells.cell, cells.gene, strict=True):
        mean = cells.size[i] * share[i, j] / share[i, is_shown[i]].sum()
        p = nbinom.pmf(count, theta[j], theta[j] / (theta[j] + mean))
        expected.append((p * np.log1p(count * 10_000 / cells.size[i])).sum())
    np.testing.assert_allclose(decode(model, cells), expected, rtol=1e-2)


def test_commands_write_table_genes_and_figure(planted, tmp_path, capsys):
    run, path = planted
    output = tmp_path / "denoised.csv"
    assert denoise.main([str(run), str(output), "--fraction", "0.3"]) == 0
    assert "decoder_is" in capsys.readouterr().out
    assert len(pd.read_csv(output)) == 2 * 4 * 4
    assert output.with_suffix(".png").stat().st_size > 5000
    genes = pd.read_csv(tmp_path / "denoised_genes.csv", index_col=0)
    assert genes.index.isin(GENES).all()
    query = ad.read_h5ad(path)[:60, GENES[::4]].copy()  # a panel, in other cells
    query.write_h5ad(tmp_path / "panel.h5ad")
    words = [str(run), str(tmp_path / "panel.h5ad"), str(tmp_path / "imputed.csv")]
    assert impute.main([*words, "--folds", "2"]) == 0
    genes = pd.read_csv(tmp_path / "imputed_genes.csv", index_col=0)
    assert set(genes.index) <= set(GENES[::4])
    assert impute.main([*words, "--folds", "6"]) == 2
    assert "folds: found 6, of 10 genes" in capsys.readouterr().err
    assert denoise.main([str(run), str(output), "--fraction", "1"]) == 2
    assert "fraction: found 1.0" in capsys.readouterr().err


def test_a_run_that_decodes_nothing_is_refused(network_run, tmp_path, capsys):
    assert denoise.main([str(network_run), str(tmp_path / "out.csv")]) == 2
    assert "has no decoder of counts" in capsys.readouterr().err


def test_real_cells_of_a_tissue(real_cells, tmp_path, make_run):
    """Everything runs on three fields of STARmap; nothing is said of how well."""
    config = PreprocessConfig(
        name="fields",
        input=str(real_cells("starmap_mpfc_spatial")),
        label_key=None,
        condition_keys=["fov"],
        position_keys=["x", "y"],
        quality_control={"min_genes": 20},
        split={"key": "fov"},
        tokenizer={"kind": "rank", "n_tokens": 158},
        data_dir=str(tmp_path),
    )
    words = ("model.sample_key=fov", "model.cell_position=sinusoidal", "model.d_model=32")
    run = make_run(
        "fields", "denoise_baron_human", *words, "optim.max_epochs=1", "test=false",
        data=encode(config, progress=False),
    )  # fmt: skip
    for found in (
        denoise.denoise(run, max_cells=100),
        impute.impute(run, config.input, max_cells=100, folds=2),
    ):
        assert np.isfinite(found.scores["score"]).all()
        assert 20 < len(found.genes) <= 158
        assert of_decoder(found, "pearson", "linear")["score"] > 0.05
