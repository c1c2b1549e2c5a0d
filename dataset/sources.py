"""Where cells come from: a path, a glob, a dataset known by name, or cells made up for tests."""

import glob
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from dataset.cell_file import CellFileError

logger = logging.getLogger(__name__)

DOWNLOADS = Path("data/downloads")

BARON_PACKAGE = "came==0.1.13"
BARON_MEMBER = ("came/sample_data.zip", "raw-Baron_human.h5ad")


class Source(NamedTuple):
    """A dataset known by name."""

    description: str
    fetch: Callable[[Path], Path]  # folder of downloads -> file of cells


def resolve(
    input: str | Path | Sequence[str | Path],
    *,
    downloads: Path = DOWNLOADS,
) -> list[Path]:
    """Turn paths, globs and names of ``SOURCES`` into files, fetching what is not there.

    Raises
    ------
    CellFileError
        If nothing is there, or a download fails.
    """
    if not isinstance(input, str | Path):
        if not input:
            raise CellFileError("input: an empty list; expected at least one file of cells")
        paths = [path for part in input for path in resolve(part, downloads=downloads)]
        if repeated := {str(path) for path in paths if paths.count(path) > 1}:
            raise CellFileError(f"input: listed twice: {', '.join(sorted(repeated))}")
        return paths
    text = str(input)
    if text in SOURCES and not Path(text).exists():
        return [SOURCES[text].fetch(downloads)]
    if "://" in text:
        raise CellFileError(f"{text}: addresses are not read; download the file and give its path")
    path = Path(text).expanduser()
    if path.exists():
        return [path]
    if glob.has_magic(text):
        if found := sorted(Path(name) for name in glob.glob(str(path), recursive=True)):
            return found
        raise CellFileError(f"{text}: no file matches (looked from {Path.cwd()})")
    raise CellFileError(
        f"{text}: no such file, and no dataset of that name; names: {', '.join(SOURCES)}"
    )


def synthetic_cells(
    rng: np.random.Generator,
    *,
    n_cells: int = 300,
    n_genes: int = 200,
    n_types: int = 4,
    n_donors: int = 4,
    n_times: int = 1,
    counts_per_cell: float = 600.0,
    ensembl: bool = False,
) -> ad.AnnData:
    """Make up cells: gamma-Poisson counts with marker genes for each type.

    Returns
    -------
    Raw counts in X (CSR float32); obs ``cell_type``, ``donor`` and ``time``; every donor and time
    has every type if there are cells enough; the last two genes are mitochondrial.
    """
    abundance = rng.lognormal(0.0, 1.0, n_genes)
    number = np.arange(n_cells)
    cell_type, donor = number % n_types, number // n_types % n_donors
    time = number // (n_types * n_donors) % n_times
    n_markers = max(2, n_genes // (2 * n_types))
    fold = np.ones((n_types, n_genes))
    for k in range(n_types):
        markers = rng.choice(n_genes - 2, n_markers, replace=False)
        fold[k, markers] = rng.lognormal(1.5, 0.5, n_markers)
    donor_shift = rng.lognormal(0.0, 0.1, (n_donors, n_genes))
    time_shift = np.exp(np.linspace(0, 1, n_times)[:, None] * rng.normal(0, 0.5, n_genes))
    depth = counts_per_cell * rng.lognormal(0.0, 0.3, n_cells)
    rows = []
    for k, d, t, n in zip(cell_type, donor, time, depth, strict=True):
        profile = abundance * fold[k] * donor_shift[d] * time_shift[t]
        rate = n * profile / profile.sum() * rng.gamma(2.0, 0.5, n_genes)
        rows.append(csr_matrix(rng.poisson(rate).astype(np.float32)))
    indptr = np.concatenate([[0], np.cumsum([row.nnz for row in rows])])
    counts = csr_matrix(
        (
            np.concatenate([row.data for row in rows]),
            np.concatenate([row.indices for row in rows]),
            indptr,
        ),
        shape=(n_cells, n_genes),
    )
    symbols = [f"GENE{i}" for i in range(n_genes - 2)] + ["MT-CO1", "MT-ND1"]
    ids = [f"ENSG{i:011d}" for i in range(n_genes)] if ensembl else symbols
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type_{k}" for k in cell_type]),
            "donor": pd.Categorical([f"donor_{d}" for d in donor]),
            "time": time,
        },
        index=[f"cell_{i}" for i in number],
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame({"gene_symbol": symbols}, index=ids))


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Yield a path to write to, renamed to ``target`` when all went well, removed otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name}.partial-", suffix=target.suffix
    )
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _synthetic(downloads: Path) -> Path:
    target = downloads / "synthetic.h5ad"
    if not target.exists():
        with _aside(target) as aside:
            synthetic_cells(np.random.default_rng(0)).write_h5ad(aside, compression="gzip")
    return target


SOURCES: dict[str, Source] = {
    "synthetic": Source("300 made-up cells of 4 types and 4 donors, for tests", _synthetic),
}
