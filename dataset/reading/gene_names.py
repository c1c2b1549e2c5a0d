"""Gene names of a file: which column they are in, Ensembl versions off, duplicates pointed out."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from dataset.nearest_names import nearest
from dataset.reading.cell_file import CellFileError
from dataset.reading.cell_url import CellPath

ENSEMBL = re.compile(r"^(ENS[A-Z]{0,6}G\d{11})(?:\.\d+)?$")
# Where files keyed by Ensembl id keep the symbols; feature_name is CELLxGENE's.
SYMBOL_COLUMNS = ("feature_name", "gene_symbol", "gene_symbols", "gene_name", "symbol")


def gene_names(
    var: pd.DataFrame, path: CellPath, gene_id_key: str | None, gene_symbol_key: str | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read ids and symbols of the genes of one file.

    An Ensembl id loses its version (``ENSG00000139618.15``); a symbol stays as it is written,
    since a suffix made up to tell two genes apart would be a gene that exists nowhere.

    Returns
    -------
    Ids and symbols in the order of ``var``, duplicates included, and messages.
    """
    for key in (gene_id_key, gene_symbol_key):
        if key is not None and key not in var:
            raise CellFileError(f"{path}: no var column {key!r}{nearest(key, var.columns)}")
    messages = []
    names = var.index.to_numpy(dtype=str).astype(object)
    ids = names if gene_id_key is None else _filled(var[gene_id_key], names)
    if gene_id_key is not None and (n_filled := int((var[gene_id_key].isna()).sum())):
        messages.append(
            f"{path.name}: {n_filled} genes without {gene_id_key!r} keep their name in var_names"
        )
    matches = [ENSEMBL.match(name) for name in ids]
    is_ensembl = sum(match is not None for match in matches) > len(ids) / 2
    plain = np.array(
        [name if match is None else match[1] for name, match in zip(ids, matches, strict=True)],
        dtype=object,
    )
    if n_versioned := int((plain != ids).sum()):
        messages.append(f"{path.name}: version taken off {n_versioned:,} Ensembl ids")
    if gene_symbol_key is None and gene_id_key is None and is_ensembl:
        gene_symbol_key = next((key for key in SYMBOL_COLUMNS if key in var), None)
        if gene_symbol_key:
            messages.append(f"{path.name}: gene symbols are taken from {gene_symbol_key!r}")
    symbols = names if gene_symbol_key is None else _filled(var[gene_symbol_key], plain)
    if gene_id_key is None and gene_symbol_key is None:
        symbols = plain
    if n_unnamed := int((plain == "").sum()):
        raise CellFileError(
            f"{path}: {n_unnamed:,} of {len(plain):,} genes have no name: name them, or say which "
            f"var column has their ids (gene_id_key){nearest('', var.columns)}"
        )
    if n_duplicates := len(plain) - len(set(plain)):
        named = pd.Series(plain)
        examples = named[named.duplicated()].unique()
        shown = ", ".join(examples[:5]) + (", ..." if len(examples) > 5 else "")
        messages.append(
            f"{path.name}: {n_duplicates} genes share the name of another ({shown}); the counts "
            "of genes of one name are summed"
        )
    return plain, symbols, messages


def read_gene_map(path: str | Path) -> list[dict[str, str]]:
    """Read a table of genes that have two names, such as those of two species.

    Returns
    -------
    For each of its first two columns, the name there -> the name in the first.

    Raises
    ------
    CellFileError
        If it is no such table, or a column names a gene twice.
    """
    try:
        table = pd.read_csv(path, dtype=str, usecols=[0, 1], keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own are ValueErrors
        why = " ".join(str(error).split())
        raise CellFileError(f"gene_map: {path}: expected a csv of two columns: {why}") from None
    for column in table:
        repeated = table[column].duplicated()
        if repeated.any() or (table[column] == "").any():
            name = table[column][repeated].iloc[0] if repeated.any() else ""
            raise CellFileError(
                f"gene_map: {path}: {column!r} has {name!r} in "
                f"{int((table[column] == name).sum())} rows; expected one-to-one orthologs: leave "
                "out the genes that have none, or several"
            )
    first = table.iloc[:, 0]
    return [dict(zip(table[column], first, strict=True)) for column in table]


def map_genes(
    gene_ids: np.ndarray, gene_map: list[dict[str, str]], path: CellPath
) -> tuple[np.ndarray, str]:
    """Rename the genes of one file by the column that names most of them.

    Parameters
    ----------
    gene_ids
        As ``gene_names`` returns them.
    gene_map
        As ``read_gene_map`` returns it.
    path
        Of the file.

    Returns
    -------
    The new names, None for a gene that has none, and a message.
    """
    column = max(gene_map, key=lambda names: sum(gene_id in names for gene_id in gene_ids))
    mapped = np.array([column.get(gene_id) for gene_id in gene_ids], dtype=object)
    n_left = int((mapped != None).sum())  # noqa: E711
    if not n_left:
        raise CellFileError(
            f"{path}: no gene is in gene_map ({gene_ids[0]}, ...; there are "
            f"{', '.join(next(iter(names)) for names in gene_map)}, ...); expected the same kind "
            "of gene ids in both: see gene_id_key"
        )
    return mapped, f"{path.name}: {n_left:,} of {len(gene_ids):,} genes are in gene_map"


def merge_genes(
    files: list[tuple[str, np.ndarray, np.ndarray]], genes: str, messages: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and symbols of the genes of several files, each once.

    Parameters
    ----------
    files
        Name, gene ids and symbols of each; a gene whose id is None is left out.
    genes
        ``union`` or ``intersection``.
    messages
        What was found is added, for people.
    """
    symbol_of: dict[str, str] = {}
    shared = set(files[0][1]) - {None}
    for _, gene_ids, symbols in files:
        for gene_id, symbol in zip(gene_ids, symbols, strict=True):
            if gene_id is not None:
                symbol_of.setdefault(gene_id, symbol)
        shared &= set(gene_ids)
    if len(files) > 1:
        if not shared:
            firsts = "; ".join(f"{name}: {gene_ids[0]}, ..." for name, gene_ids, _ in files)
            raise CellFileError(
                f"the files have no gene in common ({firsts}); expected the same kind of gene "
                "ids in all: see gene_id_key"
            )
        messages.append(
            f"{len(files)} files: {len(shared):,} genes in all of them, {len(symbol_of):,} in "
            f"any; the {genes} is used"
        )
    chosen = [g for g in symbol_of if genes == "union" or g in shared]
    chosen_symbols = [symbol_of[g] for g in chosen]
    return np.array(chosen, dtype=object), np.array(chosen_symbols, dtype=object)


def _filled(column: pd.Series, names: np.ndarray) -> np.ndarray:
    missing = (column.isna() | (column.astype(str) == "")).to_numpy()
    return np.where(missing, names, column.astype(str).to_numpy(dtype=object))
