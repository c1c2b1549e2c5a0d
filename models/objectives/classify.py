"""Cell types from the cell embedding: an MLP head and its cross-entropy."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.mlp_classifier import MLPClassifier, balanced_class_weights
from models.network import Encoded, Network
from models.objectives.base import Objective, check_classes


class ClassifyConfig(Objective):
    """Predict the type of each cell."""

    kind: Literal["classify"] = "classify"
    d_hidden: int | None = Field(default=None, ge=1, description="of the head; null: d_model")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_balanced: bool = Field(default=False, description="weight classes by 1/sqrt(n)")

    def head(self, network: Network, dropout: float, facts: DataFacts) -> MLPClassifier:
        """Return the MLP and the weights of the classes."""
        check_classes(self.kind, facts)
        d_model = network.d_model
        head = MLPClassifier(d_model, self.d_hidden or d_model, facts.n_classes, dropout)
        if self.class_balanced and facts.class_sizes is not None:
            head.class_weights = balanced_class_weights(facts.class_sizes)
        return head

    def row_names(self, facts: DataFacts) -> dict[str, Sequence[str]]:
        """Return the names of the classes."""
        return dict.fromkeys(("layers.3.weight", "layers.3.bias"), facts.class_names)

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each cell, ``(b,)``."""
        labels = batch["labels"]
        losses = F.cross_entropy(
            head(encoded.cell_embedding).float(),
            labels,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        assert isinstance(head, MLPClassifier)
        return losses if head.class_weights is None else losses * head.class_weights[labels]

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return ``probabilities``, ``(b, c)``."""
        return {"probabilities": head(encoded.cell_embedding).float().softmax(dim=1)}
