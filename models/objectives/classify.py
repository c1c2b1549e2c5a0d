"""Cell types from the cell embedding: an MLP head and its cross-entropy."""

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from configs.base import ConfigError
from dataset.store.data_facts import DataFacts
from evaluation import METRICS
from models.mlp_classifier import MLPClassifier
from models.network import Encoded, Network
from models.objectives.base import Objective

if TYPE_CHECKING:
    from dataset.batches import Batch


class ClassifyConfig(Objective):
    """Name the type of each cell."""

    kind: Literal["classify"] = "classify"
    d_hidden: int | None = Field(default=None, ge=1, description="of the head; null: d_model")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_balanced: bool = Field(default=False, description="weight classes by 1/sqrt(n)")

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "ClassifyHead":
        """Return the MLP and the weights of the classes."""
        if not facts.class_names:
            raise ConfigError(
                "objectives: classify needs labels, and these cells were encoded without any "
                "(label_key: null); say objectives=[{kind: masked_gene}], or encode with labels"
            )
        d_model = network.d_model
        head = ClassifyHead(d_model, self.d_hidden or d_model, facts.n_classes, dropout)
        if self.class_balanced and facts.class_sizes is not None:
            head.class_weights = balanced_class_weights(facts.class_sizes)
        return head

    def loss(self, encoded: Encoded, head: nn.Module, batch: "Batch") -> Tensor:
        """Cross-entropy of each cell, ``(b,)``."""
        labels = batch["labels"]
        losses = F.cross_entropy(
            head(encoded.cell_embedding).float(),
            labels,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        assert isinstance(head, ClassifyHead)
        return losses if head.class_weights is None else losses * head.class_weights[labels]

    def predict(self, encoded: Encoded, head: nn.Module, batch: "Batch") -> dict[str, Tensor]:
        """Return ``probabilities``, ``(b, c)``."""
        return {"probabilities": head(encoded.cell_embedding).float().softmax(dim=1)}

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return every metric of ``evaluation.METRICS``."""
        probabilities = predictions["probabilities"]
        return {name: float(metric(labels, probabilities)) for name, metric in METRICS.items()}


class ClassifyHead(MLPClassifier):
    """The MLP, and beside it what each class weighs in training; None: all the same."""

    class_weights: Tensor | None

    def __init__(self, d_model: int, d_hidden: int, n_classes: int, dropout: float) -> None:
        super().__init__(d_model, d_hidden, n_classes, dropout)
        self.register_buffer("class_weights", None, persistent=False)


def balanced_class_weights(n_cells: np.ndarray) -> Tensor:
    """Weights proportional to 1/sqrt(cells in the class), 1 on average over the cells.

    The full inverse would let a class of ten cells steer every update; the square root is the
    usual middle. A class without cells gets 0: no cell will ever ask for it.

    Parameters
    ----------
    n_cells
        Train cells of each class, ``(c,)``.
    """
    weights = np.divide(1.0, np.sqrt(n_cells), out=np.zeros(len(n_cells)), where=n_cells > 0)
    weights /= (weights * n_cells).sum() / n_cells.sum()
    return torch.from_numpy(weights.astype(np.float32))
