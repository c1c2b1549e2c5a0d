"""Genes and token ids: ``<pad>`` 0, ``<cls>`` 1, ``<sep>`` 2, ``<mask>`` 3, genes from 4."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPECIALS = ("<pad>", "<cls>", "<sep>", "<mask>")
PAD, CLS, SEP, MASK = range(4)
N_SPECIALS = len(SPECIALS)


class GeneMatch(NamedTuple):
    """Match of a file's genes to a vocabulary."""

    columns: NDArray[np.int64]  # (n_genes of the file,): indices in the vocabulary, or -1
    match_rate: float  # share of the vocabulary's genes that the file has
    missing: list[str]  # ids of the vocabulary's genes that it has not


@dataclass(frozen=True)
class Vocabulary:
    """The genes a model knows, in token order; gene ``i`` is token ``4 + i``."""

    gene_ids: tuple[str, ...]
    gene_symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.gene_ids) != len(self.gene_symbols):
            raise ValueError(
                f"vocabulary: {len(self.gene_ids)} gene ids but {len(self.gene_symbols)} symbols"
            )
        repeated = [gene for gene, n in Counter(self.gene_ids).items() if n > 1]
        if repeated:
            raise ValueError(f"vocabulary: gene ids occur twice: {', '.join(repeated[:5])}")

    @property
    def n_genes(self) -> int:
        """Genes."""
        return len(self.gene_ids)

    @property
    def n_tokens(self) -> int:
        """Genes and special tokens: rows of an embedding table."""
        return N_SPECIALS + self.n_genes

    @property
    def token_dtype(self) -> np.dtype:
        """Type of a stored token id: 16 bits while every id fits."""
        return np.dtype(np.uint16 if self.n_tokens <= 2**16 else np.int32)

    @property
    def token_names(self) -> tuple[str, ...]:
        """Names of the token ids, for people: special tokens, then gene symbols."""
        return SPECIALS + self.gene_symbols

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON."""
        content = {
            "specials": list(SPECIALS),
            "gene_ids": list(self.gene_ids),
            "gene_symbols": list(self.gene_symbols),
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what ``save`` wrote.

        Raises
        ------
        ValueError
            If the file is not a vocabulary, or has other special tokens.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            specials, ids, symbols = (
                content[key] for key in ("specials", "gene_ids", "gene_symbols")
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: is not a vocabulary ({error!r})") from None
        if specials != list(SPECIALS):
            raise ValueError(f"{path}: special tokens are {specials}, expected {list(SPECIALS)}")
        return cls(tuple(map(str, ids)), tuple(map(str, symbols)))

    def match(
        self, gene_ids: Sequence[str], gene_symbols: Sequence[str] | None = None
    ) -> GeneMatch:
        """Find the vocabulary's genes among those of a file.

        Ids go first, with and without the version behind an Ensembl id; a gene that no id finds
        is looked for by symbol, where a symbol stands for one gene only. A file whose ids are
        symbols, or the other way round, is understood. Several columns with one id all get its
        index, to be summed.

        Parameters
        ----------
        gene_ids, gene_symbols
            Of the file, ``(n_genes,)`` each.
        """
        names = [[str(gene) for gene in gene_ids]]
        if gene_symbols is not None:
            names.append([str(gene) for gene in gene_symbols])
        columns = np.full(len(names[0]), -1, dtype=np.int64)
        by_id = {without_version(gene): i for i, gene in enumerate(self.gene_ids)}
        n_genes = Counter(self.gene_symbols)
        by_symbol = {s: i for i, s in enumerate(self.gene_symbols) if s and n_genes[s] == 1}
        for known in (by_id, by_symbol):
            for genes in names:
                taken = set(columns.tolist())
                for column, gene in enumerate(genes):
                    index = known.get(without_version(gene), -1)
                    if columns[column] < 0 and index not in taken:
                        columns[column] = index
        found = set(columns.tolist()) - {-1}
        missing = [gene for i, gene in enumerate(self.gene_ids) if i not in found]
        return GeneMatch(columns, len(found) / max(self.n_genes, 1), missing)


def without_version(gene_id: str) -> str:
    """Strip the version behind an Ensembl id: ``ENSG00000139618.2`` -> ``ENSG00000139618``."""
    stem, dot, version = gene_id.partition(".")
    return stem if dot and version.isdigit() and stem.startswith("ENS") else gene_id
