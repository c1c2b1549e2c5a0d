"""LightGBM: gradient-boosted trees on the most variable genes.

References
----------
Ke et al. 2017, LightGBM: a highly efficient gradient boosting decision tree, NeurIPS; trees by
default, as many rounds as early stopping on val keeps, as in its Python quick start.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from models.baselines.base import LabeledCells, all_classes
from models.baselines.features import highly_variable, log_normalize
from models.comparators.base import ComparatorConfig, package

MAX_ROUNDS, PATIENCE = 1000, 20


class LightGBMConfig(ComparatorConfig):
    """Its own default trees; their number is tuned on val by log-loss."""

    packages: ClassVar[tuple[str, ...]] = ("lightgbm",)
    modules: ClassVar[tuple[str, ...]] = ("lightgbm",)
    kind: Literal["lightgbm"] = "lightgbm"
    n_top_genes: int = Field(default=2000, ge=1, description="highly variable genes in train")

    def fit(self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int) -> "LightGBM":
        """Add rounds while val gains; val cells of a class without train cells are left out."""
        lightgbm = package("lightgbm")
        expression = log_normalize(train.counts, train.library_size)
        genes = highly_variable(expression, self.n_top_genes)
        classes, own = np.unique(train.labels, return_inverse=True)
        known = np.isin(val.labels, classes)
        val_values = log_normalize(val.counts, val.library_size)[known][:, genes]
        cells = lightgbm.Dataset(expression[:, genes], own)
        booster = lightgbm.train(
            {
                "objective": "multiclass",
                "num_class": len(classes),
                "seed": seed,
                "deterministic": True,
                "force_row_wise": True,  # else timing decides which, and with it the last digits
                "verbosity": -1,
            },
            cells,
            num_boost_round=MAX_ROUNDS,
            valid_sets=[
                cells.create_valid(val_values, np.searchsorted(classes, val.labels[known]))
            ],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        text = booster.model_to_string(num_iteration=booster.best_iteration)
        return LightGBM(
            text=np.frombuffer(text.encode(), dtype=np.uint8),
            genes=genes,
            classes=classes,
            n_classes=np.array(n_classes),
        )

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> "LightGBM":
        """Rebuild the fitted model that ``to_arrays`` wrote down."""
        return LightGBM(**arrays)


@dataclass(frozen=True)
class LightGBM:
    """Trees over ``genes``, for the ``classes`` that have training cells."""

    text: np.ndarray  # bytes, in the package's own format
    genes: np.ndarray
    classes: np.ndarray
    n_classes: np.ndarray  # one number

    @cached_property
    def _booster(self) -> Any:
        return package("lightgbm").Booster(model_str=self.text.tobytes().decode())

    def predict_proba(self, counts: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return class probabilities, ``(n_cells, n_classes)``, of raw counts."""
        found = self._booster.predict(log_normalize(counts, library_size)[:, self.genes])
        return all_classes(found, self.classes, self.n_classes.item())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``from_arrays`` needs."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
