"""Linear support vector machine on log expression, its scores made probabilities."""

import logging
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import csr_matrix

from configs.base import Config
from evaluation.calibration import fit_temperature
from models.baselines.best_on_val import warn_at_edge
from models.baselines.features import EXACT_CELLS, ValCells, log_normalize
from models.baselines.linear import LinearClassifier
from models.baselines.linear_cells import LinearCells
from models.baselines.linear_fit import fit_linear, squared_hinge
from models.baselines.linear_tuning import ClassWeights, GeneScaling, Setting, tune_linear

logger = logging.getLogger(__name__)


class LinearSVMConfig(Config):
    """One class against the rest, squared hinge; chosen on val by macro-F1, ties by log-loss."""

    kind: Literal["linear_svm"] = "linear_svm"
    c_grid: list[float] = Field(
        default=[0.1, 0.3, 1, 3, 10],
        min_length=1,
        description="inverse penalties to try, in scikit-learn's C for cells of mean norm 1",
    )
    class_weights: list[ClassWeights] = Field(
        default=["none", "balanced"],
        min_length=1,
        description="to try: every cell, or every class, weighs the same",
    )
    gene_scaling: list[GeneScaling] = Field(
        default=["standardized", "log_expression"],
        min_length=1,
        description="to try: every gene with a standard deviation of 1, or as it is",
    )
    max_iter: int = Field(default=5000, ge=1, description="L-BFGS iterations for each of them")
    tuning_cells: int = Field(
        default=EXACT_CELLS,
        ge=2,
        description="with more training cells than this, the choice among settings is made with "
        "this many, drawn at random; the chosen one is fitted on all",
    )

    def fit(
        self,
        expression: csr_matrix,
        library_size: np.ndarray,
        labels: np.ndarray,
        n_classes: int,
        val: ValCells,
        seed: int,
    ) -> LinearClassifier:
        """Fit one model per setting on train; keep the one that is best on val.

        A support vector machine has scores, not probabilities: they are the softmax of its
        scores divided by one temperature, fitted on val. The order of the classes, and so the
        prediction, is the machine's own.

        Parameters
        ----------
        expression
            Raw counts of the training cells, ``(n_cells, n_genes)``.
        library_size
            Counts of each over all genes, ``(n_cells,)``.
        labels
            Class ids, ``(n_cells,)``.
        n_classes
            Number of classes, with or without training cells.
        val
            Counts, library sizes and labels of the val cells.
        seed
            Only draws cells where there are more than ``tuning_cells``.
        """
        val_counts, val_library_size, val_labels = val

        def at_its_temperature(scores: LinearClassifier) -> LinearClassifier:
            probabilities = scores.predict_proba(val_counts, val_library_size)
            temperature = fit_temperature(val_labels, probabilities)
            return LinearClassifier(scores.weights / temperature, scores.intercept / temperature)

        chosen, fitted = tune_linear(
            log_normalize(expression, library_size),
            labels,
            n_classes,
            val,
            [
                Setting(scaling, weights, c=c)
                for scaling in self.gene_scaling
                for weights in self.class_weights
                for c in self.c_grid
            ],
            self._fit_setting,
            finish=at_its_temperature,
            tuning_cells=self.tuning_cells,
            seed=seed,
        )
        logger.info("linear SVM: val cells chose %s", chosen)
        assert chosen.c is not None
        warn_at_edge("c_grid", chosen.c, self.c_grid)
        return fitted

    def _fit_setting(
        self,
        setting: Setting,
        cells: LinearCells,
        labels: NDArray[np.int64],
        cell_weights: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        assert setting.c is not None
        return fit_linear(
            cells,
            labels,
            cell_weights,
            squared_hinge,
            c=setting.c,
            penalize_intercept=True,
            max_iter=self.max_iter,
        )

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> LinearClassifier:
        """Rebuild the fitted model that ``to_arrays`` wrote down."""
        return LinearClassifier.from_arrays(arrays)
