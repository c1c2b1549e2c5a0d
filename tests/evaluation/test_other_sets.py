from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dataset.batches import EncodedCells
from dataset.store.encoded_folder import EncodedFolder
from dataset.vocabulary import CLS
from evaluation.annotated_file import AnnotationError
from evaluation.other_sets import main, predict_in_other_sets
from evaluation.trained_model import TrainedModel
from models.network import CellSets

ROWS = np.full((24, 1), CLS)
CELLS = EncodedCells(
    arrays={"token_ids": ROWS, "counts": np.zeros_like(ROWS)},
    lengths=np.ones(24, dtype=np.int32),
    library_size=np.ones((24, 1), dtype=np.float32),
    labels=np.zeros(24, dtype=np.int64),
    conditions=np.arange(24)[:, None] % 3,  # three samples of eight
)


class OneInSetSize(nn.Module):
    """The first class has one over the number of cells in the set, and the second the rest."""

    objectives = ()
    config = SimpleNamespace(cell_sets=CellSets("field", 4))
    facts = SimpleNamespace(conditions={"field": ["a", "b", "c"]})

    def forward(self, batch, predict):
        sizes = batch["sets"].diff()
        for of_set in batch["conditions"].split(sizes.tolist()):
            assert len(of_set.unique()) == 1
        first = (1 / sizes).repeat_interleave(sizes)
        return {"probabilities": torch.stack([first, 1 - first], dim=1)}


def model(**more):
    run = SimpleNamespace(is_network=True, path="runs/one")
    given = {"run": run, "learner": OneInSetSize(), "temperature": 1.0, "device": "cpu"}
    return SimpleNamespace(**(given | more))


def test_labels_and_probabilities_move_with_the_size_of_the_sets():
    found = predict_in_other_sets(model(), CELLS, sizes=(1, 2, 8), n_draws=2)
    assert found["cells_per_set"].tolist() == [1, 2, 4, 8]
    assert found["label_changed"].tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(found["probability_moved"], [0.75, 0.25, 0, 0.125], atol=1e-6)
    assert found["label_changed_most"].tolist() == [1, 1, 0, 0]


class Index(OneInSetSize):
    """Of the first class is who stands beside the cell 0."""

    def forward(self, batch, predict):
        with_zero = [(of_set == 0).any() for of_set in
                     batch["cell_index"].split(batch["sets"].diff().tolist())]  # fmt: skip
        first = torch.stack(with_zero).float().repeat_interleave(batch["sets"].diff())
        return {"probabilities": torch.stack([first, 1 - first], dim=1)}


def test_every_draw_has_other_cells():
    found = predict_in_other_sets(model(learner=Index()), CELLS, sizes=(4,), n_draws=30)
    # Of the 3 cells that stand beside cell 0, 3 * 3 / 7 stay: 12 / 7 go, and as many come.
    assert found["label_changed"].item() == pytest.approx(24 / 7 / 24, abs=0.03)
    assert found["label_changed_most"].item() > found["label_changed"].item()
    again = predict_in_other_sets(model(learner=Index()), CELLS, sizes=(4,), n_draws=30)
    assert found.equals(again)


def test_a_model_without_sets_is_refused():
    alone = model(run=SimpleNamespace(is_network=False, path="runs/knn"))
    with pytest.raises(AnnotationError, match="runs/knn: looks at each cell by itself"):
        predict_in_other_sets(alone, CELLS)


def test_one_call_prints_a_table_of_the_val_cells(
    planted_values, make_run, encoded_folder, tmp_path, capsys
):
    small = ["model.d_model=16", "model.sample_key=donor", "optim.max_epochs=1"]
    run = make_run("planted_sets", "cellplm_baron_human", *small, data=planted_values)
    words = [str(run), "--sizes", "1", "5", "--n-draws", "1", "--device", "cpu"]
    capsys.readouterr()
    assert main([*words, "--output", str(tmp_path / "moved.csv")]) == 0
    assert "probability_moved" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "moved.csv")
    assert found["cells_per_set"][:2].tolist() == [1, 5]
    model = TrainedModel(run, device="cpu")
    cells = EncodedFolder(planted_values).split("val")
    expected = predict_in_other_sets(model, cells, sizes=(1, 5), n_draws=1)
    pd.testing.assert_frame_equal(found, expected)
    assert found["probability_moved"][0] > 0
    assert main([*words, "--data", str(encoded_folder)]) == 2
    said = capsys.readouterr().err
    assert "(another data_sha256, split_sha256, tokenizer); name that one with --data" in said
