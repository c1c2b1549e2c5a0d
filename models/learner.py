"""``Learner``: a network and the heads of its objectives, in the one module that is trained.

Several processes wrap it as a whole, so all that needs gradients goes through its ``forward``.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.network import Network, NetworkConfig
from models.objectives.base import Bank, Draw, Objective, streams_of, with_original
from models.transformer import initialize_weights


class Learner(nn.Module):
    """A network and, by the kind of each objective, its head.

    Parameters
    ----------
    config
        Of the network.
    objectives
        At least one, of different kinds.
    facts
        Of the data.
    """

    def __init__(
        self, config: NetworkConfig, objectives: Sequence[Objective], facts: DataFacts
    ) -> None:
        super().__init__()
        config.check_data(facts)
        self.config, self.facts = config, facts
        self.objectives = tuple(objectives)
        self.network: Network = config.build(facts)
        dropout = getattr(config, "dropout", 0.0)
        self.heads = nn.ModuleDict(
            {o.kind: o.head(self.network, dropout, facts) for o in self.objectives}
        )
        initialize_weights(self)
        self.network.initialize()

    @property
    def gene_embeddings(self) -> set[str]:
        """Names of the network's weights whose rows are tokens of the vocabulary."""
        return {f"network.{name}" for name in self.network.by_gene}

    @property
    def bank_size(self) -> int:
        """Most train cells that an objective looks up; 0: none does."""
        return max(objective.bank_size for objective in self.objectives)

    def remember(self, bank: Bank, kinds: Collection[str] | None = None) -> None:
        """Give objectives of these kinds, or all, embeddings of train cells to look up."""
        for o in self.objectives:
            if kinds is None or o.kind in kinds:
                o.remember(self.heads[o.kind], bank)

    def hide(self, batch: Batch, draw: Draw, kinds: Collection[str] | None = None) -> Batch:
        """Return the cells as the network is to see them, by objectives of these kinds, or all."""
        hiding = [o for o in self.objectives if o.hides and (kinds is None or o.kind in kinds)]
        batch = with_original(batch) if hiding else batch
        for i, o in enumerate(hiding):
            batch = o.hide(batch, streams_of(draw, i), self.facts)
        return batch

    def forward(
        self, batch: Batch, *, predict: Collection[str] | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Return the losses of a batch, or the objectives' predictions for its cells.

        Parameters
        ----------
        batch
            ``b`` cells.
        predict
            Kinds of the objectives to predict with; None for losses.

        Returns
        -------
        The loss of each cell by each objective, ``(b, objectives)``, not yet weighted; or
        ``embeddings`` ``(b, d)`` and the objectives' predictions, by name; of several one mean.
        """
        wanted = [o for o in self.objectives if predict is None or o.kind in predict]
        encoded = self.network(batch, tokens=any(o.reads_tokens for o in wanted))
        if predict is None:
            losses = [o.loss(encoded, self.heads[o.kind], batch) for o in wanted]
            return torch.stack(losses, dim=1)
        found: dict[str, list[Tensor]] = {"embeddings": [encoded.cell_embedding.float()]}
        for o in wanted:
            for name, array in o.predict(encoded, self.heads[o.kind], batch).items():
                found.setdefault(name, []).append(array)
        return {
            name: arrays[0] if len(arrays) == 1 else torch.stack(arrays).mean(dim=0)
            for name, arrays in found.items()
        }
