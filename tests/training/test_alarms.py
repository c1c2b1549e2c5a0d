import numpy as np
import pytest

from configs.base import ConfigError
from training.alarms import TrainingError, check_batch_sizes, check_finite
from training.config import OptimConfig


def test_batches_must_hold_a_cell_and_serve_every_process():
    check_batch_sizes(OptimConfig(batch_size=2, tokens_per_batch=97), 97, 2)
    check_batch_sizes(OptimConfig(batch_size=1), 4096, 1)
    with pytest.raises(ConfigError, match="found 96, and a cell of this folder may have 97"):
        check_batch_sizes(OptimConfig(tokens_per_batch=96), 97, 1)
    with pytest.raises(ConfigError, match="found 3 cells for 4 processes"):
        check_batch_sizes(OptimConfig(batch_size=3), 97, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_overflowed_is_stopped(value):
    probabilities = np.full((3, 2), 0.5)
    check_finite("the answers", probabilities)
    probabilities[1, 1] = value
    with pytest.raises(TrainingError, match="epoch 5: the answers are NaN .* lower optim.lr"):
        check_finite("epoch 5: the answers", np.ones(2), probabilities)
