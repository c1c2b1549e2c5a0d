from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from configs.base import ConfigError
from models.mlp_classifier import balanced_class_weights
from models.network import Encoded
from models.objectives.classify import ClassifyConfig
from tests.made_up import facts


@pytest.fixture
def cells() -> tuple[Encoded, dict]:
    torch.manual_seed(0)
    return Encoded(torch.randn(6, 4)), {"labels": torch.tensor([0, 1, 2, 2, 1, 0])}


def head_of(objective: ClassifyConfig, **more):
    return objective.head(SimpleNamespace(d_model=4), 0.0, facts(n_classes=3, **more))


def test_loss_is_per_cell_so_that_parts_add_up(cells):
    encoded, batch = cells
    objective = ClassifyConfig(label_smoothing=0.1)
    head = head_of(objective)
    losses = objective.loss(encoded, head, batch)
    assert losses.shape == (6,)
    logits = head(encoded.cell_embedding)
    expected = F.cross_entropy(logits, batch["labels"], label_smoothing=0.1)
    torch.testing.assert_close(losses.mean(), expected)
    first = objective.loss(
        Encoded(encoded.cell_embedding[:2]), head, {"labels": batch["labels"][:2]}
    )
    torch.testing.assert_close(first, losses[:2])


def test_loss_is_float32_under_mixed_precision(cells):
    encoded, batch = cells
    objective = ClassifyConfig()
    head = head_of(objective)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(encoded.cell_embedding).dtype == torch.bfloat16
        assert objective.loss(encoded, head, batch).dtype == torch.float32


def test_class_weights_multiply_the_cells_of_a_class(cells):
    encoded, batch = cells
    sizes = np.array([1, 4, 16])
    objective = ClassifyConfig(class_balanced=True)
    head = head_of(objective, class_sizes=sizes)
    weights = torch.from_numpy(1 / np.sqrt(sizes)).float() * 21 / 7
    plain = ClassifyConfig().loss(encoded, head_with_no_weights(head), batch)
    head.class_weights = balanced_class_weights(sizes)
    weighted = objective.loss(encoded, head, batch)
    torch.testing.assert_close(weighted, plain * weights[batch["labels"]])
    assert "class_weights" not in head.state_dict()


def head_with_no_weights(head):
    head.class_weights = None
    return head


def test_balanced_weights_favour_rare_classes_and_average_one_over_cells():
    sizes = np.array([90, 10, 0])
    weights = balanced_class_weights(sizes).numpy()
    assert weights[1] / weights[0] == pytest.approx(3)  # sqrt(90 / 10)
    assert (weights * sizes).sum() / sizes.sum() == pytest.approx(1)
    assert weights[2] == 0  # no cell to weigh


def test_probabilities_are_a_softmax(cells):
    encoded, batch = cells
    objective = ClassifyConfig()
    head = head_of(objective)
    found = objective.predict(encoded, head, batch)
    expected = head(encoded.cell_embedding).softmax(dim=1)
    torch.testing.assert_close(found["probabilities"], expected)


def test_cells_without_classes_cannot_be_classified():
    with pytest.raises(ConfigError, match="classify needs labels"):
        ClassifyConfig().head(SimpleNamespace(d_model=4), 0.0, facts(n_classes=0))
