import numpy as np
import pytest
from scipy.sparse import csr_matrix

from evaluation import hidden_baselines
from evaluation.hidden_baselines import METHODS, RIDGE, TrainCells, baselines
from evaluation.hidden_genes import hide

N, G = 60, 14


@pytest.fixture
def counts(rng):
    """Return two programs of seven genes each, that cells have more or less of."""
    rate = np.repeat(rng.gamma(1.0, 4.0, (N + 20, 2)), G // 2, axis=1)
    return rng.poisson(rate) + (np.arange(G) == 0)  # no cell is empty


def hiding_of(rng, fraction=0.3):
    return lambda n: rng.random((n, G)) >= fraction


def expression(counts, size):
    return np.log1p(counts * (10_000 / np.maximum(size, 1)))


class Replayed:
    """A hiding whose masks are known."""

    def __init__(self, rng):
        self.rng, self.masks = rng, []

    def __call__(self, n):
        self.masks.append(self.rng.random((n, G)) >= 0.3)
        return self.masks[-1]


@pytest.fixture
def problem(rng, counts):
    hiding = Replayed(rng)
    train = TrainCells.hide(csr_matrix(counts[:N]), hiding, rng)
    (is_shown,) = hiding.masks
    query = hide(csr_matrix(counts[N:]), rng.random((20, G)) >= 0.3)
    return train, is_shown, query


def test_train_cells_are_what_a_hidden_gene_would_be(problem, counts):
    train, is_shown, _ = problem
    shown = np.where(is_shown, counts[:N], 0)
    size = shown.sum(axis=1)
    np.testing.assert_allclose(train.shown.toarray(), expression(shown, size[:, None]))
    for g in range(G):
        others = np.delete(shown, g, axis=1).sum(axis=1)
        expected = expression(counts[:N, g], others)
        np.testing.assert_allclose(train.whole.toarray()[:, g], expected)
        assert train.mean[g] == pytest.approx(expected.mean())


@pytest.mark.parametrize("k", [3, 10])
def test_linear_is_ridge_regression_on_the_other_genes(problem, k):
    train, _, query = problem
    found = METHODS["linear"][0](train, np.arange(G), k)(query)
    axes, shown, whole = train.axes.axes[:, :k], train.shown.toarray(), train.whole.toarray()
    scores = shown @ axes.astype(np.float64)
    ridge = RIDGE * scores.var(axis=0).mean()
    given = expression(query.shown.toarray(), query.size[:, None])
    expected = np.empty(len(found))
    for g in range(G):
        x, y = np.delete(shown, g, axis=1) @ np.delete(axes, g, axis=0), whole[:, g]
        z = x - x.mean(axis=0)
        beta = np.linalg.solve(z.T @ z / N + ridge * np.eye(k), z.T @ (y - y.mean()) / N)
        rows = query.cell[query.gene == g]
        z = np.delete(given[rows], g, axis=1) @ np.delete(axes, g, axis=0) - x.mean(axis=0)
        expected[query.gene == g] = np.maximum(y.mean() + z @ beta, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_neighbors_are_the_nearest_in_what_is_shown(problem):
    train, _, query = problem
    found = METHODS["kNN"][0](train, np.arange(G), 5)(query)
    axes = train.axes.axes
    place = train.shown.toarray() @ axes
    given = expression(query.shown.toarray(), query.size[:, None]) @ axes
    for i, (cell, gene) in enumerate(zip(query.cell, query.gene, strict=True)):
        nearest = np.argsort(np.square(place - given[cell]).sum(axis=1))[:5]
        assert found[i] == pytest.approx(train.whole.toarray()[nearest, gene].mean(), abs=1e-6)


def test_settings_are_chosen_on_train_cells(rng, counts, monkeypatch):
    """A setting that is worse there is not taken; genes that are not wanted are not learned."""
    tried = []

    def learn(train, genes, setting):
        tried.append((train.whole.shape[0], genes.tolist(), setting))
        return lambda cells: cells.truth + (setting - 2) ** 2

    monkeypatch.setattr(hidden_baselines, "METHODS", {"off by": (learn, (1, 2, 4))})
    wanted = np.isin(np.arange(G), [3, 5])
    shown = np.broadcast_to(~wanted, (len(counts), G))
    found = baselines(csr_matrix(counts), lambda n: shown[:n], rng, wanted)
    assert tried == [(64, [3, 5], 1), (64, [3, 5], 2), (64, [3, 5], 4), (80, [3, 5], 2)]
    query = hide(csr_matrix(counts), shown, wanted)
    np.testing.assert_array_equal(found["off by"](query), query.truth)


def test_what_other_genes_say_is_learned(rng, counts):
    train, query = csr_matrix(counts[:N]), csr_matrix(counts[N:])
    hiding = hiding_of(rng)
    cells = hide(query, hiding(20))
    of_mean, *others = baselines(train, hiding, rng).values()
    error = np.square(of_mean(cells) - cells.truth).mean()
    for method in others:
        assert np.square(method(cells) - cells.truth).mean() < 0.9 * error
