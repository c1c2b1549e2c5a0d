"""A comparator is what its package makes of the cells, stored; and absent, it says what to do."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, vstack

from configs.base import ConfigError
from dataset.log_expression import log_expression
from evaluation.classification import accuracy
from models import ModelConfig
from models.baselines.base import LabeledCells
from models.comparators import celltypist as celltypist_file
from models.comparators.celltypist import CellTypistConfig
from models.comparators.lightgbm import LightGBMConfig
from models.comparators.scanvi import ScANVIConfig
from models.comparators.singler import SingleRConfig

ROOT = Path(__file__).parents[3]
MODULES = {
    "celltypist": ["celltypist"],
    "lightgbm": ["lightgbm"],
    "singler": ["singler", "scranpy"],
    "scanvi": ["scvi", "skmisc.loess"],
}
N_CLASSES, ABSENT, N_GENES = 5, 3, 400
INDUCTIVE = [CellTypistConfig(), LightGBMConfig(), SingleRConfig()]
PACKAGES_WARN = pytest.mark.filterwarnings("ignore")  # of each other, and of what they call


def by_kind(configs):
    return pytest.mark.parametrize("config", configs, ids=lambda config: config.kind)


def make_cells(n_cells, seed, classes=(0, 1, 2, 4)):
    """Return cells whose type raises eight genes of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=n_cells)
    rates = np.full((n_cells, N_GENES), 0.5)
    for cell, label in enumerate(labels):
        rates[cell, 8 * label : 8 * label + 8] = 3.0
    counts = csr_matrix(rng.poisson(rates).astype(np.float32))
    library_size = np.asarray(counts.sum(axis=1)).ravel() + 10.0
    return LabeledCells(counts, library_size, labels.astype(np.int64))


@pytest.fixture(scope="module")
def cells():
    return {"train": make_cells(160, 1), "val": make_cells(60, 2), "test": make_cells(80, 3)}


@pytest.fixture(scope="module")
def fit(cells):
    """Return a function: config -> the fitted comparator, once; skipped without its package."""
    fitted = {}

    def fit_once(config):
        for module in MODULES[config.kind]:
            pytest.importorskip(module, reason="models/comparators/requirements.txt has it")
        if config.kind not in fitted:
            fitted[config.kind] = config.fit(
                cells["train"], cells["val"], n_classes=N_CLASSES, seed=0
            )
        return fitted[config.kind]

    return fit_once


def test_all_comparators_are_tested_here():
    models = ModelConfig.__args__[0].__args__
    kinds = {c.model_fields["kind"].default for c in models if c.role == "comparator"}
    assert kinds == set(MODULES)
    assert {config.kind for config in INDUCTIVE} == kinds - {ScANVIConfig().kind}


@by_kind([*INDUCTIVE, ScANVIConfig()])
def test_what_a_comparator_needs_is_required(config):
    files = (ROOT / "requirements.txt", ROOT / "models" / "comparators" / "requirements.txt")
    lines = [line for file in files for line in file.read_text().splitlines()]
    for package in config.packages:
        assert any(line.startswith(f"{package}>=") for line in lines), package


@by_kind([*INDUCTIVE, ScANVIConfig()])
def test_a_missing_package_is_a_sentence(config, cells, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULES[config.kind][0], None)
    fit, fourth = (config.fit_predict, "cpu") if config.is_transductive else (config.fit, None)
    given = [cells["train"], cells["val"], N_CLASSES, 0, *([fourth] if fourth else [])]
    with pytest.raises(ConfigError) as raised:
        fit(*given)
    said = str(raised.value)
    assert f"needs {MODULES[config.kind][0]}, which cannot be imported" in said
    assert "pip install -r models/comparators/requirements.txt" in said
    assert "\n" not in said


def test_celltypist_beside_too_new_a_scikit_learn_is_a_sentence(cells, monkeypatch):
    class WithoutMultiClass:
        def __init__(self, C=1.0):
            pass

    monkeypatch.setattr(celltypist_file, "LogisticRegression", WithoutMultiClass)
    monkeypatch.setitem(sys.modules, "celltypist", celltypist_file)
    with pytest.raises(ConfigError, match=r"beside scikit-learn \d.*pip install"):
        CellTypistConfig().fit(cells["train"], cells["val"], n_classes=N_CLASSES, seed=0)


def test_training_something_else_imports_none_of_them():
    names = sorted({m for modules in MODULES.values() for m in modules})
    code = (
        "import importlib.util, sys\n"
        f"sys.modules.update(dict.fromkeys({names}))\n"  # an import of None raises
        "spec = importlib.util.spec_from_file_location('train', '02_train_model.py')\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@PACKAGES_WARN
@by_kind(INDUCTIVE)
def test_it_learns_what_can_be_learned(config, fit, cells):
    counts, library_size, labels = cells["test"]
    probabilities = fit(config).predict_proba(counts, library_size)
    assert probabilities.shape == (80, N_CLASSES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (probabilities >= 0).all()
    assert (probabilities[:, ABSENT] == 0).all()
    assert accuracy(labels, probabilities) > 0.9


@PACKAGES_WARN
@by_kind(INDUCTIVE)
def test_a_cells_answer_is_its_own(config, fit, cells):
    counts, library_size, _ = cells["test"]
    together = fit(config).predict_proba(counts, library_size)
    alone = fit(config).predict_proba(counts[7:8], library_size[7:8])
    np.testing.assert_allclose(alone, together[7:8], atol=1e-6)
    nothing = fit(config).predict_proba(csr_matrix((1, N_GENES), dtype=np.float32), np.zeros(1))
    assert np.isfinite(nothing).all()


@PACKAGES_WARN
@by_kind(INDUCTIVE)
def test_it_is_stored_without_pickle_and_answers_the_same(config, fit, cells, tmp_path):
    arrays = fit(config).to_arrays()
    save_file({k: np.ascontiguousarray(a) for k, a in arrays.items()}, tmp_path / "model")
    rebuilt = config.from_arrays(load_file(tmp_path / "model"))
    counts, library_size, _ = cells["test"]
    np.testing.assert_array_equal(
        rebuilt.predict_proba(counts, library_size),
        fit(config).predict_proba(counts, library_size),
    )


@PACKAGES_WARN
@pytest.mark.parametrize("classes", [(0, 1, 2, 4), (1, 2)], ids=["four", "two"])
def test_celltypist_says_what_its_package_says(classes):
    celltypist = pytest.importorskip("celltypist")
    train, test = make_cells(160, 1, classes), make_cells(80, 3, classes)
    train, test = (  # it checks that the counts sum to 10,000
        LabeledCells(c.counts, np.asarray(c.counts.sum(axis=1)).ravel(), c.labels)
        for c in (train, test)
    )
    adata = [ad.AnnData(log_expression(c.counts, c.library_size)) for c in (train, test)]
    model = celltypist.train(
        adata[0], labels=train.labels.astype(str), feature_selection=True, random_state=0
    )
    expected = celltypist.annotate(adata[1], model=model)
    found = CellTypistConfig().fit(train, train, n_classes=N_CLASSES, seed=0)
    probabilities = found.predict_proba(test.counts, test.library_size)
    theirs = expected.probability_matrix
    if len(classes) > 2:  # of two, the package has one column for both
        theirs = theirs.div(theirs.sum(axis=1), axis=0).to_numpy()
        np.testing.assert_allclose(probabilities[:, list(classes)], theirs, atol=1e-4)
    named = expected.predicted_labels["predicted_labels"].astype(int)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), named)


@PACKAGES_WARN
def test_singler_names_what_its_package_names(fit, cells):
    fitted = fit(SingleRConfig())
    singler = pytest.importorskip("singler")
    train, test = cells["train"], cells["test"]
    logs = log_expression(train.counts, train.library_size).T.tocsr().astype(np.float64)
    genes = [str(i) for i in range(N_GENES)]
    built = singler.train_single(logs, train.labels.astype(str), genes, marker_method="auc")
    expected = singler.classify_single(test.counts.T.toarray().astype(np.float64), built)["best"]
    found = fitted.predict_proba(test.counts, test.library_size).argmax(axis=1)
    np.testing.assert_array_equal(found, np.array(expected, dtype=int))


@PACKAGES_WARN
def test_lightgbm_keeps_the_rounds_that_are_best_on_val(fit, cells):
    lightgbm = pytest.importorskip("lightgbm")
    text = fit(LightGBMConfig()).text.tobytes().decode()
    n_rounds = lightgbm.Booster(model_str=text).current_iteration()
    assert 1 <= n_rounds < 1000
    shuffled = cells["val"]._replace(labels=np.roll(cells["val"].labels, 1))  # nothing to gain
    other = LightGBMConfig().fit(cells["train"], shuffled, n_classes=N_CLASSES, seed=0)
    few = lightgbm.Booster(model_str=other.text.tobytes().decode()).current_iteration()
    assert few < n_rounds


@PACKAGES_WARN
def test_scanvi_names_the_cells_without_a_label(cells):
    for module in MODULES["scanvi"]:
        pytest.importorskip(module, reason="models/comparators/requirements.txt has it")
    train, test = cells["train"], cells["test"]
    both = LabeledCells(
        csr_matrix(vstack([train.counts, test.counts])),
        np.concatenate([train.library_size, test.library_size]),
        np.concatenate([train.labels, np.full(80, -1)]),
    )
    config = ScANVIConfig(max_epochs=30)
    batches = np.array(["a", "b"])[np.arange(240) % 2]
    found = config.fit_predict(both, batches, N_CLASSES, 0, "cpu")
    assert found.shape == (240, N_CLASSES)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found[:, ABSENT] == 0).all()
    assert accuracy(test.labels, found[160:]) > 0.8


def test_scanvi_widens_the_fit_that_fails_in_a_batch_of_few_cells():
    tried = []

    def variable_genes(adata, *, span, **settings):
        tried.append(span)
        if span < fits_from:
            raise ValueError("near singularities")

    scanpy = SimpleNamespace(pp=SimpleNamespace(highly_variable_genes=variable_genes))
    adata = SimpleNamespace(n_vars=5000)
    fits_from = 0.5
    ScANVIConfig()._keep_variable_genes(scanpy, adata)
    assert tried == [0.3, 0.8]
    fits_from = 2.0
    with pytest.raises(ConfigError, match=r"\(near singularities\); with n_top_genes=5000 none"):
        ScANVIConfig()._keep_variable_genes(scanpy, adata)
