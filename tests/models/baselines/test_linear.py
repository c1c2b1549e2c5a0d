"""Linear classifiers are what they say: scikit-learn's optimum, however it is reached."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from evaluation.classification import accuracy, log_loss, macro_f1
from models.baselines.base import LabeledCells
from models.baselines.features import log_normalize, standardize
from models.baselines.linear_cells import RotatedCells, SparseCells
from models.baselines.linear_fit import balanced, cross_entropy, fit_linear, squared_hinge
from models.baselines.linear_svm import LinearSVMConfig
from models.baselines.linear_tuning import Setting
from models.baselines.logistic_regression import LogisticRegressionConfig

N_CLASSES = 4
PRESENT = [0, 1, 3]


def make_cells(rng, n_cells, n_genes=50):
    """Cells of three unequal types that overlap; the library holds genes beyond these."""
    labels = rng.choice(PRESENT, size=n_cells, p=[0.6, 0.3, 0.1])
    rates = np.full((n_cells, n_genes), 0.6)
    for cell, label in enumerate(labels):
        rates[cell, 5 * label : 5 * label + 5] = 1.4
    counts = csr_matrix(rng.poisson(rates).astype(np.float32))
    library_size = np.asarray(counts.sum(axis=1)).ravel() * rng.uniform(1, 3, size=n_cells)
    return LabeledCells(counts, library_size, labels.astype(np.int64))


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(3)
    return {name: make_cells(rng, n) for name, n in (("train", 150), ("val", 60), ("test", 80))}


def dense(cells, scaling):
    """Return train and test as scikit-learn would be given them: dense, of mean norm 1."""
    train, test = (log_normalize(*cells[s][:2]).toarray().astype(float) for s in ("train", "test"))
    mean, std = train.mean(axis=0), train.std(axis=0)
    if scaling == "log_expression":
        std = np.ones_like(std)
    train, test = (train - mean) / std, (test - mean) / std
    norm = np.sqrt(np.mean(np.sum(train**2, axis=1)))
    return train / norm, test / norm


def only(config, **settings):
    """Return the config with one point in its grid."""
    if config is LogisticRegressionConfig:
        settings = {"early_stopped": []} | settings
    return config(**{"class_weights": ["none"], "gene_scaling": ["standardized"]} | settings)


# 150 cells: exactly on all axes, or on all genes without a rotation.
@pytest.mark.parametrize("tuning_cells", [1000, 40], ids=["rotated", "sparse"])
@pytest.mark.parametrize("scaling", ["standardized", "log_expression"])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("c", [1.0, 1000.0])
def test_logistic_regression_is_scikit_learns(cells, c, class_weights, scaling, tuning_cells):
    config = only(
        LogisticRegressionConfig,
        c_grid=[c],
        class_weights=[class_weights],
        gene_scaling=[scaling],
        tuning_cells=tuning_cells,
    )
    ours = config.fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
    train, test = dense(cells, scaling)
    theirs = LogisticRegression(
        C=c,
        max_iter=50_000,
        tol=1e-9,
        class_weight=None if class_weights == "none" else class_weights,
    ).fit(train, cells["train"][2])
    found = ours.predict_proba(*cells["test"][:2])
    np.testing.assert_allclose(found[:, PRESENT], theirs.predict_proba(test), atol=5e-4)
    assert (found[:, 2] == 0).all()


@pytest.mark.parametrize("form", [RotatedCells, SparseCells])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_linear_svm_is_scikit_learns(cells, form, class_weight):
    labels = np.unique(cells["train"][2], return_inverse=True)[1]
    expression = log_normalize(*cells["train"][:2])
    fitted = form.fit(expression, standardize(expression), np.random.default_rng(0))
    weights, intercept = fit_linear(
        fitted,
        labels,
        np.ones(len(labels)) if class_weight is None else balanced(labels),
        squared_hinge,
        c=10.0,
        penalize_intercept=True,
        max_iter=5000,
    )
    found = fitted.scores(weights) + intercept
    train, _ = dense(cells, "standardized")
    # scikit-learn balances each machine's two sides, we the classes: give it weights of cells.
    theirs = LinearSVC(C=10.0, tol=1e-8, max_iter=200_000).fit(
        train, labels, sample_weight=None if class_weight is None else balanced(labels)
    )
    np.testing.assert_allclose(found, theirs.decision_function(train), atol=3e-3)


@pytest.mark.parametrize("tuning_cells", [1000, 40], ids=["rotated", "sparse"])
def test_two_classes_are_scikit_learns_at_twice_the_penalty(cells, tuning_cells):
    two = {
        name: LabeledCells(*(part[np.flatnonzero(split.labels != 3)] for part in split))
        for name, split in cells.items()
    }
    config = only(LogisticRegressionConfig, c_grid=[20.0], tuning_cells=tuning_cells)
    ours = config.fit(two["train"], n_classes=2, val=two["val"], seed=0)
    train, test = dense(two, "standardized")
    theirs = LogisticRegression(C=40.0, max_iter=50_000, tol=1e-9).fit(train, two["train"][2])
    found = ours.predict_proba(*two["test"][:2])
    np.testing.assert_allclose(found, theirs.predict_proba(test), atol=5e-4)


@pytest.mark.parametrize("tuning_cells", [1000, 40], ids=["rotated", "sparse"])
@pytest.mark.parametrize("n_genes", [1, 3])
def test_a_panel_of_few_genes_and_a_single_class(tuning_cells, n_genes):
    counts, library_size, labels = make_cells(np.random.default_rng(0), 60)
    train = LabeledCells(counts[:, :n_genes], library_size, labels)
    config = only(LogisticRegressionConfig, c_grid=[10.0], tuning_cells=tuning_cells)
    model = config.fit(train, n_classes=N_CLASSES, val=train, seed=0)
    assert np.isfinite(model.predict_proba(*train[:2])).all()
    alike = LabeledCells(train.counts, library_size, np.full(60, 2))
    model = config.fit(alike, n_classes=N_CLASSES, val=alike, seed=0)
    assert (model.predict_proba(*train[:2])[:, 2] == 1).all()


def test_more_genes_than_cells_lose_nothing_by_the_rotation():
    rng = np.random.default_rng(0)
    counts, library_size, labels = make_cells(rng, 60, n_genes=300)
    labels = np.unique(labels, return_inverse=True)[1]
    expression = log_normalize(counts, library_size)
    found = []
    for form in (RotatedCells, SparseCells):
        cells = form.fit(expression, standardize(expression), np.random.default_rng(0))
        weights, intercept = fit_linear(
            cells,
            labels,
            np.ones(60),
            cross_entropy,
            c=100.0,
            penalize_intercept=False,
            max_iter=5000,
        )
        to_genes, center = cells.to_genes(weights)
        found.append(softmax(expression @ to_genes + (intercept - center), axis=1))
    np.testing.assert_allclose(found[0], found[1], atol=5e-4)


def test_the_order_of_the_grid_changes_nothing(cells):
    probabilities = [
        only(LogisticRegressionConfig, c_grid=grid)
        .fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
        .predict_proba(*cells["test"][:2])
        for grid in ([1, 10, 100], [100, 1, 10], [10])
    ]
    np.testing.assert_allclose(probabilities[1], probabilities[0], atol=1e-4)
    # whichever was chosen is what it is by itself
    alone = [
        only(LogisticRegressionConfig, c_grid=[c])
        .fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
        .predict_proba(*cells["test"][:2])
        for c in (1, 10, 100)
    ]
    assert min(np.abs(probabilities[0] - one).max() for one in alone) < 1e-4


def test_the_seed_draws_the_cells_that_settings_are_compared_on(cells, monkeypatch):
    seen = []

    def fit(self, setting, form, own, cell_weights):
        seen.append((form.shape[0], own.tolist()))
        return np.zeros((form.shape[1], own.max() + 1)), np.zeros(own.max() + 1)

    monkeypatch.setattr(LinearSVMConfig, "fit_setting", fit)
    config, settings = LinearSVMConfig(tuning_cells=50), [Setting("standardized", "none", c=1.0)]
    for seed in (0, 0, 1):
        config.tune(cells["train"], cells["val"], N_CLASSES, seed, settings)
    drawn, whole = seen[0::2], seen[1::2]
    assert [n for n, _ in drawn] == [50, 50, 50]
    assert [n for n, _ in whole] == [150, 150, 150]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_fit_that_has_not_converged_says_so(cells, caplog):
    config = only(LogisticRegressionConfig, c_grid=[100.0], max_iter=2)
    config.fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
    assert "did not converge in 2 iterations" in caplog.text
    caplog.clear()
    config = only(LogisticRegressionConfig, c_grid=[100.0])
    config.fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
    assert caplog.text == ""


def test_early_stopping_keeps_weights_small_and_its_number_counts(cells):
    counts, library_size, labels = cells["train"]
    fitted = {}
    for n in (1, 5, 50):
        config = only(LogisticRegressionConfig, c_grid=[], early_stopped=[n])
        model = config.fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
        fitted[n] = model
    losses = [log_loss(labels, m.predict_proba(counts, library_size)) for m in fitted.values()]
    assert losses[0] > losses[1] > losses[2]
    norms = [np.linalg.norm(m.weights) for m in fitted.values()]
    assert norms[0] < norms[1] < norms[2]


def test_balanced_weights_help_the_rare_type(cells):
    counts, library_size, labels = cells["test"]
    recall = []
    for class_weights in ("none", "balanced"):
        config = only(LogisticRegressionConfig, c_grid=[1.0], class_weights=[class_weights])
        model = config.fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
        rare = model.predict_proba(counts, library_size)[labels == 3]
        recall.append(accuracy(np.full(len(rare), 3), rare))
    assert recall[1] > recall[0]


def test_balanced_gives_every_class_the_same_weight():
    labels = np.array([0, 0, 0, 1, 2, 2])
    np.testing.assert_allclose(np.bincount(labels, balanced(labels)), [2, 2, 2])


def test_a_grid_without_a_point_is_refused():
    with pytest.raises(ValueError, match="nothing to fit"):
        LogisticRegressionConfig(c_grid=[], early_stopped=[])


@pytest.mark.parametrize("config", [LogisticRegressionConfig, LinearSVMConfig])
def test_every_form_is_tried_and_val_decides(cells, config):
    counts, library_size, labels = cells["val"]
    forms = {
        "gene_scaling": ["standardized", "log_expression"],
        "class_weights": ["none", "balanced"],
    }
    best = only(config, c_grid=[3.0], **forms).fit(
        cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0
    )
    scores = {}
    for scaling in forms["gene_scaling"]:
        for class_weights in forms["class_weights"]:
            one = only(
                config, c_grid=[3.0], gene_scaling=[scaling], class_weights=[class_weights]
            ).fit(cells["train"], n_classes=N_CLASSES, val=cells["val"], seed=0)
            probabilities = one.predict_proba(counts, library_size)
            score = macro_f1(labels, probabilities), -log_loss(labels, probabilities)
            scores[score] = one
    assert len(scores) == 4
    np.testing.assert_allclose(best.weights, scores[max(scores)].weights, atol=1e-5)
