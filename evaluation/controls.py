"""Open Problems' controls: what chance, and knowing the answer, score on the same test cells.

References
----------
Luecken et al. 2025, Defining and benchmarking open problems in single-cell analysis, Nature
Biotechnology: the controls of its task "label projection", and its scaled scores, which are
(score - lowest control) / (highest control - lowest control). Its macro-F1 is also over classes
that are only predicted, ours over those that have test cells.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from evaluation.compare import Comparison

OPEN_PROBLEMS = ("accuracy", "macro_f1", "weighted_f1")  # of that task
# Of the class that is named: the controls have no other probabilities.
SCORES = (*OPEN_PROBLEMS, "balanced_accuracy", "macro_f1_common")


def control_labels(
    labels: np.ndarray, train_class_sizes: ArrayLike, seed: int
) -> dict[str, np.ndarray]:
    """Return the class that each control names for every test cell, ``(n_cells,)``.

    Parameters
    ----------
    labels
        The true ones.
    train_class_sizes
        Train cells of every class: random labels are drawn with these shares.
    seed
        Of that draw.
    """
    sizes = np.asarray(train_class_sizes)
    drawn = np.random.default_rng(seed).choice(len(sizes), len(labels), p=sizes / sizes.sum())
    commonest = np.full(len(labels), sizes.argmax())
    return {"true labels": labels, "random labels": drawn, "majority labels": commonest}


def with_controls(comparison: Comparison) -> pd.DataFrame:
    """Return the models' scores with one more row for each control, and scaled scores.

    ``<score>_above_controls`` is 0 for the lowest control and 1 for the true labels, negative
    below; ``above_controls`` is the mean of them.
    """
    of_runs = [
        pd.Series(run.metrics["train_class_sizes"], run.class_names)
        for run in comparison.models[0].runs
    ]
    sizes = pd.concat(of_runs).groupby(level=0).sum().reindex(comparison.class_names, fill_value=0)
    eye = np.eye(len(comparison.class_names))
    controls = pd.DataFrame(
        [
            {"dataset": comparison.dataset, "model": name}
            | {key: comparison.metrics[key](comparison.labels, eye[named]) for key in SCORES}
            for name, named in control_labels(comparison.labels, sizes, comparison.seed).items()
        ]
    )
    scores = pd.concat([comparison.scores, controls], ignore_index=True)
    for key in OPEN_PROBLEMS:
        low, high = controls[key].min(), controls[key].max()
        scores[f"{key}_above_controls"] = (scores[key] - low) / ((high - low) or 1)
    return scores.assign(
        above_controls=scores[[f"{key}_above_controls" for key in OPEN_PROBLEMS]].mean(axis=1)
    )
