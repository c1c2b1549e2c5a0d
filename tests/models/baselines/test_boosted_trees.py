"""Trees as arrays say what scikit-learn says, or that they cannot be read."""

from itertools import islice

import anndata as ad
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from models.baselines.boosted_trees import BoostedTrees, TreesError
from models.baselines.features import highly_variable, log_normalize


def grown(values, labels, n_rounds, **settings):
    return HistGradientBoostingClassifier(
        max_iter=n_rounds, max_leaf_nodes=6, min_samples_leaf=2, early_stopping=False,
        random_state=0, **settings,
    ).fit(values, labels)  # fmt: skip


@pytest.fixture(scope="module")
def binary():
    rng = np.random.default_rng(0)
    values = rng.poisson(1.0, size=(80, 6)).astype(np.float32)
    return values, (values[:, 0] + values[:, 1] > 2).astype(int)


@pytest.mark.parametrize("n_classes", [2, 9])
def test_probabilities_of_real_cells_are_scikit_learns(real_cells, n_classes):
    cells = ad.read_h5ad(real_cells("pbmc3k_labelled"))
    labels = cells.obs["cell_type"].astype("category").cat.codes.to_numpy() % n_classes
    expression = log_normalize(cells.X.tocsr(), np.asarray(cells.X.sum(axis=1)).ravel())
    values = expression[:, highly_variable(expression, 100)].toarray()
    model = grown(values[:400], labels[:400], 12)
    for n_rounds in (1, 7, 12):
        trees = BoostedTrees.of(model, n_rounds)
        expected = next(islice(model.staged_predict_proba(values), n_rounds - 1, None))
        np.testing.assert_allclose(trees.predict_proba(values), expected, rtol=0, atol=1e-12)
        assert len(trees.roots) == n_rounds
    assert expected.shape[1] == n_classes
    assert len(np.unique(expected.round(6), axis=0)) > 50


def test_a_value_on_the_threshold_goes_left(binary):
    values, labels = binary
    model = grown(values, labels, 3)
    trees = BoostedTrees.of(model, 3)
    at = np.tile(values[:1], (len(trees.threshold), 1)).astype(np.float64)
    at[np.arange(len(at)), trees.column] = trees.threshold  # each node's own gene, exactly
    np.testing.assert_allclose(trees.predict_proba(at), model.predict_proba(at), atol=1e-12)
    above = np.nextafter(at, np.inf)
    np.testing.assert_allclose(trees.predict_proba(above), model.predict_proba(above), atol=1e-12)
    assert np.abs(trees.predict_proba(at) - trees.predict_proba(above)).max() > 0.01


def test_a_root_that_is_a_leaf(binary):
    values, _ = binary
    labels = np.arange(len(values)) % 2
    model = grown(np.zeros_like(values), labels, 2)
    trees = BoostedTrees.of(model, 2)
    np.testing.assert_allclose(trees.predict_proba(values), model.predict_proba(values))
    assert trees.depth.tolist() == [0, 0]


def test_trees_that_have_moved_are_missed(binary):
    model = grown(*binary, 2)
    trees = model._predictors
    del model._predictors
    with pytest.raises(TreesError, match=r"another way than versions 1\.6 to 1\.9"):
        BoostedTrees.of(model, 2)
    model._predictors = trees
    for of_round in trees:
        for tree in of_round:
            tree.nodes = tree.nodes[["value", "left", "right"]]
    with pytest.raises(TreesError, match="is_leaf"):
        BoostedTrees.of(model, 2)


def test_trees_that_say_something_else_are_refused(binary):
    values, labels = binary
    model = grown(values, labels, 4)
    trees = BoostedTrees.of(model, 4)
    trees.check(values, model.predict_proba(values))
    with pytest.raises(TreesError, match="predict something else"):
        BoostedTrees.of(model, 3).check(values, model.predict_proba(values))
