import contextlib
import errno
import shutil

import anndata as ad
import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.sparse import csc_matrix, csr_matrix, vstack

import dataset.reading.matrix_rows
from dataset.reading.cell_file import file_sha256
from dataset.reading.cells import CellFileError, open_cells


def read_all(cells, **how):
    blocks = list(cells.blocks(**how))
    assert [start for start, _ in blocks] == list(
        np.cumsum([0] + [block.shape[0] for _, block in blocks])[:-1]
    )
    for _, block in blocks:
        assert block.dtype == np.int32
        assert block.has_canonical_format
        assert (block.data > 0).all()
    return vstack([block for _, block in blocks], format="csr")


def same(a, b):
    return a.shape == b.shape and (csr_matrix(a) != csr_matrix(b)).nnz == 0


def logged(counts):
    adata = ad.AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata.X


STORED = {"csr": csr_matrix, "csc": csc_matrix, "dense": lambda x: x.toarray()}
COMPRESSED = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "zstd": {"compression": hdf5plugin.FILTERS["zstd"]},
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("compressed", COMPRESSED)
def test_every_storage_gives_the_same_counts(cells_adata, tmp_path, stored, compressed):
    counts = cells_adata.X
    cells_adata.X = STORED[stored](counts)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad", **COMPRESSED[compressed])
    cells = open_cells(tmp_path / "cells.h5ad")
    for max_cells in (1, 7, 1024):
        assert same(read_all(cells, max_cells=max_cells), counts)
    parts = cells.files[0].blocks([(13, 23), (23, 58)])  # from the middle on
    assert same(vstack([block for _, block in parts]), counts[13:58])


@pytest.mark.filterwarnings("ignore:Writing zarr")
@pytest.mark.parametrize("stored", STORED)
def test_zarr(cells_adata, tmp_path, stored):
    counts = cells_adata.X
    cells_adata.X = STORED[stored](counts)
    cells_adata.write_zarr(tmp_path / "cells.zarr")
    cells = open_cells(tmp_path / "cells.zarr")
    assert same(read_all(cells, max_cells=50), counts)
    assert len(file_sha256(tmp_path / "cells.zarr")) == 64
    if stored != "dense":  # there a chunk that is not kept is one of zeros
        shutil.rmtree(next((tmp_path / "cells.zarr" / "X" / "data").glob("[c0]")), True)
        (tmp_path / "cells.zarr" / "X" / "data" / "0").unlink(missing_ok=True)
        with pytest.raises(CellFileError, match=r"cells\.zarr: .*chunks missing"):
            open_cells(tmp_path / "cells.zarr")


def test_columns_are_transposed_in_many_stripes(cells_adata, tmp_path, monkeypatch):
    counts = cells_adata.X
    cells_adata.X = csc_matrix(counts)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    monkeypatch.setattr(dataset.reading.matrix_rows, "STRIPE_ENTRIES", 100)
    cells = open_cells(tmp_path / "cells.h5ad")
    assert same(read_all(cells, max_cells=9), counts)
    assert same(read_all(cells, max_cells=200), counts)


def test_dense_is_read_in_stripes(cells_adata, tmp_path, monkeypatch):
    counts = cells_adata.X
    cells_adata.X = counts.toarray()
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(dataset.reading.matrix_rows, "DENSE_BYTES", 7 * 60 * 4)
    assert same(read_all(open_cells(tmp_path / "cells.h5ad"), max_cells=10), counts)


@pytest.mark.parametrize("chunk", [1, 10, 64, 10_000])
@pytest.mark.parametrize("shuffle", [False, True])
def test_gzip_chunks_of_any_size(cells_adata, tmp_path, chunk, shuffle):
    path = tmp_path / "cells.h5ad"
    cells_adata[:40].write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ("data", "indices"):
            values = file[f"X/{name}"][:]
            del file[f"X/{name}"]
            file.create_dataset(
                f"X/{name}",
                data=values,
                chunks=(min(chunk, len(values)),),
                compression="gzip",
                shuffle=shuffle,
            )
    cells = open_cells(path)
    assert same(read_all(cells, max_cells=3), cells_adata.X[:40])


@pytest.mark.parametrize("dtype", ["float64", "int8", "uint8", "int64", "uint32", ">f4"])
def test_counts_of_any_number_type(cells_adata, tmp_path, dtype):
    counts = cells_adata.X.copy()
    counts.data = np.minimum(counts.data, 100)
    cells_adata.X = None
    cells_adata.layers["counts"] = counts.astype("float32" if dtype[0] == ">" else dtype)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    if dtype == ">f4":
        with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
            del file["layers/counts/data"]
            file["layers/counts/data"] = counts.data.astype(dtype)
    cells = open_cells(tmp_path / "cells.h5ad")
    assert cells.counts_location == "layers/counts"
    assert same(read_all(cells), counts)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bool", ">i4"])
def test_dense_of_any_number_type(cells_adata, tmp_path, dtype):
    counts = cells_adata.X.toarray().clip(0, 1 if dtype == "bool" else 100)
    cells_adata.X = counts.astype(dtype)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    assert same(read_all(open_cells(tmp_path / "cells.h5ad")), counts)


def test_unsorted_duplicate_and_zero_entries(cells_adata, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells_adata[:2].write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name, values in {
            "data": np.array([1, 0, 2, 5, 4], dtype="f4"),
            "indices": np.array([9, 3, 1, 9, 0], dtype="i4"),
            "indptr": np.array([0, 4, 5], dtype="i4"),
        }.items():
            del file[f"X/{name}"]
            file[f"X/{name}"] = values
    expected = np.zeros((2, 60))
    expected[0, [9, 1]], expected[1, 0] = (6, 2), 4
    assert same(read_all(open_cells(path)), expected)


def test_a_file_older_than_anndata_0_7(cells_adata, tmp_path):
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        names = np.array(cells_adata.obs_names, dtype="S10")
        stage = np.arange(120, dtype="i8")
        file["obs"] = np.rec.fromarrays([names, stage], names="index,stage")
        file["var"] = np.rec.fromarrays(
            [np.array(cells_adata.var_names, dtype="S10")], names="index"
        )
        group = file.create_group("X")
        group.attrs.update({"h5sparse_format": "csr", "h5sparse_shape": (120, 60)})
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(cells_adata.X, part)
    cells = open_cells(tmp_path / "old.h5ad")
    assert list(cells.column("stage")) == list(range(120))
    assert list(cells.gene_ids) == list(cells_adata.var_names)
    assert same(read_all(cells), cells_adata.X)


def test_a_full_disk_is_no_damage_to_the_file(cells_adata, tmp_path, monkeypatch):
    counts = cells_adata.X
    cells_adata.X = csc_matrix(counts)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_cells(tmp_path / "cells.h5ad")

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", full)
        with pytest.raises(CellFileError, match=r"cells\.h5ad.*the disk is full.*TMPDIR"):
            read_all(cells)
    assert same(read_all(cells), counts)


# ------------------------------------------------------------------ where the counts are


def test_counts_are_found_wherever_they_are(cells_adata, tmp_path):
    counts = cells_adata.X.copy()
    path = tmp_path / "cells.h5ad"

    cells_adata.X = logged(counts)
    cells_adata.layers["counts"] = counts
    cells_adata.write_h5ad(path)
    cells = open_cells(path)
    assert cells.counts_location == "layers/counts"
    assert "log1p of counts normalized to 10,000 a cell" in cells.messages[0]
    assert same(read_all(cells), counts)

    del cells_adata.layers["counts"]
    cells_adata.raw = ad.AnnData(counts, obs=cells_adata.obs, var=cells_adata.var)
    cells_adata[:, :20].write_h5ad(path)
    cells = open_cells(path)
    assert cells.counts_location == "raw"
    assert cells.n_genes == 60  # raw has genes of its own
    assert same(read_all(cells), counts)


def test_a_layer_nobody_calls_counts_is_named_and_not_taken(cells_adata, tmp_path):
    cells_adata.layers["mystery"] = cells_adata.X.copy()
    cells_adata.X = logged(cells_adata.X)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(CellFileError, match="say counts: mystery"):
        open_cells(tmp_path / "cells.h5ad")
    cells = open_cells(tmp_path / "cells.h5ad", counts="mystery")
    assert cells.counts_location == "layers/mystery"
    with pytest.raises(CellFileError, match=r"the file has X, layers/mystery"):
        open_cells(tmp_path / "cells.h5ad", counts="absent")


VALUES = {
    "log1p of counts normalized to 10,000": logged,
    "log1p of raw counts": lambda x: x.log1p(),
    "counts normalized to 10,000": lambda x: logged(x).expm1(),
    "scaled or centered": lambda x: sc.pp.scale(logged(x).toarray(), copy=True),
    "not finite": lambda x: x * np.inf,
    "most likely logged": lambda x: logged(x).multiply(np.linspace(1, 1.5, 60)).tocsr(),
    "no value other than zero": lambda x: csr_matrix(x.shape, dtype=np.float32),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("found", VALUES)
def test_what_is_not_raw_counts_is_named_and_refused(cells_adata, tmp_path, found):
    cells_adata.X = VALUES[found](cells_adata.X)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(CellFileError, match=rf"cells\.h5ad: no raw counts .*{found}.*What to do"):
        open_cells(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("value", "fault"),
    [(-1, "negative"), (0.5, "fractional"), (np.nan, "not finite"), (np.inf, "not finite")],
)
def test_a_bad_value_in_the_last_cell_names_file_and_cell(
    cells_adata, tmp_path, monkeypatch, stored, value, fault
):
    monkeypatch.setattr("dataset.reading.find_counts.PEEK_CELLS", 4)
    counts = cells_adata.X.copy()
    counts.data[counts.indptr[110]] = value  # beyond what the first look sees
    cells_adata.X = STORED[stored](counts)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    with pytest.raises(CellFileError, match=rf"cells\.h5ad.*{fault}|no raw counts") as error:
        for _ in open_cells(tmp_path / "cells.h5ad").blocks(16):
            pass
    if stored != "csc":  # by columns, the first look sees every value of so small a file
        assert "'cell_110'" in str(error.value)


# ------------------------------------------------------------------ genes


def test_ensembl_versions_are_stripped_and_duplicates_summed(cells_adata, tmp_path):
    counts = cells_adata.X.toarray()
    ids = [f"ENSG{i:011d}.{i % 7 + 1}" for i in range(60)]
    ids[59] = "ENSG00000000003.9"  # another version of the fourth
    cells_adata.var_names = ids
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_cells(tmp_path / "cells.h5ad")
    assert cells.gene_ids[3] == "ENSG00000000003"
    assert cells.n_genes == 59
    assert cells.gene_symbols[0] == "GENE0"
    expected = counts[:, :59].copy()
    expected[:, 3] += counts[:, 59]
    assert same(read_all(cells), expected)
    assert any("ENSG00000000003" in m and "summed" in m for m in cells.messages)
    assert any("version taken off 60" in m for m in cells.messages)


def test_symbols_are_never_renamed(cells_adata, tmp_path):
    names = [f"RP11-{i}.2" for i in range(58)] + ["MATR3", "MATR3"]
    cells_adata.var.index = pd.Index(names)
    with pytest.warns(UserWarning, match="not unique"):
        cells_adata.copy()
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_cells(tmp_path / "cells.h5ad")
    assert list(cells.gene_ids) == names[:59]


def test_gene_id_column(cells_adata, tmp_path):
    cells_adata.var["ensembl"] = [f"ENSG{i:011d}" for i in range(59)] + [""]
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_cells(tmp_path / "cells.h5ad", gene_id_key="ensembl")
    assert cells.gene_ids[0] == "ENSG00000000000"
    assert cells.gene_ids[59] == "MT-ND1"
    assert cells.gene_symbols[0] == "GENE0"
    with pytest.raises(CellFileError, match=r"no var column 'entrez'; columns: .*ensembl"):
        open_cells(tmp_path / "cells.h5ad", gene_id_key="entrez")


# ------------------------------------------------------------------ cells and obs


def test_obs_keeps_missing_labels_and_lists_its_columns(cells_adata, tmp_path):
    cells_adata.obs.loc["cell_5", "cell_type"] = np.nan
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_cells(tmp_path / "cells.h5ad")
    assert cells.column("cell_type").isna().sum() == 1
    with pytest.raises(
        CellFileError,
        match=r"no obs column 'celltype'; did you mean 'cell_type'\? columns: cell_type, donor",
    ):
        cells.column("celltype")


def test_duplicate_cell_names_are_told_apart_and_said(cells_adata, tmp_path):
    cells_adata.obs_names = ["a", "a", "a-1", "a"] + list(cells_adata.obs_names[4:])
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    cells = open_cells(tmp_path / "cells.h5ad")
    assert list(cells.names(0, 4)) == ["a", "a-2", "a-1", "a-3"]
    assert any("2 cells share the name" in message for message in cells.messages)


def test_a_cell_without_counts_is_a_row_without_values(cells_adata, tmp_path):
    counts = cells_adata.X.toarray()
    counts[[0, 50, 119]] = 0
    cells_adata.X = csr_matrix(counts)
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    assert same(read_all(open_cells(tmp_path / "cells.h5ad"), max_cells=10), counts)


# ------------------------------------------------------------------ several files


@pytest.fixture
def two_files(cells_adata, tmp_path):
    cells_adata[:70, :50].write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    second = cells_adata[70:, ::-1][:, :50].copy()  # other genes, in another order
    second.X = csc_matrix(second.X)
    del second.obs["donor"]
    second.write_h5ad(tmp_path / "b.h5ad")
    return tmp_path


@pytest.mark.parametrize("genes", ["union", "intersection"])
def test_several_files(cells_adata, two_files, genes):
    cells = open_cells(str(two_files / "*.h5ad"), genes=genes)
    assert cells.n_genes == (60 if genes == "union" else 40)
    table = pd.DataFrame(cells_adata.X.toarray(), cells_adata.obs_names, cells_adata.var_names)
    table.iloc[:70, 50:] = 0
    table.iloc[70:, :10] = 0
    expected = table.loc[cells.names(0, 120), cells.gene_ids]
    assert same(read_all(cells, max_cells=32), expected.to_numpy())
    assert cells.column("cell_type").dtype == "category"
    assert list(cells.column("cell_type")) == list(cells_adata.obs["cell_type"])
    assert cells.column("donor").isna().sum() == 50
    assert any("b.h5ad: no obs columns donor" in message for message in cells.messages)


def test_cell_names_shared_by_files_get_the_file_name(cells_adata, two_files):
    cells_adata.obs_names = [f"cell_{i % 70}" for i in range(120)]
    cells_adata[70:].write_h5ad(two_files / "b.h5ad")
    cells = open_cells([two_files / "a.h5ad", two_files / "b.h5ad"])
    names = cells.names(0, 120)
    assert len(set(names)) == 120
    assert (names[0], names[70]) == ("cell_0-a", "cell_0-b")
    assert any("50 cell names are in more than one file" in m for m in cells.messages)


def test_files_without_a_common_gene(cells_adata, two_files):
    cells_adata.var_names = [f"ENSG{i:011d}" for i in range(60)]
    cells_adata.write_h5ad(two_files / "b.h5ad")
    with pytest.raises(CellFileError, match="no gene in common"):
        open_cells([two_files / "a.h5ad", two_files / "b.h5ad"])


def test_a_bad_value_in_the_second_file_names_it(cells_adata, two_files, monkeypatch):
    monkeypatch.setattr("dataset.reading.find_counts.PEEK_CELLS", 4)
    adata = cells_adata[70:].copy()
    adata.X.data[adata.X.indptr[40]] = 0.25
    adata.write_h5ad(two_files / "b.h5ad")
    cells = open_cells([two_files / "a.h5ad", two_files / "b.h5ad"])
    with pytest.raises(CellFileError, match=r"b\.h5ad: X: cell 'cell_110'.*fractional \(0\.25"):
        read_all(cells)


# ------------------------------------------------------------------ two species


@pytest.fixture
def two_species(cells_adata, two_files):
    """Write a.h5ad with the genes of one species, and b.h5ad with those of another.

    Gene 0 of b has the name of gene 1 in a, and is no ortholog of it; 5 genes are in no table.
    """
    upper = list(cells_adata.var_names)
    lower = [name.lower() for name in upper]
    lower[0] = upper[1]
    genes = pd.DataFrame({"human": upper, "mouse": lower, "confidence": 1})
    genes.iloc[:55].to_csv(two_files / "genes.csv.gz", index=False)
    second = ad.read_h5ad(two_files / "b.h5ad")
    second.var_names = [lower[upper.index(name)] for name in second.var_names]
    second.write_h5ad(two_files / "b.h5ad")
    return two_files


@pytest.mark.parametrize("genes", ["union", "intersection"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_two_species_are_read_by_their_orthologs(cells_adata, two_species, genes, first):
    files = [two_species / f"{name}.h5ad" for name in (first, "ba"[first == "b"])]
    cells = open_cells(files, genes=genes, gene_map=str(two_species / "genes.csv.gz"))
    names = list(cells_adata.var_names)
    expected = names[:55] if genes == "union" else names[10:50]
    assert sorted(cells.gene_ids) == sorted(expected)
    table = pd.DataFrame(cells_adata.X.toarray(), cells_adata.obs_names, cells_adata.var_names)
    table.iloc[:70, 50:] = 0
    table.iloc[70:, :10] = 0
    found = pd.DataFrame(read_all(cells).toarray(), cells.names(0, 120), cells.gene_ids)
    pd.testing.assert_frame_equal(found, table.loc[found.index, cells.gene_ids], check_dtype=False)
    assert "a.h5ad: 50 of 50 genes are in gene_map" in cells.messages
    assert "b.h5ad: 45 of 50 genes are in gene_map" in cells.messages


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("human,mouse\nA,a\nA,b\n", r"'human' has 'A' in 2 rows; expected one-to-one orthologs"),
        ("human,mouse\nA,a\nB,\n", r"'mouse' has '' in 1 rows; expected one-to-one"),
        ("human\nA\n", r"genes\.csv: expected a csv of two columns"),
        (None, r"genes\.csv: expected a csv of two columns: .*No such file"),
        ("human,mouse\nA,a\n", r"a\.h5ad: no gene is in gene_map \(GENE0, .*there are A, a, "),
    ],
)
def test_a_table_of_orthologs_that_is_none(two_files, text, expected):
    if text is not None:
        (two_files / "genes.csv").write_text(text)
    with pytest.raises(CellFileError, match=expected):
        open_cells(two_files / "a.h5ad", gene_map=str(two_files / "genes.csv"))


# ------------------------------------------------------------------ damaged files


@pytest.fixture
def big_file(tmp_path):
    rng = np.random.default_rng(0)
    adata = ad.AnnData(csr_matrix(rng.poisson(1.0, (400, 300)).astype(np.float32)))
    adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    return tmp_path / "cells.h5ad"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_one_clear_error(big_file, share):
    content = big_file.read_bytes()
    big_file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CellFileError, match=r"cells\.h5ad: ") as error:
        read_all(open_cells(big_file))
    assert "\n" not in str(error.value)


def test_damage_inside_a_chunk_names_the_file(big_file):
    with h5py.File(big_file) as file:
        chunks = file["X/data"].id
        middle = chunks.get_chunk_info(chunks.get_num_chunks() // 2)
    content = bytearray(big_file.read_bytes())
    where = middle.byte_offset + middle.size // 2
    content[where : where + 64] = bytes(64)
    big_file.write_bytes(content)
    with pytest.raises(CellFileError, match=r"cells\.h5ad: reading X.*damaged"):
        read_all(open_cells(big_file))


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_never_ends_in_another_error(big_file, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(big_file.read_bytes())
    where = int(rng.integers(len(content) - 200))
    content[where : where + 200] = rng.bytes(200)
    big_file.write_bytes(content)
    with contextlib.suppress(CellFileError):  # damage to unused bytes is no error
        read_all(open_cells(big_file))


def test_parts_that_do_not_fit_together(big_file):
    with h5py.File(big_file, "r+") as file:
        indices = file["X/indices"][:]
        indices[-1] = 1_000_000
        file["X/indices"][:] = indices
    with pytest.raises(CellFileError, match="gene outside the matrix"):
        read_all(open_cells(big_file))
    with h5py.File(big_file, "r+") as file:
        file["X/indptr"][3] = -5
    with pytest.raises(CellFileError, match="indptr"):
        open_cells(big_file)


def test_files_that_are_no_cells(tmp_path):
    for name, content, said in [
        ("empty.h5ad", b"", "empty"),
        ("text.h5ad", b"cell,gene\n" * 100, "not an HDF5 file"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CellFileError, match=rf"{name}: .*{said}"):
            open_cells(tmp_path / name)
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["table"] = np.arange(3)
    with pytest.raises(
        CellFileError, match=r"other\.h5ad: no 'obs' in the file \(it has \['table"
    ):
        open_cells(tmp_path / "other.h5ad")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CellFileError, match="not a zarr store"):
        open_cells(tmp_path / "folder")
    with pytest.raises(CellFileError, match="no such file"):
        open_cells(tmp_path / "absent.h5ad")


def test_a_file_that_changes_between_passes_is_refused(cells_adata, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells_adata.write_h5ad(path)
    cells = open_cells(path)
    before = file_sha256(path)
    read_all(cells)
    cells.check_unchanged()
    blocks = cells.blocks(50)
    next(blocks)
    cells_adata[:, ::-1].write_h5ad(tmp_path / "other.h5ad")
    (tmp_path / "other.h5ad").replace(path)
    with pytest.raises(CellFileError, match="changed while it was being read"):
        list(blocks)
    with pytest.raises(CellFileError, match="changed"):
        read_all(cells)
    assert file_sha256(path) != before


# ------------------------------------------------------------------ real files


@pytest.mark.parametrize(
    "name", ["baron_human_pancreas", "worm_embryo_timecourse", "zeisel_cortex_4000"]
)
def test_real_counts(real_cells, name):
    cells = open_cells(real_cells(name))
    assert same(read_all(cells), ad.read_h5ad(real_cells(name)).X)


@pytest.mark.parametrize("name", ["xin_pancreas_subset", "merfish_mpoa_spatial"])
def test_real_files_without_counts(real_cells, name):
    with pytest.raises(CellFileError, match="no raw counts"):
        open_cells(real_cells(name))
