"""SingleR: rank correlation with the training cells over marker genes of each pair of types.

References
----------
Aran et al. 2019, Reference-based analysis of lung single-cell sequencing reveals a transitional
profibrotic macrophage, Nature Immunology 20; markers by rank tests, as chapter "Using single-cell
references" of the SingleR book does where the reference is of single cells.
"""

import json
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import softmax

from evaluation.calibration import fit_temperature
from models.baselines.base import LabeledCells, all_classes
from models.baselines.features import log_normalize
from models.comparators.base import ComparatorConfig, package

UNIT = 0.05  # of a correlation: types closer to the best than this are looked at again
FIRST = 1e-6  # by so much the type that is named is above the others


class SingleRConfig(ComparatorConfig):
    """By default: ten markers of each type against each other one, and fine-tuning."""

    packages: ClassVar[tuple[str, ...]] = ("singler", "scranpy")
    modules: ClassVar[tuple[str, ...]] = ("singler", "scranpy")
    kind: Literal["singler"] = "singler"

    def fit(self, train: LabeledCells, val: LabeledCells, n_classes: int, seed: int) -> "SingleR":
        """Find markers on train; val says how far its scores are to be believed.

        SingleR has scores, not probabilities: they are the softmax of its scores divided by one
        temperature, fitted on val, as of the linear SVM. The type that is named is SingleR's own.
        """
        singler = package("singler")
        expression = log_normalize(train.counts, train.library_size)
        found = singler.train_single(
            expression.T.tocsr().astype(np.float64),
            [str(label) for label in train.labels],
            [str(gene) for gene in range(expression.shape[1])],
            marker_method="auc",
        ).markers
        markers = {a: {b: list(found[a][b]) for b in found[a]} for a in found}
        used = {int(gene) for of in markers.values() for each in of.values() for gene in each}
        genes = np.array(sorted(used))
        reference = expression[:, genes]
        fitted = SingleR(
            values=reference.data,
            indices=reference.indices,
            indptr=reference.indptr,
            genes=genes,
            labels=train.labels,
            markers=np.frombuffer(json.dumps(markers).encode(), dtype=np.uint8),
            temperature=np.array(1.0),
            n_classes=np.array(n_classes),
        )
        probabilities = fitted.predict_proba(val.counts, val.library_size)
        temperature = fit_temperature(val.labels, probabilities)
        return replace(fitted, temperature=np.array(temperature))

    def from_arrays(self, arrays: dict[str, np.ndarray]) -> "SingleR":
        """Rebuild the fitted model that ``to_arrays`` wrote down."""
        return SingleR(**arrays)


@dataclass(frozen=True)
class SingleR:
    """The train cells' log expression of the marker genes, CSR ``(n_cells, n_genes)``."""

    values: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    genes: np.ndarray
    labels: np.ndarray
    markers: np.ndarray  # JSON: of a class, above another one, these genes
    temperature: np.ndarray  # one number
    n_classes: np.ndarray  # one number

    @cached_property
    def _built(self) -> Any:
        """SingleR's own index, made of the stored markers."""
        shape = len(self.labels), len(self.genes)
        reference = csr_matrix((self.values, self.indices, self.indptr), shape=shape)
        return package("singler").train_single(
            reference.T.tocsr().astype(np.float64),
            [str(label) for label in self.labels],
            [str(gene) for gene in self.genes],
            markers=json.loads(self.markers.tobytes()),
        )

    def predict_proba(self, counts: csr_matrix, library_size: np.ndarray) -> np.ndarray:
        """Return class probabilities, ``(n_cells, n_classes)``, of raw counts."""
        built = self._built
        cells = counts[:, self.genes].T.toarray().astype(np.float64)  # it looks at ranks only
        found = package("singler").classify_single(cells, built)
        scores = np.column_stack([found["scores"][name] for name in built.labels])
        scores = np.nan_to_num(scores)  # a cell without counts correlates with nothing
        named = [built.labels.index(name) for name in found["best"]]
        # Fine-tuning may prefer a type whose score is a little lower.
        scores[np.arange(len(scores)), named] = scores.max(axis=1) + FIRST
        probabilities = softmax(scores / (UNIT * self.temperature.item()), axis=1)
        return all_classes(probabilities, np.array(built.labels, dtype=int), self.n_classes.item())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return what ``from_arrays`` needs."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
