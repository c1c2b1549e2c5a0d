import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse import random as random_csr

from dataset.store.csr_file import CsrFile, CsrWriter, NpyWriter, Rows, open_npy


@pytest.fixture
def matrix():
    matrix = random_csr(50, 30, density=0.2, format="csr", random_state=0)
    matrix.data = np.ceil(matrix.data * 9).astype(np.int32)
    return matrix


def write(folder, matrix, n_rows):
    with CsrWriter(folder, matrix.shape[1]) as writer:
        for start in range(0, matrix.shape[0], n_rows):
            writer.append(Rows.from_csr(matrix[start : start + n_rows]))
    return CsrFile(folder)


@pytest.mark.parametrize("n_rows", [1, 7, 50])
def test_what_is_written_in_blocks_is_read_back(matrix, n_rows, tmp_path):
    file = write(tmp_path / "m", matrix, n_rows)
    assert file.gene_index.dtype == file.counts.dtype == np.uint16
    assert (file.rows(0, 50).to_csr(30) != matrix).nnz == 0
    rows = np.array([9, 3, 3, 49])
    assert (file.take(rows).to_csr(30) != matrix[rows]).nnz == 0


def test_a_count_beyond_16_bits_widens_the_whole_file(matrix, tmp_path):
    matrix.data[matrix.indptr[40]] = 70_000
    file = write(tmp_path / "m", matrix, 7)
    assert file.counts.dtype == np.int32
    assert (file.rows(0, 50).to_csr(30) != matrix).nnz == 0
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "indptr.npy",
        "gene_index.npy",
        "counts.npy",
    }


def test_a_wide_first_count_and_no_counts_at_all(tmp_path):
    wide = csr_matrix(np.array([[70_000, 0], [0, 0]]))
    assert (write(tmp_path / "wide", wide, 1).rows(0, 2).to_csr(2) != wide).nnz == 0
    none = csr_matrix((3, 2), dtype=np.int32)
    assert write(tmp_path / "none", none, 2).take(np.arange(3)).to_csr(2).nnz == 0


def test_genes_beyond_16_bits_have_wide_columns(tmp_path):
    matrix = csr_matrix(([1], ([0], [70_000])), shape=(1, 70_001))
    file = write(tmp_path / "m", matrix, 1)
    assert file.gene_index.dtype == np.int32
    assert file.gene_index.tolist() == [70_000]


def test_columns_are_left_out_and_renumbered(matrix, tmp_path):
    file = write(tmp_path / "m", matrix, 7)
    keep = np.arange(30) % 3 > 0
    columns = np.where(keep, np.cumsum(keep) - 1, -1)
    rows = np.array([9, 3, 3, 49])
    assert (file.take(rows, columns).to_csr(20) != matrix[rows][:, keep]).nnz == 0
    with pytest.raises(ValueError, match="a gene beyond the 12 that there are"):
        file.take(np.arange(50), columns[:12])


def test_unsorted_rows_with_stored_zeros_and_duplicates_are_put_in_order():
    untidy = csr_matrix(([3, 0, 1, 2], ([0, 0, 0, 0], [2, 1, 0, 2])), shape=(1, 3))
    untidy = csr_matrix(([3, 0, 1, 2], [2, 1, 0, 2], [0, 4]), shape=(1, 3))
    rows = Rows.from_csr(untidy)
    assert rows.gene_index.tolist() == [0, 2]
    assert rows.counts.tolist() == [1, 5]
    assert untidy.nnz == 4  # the caller's matrix is as it was


def test_numpy_reads_what_grew(tmp_path):
    with NpyWriter(tmp_path / "a.npy", np.dtype(np.uint16), (3,)) as writer:
        for n in (1, 0, 1000):
            writer.append(np.full((n, 3), n))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert array.shape == (1001, 3)
    assert array.sum() == 3 + 3_000_000


def test_an_empty_array_opens_and_a_cut_one_does_not(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((0, 4), np.uint16))
    assert open_npy(path).shape == (0, 4)
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"\w"):
        open_npy(path)
