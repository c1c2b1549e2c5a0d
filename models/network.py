"""The interface of a network: a config that builds it, and what it returns.

A network is one file beside this one and one line in ``models/__init__.py``. It embeds cells;
what is done with the embedding is up to the objectives (``models/objectives``).
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from configs.base import Config, ConfigError
from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from models.flops import Flop


class Encoded(NamedTuple):
    """The output of a network for a batch of ``b`` cells."""

    cell_embedding: Tensor  # (b, d)
    token_states: Tensor | None = None  # (m, d), only when an objective reads tokens
    token_index: Tensor | None = None  # (m,), the batch's token of each state; None: all, in order


class Network(nn.Module):
    """Embeds cells: ``forward(batch, tokens=...) -> Encoded``.

    Attributes
    ----------
    d_model
        Width of what it returns.
    by_gene
        Names of its weights whose rows are tokens of the vocabulary. ``init_from`` moves them by
        gene id.
    """

    d_model: int
    by_gene: tuple[str, ...] = ()

    @property
    def token_embedding(self) -> Tensor:
        """Embedding of every token of the vocabulary, ``(v, d)``, of a network that has one."""
        raise NotImplementedError(f"{type(self).__name__} embeds no tokens")

    def initialize(self) -> None:
        """Give weights other initial values than ``initialize_weights`` did."""

    def first_layers(self, n_layers: int) -> list[str]:
        """Return the names of the weights of its first layers, and of all that feeds them.

        Empty for 0.

        Raises
        ------
        ConfigError
            If it has not so many, or none that come one after the other.
        """
        if not n_layers:
            return []
        blocks = getattr(getattr(self, "encoder", None), "blocks", ())
        if n_layers > len(blocks):
            raise ConfigError(
                f"optim.frozen_layers: found {n_layers}; this network has {len(blocks)} layers "
                "that can be frozen"
            )
        later = [f"encoder.blocks.{i}." for i in range(n_layers, len(blocks))]
        return [
            name
            for name, _ in self.named_parameters()
            if not name.startswith(("encoder.norm.", *later))
        ]

    def training_flop(self, lengths: ArrayLike) -> Flop | None:
        """FLOP of an update on cells of these lengths, ``(n_cells,)``; None: not counted."""
        return None


class TrainCells(NamedTuple):
    """The train cells, for a network that starts from them; called only when needed."""

    expression: Callable[[], tuple[csr_matrix, np.ndarray]]  # counts (n, n_genes), library sizes
    batch: Callable[[int], Batch]  # at most so many cells


class CellSets(NamedTuple):
    """Cells that a network looks at together: some of one sample, or field of view."""

    # The obs column of the sample, one of the folder's condition_keys; None: there is one sample.
    condition: str | None
    max_cells: int  # of a set; samples with more are cut


class NetworkConfig(Config):
    """Sizes and settings of a network; also has a ``kind`` of its own.

    Attributes
    ----------
    reads_positions
        Whether the network needs ``Batch["positions"]``.
    attends
        Whether a token's state depends on other tokens. A network whose does not is the control
        that 03 measures attention by, and is never taken for a transformer.
    """

    role: ClassVar[str] = "network"
    reads_positions: ClassVar[bool] = False
    attends: ClassVar[bool] = True

    @property
    def cell_sets(self) -> CellSets | None:
        """Of a network that looks across cells, which come together in ``Batch["sets"]``."""
        return None

    def check_data(self, facts: DataFacts) -> None:
        """Raise a ConfigError if the data lack what the network looks at."""
        condition = self.cell_sets.condition if self.cell_sets else None
        if condition is not None and condition not in facts.conditions:
            raise ConfigError(
                f"model: takes sets of cells by the obs column {condition!r}, and the cells "
                f"were encoded with condition_keys: {list(facts.conditions)}; name one of them, "
                f"or encode again with condition_keys: [{condition}]"
            )
        if self.reads_positions and not facts.position_keys:
            raise ConfigError(
                "model: needs positions, and the cells were encoded without; encode again with "
                "position_keys: two obs columns, such as [x, y]"
            )

    def row_names(self, facts: DataFacts) -> dict[str, Sequence[str]]:
        """Return what the last rows of a weight are called, such as the donors.

        ``init_from`` moves those rows by name.
        """
        return {}

    def build(self, facts: DataFacts) -> Network:
        """Return the network for these data; the sizes of a vocabulary come from there."""
        raise NotImplementedError

    def start(self, network: Network, train: TrainCells, rng: np.random.Generator) -> None:
        """Fit initial weights on the train cells: none, by default."""
