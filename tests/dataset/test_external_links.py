"""What a file points at outside of itself is not read."""

import h5py
import numpy as np
import pytest

from dataset.reading.cell_file import CellFileError, open_store, refuse_external_links
from dataset.reading.cells import open_cells


@pytest.fixture
def paths(cells_adata, tmp_path):
    """Return the paths of a file and of another."""
    cells_adata.raw = cells_adata
    cells_adata.layers["counts"] = cells_adata.X.copy()
    for name in ("cells.h5ad", "other.h5ad"):
        cells_adata.write_h5ad(tmp_path / name)
    return tmp_path / "cells.h5ad", tmp_path / "other.h5ad"


@pytest.mark.parametrize(
    "place",
    ["X", "X/data", "obs", "obs/donor", "obs/donor/codes", "var", "var/_index", "layers"]
    + ["layers/counts", "raw", "raw/X/indices", "raw/var"],
)
@pytest.mark.parametrize("by_way_of", [None, "elsewhere"])
def test_a_link_to_another_file_is_refused(paths, place, by_way_of):
    path, other = paths
    with h5py.File(path, "r+") as file:
        del file[place]
        if by_way_of is None:
            file[place] = h5py.ExternalLink(other.name, place)
        else:  # a link inside the file to the one that leads out of it
            file[by_way_of] = h5py.ExternalLink(other.name, place)
            file[place] = h5py.SoftLink(f"/{by_way_of}")
    with pytest.raises(CellFileError, match=rf"cells\.h5ad: /{place} .*another file"):
        open_cells(path)


def test_a_link_to_a_file_that_is_not_there_is_refused(paths):
    path, _ = paths
    with h5py.File(path, "r+") as file:
        del file["obs/donor"]
        file["obs/donor"] = h5py.ExternalLink("nowhere.h5ad", "/obs/donor")
    with pytest.raises(CellFileError, match="/obs/donor is a link to another file"):
        open_cells(path)


def test_values_kept_in_another_file_are_refused(paths, tmp_path):
    path, other = paths
    values = np.arange(120)
    values.tofile(tmp_path / "values.bin")
    layout = h5py.VirtualLayout(shape=(120,), dtype=values.dtype)
    layout[:] = h5py.VirtualSource(str(other), "obs/time", shape=(120,))
    for replace in (
        lambda obs: obs.create_dataset(
            "time", (120,), "i8", external=[(str(tmp_path / "values.bin"), 0, 960)]
        ),
        lambda obs: obs.create_virtual_dataset("time", layout),
    ):
        with h5py.File(path, "r+") as file:
            del file["obs/time"]
            replace(file["obs"])
        with pytest.raises(CellFileError, match="values of /obs/time are kept elsewhere"):
            open_cells(path)


def test_links_inside_the_file_are_followed(paths):
    path, _ = paths
    with h5py.File(path, "r+") as file:
        file.move("obs/donor", "kept")
        file["obs/donor"] = h5py.SoftLink("/kept")
        file["obs/time"].parent["again"] = file["obs"]  # a circle
    cells = open_cells(path)
    assert cells.column("donor").nunique() == 4


def test_a_link_in_a_part_that_is_not_read_is_no_harm(paths):
    path, other = paths
    with h5py.File(path, "r+") as file:
        file["uns/more"] = h5py.ExternalLink(other.name, "/uns")
    assert open_cells(path).n_cells == 120
    with open_store(path) as root:
        refuse_external_links(root, path)
