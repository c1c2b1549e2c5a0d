"""A cell as its detected genes in the order of the vocabulary, with their log counts."""

from typing import ClassVar, Literal

import numpy as np

from configs.base import Config
from dataset.batches import keep_tokens
from dataset.tokenizers.tokenizer import Tokens
from dataset.vocabulary import CLS, N_SPECIALS


class ToyTokenizerConfig(Config):
    kind: Literal["toy"] = "toy"
    row_length: int = 60
    is_ranked: ClassVar[bool] = False
    n_segments: ClassVar[int] = 1
    previous: ClassVar[None] = None

    def fit(self, train, workers):
        return {"weight": np.linspace(1, 2, train.n_genes)}

    def arrays(self, n_genes, counts_dtype):
        return {"token_ids": np.dtype("uint16"), "counts": counts_dtype, "values": np.dtype("f4")}

    def encode(self, segments, learned, dtypes):
        (rows, _), n = segments[0], self.row_length - 1
        lengths = np.minimum(np.diff(rows.indptr), n) + 1
        arrays = {k: np.zeros((len(lengths), n + 1), dtype) for k, dtype in dtypes.items()}
        arrays["token_ids"][:, 0] = CLS
        for cell, (start, length) in enumerate(zip(rows.indptr[:-1], lengths, strict=True)):
            genes, counts = (a[start : start + length - 1] for a in (rows.gene_index, rows.counts))
            arrays["token_ids"][cell, 1:length] = genes + N_SPECIALS
            arrays["counts"][cell, 1:length] = counts
            arrays["values"][cell, 1:length] = np.log1p(counts) * learned["weight"][genes]
        return Tokens(arrays, lengths.astype(np.int32))

    def reorder(self, batch, learned):
        return keep_tokens(batch, (batch["token_ids"] == CLS) | (batch["counts"] > 0))
