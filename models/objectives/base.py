"""The interface of an objective to the training loop.

An objective is one file beside this one and one line in ``models/objectives/__init__.py``. It
owns a head, and its loss is one number a cell: summed over cells and processes and divided once,
so that one process and several report the same number.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from configs.base import Config, ConfigError
from dataset.batches import Batch
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import MASK
from models.network import Encoded, Network
from models.value_embedding import hide_values

# stream -> (n,) from [0, 1), one for each token: the same whoever stands beside its cell
Draw = Callable[[int], Tensor]
N_STREAMS = 100  # of each objective that hides: those beside it draw from others
# What objectives hide of a batch, and where it stands in the batch as it was before any did
ORIGINAL_TOKENS, ORIGINAL_COUNTS = "original_token_ids", "original_counts"
ORIGINALS = {
    "token_ids": ORIGINAL_TOKENS,
    "counts": ORIGINAL_COUNTS,
    "values": "original_values",
    "library_size": "original_library_size",
}


class Bank(NamedTuple):
    """Train cells as the network embeds them, for an objective that looks them up."""

    embeddings: Tensor  # (m, d) float16
    labels: Tensor  # (m,) int64, all labeled; -1 where no train cell is
    cell_index: Tensor  # (m,) int64, of the cell in the train split, as in ``Batch``


class Decoded(NamedTuple):
    """Negative binomials of the counts of ``b`` cells, for all ``g`` genes of the vocabulary."""

    log_share: Tensor  # (b, g), log of the mean count as a share of the cell's; sums to 1
    log_theta: Tensor  # (g,), log of the inverse dispersion


class Objective(Config):
    """One thing that a network is trained to do; also has a ``kind`` of its own.

    Attributes
    ----------
    reads_tokens
        Whether it needs the states of the tokens, not of the cell only.
    hides
        Whether it changes what the network is shown: ``hide`` is called, for val and test too.
    is_scored
        Whether it predicts something, which is scored on val and can choose an epoch.
    decodes
        Whether it says how many counts each gene has in a cell, by ``decode``.
    """

    reads_tokens: ClassVar[bool] = False
    hides: ClassVar[bool] = False
    is_scored: ClassVar[bool] = True
    decodes: ClassVar[bool] = False
    kind: str
    weight: float = Field(default=1.0, gt=0, description="of its loss among the objectives'")

    @property
    def bank_size(self) -> int:
        """Most train cells that it is to be given by ``remember``; 0: it looks up none."""
        return 0

    def head(self, network: Network, dropout: float, facts: DataFacts) -> nn.Module:
        """Return the module that maps the network's states to this objective's outputs.

        Parameters
        ----------
        network
            Whose states it will be given, ``network.d_model`` wide.
        dropout
            Of the network.
        facts
            Of the data.
        """
        raise NotImplementedError

    def row_names(self, facts: DataFacts) -> dict[str, Sequence[str]]:
        """Return what the last rows of a weight of the head are called: classes, gene ids.

        ``init_from`` moves those rows by name.
        """
        return {}

    def hide(self, batch: Batch, draw: Draw, facts: DataFacts) -> Batch:
        """Return the cells as the network is to see them, who may lack what others have hidden.

        Which tokens are hidden, and what is to be predicted of them, follows from the cells as
        they were (``original_of``), so that several objectives do not change each other's targets.
        A target is kept in the batch under a name of its own, one number a token. Streams of
        ``draw`` are the objective's own, below ``N_STREAMS``.
        """
        return batch

    def remember(self, head: nn.Module, bank: Bank) -> None:
        """Let the head look up these train cells; called before each epoch and each prediction.

        The embeddings are those of the weights at hand, or of their average, without augmentation.
        """

    def loss(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each cell, ``(b,)``, float32."""
        raise NotImplementedError

    def predict(self, encoded: Encoded, head: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the predictions that are stored of each cell, by name, each ``(b, ...)``.

        Who predicts classes calls their probabilities ``probabilities``, ``(b, c)``. What several
        objectives predict under one name is their mean.
        """
        return {}

    def decode(self, encoded: Encoded, head: nn.Module, batch: Batch) -> Decoded:
        """Return how many counts each gene of each cell is expected to have."""
        raise NotImplementedError

    def score(self, predictions: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """Return the scores of a split's predictions, by name; not those of ``probabilities``."""
        return {}


def streams_of(draw: Draw, nth: int) -> Draw:
    """Return the draw of the nth objective that hides."""
    return lambda stream: draw(N_STREAMS * nth + stream)


def with_original(batch: Batch) -> Batch:
    """Keep in the batch what objectives may hide of it."""
    arrays = cast("dict[str, Tensor]", batch)
    kept = {kept: arrays[name] for name, kept in ORIGINALS.items() if name in arrays}
    return cast(Batch, {**batch, **kept})


def original_of(batch: Batch) -> Batch:
    """Return the cells as they were before any objective hid something."""
    arrays = cast("dict[str, Tensor]", batch)
    kept = {name: arrays[kept] for name, kept in ORIGINALS.items() if kept in arrays}
    return cast(Batch, {**batch, **kept})


def mask_genes(batch: Batch, is_masked: Tensor) -> Batch:
    """Replace tokens, ``is_masked`` ``(n,)``, by ``<mask>`` without counts or values."""
    token_ids = torch.where(is_masked, MASK, batch["token_ids"])
    return {**hide_values(batch, is_masked), "token_ids": token_ids}


def mean_of_cells(values: Tensor, cell: Tensor, n_cells: int) -> Tensor:
    """Average values ``(m, ...)``, of these cells ``(m,)``, over each, ``(b, ...)``; 0 of none."""
    total = values.new_zeros(n_cells, *values.shape[1:]).index_add(0, cell, values)
    n = torch.bincount(cell, minlength=n_cells).clamp(min=1)
    return total / n.view(-1, *(1 for _ in values.shape[1:]))


def check_classes(kind: str, facts: DataFacts) -> None:
    """Raise a ConfigError if the cells have no labels, which this kind of objective needs."""
    if not facts.class_names:
        raise ConfigError(
            f"objectives: {kind} needs labels, and these cells were encoded without any "
            "(label_key: null); say objectives=[{kind: masked_gene}], or encode with labels"
        )


def check_genes(kind: str, facts: DataFacts) -> None:
    """Raise a ConfigError if some genes are no tokens, which this kind would take for absent."""
    n_genes, n_tokens = facts.vocabulary.n_genes, int(facts.is_token.sum())
    if n_tokens < n_genes:
        raise ConfigError(
            f"objectives: {kind} decodes every gene, and these cells were encoded with "
            f"{n_tokens:,} of {n_genes:,} genes as tokens; choose another objective, or encode "
            "with all genes as tokens, as configs/preprocess/example.yaml"
        )
