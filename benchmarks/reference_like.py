"""Peers written as the notebook pipelines people start from are written: dense and padded.

Not the code of any of them: the same amount of work, in the fewest lines. The tokenizer makes
the matrix dense, takes a median per gene in a Python loop and sorts every gene of every cell;
the model pads every cell to the context and forms the whole attention matrix.
"""

import math

import anndata as ad
import numpy as np
import scanpy as sc
import torch
from torch import Tensor, nn

from benchmarks.measure import PeakMemory


def dense_tokenizer(path: str, output: str, n_tokens: int = 2048) -> dict:
    """Tokenize the whole file through a dense matrix; float64 token ids, as they come."""
    with PeakMemory() as memory:
        adata = ad.read_h5ad(path)
        adata.X = adata.X.toarray()
        adata.layers["counts"] = adata.X
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        expression = np.expm1(adata.X)
        medians = np.ones(expression.shape[1])
        for gene in range(expression.shape[1]):
            values = expression[:, gene]
            values = values[values > 0]
            if values.size:
                medians[gene] = np.median(values)
        order = np.argsort(expression / medians, axis=1)[:, ::-1][:, :n_tokens] + 1
        np.save(output, np.hstack([np.zeros((len(order), 1)), order]))
    return {
        "cells_per_second": adata.n_obs / memory.seconds,
        "peak_mb": memory.peak - memory.start,
    }


class NaiveBlock(nn.Module):
    """Attention by einsum over every position, padding included; then a feed-forward layer."""

    def __init__(self, d_model: int, n_heads: int, d_head: int, d_ff: int):
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_head
        self.to_qkv = nn.Linear(d_model, 3 * n_heads * d_head)
        self.out = nn.Linear(n_heads * d_head, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.ff = nn.Sequential(nn.Linear(d_model, d_ff), nn.GELU(), nn.Linear(d_ff, d_model))

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        b, t, _ = x.shape
        qkv = self.to_qkv(self.norm1(x)).view(b, t, 3, self.n_heads, self.d_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, h, t, e) each
        scores = torch.einsum("bhqe,bhke->bhqk", q, k) / math.sqrt(self.d_head)
        scores = scores.masked_fill(padding_mask[:, None, None, :], -math.inf)
        attended = torch.einsum("bhqk,bhke->bhqe", scores.softmax(-1), v)
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, -1))
        return x + self.ff(self.norm2(x))


class NaiveTransformer(nn.Module):
    """Every cell padded to the whole context, every row computed in every layer."""

    def __init__(
        self,
        n_vocabulary: int,
        n_classes: int,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_head: int,
        d_feed_forward: int,
    ):
        super().__init__()
        self.embedding = nn.Embedding(n_vocabulary, d_model, padding_idx=0)
        self.blocks = nn.ModuleList(
            NaiveBlock(d_model, n_heads, d_head, d_feed_forward) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, n_classes)

    def forward(self, token_ids: Tensor) -> Tensor:
        padding_mask = token_ids == 0
        x = self.embedding(token_ids)
        for block in self.blocks:
            x = block(x, padding_mask)
        return self.head(self.norm(x[:, 0]))
