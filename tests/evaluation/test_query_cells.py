from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from dataset.batches import BatchReader, flat
from dataset.quality_control import Measures
from dataset.reading.cells import open_cells
from evaluation import query_cells, trained_model
from evaluation.annotated_file import AnnotationError
from evaluation.query_cells import Block, in_whole_sets, read_obs, sets_of
from evaluation.trained_model import TrainedModel
from models.network import CellSets
from tests import made_up


@pytest.fixture
def model():
    """Stand in for a network that was trained on two donors and two plates."""
    known = {"donor": ["donor_1", "donor_3"], "plate": ["a", "b"], "lane": ["1"]}
    return SimpleNamespace(
        facts=made_up.facts(conditions=known), cell_sets=None, reads_positions=False
    )


def test_values_of_the_query_become_the_codes_of_the_run(model, query):
    def add(adata):
        adata.obs["plate"] = np.resize(np.array(["b", "new", np.nan, "a", "newer"], object), 300)
        return adata

    cells, messages = open_cells(query(add)), []
    found = read_obs(model, cells, messages)
    donor = np.arange(300) // 4 % 4
    donor_codes = np.where(donor == 1, 0, np.where(donor == 3, 1, -1))
    np.testing.assert_array_equal(np.maximum(found.conditions[:, 0], -1), donor_codes)
    plate = found.conditions[:5, 1].tolist()
    assert (plate[0], plate[2], plate[3]) == (1, -1, 0)
    assert max(plate[1], plate[4]) < -1 < plate[0]
    assert plate[1] != plate[4]
    np.testing.assert_array_equal(found.conditions[:, 1], np.resize(plate, 300))
    assert (found.conditions[:, 2] == -1).all()
    assert messages == [
        f"condition 'donor': {(donor_codes < 0).sum()} of 300 cells have a value that the run "
        "does not know",
        "condition 'plate': 180 of 300 cells have a value that the run does not know",
        "condition 'lane': 300 of 300 cells have no value: no such column",
    ]
    assert found.sets is None
    assert found.positions is None


def test_the_network_is_given_them(network_run, monkeypatch):
    model, seen = TrainedModel(network_run), []
    predict_cells = trained_model.predict_cells

    def watch(learner, cells, *others, **settings):
        seen.append(BatchReader(cells).read(np.arange(len(cells))))
        return predict_cells(learner, cells, *others, **settings)

    monkeypatch.setattr(trained_model, "predict_cells", watch)
    n_genes = model.vocabulary.n_genes
    profile = csr_matrix(np.ones((3, n_genes), dtype=np.int32)), np.full(3, n_genes, dtype=float)
    codes, positions = np.array([[1], [-2], [-1]]), np.array([[0, 1], [2, 3], [4, 5]], np.float32)
    model.predict([profile], conditions=codes, positions=positions)
    assert seen[0]["conditions"].tolist() == [[1], [-1], [-1]]
    assert seen[0]["positions"].tolist() == positions.tolist()


def test_cells_of_a_set_come_together_wherever_they_lie(rng, monkeypatch):
    monkeypatch.setattr(query_cells, "BLOCK_CELLS", 25)
    counts = csr_matrix(rng.poisson(0.5, size=(100, 30)).astype(np.int32))
    before = csr_matrix(rng.poisson(70_000, size=(100, 30)).astype(np.int32))
    sizes, measures = rng.random((2, 100)), rng.random((len(Measures._fields), 100))

    def blocks():
        for rows in np.split(np.arange(100), range(16, 100, 16)):
            profiles = [(counts[rows], sizes[0, rows]), (before[rows], sizes[1, rows])]
            yield Block(rows, profiles, Measures(*measures[:, rows]))

    sets = np.split(rng.permutation(100), [3, 10, 40, 60, 75])
    found = list(in_whole_sets(blocks(), sets))
    assert [len(block.rows) for block in found] == [10, 30, 20, 15, 25]
    whole = [tuple(block.rows[of_set]) for block in found for of_set in block.sets]
    assert whole == [tuple(of_set) for of_set in sets]
    for block in found:
        for (matrix, size), expected, n in zip(
            block.profiles, (counts, before), sizes, strict=True
        ):
            assert (matrix != expected[block.rows]).nnz == 0
            np.testing.assert_array_equal(size, n[block.rows])
        np.testing.assert_array_equal(np.stack(block.measures), measures[:, block.rows])
    assert sorted(flat([block.rows for block in found])) == list(range(100))


def test_members_that_look_at_different_sets_cannot_be_given_both(tmp_path):
    def asked(cell_sets, sets):
        run = SimpleNamespace(path=tmp_path / "together" / "members" / "1_net")
        return SimpleNamespace(model=SimpleNamespace(cell_sets=cell_sets, run=run), sets=sets)

    alone, sets = asked(None, None), [np.arange(3)]
    fields, large = CellSets("field", 12), CellSets("field", 100)
    assert sets_of([alone, alone]) is None
    assert sets_of([alone, asked(fields, sets), asked(fields, sets)]) is sets
    with pytest.raises(AnnotationError, match=r"together: .* look at different sets of cells"):
        sets_of([asked(fields, sets), alone, asked(large, sets)])
