"""Which genes are perturbed in a cell, by the name of its perturbation.

scGPT tells a network of a perturbation by a flag at the tokens of the genes that it hits (Cui et
al. 2024, Methods, "Perturbation response prediction"), where a condition such as the donor is told
to all tokens of the cell alike.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from configs.base import ConfigError
from dataset.vocabulary import N_SPECIALS, Vocabulary


def perturbed_genes(key: str, names: Sequence[str], vocabulary: Vocabulary) -> Tensor:
    """Return which tokens each perturbation hits, bool, ``(1 + k, v)``.

    Row 0 is of a cell whose perturbation is unknown: it hits none, as a control's does.

    Parameters
    ----------
    key
        The obs column, for the message.
    names
        Of the ``k`` perturbations: gene symbols or ids, several joined by ``+``. What names no
        gene of the vocabulary, such as ``control``, hits none.
    vocabulary
        The genes.

    Raises
    ------
    ConfigError
        If no name is that of a gene.
    """
    genes = zip(vocabulary.gene_symbols, vocabulary.gene_ids, strict=True)
    token = {name: N_SPECIALS + i for i, both in enumerate(genes) for name in both}
    is_hit = torch.zeros(1 + len(names), vocabulary.n_tokens, dtype=torch.bool)
    for row, name in enumerate(names, start=1):
        is_hit[row, [token[part] for part in name.split("+") if part in token]] = True
    if not is_hit.any():
        raise ConfigError(
            f"model.perturbation_key: none of the {len(names)} values of the obs column {key!r}, "
            f"such as {', '.join(map(repr, names[:3]))}, names a gene of these cells; expected "
            "gene symbols or ids, several joined by '+'"
        )
    return is_hit
