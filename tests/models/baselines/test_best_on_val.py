"""Val cells, and they alone, choose every setting of a baseline; a choice at the edge is told."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from evaluation.classification import accuracy, log_loss, macro_f1
from models.baselines.base import LabeledCells
from models.baselines.best_on_val import best_on_val, warn_at_edge
from models.baselines.boosted_trees import BoostedTrees
from models.baselines.features import log_normalize
from models.baselines.gradient_boosting import GradientBoostingConfig
from models.baselines.knn import KNNConfig
from models.baselines.linear_svm import LinearSVMConfig
from models.baselines.logistic_regression import LogisticRegressionConfig

EMPTY = csr_matrix((10, 1), dtype=np.float32)
LABELS = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])


class Says:
    """Gives class 0 the probabilities that it was told."""

    def __init__(self, first):
        self.probabilities = np.stack([np.array(first), 1 - np.array(first)], axis=1)

    def predict_proba(self, expression, library_size):
        return self.probabilities


def choose(**candidates):
    return best_on_val([*candidates], candidates.get, (EMPTY, np.ones(10), LABELS))


ALL_FIRST = Says([0.9] * 10)  # accuracy .8, macro-F1 .44
FINDS_THE_RARE = Says([0.9] * 5 + [0.1] * 5)  # accuracy .7, macro-F1 .67


def test_macro_f1_chooses_and_not_accuracy():
    assert accuracy(LABELS, ALL_FIRST.probabilities) > accuracy(
        LABELS, FINDS_THE_RARE.probabilities
    )
    assert choose(frequent=ALL_FIRST, rare=FINDS_THE_RARE) == "rare"
    assert choose(rare=FINDS_THE_RARE, frequent=ALL_FIRST) == "rare"


def test_macro_f1_chooses_and_not_log_loss():
    sure_and_once_wrong = Says([0.99] * 8 + [0.001, 0.999])
    right_and_unsure = Says([0.51] * 8 + [0.49] * 2)
    assert choose(a=sure_and_once_wrong, b=right_and_unsure) == "b"


def test_ties_go_by_log_loss_then_to_the_first():
    unsure, sure = Says([0.6] * 8 + [0.4] * 2), Says([0.9] * 8 + [0.1] * 2)
    assert choose(unsure=unsure, sure=sure) == "sure"
    assert choose(sure=sure, unsure=unsure) == "sure"
    assert choose(first=sure, second=sure) == "first"


def test_a_macro_f1_that_is_hardly_better_does_not_choose(monkeypatch):
    """Of two with nearly the same labels it is the one whose probabilities tell more."""
    labels = np.repeat([0, 1], 200)
    first = np.where(labels == 0, 0.52, 0.48)
    unsure, sure = Says(first), Says(np.where(labels == 0, 0.95, 0.05))
    candidates = {"unsure": unsure, "sure": sure}

    def chosen():
        return best_on_val([*candidates], candidates.get, (None, None, labels))

    # Of the sure one's 400 labels three are wrong, which is .0075 of macro-F1; then five, .0125
    sure.probabilities[:3] = sure.probabilities[:3, ::-1]
    unsure.probabilities[:] = 0.5 + (unsure.probabilities - 0.5) * np.linspace(0, 1, 400)[:, None]
    unsure.probabilities[0] = 0.501, 0.499
    assert chosen() == "sure"
    sure.probabilities[:5] = 0.05, 0.95
    assert chosen() == "unsure"


def test_each_is_judged_at_its_own_temperature():
    """One says too little by a factor, which scaling mends; the other orders cells worse."""
    ordered = np.array([0.53, 0.53, 0.52, 0.52, 0.51, 0.51, 0.51, 0.49, 0.49, 0.48])
    other = np.array([0.90, 0.60, 0.60, 0.60, 0.60, 0.60, 0.60, 0.40, 0.10, 0.40])
    assert log_loss(LABELS, Says(ordered).probabilities) > log_loss(
        LABELS, Says(other).probabilities
    )
    assert choose(other=Says(other), ordered=Says(ordered)) == "ordered"


def test_no_setting_is_an_error():
    with pytest.raises(ValueError, match="no setting"):
        choose()


# ------------------------------------------------------------- each baseline, on cells

N_GENES = 40


def make_cells(rng, n_cells, share_wrong):
    """Two types of cells; of so many the label is wrong, which a model may learn by heart."""
    types = rng.integers(0, 2, size=n_cells)
    rates = np.full((n_cells, N_GENES), 1.0)
    rates[types == 0, :6] = 2.2
    rates[types == 1, 6:12] = 2.2
    counts = csr_matrix(rng.poisson(rates).astype(np.float32))
    labels = np.where(rng.random(n_cells) < share_wrong, 1 - types, types)
    return LabeledCells(counts, np.full(n_cells, 60.0), labels.astype(np.int64))


@pytest.fixture(scope="module")
def cells():
    """A quarter of the train labels are wrong, no val label: what fits train best is not best."""
    rng = np.random.default_rng(0)
    return {"train": make_cells(rng, 60, 0.25), "val": make_cells(rng, 200, 0.0)}


GRID = {"class_weights": ["none"], "gene_scaling": ["standardized"]}
# Of each: the config with a grid, and the configs of its points.
GRIDS = {
    "penalty of logistic regression": (
        LogisticRegressionConfig(c_grid=[0.5, 3000], early_stopped=[], **GRID),
        [LogisticRegressionConfig(c_grid=[c], early_stopped=[], **GRID) for c in (0.5, 3000)],
    ),
    "iterations of logistic regression": (
        LogisticRegressionConfig(c_grid=[], early_stopped=[3, 300], **GRID),
        [LogisticRegressionConfig(c_grid=[], early_stopped=[n], **GRID) for n in (3, 300)],
    ),
    "penalty of the SVM": (
        LinearSVMConfig(c_grid=[0.1, 100], **GRID),
        [LinearSVMConfig(c_grid=[c], **GRID) for c in (0.1, 100)],
    ),
    "number of neighbors": (
        KNNConfig(k_grid=[1, 25], n_components=5),
        [KNNConfig(k_grid=[k], n_components=5) for k in (25, 1)],
    ),
}


def fit(config, cells, val="val", seed=0):
    return config.fit(cells["train"], n_classes=2, val=cells[val], seed=seed)


@pytest.mark.parametrize("name", GRIDS)
def test_val_cells_choose_and_train_cells_do_not(cells, name):
    grid, points = GRIDS[name]
    careful, by_heart = (fit(point, cells) for point in points)
    for split, better, worse in (("val", careful, by_heart), ("train", by_heart, careful)):
        counts, library_size, labels = cells[split]
        scores = [macro_f1(labels, m.predict_proba(counts, library_size)) for m in (better, worse)]
        assert scores[0] > scores[1]
    counts, library_size, _ = cells["val"]
    np.testing.assert_allclose(
        fit(grid, cells).predict_proba(counts, library_size),
        careful.predict_proba(counts, library_size),
        atol=1e-6,
    )


# ------------------------------------------------------------- rounds of trees

TREES = GradientBoostingConfig(
    max_rounds=100, patience=10, n_top_genes=N_GENES, max_features=0.5, learning_rate=0.3
)


@pytest.fixture
def staged_losses(monkeypatch):
    """Return a function: the config and the cells to fit on -> model, losses of all rounds."""
    take_out, grown = BoostedTrees.of, []

    def remember(model, n_rounds):
        grown.append(model)
        return take_out(model, n_rounds)

    monkeypatch.setattr(BoostedTrees, "of", remember)

    def losses_of(config, cells):
        model = fit(config, cells)

        def losses(split):
            counts, library_size, labels = cells[split]
            values = log_normalize(counts, library_size)[:, model.genes].toarray()
            return [log_loss(labels, p) for p in grown[-1].staged_predict_proba(values)]

        return model, losses("val"), losses("train")

    return losses_of


def test_rounds_are_those_with_the_least_loss_on_val(cells, staged_losses):
    model, losses, on_train = staged_losses(TREES, cells)
    n_rounds = len(model.trees.roots)
    assert n_rounds == 1 + np.argmin(losses)
    assert n_rounds + TREES.patience <= len(losses) < TREES.max_rounds
    assert np.argmin(on_train) == len(on_train) - 1  # train would have taken them all
    found = model.predict_proba(*cells["val"][:2])
    assert log_loss(cells["val"][2], found) == pytest.approx(min(losses))


def test_trees_grown_in_parts_are_those_grown_at_once(cells, staged_losses):
    found = staged_losses(TREES, cells)[1]
    expected = staged_losses(TREES.model_copy(update={"patience": 100}), cells)[1]
    assert len(found) < len(expected) == 100
    np.testing.assert_array_equal(found, expected[: len(found)])


def test_the_seed_and_the_class_weights_of_trees_count(cells):
    first = fit(TREES, cells).predict_proba(*cells["val"][:2])
    assert np.abs(fit(TREES, cells, seed=1).predict_proba(*cells["val"][:2]) - first).max() > 1e-3
    uneven = np.concatenate([np.flatnonzero(cells["train"][2] == 0)[:10],
                             np.flatnonzero(cells["train"][2] == 1)])  # fmt: skip
    train = LabeledCells(*(part[uneven] for part in cells["train"]))
    names_the_rare = [
        (
            TREES.model_copy(update={"class_balanced": balanced})
            .fit(train, n_classes=2, val=cells["val"], seed=0)
            .predict_proba(*cells["val"][:2])[:, 0]
            .mean()
        )
        for balanced in (True, False)
    ]
    assert names_the_rare[0] > names_the_rare[1] + 0.05


# ------------------------------------------------------------- edges


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("chosen", "side"), [(1, "smallest"), (100, "largest"), (10, None)], ids=str
)
def test_a_choice_at_the_edge_is_told(caplog, chosen, side):
    warn_at_edge("c_grid", chosen, [10, 1, 100])
    lines = told(caplog)
    assert len(lines) == (side is not None)
    if side:
        assert lines[0].startswith(f"c_grid: val cells chose {chosen}, the {side} value tried")


def test_one_value_and_the_least_there_is_are_no_edge(caplog):
    warn_at_edge("c_grid", 1, [1])
    warn_at_edge("k_grid", 1, [1, 5], lowest=1)
    assert told(caplog) == []


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (LogisticRegressionConfig(c_grid=[0.5, 3000], early_stopped=[], **GRID), "c_grid"),
        (LogisticRegressionConfig(c_grid=[], early_stopped=[3, 300], **GRID), "early_stopped"),
        (LinearSVMConfig(c_grid=[0.1, 100], **GRID), "c_grid"),
        (KNNConfig(k_grid=[1, 25], n_components=5), "k_grid"),
        (TREES.model_copy(update={"max_rounds": 3}), "max_rounds"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_every_baseline_tells_of_its_edges(cells, caplog, config, line):
    fit(config, cells)
    assert [said.split(":")[0] for said in told(caplog)] == [line]


def test_a_choice_within_its_range_is_not_told(cells, caplog):
    fit(TREES, cells)
    fit(KNNConfig(k_grid=[1, 25, 119], n_components=5), cells)
    assert told(caplog) == []
