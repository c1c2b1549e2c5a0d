"""How much the answer of a network that looks across cells moves when the sets change.

Its prediction for a cell depends on the cells that it sees beside it, and which they are is
chance: the same cells are predicted again in other sets of their samples, drawn anew, and in
larger and smaller ones, down to each cell by itself.

    python -m evaluation.other_sets runs/my_run

Reads the val cells that the run was chosen on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from configs.user_error import UserError
from dataset.store.encoded_folder import EncodedSplit
from evaluation.annotated_file import AnnotationError
from evaluation.calibration import apply_temperature
from evaluation.command_line import command_line
from evaluation.trained_model import DEVICES, TrainedModel
from evaluation.trained_on import trained_on
from training.distributed import Ranks
from training.predict import predict_cells
from training.updates import Samples, samples_of

SIZES = (1, 16, 64, 256)


def predict_in_other_sets(
    model: TrainedModel,
    cells: EncodedSplit,
    *,
    sizes: Sequence[int] = SIZES,
    n_draws: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict cells in other sets than the run does.

    Parameters
    ----------
    model
        A network that looks at sets of cells.
    cells
        Of the folder that it was trained on, such as ``trained_on(run).split("val")``.
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


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and print the table."""
    parser = command_line("evaluation.other_sets", __doc__)
    parser.add_argument("--data", help="its encoded folder, where that has moved")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="most cells of a set")
    parser.add_argument("--n-draws", type=int, default=3, help="of sets of each size")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--output", type=Path, help=".csv to write the table to")
    given = parser.parse_args(arguments)
    if min(*given.sizes, given.n_draws) < 1:
        parser.error("--sizes and --n-draws take numbers of at least 1")
    try:
        model = TrainedModel(given.run, device=given.device)
        table = predict_in_other_sets(
            model,
            trained_on(model.run, given.data).split("val"),
            sizes=given.sizes,
            n_draws=given.n_draws,
            seed=given.seed,
        )
        if given.output is not None:
            table.to_csv(given.output, index=False)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table.to_string(index=False, float_format="{:.4f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
