"""``DataFacts``: what a network needs to know of the data that it is built for."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dataset.vocabulary import Vocabulary


@dataclass(frozen=True)
class DataFacts:
    """Sizes and names, the same from an encoded folder and from a run that was trained on it.

    Attributes
    ----------
    vocabulary
        The genes, and with the special tokens before them the token ids.
    class_names
        Names of the classes, in the order of their ids; empty without labels.
    row_length
        Most tokens of a cell.
    n_segments
        Profiles of a cell: 1 (now), or 2 (now and previous).
    learned
        What the tokenizer learned of each gene from the train cells, by name, each
        ``(n_genes, ...)`` in the order of the vocabulary.
    conditions
        Names of the codes of each obs column that was kept, in the order of ``Batch``'s columns.
    class_sizes
        Train cells of each class, ``(c,)``; None where there are no train cells at hand.
    """

    vocabulary: Vocabulary
    class_names: list[str]
    row_length: int
    n_segments: int
    learned: dict[str, NDArray]
    conditions: dict[str, list[str]] = field(default_factory=dict)
    class_sizes: NDArray[np.int64] | None = None
