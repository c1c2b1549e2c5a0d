"""Write what a network makes of cells and of genes: their embeddings, in one .h5ad.

    python -m evaluation.embed runs/pretrain_baron_human cells.h5ad embedded.h5ad

Needs no labels, and takes a pretraining as well as a classifier. ``obsm["X_nanocell"]`` are the
cells, ``varm["X_nanocell"]`` the genes of the run's vocabulary: each the mean over the cells in
which the network read it, NaN where it read it in none; ``var["n_cells"]`` says in how many.
"""

import sys
from pathlib import Path
from typing import Literal, get_args

import anndata as ad
import numpy as np
import pandas as pd
import torch

from configs.user_error import UserError
from dataset.store.atomic import atomic_file
from evaluation.annotate import EMBEDDING_KEY
from evaluation.annotated_file import AnnotationError, check_output
from evaluation.token_query import TokenQuery
from evaluation.token_states import token_states

Of = Literal["genes", "cls"]


def embed(query: TokenQuery, *, of: Of = "genes", batch_size: int = 64) -> ad.AnnData:
    """Embed the cells of a file, and the genes in them.

    Parameters
    ----------
    query
        The run and the file.
    of
        What a cell's embedding is: the mean over its ``genes`` after the second-to-last layer, as
        Geneformer's, or the final state of ``cls``.
    batch_size
        Cells computed at a time.

    Returns
    -------
    ``(n_cells, n_genes)`` without a matrix: ``obs`` of the query, ``var`` of the vocabulary, and
    both embeddings, of width ``d``, float32.

    Raises
    ------
    AnnotationError
        If ``of`` is neither.
    """
    if of not in get_args(Of):
        raise AnnotationError(f"of: found {of!r}; expected one of {', '.join(get_args(Of))}")
    model, cells = query.model, query.cells
    d, n_genes = model.learner.network.d_model, model.vocabulary.n_genes
    cell_embedding = np.zeros((cells.n_cells, d), dtype=np.float32)
    total = torch.zeros(n_genes, d, dtype=torch.float64)
    n_cells = torch.zeros(n_genes, dtype=torch.int64)
    for rows, profile in query.blocks(query.rows):
        conditions = query.conditions[rows]
        for found in token_states(model, *profile, conditions, batch_size=batch_size):
            embedded = found.cell_means() if of == "genes" else found.encoded.cell_embedding
            cell_embedding[rows[found.rows]] = embedded.float().cpu().numpy()
            gene, states = found.gene.cpu(), found.states.double().cpu()
            total.index_add_(0, gene, states)
            n_cells += torch.bincount(gene, minlength=n_genes)
    gene_embedding = torch.where(n_cells[:, None] > 0, total / n_cells[:, None], torch.nan)
    obs = pd.DataFrame(
        {key: cells.column(key).array for key in cells.columns},
        index=pd.Index(cells.names(0, cells.n_cells)),
    )
    var = pd.DataFrame(
        {"symbol": list(model.vocabulary.gene_symbols), "n_cells": n_cells.numpy()},
        index=pd.Index(model.vocabulary.gene_ids),
    )
    return ad.AnnData(
        obs=obs,
        var=var,
        obsm={EMBEDDING_KEY: cell_embedding},
        varm={EMBEDDING_KEY: gene_embedding.float().numpy()},
        uns={"nanocell": {"run": model.run.path.resolve().name, "cells_are_means_of": of}},
    )


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, embed, write."""
    parser = TokenQuery.parser("evaluation.embed", __doc__)
    parser.add_argument("output", type=Path, help=".h5ad to write")
    parser.add_argument("--of", default="genes", choices=get_args(Of), help="a cell's embedding")
    given = parser.parse_args(arguments)
    try:
        check_output(given.output, Path(given.query))
        query = TokenQuery.from_command_line(given)
        embedded = embed(query, of=given.of)
        with atomic_file(given.output) as partial:
            embedded.write_h5ad(partial)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for message in query.messages:
        print(message)
    print(f"{given.output}: {embedded.n_obs:,} cells, {embedded.n_vars:,} genes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
