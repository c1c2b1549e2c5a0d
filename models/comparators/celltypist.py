"""CellTypist: one-against-rest logistic regression on its own choice of genes.

References
----------
Dominguez Conde et al. 2022, Cross-tissue immune cell analysis reveals tissue-specific features in
humans, Science 376; a model is trained as in its tutorial "Using CellTypist for cell type
classification" (``feature_selection=True``, all else by default). Majority voting among clusters
of the query is left out: a cell's answer would depend on other cells.
"""

from dataclasses import dataclass
from inspect import signature
from typing import ClassVar, Literal

import numpy as np
import sklearn
from scipy.sparse import csr_matrix
from scipy.special import log_expit, softmax
from sklearn.linear_model import LogisticRegression

from configs.base import ConfigError
from models.baselines.base import LabeledCells, all_classes
from models.baselines.features import log_normalize
from models.comparators.base import ComparatorConfig, package

TOP_GENES = 300  # of each class, its own default; it wants more than these
LARGEST = 10  # standardized expression is cut there


class CellTypistConfig(ComparatorConfig):
    """As its tutorial trains a model: nothing is tuned."""

    packages: ClassVar[tuple[str, ...]] = ("celltypist",)
    modules: ClassVar[tuple[str, ...]] = ("celltypist",)
    kind: Literal["celltypist"] = "celltypist"

    def fit(
        self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int
    ) -> "CellTypist":
        """Fit on the train cells; val is not looked at, the seed orders the first pass."""
        celltypist = package("celltypist")
        if "multi_class" not in signature(LogisticRegression).parameters:
            raise ConfigError(
                f"model: CellTypist cannot be trained beside scikit-learn {sklearn.__version__} "
                "(newest that it can: 1.7); pip install -r models/comparators/requirements.txt"
            )
        expression = log_normalize(train.counts, train.library_size)
        model = celltypist.train(
            expression,
            labels=train.labels,
            genes=np.arange(expression.shape[1]),
            check_expression=False,  # it may be of some of the genes that were counted
            feature_selection=np.count_nonzero(expression.getnnz(axis=0)) > TOP_GENES,
            random_state=seed,
        )
        classifier, scaler = model.classifier, model.scaler
        coefficients, intercept = classifier.coef_, classifier.intercept_
        if len(classifier.classes_) == 2:  # one regression, the second class against the first
            coefficients = np.concatenate([-coefficients, coefficients])
            intercept = np.concatenate([-intercept, intercept])
        return CellTypist(
            genes=np.asarray(classifier.features, dtype=np.int64),
            mean=scaler.mean_,
            scale=scaler.scale_,
            coefficients=coefficients.T,
            intercept=intercept,
            classes=np.asarray(classifier.classes_, dtype=np.int64),
            n_classes=np.array(n_classes),
        )

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> "CellTypist":
        """Rebuild the fitted model; the package is not needed for that."""
        return CellTypist(**arrays)


@dataclass(frozen=True)
class CellTypist:
    """One logistic regression for each of the ``classes`` that have training cells."""

    genes: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray  # (n_genes, n_present)
    intercept: np.ndarray
    classes: np.ndarray
    n_classes: np.ndarray  # one number

    def predict_proba(self, counts: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return class probabilities, ``(n_cells, n_classes)``, of raw counts.

        CellTypist's own are one for each class by itself; here they are divided by their sum,
        which leaves their order as it is.
        """
        values = log_normalize(counts, library_size)[:, self.genes].toarray()
        values = np.minimum((values - self.mean) / self.scale, LARGEST)
        scores = values @ self.coefficients + self.intercept
        of_present = softmax(log_expit(scores), axis=1)
        return all_classes(of_present, self.classes, self.n_classes.item())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``from_arrays`` needs."""
        return vars(self)
