"""The classification head: a small MLP on the cell embedding, and the weights of its classes."""

import numpy as np
import torch
from torch import Tensor, nn

from models.dropout import Dropout


class MLPClassifier(nn.Module):
    """Linear, GELU, dropout, linear.

    Parameters
    ----------
    d_model
        Width of the cell embedding.
    d_hidden
        Width of the hidden layer.
    n_classes
        Number of cell types.
    dropout
        Share of the hidden units zeroed in training.

    Attributes
    ----------
    class_weights
        Of the losses of each class in training, ``(c,)``; None: all the same.
    """

    class_weights: Tensor | None

    def __init__(self, d_model: int, d_hidden: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("class_weights", None, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(d_model, d_hidden),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(d_hidden, n_classes),
        )

    def forward(self, cell_embedding: Tensor) -> Tensor:
        """Map cell embeddings ``(b, d)`` to logits ``(b, c)``."""
        return self.layers(cell_embedding)


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
