"""Values from the cell embedding: what the cell as a whole says of each hidden gene.

Gene expression prediction for cell modelling, GEPC (or MVC), of scGPT (Cui et al. 2024, Methods):
a query made of the gene's embedding, ``q = sigmoid(W1 e)``, and the prediction ``(W2 q) . h`` with
the cell embedding ``h``. Only what is in ``h`` can be predicted, so that it has to know the genes
that were hidden. The same values are hidden as in ``masked_value``. Deliberate differences: the
product is divided by the root of the width, so that it starts as small in a wide network; a query
is made of the gene's embedding as it is, there of its layer norm.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.network import Encoded, Network
from models.objectives.base import original_of
from models.objectives.hidden_values import Hidden, HiddenValues, hidden_of
from models.value_embedding import value_scale


class CellValueConfig(HiddenValues):
    """Predict hidden values from the cell embedding; needs no labels."""

    kind: Literal["cell_value"] = "cell_value"

    def head(self, network: Network, dropout: float, facts: DataFacts) -> "GeneQuery":
        """Return the map from gene embeddings to queries."""
        return GeneQuery(network, value_scale(facts))

    def predict_values(
        self, encoded: Encoded, head: nn.Module, batch: Batch
    ) -> tuple[Tensor, Hidden]:
        """Return what the cell embedding says of the hidden genes."""
        assert isinstance(head, GeneQuery)
        hidden = hidden_of(batch, head.scale)
        token_ids = original_of(batch)["token_ids"][hidden.token]
        return head(token_ids, encoded.cell_embedding[hidden.cell]), hidden


class GeneQuery(nn.Module):
    """The value of a gene in a cell: the product of its query with the cell embedding.

    ``scale`` is the largest value, which predictions are in units of.
    """

    def __init__(self, network: Network, scale: float) -> None:
        super().__init__()
        d = network.d_model
        self.scale = scale
        self.to_query = nn.Linear(network.token_embedding.shape[1], d)
        self.to_cell = nn.Linear(d, d, bias=False)
        # Within a tuple it is not registered a second time: the weights belong to the network.
        self.tied = (network,)

    def forward(self, token_ids: Tensor, cell_embedding: Tensor) -> Tensor:
        """Map genes ``(m,)`` and the embeddings of their cells ``(m, d)`` to values ``(m,)``."""
        (network,) = self.tied
        query = torch.sigmoid(self.to_query(network.token_embedding[token_ids]))  # (m, d)
        product = self.to_cell(query) * cell_embedding
        return product.float().sum(dim=1) / cell_embedding.shape[1] ** 0.5
