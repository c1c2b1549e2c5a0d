"""How much the answer of a network that looks across cells moves when the sets change.

Its prediction for a cell depends on the cells that it sees beside it, and which they are is
chance: the same cells are predicted again in other sets of their samples, drawn anew, and in
larger and smaller ones, down to each cell by itself.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from dataset.store.encoded_folder import EncodedSplit
from evaluation.annotated_file import AnnotationError
from evaluation.calibration import apply_temperature
from evaluation.trained_model import TrainedModel
from training.distributed import Ranks
from training.predict import predict_cells
from training.updates import Samples, samples_of


def predict_in_other_sets(
    model: TrainedModel,
    cells: EncodedSplit,
    *,
    sizes: Sequence[int] = (1, 16, 64, 256),
    n_draws: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict cells in other sets than the run does.

    Parameters
    ----------
    model
        A network that looks at sets of cells.
    cells
        Of the folder that it was trained on, such as ``EncodedFolder(data).split("val")``.
    sizes
        Most cells of a set; the run's own number of them is always tried too.
    n_draws
        How often the sets of each size are drawn.
    seed
        Of the draws.

    Returns
    -------
    A row for each size: ``label_changed``, the share of the cells that get another name than in
    the run's own sets, and ``probability_moved``, half of the sum of the absolute changes of a
    cell's calibrated probabilities, mean over cells. Both are means over the draws; the largest
    over them stands beside, with ``_most``.

    Raises
    ------
    AnnotationError
        If the model looks at each cell by itself.
    """
    samples = samples_of(model.learner, cells) if model.run.is_network else None
    if samples is None:
        raise AnnotationError(
            f"{model.run.path}: looks at each cell by itself, and its answer depends on no other; "
            "expected a network with sets of cells, such as model.kind=cellplm"
        )
    expected = _probabilities(model, cells, samples.sets())
    rng, rows = np.random.default_rng(seed), []
    for size in sorted({*sizes, samples.max_cells}):
        changes = []
        for _ in range(n_draws):
            sets = Samples(samples.of_cell, size).sets(rng.permutation(len(cells)))
            found = _probabilities(model, cells, sets)
            label_changed = found.argmax(axis=1) != expected.argmax(axis=1)
            moved = 0.5 * np.abs(found - expected).sum(axis=1)
            changes.append((label_changed.mean(), moved.mean()))
        mean, most = np.mean(changes, axis=0), np.max(changes, axis=0)
        rows.append((size, *mean, *most))
    names = ["label_changed", "probability_moved"]
    columns = ["cells_per_set", *names, *(f"{name}_most" for name in names)]
    return pd.DataFrame(rows, columns=columns)


def _probabilities(model: TrainedModel, cells: EncodedSplit, sets: list[np.ndarray]) -> np.ndarray:
    alone = Ranks(rank=0, world_size=1, device=torch.device(model.device))
    found = predict_cells(model.learner, cells, alone, batch_size=512, sets=sets)
    return apply_temperature(found["probabilities"], model.temperature)
