"""Gradient-boosted trees on the most variable genes."""

import logging
from dataclasses import dataclass, fields
from itertools import islice
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from sklearn.ensemble import HistGradientBoostingClassifier

from evaluation.classification import log_loss
from models.baselines.base import BaselineConfig, LabeledCells, all_classes
from models.baselines.best_on_val import warn_at_edge
from models.baselines.boosted_trees import BoostedTrees
from models.baselines.features import highly_variable, log_normalize

logger = logging.getLogger(__name__)
CHECKED_CELLS = 100  # whose probabilities the stored trees must give again


class GradientBoostingConfig(BaselineConfig):
    """scikit-learn's histogram trees; the number of rounds is tuned on val by log-loss."""

    kind: Literal["gradient_boosting"] = "gradient_boosting"
    n_top_genes: int = Field(default=1000, ge=1, description="highly variable genes in train")
    max_rounds: int = Field(default=1000, ge=1, description="most trees of each class")
    patience: int = Field(
        default=20,
        ge=1,
        description="rounds without a better val log-loss after which to stop, at the least",
    )
    learning_rate: float = Field(default=0.1, gt=0, le=1)
    max_leaf_nodes: int = Field(default=8, ge=2)
    min_samples_leaf: int = Field(default=2, ge=1, description="fewest cells in a leaf")
    l2: float = Field(default=1.0, ge=0, description="penalty on the values of the leaves")
    class_balanced: bool = Field(default=True, description="every class weighs the same")
    max_features: float = Field(
        default=0.2, gt=0, le=1, description="fraction of genes each split"
    )

    def fit(
        self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int
    ) -> "GradientBoosting":
        """Grow rounds on train while val gains; keep as many as are best on val.

        The seed draws the genes that each split may choose from.
        """
        expression = log_normalize(train.counts, train.library_size)
        genes = highly_variable(expression, self.n_top_genes)
        values = expression[:, genes].toarray()
        model = HistGradientBoostingClassifier(
            learning_rate=self.learning_rate,
            max_leaf_nodes=self.max_leaf_nodes,
            min_samples_leaf=self.min_samples_leaf,
            l2_regularization=self.l2,
            max_features=self.max_features,
            class_weight="balanced" if self.class_balanced else None,
            early_stopping=False,
            warm_start=True,
            random_state=seed,
        )
        val_values = log_normalize(val.counts, val.library_size)[:, genes].toarray()
        # By log-loss: macro-F1 jumps with single cells of rare types, and may stop far too early.
        losses: list[float] = []
        n_rounds = 0
        while len(losses) < min(n_rounds + self.patience, self.max_rounds):
            # Twice as many each time: before it continues, scikit-learn predicts with all so far.
            grown = min(max(2 * len(losses), n_rounds + self.patience), self.max_rounds)
            model.set_params(max_iter=grown).fit(values, train.labels)
            losses = [
                log_loss(val.labels, all_classes(staged, model.classes_, n_classes))
                for staged in model.staged_predict_proba(val_values)
            ]
            n_rounds = 1 + int(np.argmin(losses))
        logger.info("gradient boosting: val cells chose %d of %d rounds", n_rounds, len(losses))
        warn_at_edge("max_rounds", n_rounds, [1, self.max_rounds], lowest=1)
        trees = BoostedTrees.of(model, n_rounds)
        some = val_values[:CHECKED_CELLS]
        trees.check(some, next(islice(model.staged_predict_proba(some), n_rounds - 1, None)))
        return GradientBoosting(trees, genes, np.asarray(model.classes_), n_classes)

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> "GradientBoosting":
        """Rebuild the fitted model that ``to_arrays`` wrote down."""
        names = [field.name for field in fields(BoostedTrees)]
        return GradientBoosting(
            trees=BoostedTrees(**{name: arrays[name] for name in names}),
            genes=arrays["genes"],
            classes=arrays["classes"],
            n_classes=arrays["n_classes"].item(),
        )


@dataclass(frozen=True)
class GradientBoosting:
    """Trees over ``genes``, for the ``classes`` that have training cells."""

    trees: BoostedTrees
    genes: np.ndarray
    classes: np.ndarray
    n_classes: int

    def predict_proba(self, counts: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return class probabilities, ``(n_cells, n_classes)``, of raw counts."""
        values = log_normalize(counts, library_size)[:, self.genes].toarray()
        return all_classes(self.trees.predict_proba(values), self.classes, self.n_classes)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``from_arrays`` needs."""
        return {
            **vars(self.trees),
            "genes": self.genes,
            "classes": self.classes,
            "n_classes": np.array([self.n_classes]),
        }
