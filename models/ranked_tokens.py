"""Rank, segment and expression of the tokens of a ragged batch.

Legend: ``b`` cells, ``n`` tokens of all cells, ``s`` segments, ``d`` width.
"""

import numpy as np
import torch
from torch import Tensor

from configs.base import ConfigError
from dataset import read_tokenizer
from dataset.batches import Batch, cell_of_token, keep_tokens, openings
from dataset.log_expression import TARGET_SUM
from dataset.store.data_facts import DataFacts
from dataset.vocabulary import SEP


def check_ranked(facts: DataFacts) -> None:
    """Raise a ConfigError if the tokens of these data are not in rank order."""
    if not read_tokenizer(facts.tokenizer).is_ranked:
        raise ConfigError(
            "model.rank_position, model.context_genes: need genes in rank order, and the "
            f"tokenizer of these cells, {facts.tokenizer['kind']}, does not rank them; train on a "
            "folder that was encoded by ranks, choose model.kind=value_transformer, or set "
            "model.rank_position=none and model.context_genes=null"
        )


def segments_of(token_ids: Tensor) -> Tensor:
    """Return 0 up to ``<sep>`` and 1 from there on, ``(n,)``."""
    return (token_ids[openings(token_ids)] == SEP).long()


def rank_positions(token_ids: Tensor) -> Tensor:
    """Return the rank of each token: 0 for ``<cls>`` and ``<sep>``, 1 for the top gene."""
    return torch.arange(len(token_ids), device=token_ids.device) - openings(token_ids)


def highest_ranks(batch: Batch, n_genes: int, n_segments: int) -> Batch:
    """Keep the first ``n_genes`` of each segment of each cell, and its special tokens."""
    lengths = None  # of two segments only the device knows them
    if n_segments == 1:
        lengths = [min(length, 1 + n_genes) for length in batch["lengths"]]
    return keep_tokens(batch, rank_positions(batch["token_ids"]) <= n_genes, lengths)


def token_expression(batch: Batch) -> Tensor:
    """Return log1p(counts per 10,000) of each token, by its segment's library size, ``(n,)``."""
    library_size = batch["library_size"].clamp(min=1)  # (b, s)
    segment = segments_of(batch["token_ids"]).clamp(max=library_size.shape[1] - 1)
    library_size = library_size[cell_of_token(batch), segment]  # (n,)
    return torch.log1p(batch["counts"] * (TARGET_SUM / library_size))


def sinusoids(n_positions: int, d_model: int) -> Tensor:
    """Return the sine positions of Vaswani et al. 2017, section 3.5, ``(n_positions, d)``.

    Scaled to the size of the learned ones, so that they do not drown the genes at the start.
    """
    position = torch.arange(n_positions)[:, None]
    frequency = torch.exp(torch.arange(0, d_model, 2) * (-np.log(10_000.0) / d_model))
    angle = position * frequency
    return 0.1 * torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
