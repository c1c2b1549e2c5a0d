"""Inputs: a path, a glob, a dataset known by name, or cells made up for tests."""

import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from dataset.reading.cell_file import CellFileError, file_sha256
from dataset.reading.cell_url import CellPath, CellUrl
from dataset.reading.find_files import all_of, find_files
from dataset.store.atomic import atomic_file

logger = logging.getLogger(__name__)

DOWNLOADS = Path("data/downloads")

# The Baron et al. 2016 pancreas cells travel inside a PyPI wheel (MIT), as a zip in a zip. The
# wheel is read as the archive it is: never installed, never imported.
CAME_PACKAGE = "came==0.1.13"
CAME_WHEEL = "came-0.1.13-py3-none-any.whl"
CAME_ARCHIVE = "came/sample_data.zip"
SHA256 = {
    CAME_WHEEL: "7fdb1a65006ca668e0cab51576a09bf540f074346e5f120ec654cd4f91627f7d",
    "raw-Baron_human.h5ad": "c0fca7f46d5ae82d8b5753ed5ce246cded66e2e870face389bd11084aab17700",
    "raw-Baron_mouse.h5ad": "5b6a0c474990e2968a9c6bbfb882ccb69e063d9c5386011198f099a25bcc31ed",
}
NEW_DONOR = "human3"  # the donor that the demo holds out


class Source(NamedTuple):
    """A dataset known by name."""

    description: str
    fetch: Callable[[Path], Path]  # folder of downloads -> file of cells


def resolve(
    input: str | CellPath | Sequence[str | CellPath],
    *,
    downloads: Path = DOWNLOADS,
) -> list[CellPath]:
    """Turn paths, addresses, globs and names of ``SOURCES`` into files, fetching the last.

    Raises
    ------
    CellFileError
        If nothing is there, or a download fails.
    """
    if str(input) in SOURCES and not Path(str(input)).exists():
        return [SOURCES[str(input)].fetch(downloads)]
    if isinstance(input, str | Path | CellUrl):
        return find_files(input, names=SOURCES)
    return all_of(input, lambda part: resolve(part, downloads=downloads))


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
    for i in range(n_cells):
        profile = abundance * fold[cell_type[i]] * donor_shift[donor[i]] * time_shift[time[i]]
        rate = depth[i] * profile / profile.sum() * rng.gamma(2.0, 0.5, n_genes)
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


def _synthetic(downloads: Path) -> Path:
    target = downloads / "synthetic.h5ad"
    if not target.exists():
        _write(synthetic_cells(np.random.default_rng(0)), target)
    return target


def _baron(member: str, downloads: Path) -> Path:
    target = downloads / member
    if target.exists() and file_sha256(target) == SHA256[member]:
        return target
    wheel = downloads / CAME_WHEEL
    if not (wheel.exists() and file_sha256(wheel) == SHA256[CAME_WHEEL]):
        _pip_download(CAME_PACKAGE, wheel)
    logger.info("unpacking %s", target)
    with atomic_file(target) as unpacked:
        with (
            zipfile.ZipFile(wheel) as outer,
            outer.open(CAME_ARCHIVE) as archive,
            zipfile.ZipFile(archive) as inner,
            inner.open(member) as source,
            unpacked.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, 1 << 20)
        _check_sha256(unpacked, member)
    return target


def _pip_download(package: str, wheel: Path) -> None:
    """Fetch a wheel through whatever index the user's pip is set up for; nothing of it runs."""
    logger.info("downloading %s from the package index", package)
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".pip.partial-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--retries=2", f"--dest={folder}", package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(folder) / wheel.name
        if done.returncode or not fetched.exists():
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            said = (lines or done.stderr.splitlines() or ["nothing"])[-1]
            raise CellFileError(
                f"{package}: pip could not download it (pip said: {said.strip()}). Check the "
                f"network and pip's index, or put {wheel.name} into {wheel.parent} yourself"
            )
        _check_sha256(fetched, wheel.name)
        with atomic_file(wheel) as unfinished:
            fetched.replace(unfinished)


def _check_sha256(path: Path, name: str) -> None:
    if (found := file_sha256(path)) != SHA256[name]:
        raise CellFileError(
            f"{name}: not the file expected (sha256 {found[:12]}..., expected "
            f"{SHA256[name][:12]}...): the download was damaged or altered; try again"
        )


def _baron_new_donor(downloads: Path) -> Path:
    """One donor's cells without their labels, as a person with new cells would have them."""
    target = downloads / f"baron_{NEW_DONOR}_unlabelled.h5ad"
    if not target.exists():
        adata = ad.read_h5ad(_baron("raw-Baron_human.h5ad", downloads))
        adata = adata[adata.obs["donor"] == NEW_DONOR].copy()
        _write(ad.AnnData(adata.X, obs=adata.obs[["donor"]], var=adata.var), target)
    return target


def _from_scanpy(name: str, downloads: Path) -> Path:
    """Download through scanpy.datasets; labels of pbmc3k are those of its processed version."""
    target = downloads / f"{name}.h5ad"
    if target.exists():
        return target
    import scanpy as sc  # slow to import, and rarely needed here

    before = sc.settings.datasetdir
    sc.settings.datasetdir = downloads / "scanpy"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scanpy's own calls
            logger.info("downloading %s with scanpy", name)
            adata = sc.datasets.paul15() if name == "paul15" else sc.datasets.pbmc3k()
            if name == "pbmc3k_labelled":
                labelled = sc.datasets.pbmc3k_processed()
                adata = adata[labelled.obs_names].copy()
                adata.obs["cell_type"] = labelled.obs["louvain"]
    except OSError as error:
        raise CellFileError(
            f"{name}: scanpy could not download it ({error}). This needs the network: check it, "
            f"or give the path of an .h5ad file, or put one at {target}"
        ) from error
    finally:
        sc.settings.datasetdir = before
    adata.uns = {}
    _write(adata, target)
    return target


def _write(adata: ad.AnnData, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as unfinished:
        adata.write_h5ad(unfinished, compression="gzip")


SOURCES: dict[str, Source] = {
    "baron_human_pancreas": Source(
        "2,142 human pancreas cells, 14 types (cell_type1; cell_ontology_class: 13), 4 donors",
        partial(_baron, "raw-Baron_human.h5ad"),
    ),
    "baron_mouse_pancreas": Source(
        "1,886 mouse pancreas cells, 13 types (cell_type1), 2 donors",
        partial(_baron, "raw-Baron_mouse.h5ad"),
    ),
    "baron_human_new_donor": Source(
        f"the cells of donor {NEW_DONOR} of baron_human_pancreas, without labels",
        _baron_new_donor,
    ),
    "pbmc3k": Source(
        "2,700 human blood cells without labels (10x Genomics, by scanpy)",
        partial(_from_scanpy, "pbmc3k"),
    ),
    "pbmc3k_labelled": Source(
        "2,638 of them with 8 types (cell_type), as scanpy's tutorial labelled them",
        partial(_from_scanpy, "pbmc3k_labelled"),
    ),
    "paul15": Source(
        "2,730 mouse bone marrow cells, 19 clusters (paul15_clusters), by scanpy",
        partial(_from_scanpy, "paul15"),
    ),
    "synthetic": Source("300 made-up cells of 4 types and 4 donors, for tests", _synthetic),
}
