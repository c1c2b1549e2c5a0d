"""The classification head: a small MLP on the ``<cls>`` embedding, trained with the encoder."""

from torch import Tensor, nn


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
    """

    def __init__(self, d_model: int, d_hidden: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d_model, d_hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(d_hidden, n_classes),
        )

    def forward(self, cell_embedding: Tensor) -> Tensor:
        """Map cell embeddings ``(b, d)`` to logits ``(b, c)``."""
        return self.layers(cell_embedding)
