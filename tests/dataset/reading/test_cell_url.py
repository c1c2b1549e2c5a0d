"""Cells at an address are the cells of the same file on the disk."""

import hashlib
import pickle
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import fsspec
import numpy as np
import pytest
from fsspec.implementations.cached import SimpleCacheFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile
from scipy.sparse import csc_matrix, csr_matrix

import dataset.reading.cell_url
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.reading.cell_file import CellFileError, file_sha256
from dataset.reading.cell_url import CellUrl
from dataset.reading.cells import open_cells
from dataset.sources import resolve, synthetic_cells
from tests.made_up import counts_of


class FarAwayFile(AbstractBufferedFile):
    """A file of the memory whose every fetch is written down, and can fail."""

    fetched: list[int] = []
    fault: Exception | None = None

    def _fetch_range(self, start, end):
        if self.fault is not None:
            raise self.fault
        part = self.fs.store[self.path].getvalue()[start:end]
        self.fetched.append(len(part))
        return part


class FarAway(MemoryFileSystem):
    """The files of memory://, fetched in pieces as from a server."""

    protocol = "far"

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("far://", "memory://"))

    def _open(self, path, mode="rb", **settings):
        size = self.store[self._strip_protocol(path)].size
        return FarAwayFile(self, path, mode, size=size, **settings)


@pytest.fixture
def far(monkeypatch):
    """Return the class of files whose fetches are counted, at far://."""
    fsspec.register_implementation("far", FarAway, clobber=True)
    monkeypatch.setattr(FarAwayFile, "fetched", [])
    return FarAwayFile


@pytest.fixture
def put(tmp_path):
    """Return a function that writes cells to the disk and to memory://; it returns the path."""
    memory = fsspec.filesystem("memory")

    def write(adata, name="cells.h5ad", **settings):
        path = tmp_path / name
        if path.suffix == ".zarr":
            with warnings.catch_warnings():  # of writing, about versions to come
                warnings.simplefilter("ignore")
                adata.write_zarr(path)
        else:
            adata.write_h5ad(path, compression="gzip", **settings)
        memory.put(str(path), f"/atlas/{name}", recursive=True)
        return path

    yield write
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    SimpleCacheFileSystem.clear_instance_cache()  # it keeps what it fetched once


@pytest.fixture
def cells():
    return synthetic_cells(np.random.default_rng(2), n_cells=150, n_genes=40)


def as_csc(adata):
    adata.X = csc_matrix(adata.X)
    return adata


def as_dense(adata):
    adata.X = adata.X.toarray()
    return adata


@pytest.mark.parametrize("url", ["memory://{}", "simplecache::memory://{}", "far://{}"])
@pytest.mark.parametrize("change", [lambda adata: adata, as_csc, as_dense])
def test_the_same_blocks_as_from_the_disk(put, far, cells, change, url):
    path = put(change(cells))
    ours, expected = open_cells(url.format("atlas/cells.h5ad")), open_cells(path)
    assert ours.columns == expected.columns
    for key in expected.columns:
        assert ours.column(key).equals(expected.column(key))
    assert list(ours.names(0, 200)) == list(expected.names(0, 200))
    assert ours.messages == expected.messages
    blocks = zip(ours.blocks(64), expected.blocks(64), strict=True)
    for (start, block), (expected_start, expected_block) in blocks:
        assert start == expected_start
        assert (block != expected_block).nnz == 0
    assert file_sha256(ours.files[0].path) == file_sha256(path)


@pytest.mark.parametrize("stored", [2, 3])
def test_a_zarr_folder_too(put, cells, stored):
    with ad.settings.override(zarr_write_format=stored):
        path = put(cells, "cells.zarr")
    (url,) = resolve("memory://atlas/cells.zarr")
    assert (counts_of(open_cells(url)) != counts_of(open_cells(path))).nnz == 0
    assert file_sha256(url) == file_sha256(path)


def test_addresses_globs_and_lists(put, cells, tmp_path):
    b, a = put(cells, "b.h5ad"), put(cells, "a.h5ad")
    assert [path.name for path in resolve("memory://atlas/*.h5ad")] == ["a.h5ad", "b.h5ad"]
    both = resolve("simplecache::memory://atlas/*.h5ad")
    assert [path.url for path in both] == [
        "simplecache::memory:///atlas/a.h5ad",
        "simplecache::memory:///atlas/b.h5ad",
    ]
    assert open_cells(both).n_cells == 300
    assert resolve([f"file://{b}", str(a)]) == [b, a]  # read as what they are: files
    assert resolve(f"file://{tmp_path}/*.h5ad") == [a, b]
    with pytest.raises(CellFileError, match="listed twice"):
        resolve(["memory://atlas/a.h5ad", "memory://atlas/a.h5ad"])


def test_what_is_told_of_an_address():
    url = CellUrl("https://host/atlas/cells.h5ad?signature=secret")
    assert str(url) == "https://host/atlas/cells.h5ad"
    assert (url.name, url.stem, url.suffix) == ("cells.h5ad", "cells", ".h5ad")
    assert url.parent.name == "atlas"
    assert CellUrl("zip://in/a.h5ad::s3://bucket/b.zip").name == "a.h5ad"
    assert pickle.loads(pickle.dumps(url)) == url
    assert len({url, CellUrl(url.url)}) == 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a.h5ad?signature=sesame&x=1", "https://host/a.h5ad"),
        ("https://anna:sesame@host/a.h5ad", "https://host/a.h5ad"),
        ("https://anna:sesame@host:80/a.h5ad?token=sesame", "https://host:80/a.h5ad"),
        ("https://sesame@host/a.h5ad", "https://host/a.h5ad"),
        ("s3://KEY:ses/ame@bucket/a.h5ad", "s3://bucket/a.h5ad"),
        (
            "simplecache::https://anna:sesame@host/a.h5ad?sesame",
            "simplecache::https://host/a.h5ad",
        ),
        ("zip://a.h5ad::https://host/b.zip?sesame", "zip://a.h5ad::https://host/b.zip"),
        ("s3://bucket/cells@v1/a.h5ad", "s3://bucket/cells@v1/a.h5ad"),
        ("https://host:80/cells@v1/a.h5ad", "https://host:80/cells@v1/a.h5ad"),
    ],
)
def test_what_is_secret_in_an_address_is_not_shown(url, shown):
    assert str(CellUrl(url)) == shown
    assert "sesame" not in repr(CellUrl(url))
    config = PreprocessConfig(
        name="set", input=[url], label_key="type", tokenizer={"kind": "rank", "n_tokens": 8}
    )
    assert "sesame" not in config.to_yaml()
    assert shown in config.to_yaml()
    assert config.input == [url]  # it is read with the key


class Leaks(MemoryFileSystem):
    """A file system whose errors quote all of an address, in a text that comes later, too."""

    protocol = "leaks"

    def info(self, path, **_):
        try:
            raise PermissionError(f"403 for url https://anna:sesame@host{path}?key=sesame")
        except PermissionError as error:
            raise OSError(f"cannot get {path}: sesame is wrong, {error}") from error


@pytest.mark.parametrize("use", [open_cells, lambda url: file_sha256(CellUrl(url))])
def test_what_is_secret_in_an_address_is_in_no_message(use):
    fsspec.register_implementation("leaks", Leaks, clobber=True)
    url = "leaks://anna:sesame@host/a.h5ad?key=sesame"
    with pytest.raises(CellFileError, match=r"^leaks://host/a\.h5ad: .*cannot get") as raised:
        use(url)
    assert "sesame" not in "".join(traceback.format_exception(raised.value))


def test_nothing_secret_is_written(put, cells, tmp_path):
    path = put(cells)
    config = PreprocessConfig(
        name="set",
        input=f"keyed://anna:sesame@atlas/{path.name}?key=sesame",
        label_key="cell_type",
        quality_control={"min_genes": 5},
        tokenizer={"kind": "rank", "n_tokens": 24},
        data_dir=str(tmp_path / "data"),
    )

    class Keyed(MemoryFileSystem):
        protocol = "keyed"

        @classmethod
        def _strip_protocol(cls, path):
            path = path.removeprefix("keyed://").partition("?")[0].rpartition("@")[2]
            return f"/{path.lstrip('/')}"

    fsspec.register_implementation("keyed", Keyed, clobber=True)
    folder = encode(config, progress=False)
    for written in folder.rglob("*"):
        assert not written.is_file() or b"sesame" not in written.read_bytes()
    assert encode(config, progress=False) == folder  # it is known again


@pytest.fixture
def far_size(put, far, monkeypatch):
    """Return a function that puts 3000 cells at far://, in 100 blocks; it returns their bytes."""

    def write(change):
        counts = np.random.default_rng(0).poisson(0.2, (3000, 1000)).astype(np.float32)
        size = put(ad.AnnData(change(csr_matrix(counts)))).stat().st_size
        monkeypatch.setattr(dataset.reading.cell_url, "BLOCK_BYTES", size // 100)
        return size

    return write


@pytest.mark.parametrize(("change", "passes"), [(csr_matrix, 1), (csc_matrix, 1.5)])
def test_every_byte_is_fetched_about_once(far_size, far, change, passes):
    # A column-wise matrix is transposed: its row numbers, half of the file, are read twice.
    size = far_size(change)
    cells = open_cells("far://atlas/cells.h5ad")
    assert sum(far.fetched) < size  # a look needs a part of it
    far.fetched.clear()
    for _ in cells.blocks(256):
        pass
    assert 0.8 * size < sum(far.fetched) < 1.25 * passes * size


def test_also_in_shares_that_threads_read_side_by_side(far_size, far):
    size = far_size(csr_matrix)
    (file,) = open_cells("far://atlas/cells.h5ad").files
    far.fetched.clear()
    with ThreadPoolExecutor(2) as threads:
        shares = [[(row, row + 100)] for row in range(0, 3000, 100)]
        read = threads.map(
            lambda share: sum(block.sum() for _, block in file.blocks(share)), shares
        )
        total = sum(read)
    assert total == sum(block.sum() for _, block in file.blocks([(0, 3000)]))
    assert sum(far.fetched) < 1.5 * 2 * size  # both passes


def test_an_object_that_changes_between_two_passes_is_noticed(put, cells):
    put(cells)
    ours = open_cells("memory://atlas/cells.h5ad")
    for _ in ours.blocks():
        pass
    put(cells)
    with pytest.raises(CellFileError, match=r"memory://atlas/cells\.h5ad: the file changed"):
        next(ours.blocks())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://atlas/other.h5ad", r"^memory://atlas/other\.h5ad: no such file$"),
        ("memory://atlas/*.zarr", r"^memory://atlas/\*\.zarr: no file matches$"),
        ("file:///atlas/other.h5ad", "no such file"),
        ("nowhere://atlas/cells.h5ad", "Protocol not known: nowhere"),
        ("costly://atlas/cells.h5ad", r"a package that is not here \(pip install costly\)"),
    ],
)
def test_what_is_not_there_is_one_sentence(put, cells, url, message):
    put(cells)
    fsspec.register_implementation(
        "costly", "costly_package.Costly", clobber=True, errtxt="pip install costly"
    )
    with pytest.raises(CellFileError, match=message):
        open_cells(url)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "empty"),
        (lambda content: b"<html>not found</html>", "not an HDF5 file"),
        (lambda content: content[: len(content) // 2], "cut short"),
        (lambda content: content[:3000] + bytes(len(content) - 3000), "damaged"),
    ],
)
def test_a_damaged_object_is_one_sentence(put, cells, damage, message):
    content = put(cells).read_bytes()
    fsspec.filesystem("memory").pipe("/atlas/bad.h5ad", damage(content))
    with pytest.raises(CellFileError, match=rf"^memory://atlas/bad\.h5ad: .*{message}"):
        open_cells("memory://atlas/bad.h5ad")


class TokenExpired(Exception):
    """Not an OSError: stores have errors of their own."""


@pytest.mark.parametrize("kind", [ConnectionResetError, TokenExpired])
def test_a_connection_that_breaks_is_one_sentence(put, far, monkeypatch, cells, kind):
    # Not a parameter itself: its traceback would keep HDF5 files open until Python is gone.
    fault = kind("at noon")
    put(cells)
    monkeypatch.setattr(dataset.reading.cell_url, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(dataset.reading.cell_url, "KEPT_BLOCKS", 1)
    ours = open_cells("far://atlas/cells.h5ad")
    monkeypatch.setattr(far, "fault", fault)
    for use in (lambda: open_cells("far://atlas/cells.h5ad"), lambda: next(ours.blocks())):
        with pytest.raises(
            CellFileError, match=rf"^far://atlas/cells\.h5ad: .*{fault}.*start aga"
        ):
            use()
    with pytest.raises(CellFileError, match=str(fault)):
        file_sha256(CellUrl("far://atlas/cells.h5ad"))


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_encoded_to_the_same_bytes(put, cells, tmp_path, name):
    path = put(cells, name)
    folders = []
    for input in (str(path), f"memory://atlas/{name}"):
        config = PreprocessConfig(
            name="set",
            input=input,
            label_key="cell_type",
            quality_control={"min_genes": 5},
            split={"key": "donor"},
            tokenizer={"kind": "rank", "n_tokens": 24},
            data_dir=str(tmp_path / "data" / str(len(folders))),
        )
        folders.append(encode(config, progress=False))
    one, other = map(contents, folders)
    assert one == other


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        # Two say where the cells were, others hold their sums; all other files are compared.
        if path.is_file() and path.name not in ("config.yaml", "store.json", "checksums.json")
    }
