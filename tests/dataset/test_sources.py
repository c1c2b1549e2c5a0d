import hashlib
import io
import os
import subprocess
import zipfile
from urllib.error import URLError

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

import dataset.sources
from dataset.reading.cells import open_cells
from dataset.sources import SOURCES, CellFileError, resolve, synthetic_cells


def test_paths_globs_and_lists(tmp_path):
    for name in ("b.h5ad", "a.h5ad"):
        (tmp_path / name).touch()
    a, b = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    assert resolve(a) == [a]
    assert resolve(str(a)) == [a]
    assert resolve([str(b), a]) == [b, a]
    assert resolve(f"{tmp_path}/*.h5ad") == [a, b]
    with pytest.raises(CellFileError, match=r"no file matches"):
        resolve(f"{tmp_path}/*.zarr")
    with pytest.raises(CellFileError, match=r"no such file.*names: baron_human_pancreas"):
        resolve("baron_humen_pancreas")
    with pytest.raises(CellFileError, match="listed twice"):
        resolve([a, f"{tmp_path}/*.h5ad"])
    with pytest.raises(CellFileError, match="empty list"):
        resolve([])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "cells.h5ad")
    for input in (tmp_path / "cells.h5ad", f"{tmp_path}/*.h5ad"):
        with pytest.raises(CellFileError, match=r"cells\.h5ad: a pipe or a device; expected"):
            resolve(input)


@pytest.mark.parametrize("text", ["x" * 5000 + ".h5ad", "~nobody-of-that-name/cells.h5ad"])
def test_a_text_that_is_no_path_is_said_in_a_sentence(text):
    with pytest.raises(CellFileError, match="is no path that can be read"):
        resolve(text)


def test_synthetic_cells_are_reproducible_counts():
    a, b = (synthetic_cells(np.random.default_rng(3), n_times=2) for _ in range(2))
    assert (a.X != b.X).nnz == 0
    assert (a.X.data == np.round(a.X.data)).all()
    assert a.X.data.min() > 0
    assert a.obs.groupby(["cell_type", "donor", "time"], observed=False).size().min() > 0
    ensembl = synthetic_cells(np.random.default_rng(3), ensembl=True)
    assert ensembl.var_names[0] == "ENSG00000000000"
    assert ensembl.var["gene_symbol"].iloc[-1] == "MT-ND1"


def test_synthetic_by_name_is_written_once(tmp_path):
    (path,) = resolve("synthetic", downloads=tmp_path)
    written = path.stat().st_mtime_ns
    assert resolve("synthetic", downloads=tmp_path) == [path]
    assert path.stat().st_mtime_ns == written
    assert [p.name for p in tmp_path.iterdir()] == ["synthetic.h5ad"]  # nothing half-written
    assert open_cells(path).n_cells == 300


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Make a wheel like the real one, small; pip is replaced by a copy of it."""
    adata = synthetic_cells(np.random.default_rng(0), n_cells=40)
    adata.obs["donor"] = adata.obs["donor"].cat.rename_categories({"donor_2": "human3"})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    member = (tmp_path / "cells.h5ad").read_bytes()
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("raw-Baron_human.h5ad", member)
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("came/sample_data.zip", inner.getvalue())
    content = {"wheel": outer.getvalue(), "calls": 0}

    def download(command, **_):
        content["calls"] += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)
        (folder,) = (part.removeprefix("--dest=") for part in command if "--dest=" in part)
        if content["wheel"] is None:
            error = "WARNING: retrying\nERROR: No matching distribution found for came==0.1.13\n"
            return subprocess.CompletedProcess(command, 1, "", error)
        with open(f"{folder}/{dataset.sources.CAME_WHEEL}", "wb") as file:
            file.write(content["wheel"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    hashes = {
        dataset.sources.CAME_WHEEL: hashlib.sha256(content["wheel"]).hexdigest(),
        "raw-Baron_human.h5ad": hashlib.sha256(member).hexdigest(),
    }
    monkeypatch.setattr(dataset.sources, "SHA256", hashes)
    return content


def test_baron_is_unpacked_from_the_wheel_and_kept(wheel, tmp_path):
    folder = tmp_path / "downloads"
    (path,) = resolve("baron_human_pancreas", downloads=folder)
    assert open_cells(path).n_cells == 40
    assert resolve("baron_human_pancreas", downloads=folder) == [path]
    assert wheel["calls"] == 1
    path.write_bytes(path.read_bytes()[:1000])  # damaged later: unpacked again
    resolve("baron_human_pancreas", downloads=folder)
    assert open_cells(path).n_cells == 40
    assert wheel["calls"] == 1
    (new,) = resolve("baron_human_new_donor", downloads=folder)
    assert list(open_cells(new).columns) == ["donor"]
    assert set(open_cells(new).column("donor")) == {"human3"}


def test_a_damaged_download_is_refused_and_leaves_nothing(wheel, tmp_path):
    folder = tmp_path / "downloads"
    good = wheel["wheel"]
    wheel["wheel"] = good[:-10]
    with pytest.raises(CellFileError, match="not the file expected"):
        resolve("baron_human_pancreas", downloads=folder)
    assert list(folder.iterdir()) == []
    wheel["wheel"] = None
    with pytest.raises(CellFileError, match=r"pip could not download.*No matching distribution"):
        resolve("baron_human_pancreas", downloads=folder)
    wheel["wheel"] = good
    resolve("baron_human_pancreas", downloads=folder)


def test_scanpy_source_offline_and_online(tmp_path, monkeypatch):
    def offline():
        raise URLError("Name or service not known")

    monkeypatch.setattr(sc.datasets, "pbmc3k", offline)
    with pytest.raises(CellFileError, match=r"pbmc3k: scanpy could not download.*network"):
        resolve("pbmc3k", downloads=tmp_path)
    adata = synthetic_cells(np.random.default_rng(0), n_cells=50)
    labelled = ad.AnnData(obs=adata.obs[["cell_type"]].rename(columns={"cell_type": "louvain"}))
    monkeypatch.setattr(sc.datasets, "pbmc3k", adata.copy)
    monkeypatch.setattr(sc.datasets, "pbmc3k_processed", labelled[5:].copy)
    cells = open_cells(resolve("pbmc3k_labelled", downloads=tmp_path))
    assert cells.n_cells == 45
    assert list(cells.column("cell_type")) == list(adata.obs["cell_type"].iloc[5:])


def test_every_source_says_what_it_is():
    assert all(source.description for source in SOURCES.values())


@pytest.mark.network
def test_baron_from_the_package_index(tmp_path):
    cells = open_cells(resolve("baron_human_pancreas", downloads=tmp_path))
    assert (cells.n_cells, cells.n_genes) == (2142, 20125)
    assert set(cells.column("donor")) == {"human1", "human2", "human3", "human4"}
