"""The bank: the train cells, embedded anew, that objectives look up (``Objective.remember``)."""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dataset.store.encoded_folder import EncodedSplit
from models.learner import Learner
from models.objectives.base import Bank
from training.config import TrainConfig
from training.distributed import Ranks
from training.predict import embed


def remember(
    learner: Learner, train: EncodedSplit, config: TrainConfig, ranks: Ranks
) -> Bank | None:
    """Give the objectives the train cells as the learner's present weights embed them.

    All processes call it, and each embeds its shard. The bank follows from weights and config: no
    checkpoint holds it. It is rounded to float16, as it is stored with the run, before it is used.

    Each objective is given as many as it asks for: those that it would be given by itself.

    Returns
    -------
    The bank to be stored, the same on all processes: of the objective that predicts by it, if one
    does. None where no objective looks up cells.
    """
    if not learner.bank_size:
        return None
    labels = np.asarray(train.labels)

    def draw(n: int) -> NDArray[np.int64]:  # among those of any larger n
        return draw_by_class(labels, n, np.random.default_rng(config.seed))

    rows = draw(learner.bank_size)
    embeddings = torch.from_numpy(embed(learner, train, rows, config, ranks))
    unit = torch.nn.functional.normalize(embeddings, dim=1).half()
    largest = Bank(unit, torch.from_numpy(labels[rows]), torch.from_numpy(rows))
    looking_up = [o for o in learner.objectives if o.bank_size]
    for objective in sorted(looking_up, key=lambda o: o.is_scored):
        is_drawn = torch.from_numpy(np.isin(rows, draw(objective.bank_size)))
        bank = Bank(*(array[is_drawn].to(ranks.device) for array in largest))
        learner.remember(bank, [objective.kind])
    return bank


def draw_by_class(
    labels: NDArray[np.int64], n: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw at most ``n`` labeled cells: all of a rare class, of the others the same number.

    Where no cell is labeled, all are of one class.

    Returns
    -------
    Rows of the cells, ascending.
    """
    is_labeled = labels >= 0
    order = rng.permutation(np.flatnonzero(is_labeled | ~is_labeled.any()))
    nth_of_class = pd.Series(order).groupby(labels[order]).cumcount()
    return np.sort(order[np.argsort(nth_of_class, kind="stable")[:n]])
