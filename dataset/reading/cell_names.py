"""Names of cells over one file or several: no two alike."""

import numpy as np
import pandas as pd

from dataset.reading.cell_table import CellTable
from dataset.reading.stored_table import CHUNK


def unique_names(tables: list[CellTable], messages: list[str]) -> pd.Index | None:
    """Give every cell a name of its own; None if all have one, which is what files should be.

    A name that occurs twice in a file gets -1, -2, ... the later times. If files share names, all
    names get that of their file behind them.

    Parameters
    ----------
    tables
        obs of the files.
    messages
        What was changed is added, for people.
    """
    if not _repeated(tables):
        return None
    names = []
    for table in tables:
        index = pd.Index(table.names())
        if n_duplicates := int(index.duplicated().sum()):
            example = index[index.duplicated()][0]
            messages.append(
                f"{table.path.name}: {n_duplicates} cells share the name of another (such as "
                f"{example!r}); -1, -2, ... is added to the later ones"
            )
        names.append(_unique(index))
    together = names[0].append(names[1:])
    if n_shared := int(together.duplicated().sum()):
        stems = [table.path.stem for table in tables]
        if len(set(stems)) < len(stems):
            stems = [f"{table.path.parent.name}-{table.path.stem}" for table in tables]
        names = [index + f"-{stem}" for index, stem in zip(names, stems, strict=True)]
        messages.append(
            f"{n_shared} cell names are in more than one file; the file's name is added to all"
        )
        together = _unique(names[0].append(names[1:]))
    return together


def _repeated(tables: list[CellTable]) -> bool:
    """Return whether a name may occur twice, by 64-bit hashes: 8 bytes a cell, not 80."""
    hashes = np.empty(sum(table.n_cells for table in tables), dtype=np.uint64)
    offset = 0
    for table in tables:
        for start in range(0, table.n_cells, CHUNK):
            names = table.names(start, min(start + CHUNK, table.n_cells))
            hashes[offset : offset + len(names)] = pd.util.hash_array(names, categorize=False)
            offset += len(names)
    hashes.sort()
    return bool((hashes[1:] == hashes[:-1]).any())


def _unique(index: pd.Index) -> pd.Index:
    """Add -1, -2, ... to the later cells of one name, never making a name that is taken."""
    if index.is_unique:
        return index
    taken, names = set(index), []
    seen: dict[str, int] = {}
    for name, repeated in zip(index, index.duplicated(), strict=True):
        new = name
        while repeated and new in taken:
            seen[name] = seen.get(name, 0) + 1
            new = f"{name}-{seen[name]}"
        taken.add(new)
        names.append(new)
    return pd.Index(names)
