import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from dataset.previous.config import PreviousConfig
from dataset.previous.history import (
    History,
    fit_history,
    log_expression,
    order_time_points,
    shuffled_within,
    time_names,
)
from dataset.store.csr_file import CsrFile, CsrWriter, Rows
from dataset.store.expression import Expression

TIMES = ["day 0", "day 2", "day 10"]
N_CELLS, N_GENES, N_KINDS = 270, 40, 3


@pytest.fixture(scope="module")
def lineages():
    """Return counts, kind and time of cells: three lineages, each drifting over three times."""
    rng = np.random.default_rng(0)
    number = np.arange(N_CELLS)
    kind, time = number % N_KINDS, number // N_KINDS % len(TIMES)
    program = rng.lognormal(0, 1.5, (N_KINDS, N_GENES))
    drift = np.exp(time[:, None] * rng.normal(0, 0.3, N_GENES))
    rate = program[kind] * drift
    counts = rng.poisson(300 * rate / rate.sum(axis=1, keepdims=True))
    return csr_matrix(counts), kind, np.array(TIMES)[time]


@pytest.fixture(scope="module")
def expression(lineages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("history") / "expression"
    with CsrWriter(folder, N_GENES) as writer:
        writer.append(Rows.from_csr(lineages[0]))
    library_size = np.asarray(lineages[0].sum(axis=1), dtype=float).ravel()
    return Expression(CsrFile(folder), np.arange(N_CELLS), np.arange(N_GENES), library_size)


def fit(lineages, expression, train, **settings):
    counts, _, time = lineages
    config = PreviousConfig(**{"n_ancestors": 5, "n_components": 5} | settings)
    history, messages = fit_history(expression, time, train, TIMES, config, counts.shape[1])
    return history, expression.library_size, messages


def test_ancestors_are_of_the_same_lineage_at_the_time_before(lineages, expression):
    counts, kind, time = lineages
    train = np.flatnonzero(np.arange(N_CELLS) // 9 % 2)  # as many of each kind and time
    history, library_size, messages = fit(lineages, expression, train)
    assert not messages
    previous, library = history.profiles(counts, library_size, time)
    first = time == TIMES[0]
    assert previous[first].nnz == 0
    assert not library[first].any()
    assert (previous[~first].getnnz(axis=1) > 0).all()
    np.testing.assert_array_equal(np.asarray(previous.sum(axis=1)).ravel(), library)
    # The summed ancestors look like the lineage's own cells at the time before.
    for name, before in zip(TIMES[1:], TIMES[:-1], strict=True):
        values = log_expression(counts, library_size).toarray()
        means = np.stack([values[(kind == k) & (time == before)].mean(axis=0) for k in range(3)])
        mine = log_expression(previous, library)[time == name].toarray()
        nearest = ((mine[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        assert (nearest == kind[time == name]).mean() > 0.95


def test_a_cells_profile_does_not_depend_on_its_neighbours(lineages, expression):
    counts, _, time = lineages
    history, library_size, _ = fit(lineages, expression, np.arange(0, N_CELLS, 2))
    whole, _ = history.profiles(counts, library_size, time)
    for cells in ([7], [200, 7, 31]):
        alone, _ = history.profiles(counts[cells], library_size[cells], time[cells])
        assert (alone != whole[cells]).nnz == 0


def test_only_train_cells_are_anyones_ancestors(lineages, expression):
    counts, _, time = lineages
    train = np.arange(0, N_CELLS, 2)
    history, library_size, _ = fit(lineages, expression, train)
    rows = [train[time[train] == name] for name in TIMES]
    assert (history.counts != counts[np.concatenate(rows)]).nnz == 0
    assert history.first_ancestor.tolist() == [0, *np.cumsum([len(r) for r in rows])]


def test_the_entropic_map_gives_the_train_cells_their_transport(lineages, expression):
    """The map, at a train cell, orders ancestors as that cell's row of the transport plan."""
    import ot
    from scipy.spatial.distance import cdist

    _, _, time = lineages
    train = np.arange(N_CELLS)
    history, _, _ = fit(lineages, expression, train, n_ancestors=1)
    start, middle, stop = history.first_ancestor[:3]
    source, target = history.embedding[start:middle], history.embedding[middle:stop]
    plan = ot.sinkhorn(
        [], [], cdist(target, source, "sqeuclidean"), history.epsilon[0], method="sinkhorn_log",
        stopThr=1e-7, warn=False,
    )  # fmt: skip
    cells = train[time == TIMES[1]]
    counts, library_size = lineages[0], np.asarray(lineages[0].sum(axis=1)).ravel()
    previous, _ = history.profiles(counts[cells], library_size[cells], time[cells])
    expected = history.counts[plan.argmax(axis=1)]
    assert (abs(previous - expected).sum(axis=1) == 0).mean() > 0.98


def test_saved_and_loaded(lineages, expression, tmp_path):
    counts, _, time = lineages
    history, library_size, _ = fit(lineages, expression, np.arange(0, N_CELLS, 2))
    history.save(tmp_path / "history")
    loaded = History.load(tmp_path / "history")
    for one, other in zip(
        history.profiles(counts, library_size, time),
        loaded.profiles(counts, library_size, time),
        strict=True,
    ):
        assert abs(one - other).sum() == 0
    (tmp_path / "history" / "potential.npy").unlink()
    with pytest.raises(ValueError, match="not a whole history"):
        History.load(tmp_path / "history")


def test_an_unknown_time_point_is_refused(lineages, expression):
    counts, _, _ = lineages
    history, library_size, _ = fit(lineages, expression, np.arange(N_CELLS))
    with pytest.raises(ValueError, match=r"day 3.*expected one of day 0, day 2, day 10"):
        history.profiles(counts[:1], library_size[:1], np.array(["day 3"]))


def test_a_large_time_point_is_sampled(lineages, expression):
    history, _, messages = fit(lineages, expression, np.arange(N_CELLS), max_cells=20)
    assert np.diff(history.first_ancestor).tolist() == [20, 20, 20]
    assert any("20 of 90" in message for message in messages)


def test_a_time_point_without_train_cells_is_skipped(lineages, expression):
    counts, _, time = lineages
    train = np.flatnonzero(time != TIMES[1])
    history, library_size, messages = fit(lineages, expression, train)
    assert any("no train cells at time day 2" in message for message in messages)
    previous, _ = history.profiles(counts, library_size, time)
    assert (previous[time != TIMES[0]].getnnz(axis=1) > 0).all()


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["> 650", "390-450", "210-270", "< 100"], ["< 100", "210-270", "390-450", "> 650"]),
        (["day 10", "day 2", "day 2"], ["day 2", "day 10"]),
        (["E10.5", "E8.5", "P0"], ["E8.5", "E10.5", "P0"]),
        ([10.0, 2.5, -3.0], ["-3", "2.5", "10"]),
        ([10, 9], ["9", "10"]),
        (["late", "Early", None], ["Early", "late"]),
    ],
)
def test_time_points_in_order(times, expected):
    assert order_time_points(pd.Series(times)) == expected


def test_an_ordered_category_keeps_its_order():
    stages = pd.Categorical(["zygote", "adult"], ["zygote", "larva", "adult"], ordered=True)
    assert order_time_points(pd.Series(stages)) == ["zygote", "adult"]


def test_a_number_is_one_time_point_however_it_is_written():
    assert time_names(np.array([10, 2])).tolist() == ["10", "2"]
    assert time_names(pd.Series([10.0, 2.5])).tolist() == ["10", "2.5"]
    assert time_names(pd.Series(["10.0", "E8.0"])).tolist() == ["10", "E8.0"]


def test_shuffling_stays_within_groups_and_moves_everyone():
    groups = np.array(list("aabbbbc"))
    places = shuffled_within(groups, seed=3)
    assert sorted(places) == list(range(7))
    assert (groups[places] == groups).all()
    assert (places[:6] != np.arange(6)).all()
    assert places[6] == 6
    np.testing.assert_array_equal(places, shuffled_within(groups, seed=3))
