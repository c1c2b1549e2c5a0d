import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.objectives import Output, balanced_class_weights, classify


@pytest.fixture
def output_and_batch() -> tuple[Output, dict]:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    return Output(torch.randn(6, 3), torch.randn(6, 4)), {"labels": labels}


def test_loss_is_per_cell_so_that_parts_add_up(output_and_batch):
    output, batch = output_and_batch
    losses = classify(output, batch, label_smoothing=0.1)
    assert losses.shape == (6,)
    expected = F.cross_entropy(output.logits, batch["labels"], label_smoothing=0.1)
    torch.testing.assert_close(losses.mean(), expected)
    first = classify(
        Output(output.logits[:2], output.cell_embedding[:2]), {"labels": batch["labels"][:2]}
    )
    torch.testing.assert_close(first, classify(output, batch)[:2])


def test_loss_is_float32_under_mixed_precision(output_and_batch):
    output, batch = output_and_batch
    low = Output(output.logits.bfloat16(), output.cell_embedding)
    assert classify(low, batch).dtype == torch.float32


def test_class_weights_multiply_the_cells_of_a_class(output_and_batch):
    output, batch = output_and_batch
    weights = torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(
        classify(output, batch, class_weights=weights),
        classify(output, batch) * torch.tensor([1.0, 2.0, 0.5, 0.5, 2.0, 1.0]),
    )


def test_balanced_weights_favour_rare_classes_and_average_one_over_cells():
    labels = np.array([0] * 90 + [1] * 10)
    weights = balanced_class_weights(labels, n_classes=3).numpy()
    assert weights[1] / weights[0] == pytest.approx(3)  # sqrt(90 / 10)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[2] == 0  # no cell to weigh
