"""What holds for every baseline, and what each of them is."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix

from evaluation.classification import accuracy
from models.baselines.base import LabeledCells
from models.baselines.gradient_boosting import GradientBoostingConfig
from models.baselines.knn import KNNConfig
from models.baselines.linear_svm import LinearSVMConfig
from models.baselines.logistic_regression import LogisticRegressionConfig
from models.baselines.majority import MajorityConfig

N_CLASSES = 5
ABSENT = 3  # the class without training cells
N_GENES = 60
CONFIGS = [
    MajorityConfig(),
    LogisticRegressionConfig(c_grid=[10, 100], early_stopped=[10], class_weights=["none"]),
    LinearSVMConfig(c_grid=[1, 10], class_weights=["none"]),
    KNNConfig(n_components=10),
    GradientBoostingConfig(max_rounds=30, patience=5),
]
LEARNERS = CONFIGS[1:]


def by_kind(configs):
    return pytest.mark.parametrize("config", configs, ids=lambda config: config.kind)


def make_cells(rng, n_cells, classes=(0, 1, 2, 4)):
    """Cells whose type raises eight genes of its own."""
    labels = rng.choice(classes, size=n_cells)
    rates = np.full((n_cells, N_GENES), 0.5)
    for cell, label in enumerate(labels):
        rates[cell, 8 * label : 8 * label + 8] = 3.0
    counts = csr_matrix(rng.poisson(rates).astype(np.float32))
    library_size = np.asarray(counts.sum(axis=1)).ravel() + 10.0
    return LabeledCells(counts, library_size, labels.astype(np.int64))


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(3)
    return {name: make_cells(rng, n) for name, n in (("train", 160), ("val", 60), ("test", 80))}


@pytest.fixture(scope="module")
def fitted(cells):
    return {
        config.kind: config.fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
        for config in CONFIGS
    }


@by_kind(CONFIGS)
def test_probabilities_of_every_class(config, fitted, cells):
    probabilities = fitted[config.kind].predict_proba(*cells["test"][:2])
    assert probabilities.shape == (80, N_CLASSES)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (probabilities >= 0).all()
    assert (probabilities[:, ABSENT] == 0).all()


@by_kind(LEARNERS)
def test_learns_what_can_be_learned(config, fitted, cells):
    counts, library_size, labels = cells["test"]
    assert accuracy(labels, fitted[config.kind].predict_proba(counts, library_size)) > 0.9


@by_kind(CONFIGS)
def test_a_cells_answer_is_its_own(config, fitted, cells):
    counts, library_size, _ = cells["test"]
    order = np.random.default_rng(0).permutation(80)
    together = fitted[config.kind].predict_proba(counts, library_size)
    shuffled = fitted[config.kind].predict_proba(counts[order], library_size[order])
    alone = fitted[config.kind].predict_proba(counts[7:8], library_size[7:8])
    np.testing.assert_allclose(shuffled, together[order], atol=1e-5)
    np.testing.assert_allclose(alone, together[7:8], atol=1e-5)


@by_kind(CONFIGS)
def test_same_seed_same_model(config, fitted, cells):
    again = config.fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
    np.testing.assert_array_equal(
        again.predict_proba(*cells["test"][:2]),
        fitted[config.kind].predict_proba(*cells["test"][:2]),
    )


@by_kind(CONFIGS)
def test_fitting_leaves_the_cells_alone(config):
    rng = np.random.default_rng(3)
    train, val = make_cells(rng, 60), make_cells(rng, 30)
    before = train[0].copy(), val[0].copy()
    config.fit(train, n_classes=N_CLASSES, val=val, seed=0)
    for now, then in zip((train[0], val[0]), before, strict=True):
        assert (now != then).nnz == 0


@by_kind(CONFIGS)
def test_a_file_of_arrays_rebuilds_the_model(config, fitted, cells, tmp_path):
    model = fitted[config.kind]
    save_file(model.to_arrays(), tmp_path / "model.safetensors")
    rebuilt = config.from_arrays(load_file(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(
        rebuilt.predict_proba(*cells["test"][:2]), model.predict_proba(*cells["test"][:2])
    )


@by_kind(CONFIGS)
def test_two_classes(config):
    rng = np.random.default_rng(5)
    train, val, test = (make_cells(rng, n, classes=(0, 1)) for n in (60, 40, 40))
    model = config.fit(train, n_classes=2, val=val, seed=0)
    probabilities = model.predict_proba(*test[:2])
    assert probabilities.shape == (40, 2)
    if config.kind != "majority":
        assert accuracy(test[2], probabilities) > 0.9


@by_kind(CONFIGS)
def test_a_cell_without_counts_gets_an_answer(config, fitted):
    empty = csr_matrix((1, N_GENES), dtype=np.float32)
    assert np.isfinite(fitted[config.kind].predict_proba(empty, np.zeros(1))).all()


def test_majority_is_the_class_frequencies(fitted, cells):
    frequencies = np.bincount(cells["train"][2], minlength=N_CLASSES) / 160
    found = fitted["majority"].predict_proba(*cells["test"][:2])
    np.testing.assert_allclose(found, np.tile(frequencies, (80, 1)), atol=1e-6)


def test_svm_is_as_sure_as_val_cells_allow(cells, fitted):
    counts, library_size, labels = cells["val"]
    probabilities = fitted["linear_svm"].predict_proba(counts, library_size)
    assert accuracy(labels, probabilities) > 0.95
    assert 0.9 < probabilities.max(axis=1).mean() < 1 - 0.1 / len(labels)


def test_neighbors_leave_no_present_class_impossible(fitted, cells):
    probabilities = fitted["knn"].predict_proba(*cells["test"][:2])
    assert (np.delete(probabilities, ABSENT, axis=1) > 0).all()
