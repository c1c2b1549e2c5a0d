"""Class shares among train cells, against numpy; through a whole run in tests/test_bank.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.base import ConfigError
from dataset.vocabulary import CLS, N_SPECIALS
from models.network import Encoded
from models.objectives.base import Bank
from models.objectives.classify import ClassifyConfig
from models.objectives.neighbors import FLOOR, NeighborsConfig
from models.rank_transformer import RankTransformerConfig
from tests.made_up import N_GENES, facts, learner, ragged

N_CLASSES, D = 4, 6
BANK_ROWS = np.array([3, 5, 8, 13, 21, 34, 55, 89, 144, 233])  # cells of train that it holds
BANK_LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 0, 1])  # no cell of the last class


@pytest.fixture
def embeddings(rng) -> np.ndarray:
    return rng.normal(size=(len(BANK_ROWS), D)).astype(np.float16)


@pytest.fixture
def bank(embeddings) -> Bank:
    labels, rows = torch.from_numpy(BANK_LABELS), torch.from_numpy(BANK_ROWS)
    return Bank(torch.from_numpy(embeddings), labels, rows)


@pytest.fixture
def cells(rng, embeddings) -> tuple[Encoded, dict]:
    """Seven cells; the second and the fourth are in the bank, and the last has no label."""
    states = rng.normal(size=(7, D))
    states[[1, 3]] = embeddings[[3, 8]] + 0.1 * states[[1, 3]]
    return Encoded(torch.tensor(states, dtype=torch.float32, requires_grad=True)), {
        "labels": torch.tensor([0, 1, 2, 0, 1, 3, -1]),
        "cell_index": torch.tensor([1, 13, 2, 144, 4, 6, 7]),
    }


def head_of(objective: NeighborsConfig, bank: Bank | None = None, **more):
    head = objective.head(SimpleNamespace(d_model=D), 0.0, facts(n_classes=N_CLASSES, **more))
    if bank is not None:
        objective.remember(head, bank)
    return head


def shares_by_numpy(x, embeddings, temperature, leave_out=None) -> np.ndarray:
    """Class shares, ``(b, c)``, one cell and one neighbor at a time."""
    shares = np.zeros((len(x), N_CLASSES))
    for i, cell in enumerate(np.asarray(x, dtype=np.float64)):
        total = 0.0
        for row, label, other in zip(BANK_ROWS, BANK_LABELS, embeddings, strict=True):
            if leave_out is not None and leave_out[i] == row:
                continue
            other = other.astype(np.float64)
            cosine = cell @ other / np.linalg.norm(cell) / np.linalg.norm(other)
            weight = np.exp(cosine / temperature)
            shares[i, label] += weight
            total += weight
        shares[i] /= total
    return (shares + FLOOR) / (1 + N_CLASSES * FLOOR)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_losses_are_those_of_numpy_and_leave_the_cell_itself_out(
    cells, bank, embeddings, temperature
):
    encoded, batch = cells
    objective = NeighborsConfig(temperature=temperature)
    losses = objective.loss(encoded, head_of(objective, bank), batch)
    assert losses.shape == (7,)
    x, labels = encoded.cell_embedding.detach().numpy(), batch["labels"].numpy()
    shares = shares_by_numpy(x, embeddings, temperature, batch["cell_index"].numpy())
    expected = -np.log(shares[np.arange(7), labels])
    expected[labels < 0] = 0
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-4)
    with_itself = -np.log(shares_by_numpy(x, embeddings, temperature)[np.arange(7), labels])
    differs = np.abs(with_itself - expected)[labels >= 0] > 1e-3
    assert differs.tolist() == [False, True, False, True, False, False]


def test_predictions_are_those_of_numpy_and_leave_no_cell_out(cells, bank, embeddings):
    encoded, batch = cells
    objective = NeighborsConfig()
    found = objective.predict(encoded, head_of(objective, bank), batch)
    x = encoded.cell_embedding.detach().numpy()
    shares = found["probabilities"].detach().numpy()
    np.testing.assert_allclose(shares, shares_by_numpy(x, embeddings, 0.1), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert (shares[:, 3] > 0).all()  # though the bank has no cell of it


def test_the_loss_of_a_cell_that_is_alone_in_its_class_is_finite(cells, bank):
    encoded, _ = cells
    objective = NeighborsConfig(temperature=0.01)
    head = head_of(objective, Bank(*(array[:4] for array in bank)))  # one cell of class 1
    batch = {"labels": torch.full((7,), 1), "cell_index": torch.full((7,), 13)}
    losses = objective.loss(encoded, head, batch)
    np.testing.assert_allclose(losses.detach(), -np.log(FLOOR), rtol=1e-4)
    losses.sum().backward()
    assert torch.isfinite(encoded.cell_embedding.grad).all()


def test_gradients_flow_through_the_cell_and_the_head_has_no_weights(cells, bank):
    encoded, batch = cells
    objective = NeighborsConfig()
    head = head_of(objective, bank)
    assert list(head.parameters()) == []
    assert head.state_dict() == {}  # no checkpoint holds the bank
    objective.loss(encoded, head, batch).sum().backward()
    gradient = encoded.cell_embedding.grad.norm(dim=1)
    assert (gradient[:5] > 0).all()
    assert gradient[5] < 1e-6  # the bank has no cell of its class
    assert gradient[6] == 0  # no label


def test_everything_is_float32_under_mixed_precision(cells, bank):
    encoded, batch = cells
    objective = NeighborsConfig()
    head = head_of(objective, bank)
    expected = objective.loss(encoded, head, batch)
    half = Encoded(encoded.cell_embedding.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective.loss(encoded, head, batch)
        assert objective.loss(half, head, batch).dtype == torch.float32
        found = objective.predict(half, head, batch)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)  # no product in bfloat16
    assert found["probabilities"].dtype == torch.float32


def test_cells_without_classes_have_no_neighbors_of_a_class():
    with pytest.raises(ConfigError, match="neighbors needs labels"):
        NeighborsConfig().head(SimpleNamespace(d_model=D), 0.0, facts(n_classes=0))


# ------------------------------------------------------------------------ in a learner

CONFIG = RankTransformerConfig(
    d_model=16, n_heads=2, n_layers=1, dropout=0.0, gene_init="random", cls_init="learned"
)
SIZES = {"n_vocabulary": N_GENES + N_SPECIALS, "row_length": 13, "n_classes": N_CLASSES}


def bank_of(model, batch) -> Bank:
    with torch.no_grad():
        embeddings = model.eval()(batch, predict=())["embeddings"]
    return Bank(embeddings.half(), batch["labels"], batch["cell_index"])


def test_several_objectives_predict_the_mean_of_their_probabilities(batch):
    model = learner(CONFIG, [ClassifyConfig(), NeighborsConfig()], **SIZES)
    assert model.bank_size == 20_000
    model.remember(bank_of(model, batch))
    by_head, by_neighbors, both = (
        model(batch, predict=kinds)
        for kinds in (["classify"], ["neighbors"], ["classify", "neighbors"])
    )
    expected = (by_head["probabilities"] + by_neighbors["probabilities"]) / 2
    torch.testing.assert_close(both["probabilities"], expected)
    assert not torch.allclose(by_head["probabilities"], by_neighbors["probabilities"], atol=0.01)
    assert torch.equal(by_head["embeddings"], both["embeddings"])
    assert learner(CONFIG, **SIZES).bank_size == 0


def test_types_that_two_genes_tell_only_together_are_learned(rng):
    """A cell's type is whether the first two genes are both or neither there (exclusive or)."""
    torch.manual_seed(0)
    is_there = rng.integers(0, 2, (300, 2)).astype(bool)
    token_ids, counts = np.zeros((300, 13), dtype=np.int64), np.zeros((300, 13), dtype=np.int64)
    for cell, (first, second) in enumerate(is_there):
        genes = np.sort(rng.permutation(np.arange(2, N_GENES))[:3])
        genes = np.concatenate([np.flatnonzero([first, second]), genes])
        token_ids[cell, : len(genes) + 1] = [CLS, *(N_SPECIALS + genes)]
        counts[cell, 1 : len(genes) + 1] = 3
    rows = {
        "token_ids": torch.from_numpy(token_ids),
        "counts": torch.from_numpy(counts),
        "library_size": torch.full((300, 1), 30.0),
    }
    labels = torch.from_numpy((is_there[:, 0] ^ is_there[:, 1]).astype(np.int64))
    train, val = (
        {**ragged(rows, cells), "labels": labels[list(cells)]}
        for cells in (range(200), range(200, 300))
    )
    model = learner(CONFIG, [NeighborsConfig()], **(SIZES | {"n_classes": 2}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    accuracies = []
    for _ in range(8):
        model.remember(bank_of(model, train))
        with torch.no_grad():
            found = model(val, predict=["neighbors"])["probabilities"].argmax(dim=1)
        accuracies.append((found == val["labels"]).float().mean().item())
        model.train()
        for _ in range(8):
            loss = model(train).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert accuracies[0] < 0.75
    assert accuracies[-1] > 0.95
