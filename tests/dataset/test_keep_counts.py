"""Counts are read once: what comes later opens no file of cells."""

import json
import logging
import os
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix

from configs.base import ConfigError
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.encode_error import EncodeError
from dataset.keep_counts import keep_counts
from dataset.reading.cell_file import CellFileError
from dataset.reading.cells import open_cells
from dataset.sources import synthetic_cells
from dataset.store.atomic import FolderError
from dataset.store.count_store import CountStore, StoreError
from dataset.store.encoded_folder import EncodedFolder


@pytest.fixture
def cells():
    return synthetic_cells(
        np.random.default_rng(5), n_cells=160, n_genes=80, n_times=2, counts_per_cell=150
    )


@pytest.fixture
def config_of(tmp_path, cells):
    cells.write_h5ad(tmp_path / "cells.h5ad")

    def make(name="set", **settings):
        defaults = {
            "name": name,
            "input": str(tmp_path / "cells.h5ad"),
            "label_key": "cell_type",
            "quality_control": {"min_genes": 5},
            "split": {"key": "donor"},
            "tokenizer": {"kind": "rank", "n_tokens": 30},
            "data_dir": str(tmp_path / "data"),
        }
        return PreprocessConfig.model_validate(defaults | settings)

    return make


def run(config, **settings):
    return EncodedFolder(encode(config, progress=False, **settings))


def keep(config):
    return keep_counts(config, progress=False)


def arrays(folder):
    """Return the bytes of every array below a folder, by its name."""
    files = sorted(folder.path.rglob("*.npy"))
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


# ------------------------------------------------------------------------- once


@pytest.mark.parametrize(
    "changed",
    [
        {"tokenizer": {"kind": "rank", "n_tokens": 12}},
        {"split": {"key": None, "seed": 3}},
        {"quality_control": {"min_genes": 9, "mitochondrial_prefix": "GENE1"}},
        {"quality_control": {"scrublet": True, "min_genes": 5}, "batch_key": "donor"},
        {"label_key": "donor", "split": {"key": None}, "condition_keys": ["time"]},
        {
            "time_key": "time",
            "tokenizer": {"kind": "rank", "previous": {"n_ancestors": 3, "n_components": 4}},
        },
    ],
)
def test_a_second_encoding_opens_no_file(config_of, tmp_path, changed):
    """The file is taken away; what is encoded is what an encoding of the file gives."""
    first = run(config_of())
    expected = arrays(run(config_of("second", data_dir=str(tmp_path / "other"), **changed)))
    (tmp_path / "cells.h5ad").unlink()
    second = run(config_of("second", **changed))
    assert arrays(second) == expected
    for folder in (first, second):  # and the counts are on the disk once
        assert (folder.path / "counts" / "counts.npy").stat().st_nlink == 3
    assert np.asarray(second.expression("train")[0].sum(axis=1)).all()


def test_a_second_encoding_does_not_open_a_file_that_is_there(config_of, monkeypatch):
    run(config_of())
    monkeypatch.setattr(h5py.File, "__init__", refuse_source(h5py.File.__init__))
    run(config_of("second", tokenizer={"kind": "rank", "n_tokens": 12}))
    with pytest.raises(AssertionError, match="opened"):
        run(config_of("third", counts="X"))


def refuse_source(init):
    def checked(self, name, *arguments, **settings):
        if isinstance(name, str | os.PathLike):  # and not a file that is open already
            assert "counts" in os.fspath(name), f"{name}: opened"
        init(self, name, *arguments, **settings)

    return checked


@pytest.mark.network
def test_another_tokenizer_of_the_demos_cells_opens_no_file(tmp_path, monkeypatch):
    """The demo as it stands, in a folder of its own; then the download is taken away."""
    file = Path("configs/preprocess/baron_human_rank.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    first = run(PreprocessConfig.load(file))
    shutil.rmtree("data/downloads")
    monkeypatch.setattr("dataset.sources._pip_download", None)
    second = run(PreprocessConfig.load(file, ["name=values", "tokenizer={kind: gene_values}"]))
    assert sorted(second.split("train").arrays) == ["counts", "token_ids", "values"]
    assert second.meta["split_sha256"] == first.meta["split_sha256"]
    assert second.meta["source"] == first.meta["source"]
    assert (first.path / "counts" / "counts.npy").stat().st_nlink == 3


def test_the_notebook_and_the_encoding_read_once(config_of, tmp_path):
    store = keep(config_of())
    (tmp_path / "cells.h5ad").unlink()
    assert keep(config_of()).files == store.files
    assert run(config_of()).meta["source"]["n_cells"] == store.n_cells == 160


def test_a_previous_profile_of_a_layer_is_kept_too(cells, config_of, tmp_path):
    cells.layers["before"] = cells.X[::-1].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    tokenizer = {"kind": "rank", "n_tokens": 20, "previous": {"layer": "before"}}
    first = run(config_of(tokenizer=tokenizer))
    (tmp_path / "cells.h5ad").unlink()
    tokenizer["previous"]["shuffle"] = True
    second = run(config_of("shuffled", tokenizer=tokenizer))
    one, two = (f.split("train").library_size[:, 1].tolist() for f in (first, second))
    assert one != two
    assert sorted(one) == sorted(two)


def test_without_the_counts_those_of_the_encoded_folder_come_back(config_of, tmp_path):
    run(config_of())
    shutil.rmtree(tmp_path / "data" / "counts")
    (tmp_path / "cells.h5ad").unlink()
    assert run(config_of(tokenizer={"kind": "rank", "n_tokens": 9}), overwrite=True).n_tokens == 10
    assert len(list((tmp_path / "data" / "counts").iterdir())) == 1


def test_a_folder_stands_alone(config_of, tmp_path):
    folder = run(config_of())
    expected = folder.expression("test")[0].toarray()
    shutil.copytree(folder.path, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "data")
    moved = EncodedFolder(tmp_path / "elsewhere")
    np.testing.assert_array_equal(moved.expression("test")[0].toarray(), expected)


def test_disks_without_hard_links_get_copies(config_of, monkeypatch):
    def no_link(*_):
        raise OSError(1, "Operation not permitted")

    expected = arrays(run(config_of()))
    monkeypatch.setattr(os, "link", no_link)
    second = run(config_of("second"))
    assert (second.path / "counts" / "counts.npy").stat().st_nlink == 1
    assert arrays(second) == expected


# --------------------------------------------------------------------- what changed


def test_a_file_that_changed_is_read_again(cells, config_of, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    store = keep(config_of())
    cells[:100].write_h5ad(tmp_path / "cells.h5ad")
    changed = keep(config_of())
    assert (store.n_cells, changed.n_cells) == (160, 100)
    assert store.path == changed.path
    assert "has changed and is read again" in caplog.text


def test_a_file_that_was_only_copied_is_not(config_of, tmp_path, monkeypatch):
    keep(config_of())
    path = tmp_path / "cells.h5ad"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    monkeypatch.setattr("dataset.keep_counts.open_cells", None)
    assert keep(config_of()).n_cells == 160


def test_another_file_of_a_glob_is_noticed(cells, config_of, tmp_path):
    config = config_of(input=str(tmp_path / "c*.h5ad"))
    assert keep(config).n_cells == 160
    more = cells[:20].copy()
    more.obs_names = [f"new_{i}" for i in range(20)]
    more.write_h5ad(tmp_path / "cz.h5ad")  # behind the first
    assert keep(config).n_cells == 180


@pytest.mark.parametrize(
    "setting", [{"counts": "X"}, {"gene_id_key": "gene_symbol"}, {"genes": "intersection"}]
)
def test_what_decides_which_counts_are_read_has_a_store_of_its_own(config_of, setting):
    assert keep(config_of()).path != keep(config_of(**setting)).path
    assert keep(config_of()).path == keep(config_of(label_key="donor", n_threads=1)).path


@pytest.mark.parametrize("damage", ["cut", "swap", "unlink", "version", "json"])
def test_a_damaged_store_is_read_again(config_of, damage, caplog):
    store = keep(config_of())
    expected = store.counts.take(np.arange(160)).to_csr(80).toarray()
    file = store.path / ("store.json" if damage in ("version", "json") else "counts.npy")
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "swap":
        file.write_bytes(content[:-2] + content[-1:] + content[-2:-1])
    elif damage == "version":
        file.write_text(json.dumps(json.loads(content) | {"version": 0}))
    elif damage == "json":
        file.write_text("{")
    else:
        file.unlink()
    with pytest.raises(StoreError):
        CountStore(store.path).check()
    again = keep(config_of())
    assert "not usable" in caplog.text
    np.testing.assert_array_equal(again.counts.take(np.arange(160)).to_csr(80).toarray(), expected)


def test_a_store_with_a_file_of_somebody_else_is_not_replaced(cells, config_of, tmp_path):
    thesis = keep(config_of()).path / "thesis.tex"
    thesis.write_text("years of work")
    cells[:100].write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(FolderError, match=r"thesis\.tex"):
        keep(config_of())
    assert thesis.read_text() == "years of work"


def test_no_file_and_no_counts_is_said(config_of, tmp_path):
    (tmp_path / "cells.h5ad").unlink()
    with pytest.raises(CellFileError, match="no such file"):
        keep(config_of())


def test_the_folder_of_all_counts_is_no_name_of_a_data_set(config_of):
    with pytest.raises((ConfigError, ValueError), match="is taken"):
        config_of("counts")


def test_another_table_of_orthologs_is_another_reading(config_of, tmp_path, cells):
    """The counts are named by what the table holds, not by its path."""
    names = list(cells.var_names)
    table = pd.DataFrame({"human": [f"H{name}" for name in names], "mouse": names})
    table[:60].to_csv(tmp_path / "genes.csv", index=False)
    config = config_of(gene_map=str(tmp_path / "genes.csv"))
    first = run(config)
    assert keep(config).n_genes == 60
    assert sorted(keep(config).gene_ids) == sorted(table["human"][:60])
    assert run(config).meta == first.meta  # nothing to do
    table[:50].to_csv(tmp_path / "genes.csv", index=False)
    assert keep(config).n_genes == 50
    with pytest.raises(EncodeError, match="was made with another gene_map"):
        run(config)
    assert keep(config_of()).n_genes == 80


# ------------------------------------------------------------------ what is in it


def odd_columns(n):
    rng = np.random.default_rng(0)
    return {
        "cell_type": pd.Categorical(["a", "b"] * (n // 2)),
        "donor": [f"d{i % 4}" for i in range(n)],
        "age": rng.normal(size=n),
        "passage": rng.integers(0, 9, n),
        "is_control": rng.random(n) > 0.5,
        "stage": pd.Categorical(["late", "early"] * (n // 2), ["early", "late"], ordered=True),
        "holes": pd.Categorical.from_codes([0, -1] * (n // 2), ["x"]),
        "nullable": pd.array([1, None] * (n // 2), dtype="Int64"),
        "dose": pd.Categorical([0.5, 2.0] * (n // 2)),
        "invisible": ["t1 ", "t1\u200b"] * (n // 2),
    }


@pytest.mark.parametrize("is_csc", [False, True])
def test_a_store_gives_what_the_file_gives(cells, config_of, tmp_path, is_csc):
    cells.obs = pd.DataFrame(odd_columns(160), index=cells.obs_names)
    if is_csc:
        cells.X = csc_matrix(cells.X)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    source, store = open_cells(tmp_path / "cells.h5ad"), keep(config_of())
    for key in odd_columns(2):
        ours, theirs = store.column(key), source.column(key)
        assert list(map(str, ours)) == list(map(str, theirs)), key
        assert ours.isna().tolist() == theirs.isna().tolist()
        if isinstance(theirs.dtype, pd.CategoricalDtype):
            assert ours.dtype.ordered == theirs.dtype.ordered
            assert list(ours.cat.categories) == list(theirs.cat.categories)
    assert any("invisible characters" in message for message in store.messages)
    np.testing.assert_array_equal(store.names(3, 50), source.names(3, 50))
    np.testing.assert_array_equal(store.gene_symbols, source.gene_symbols)
    np.testing.assert_array_equal(store.to_anndata(np.arange(160)).X.toarray(), cells.X.toarray())
    table = ad.read_h5ad(store.path / "cells.h5ad")  # anndata reads it
    assert table.obs_names.tolist() == cells.obs_names.tolist()
    assert table.obs["stage"].cat.ordered
    with pytest.raises(CellFileError, match=r"cells\.h5ad: no obs column 'doner'; did you mean"):
        store.column("doner")


def test_the_order_of_times_that_files_disagree_on_is_said_when_it_is_needed(
    cells, config_of, tmp_path
):
    paths = [tmp_path / "1.h5ad", tmp_path / "2.h5ad"]
    for path, order in zip(paths, (["0", "1"], ["1", "0"]), strict=True):
        part = cells[:80].copy() if order == ["0", "1"] else cells[80:].copy()
        part.obs["time"] = pd.Categorical(part.obs["time"].astype(str), order, ordered=True)
        part.write_h5ad(path)
    config = config_of(input=[str(path) for path in paths])
    store = keep(config)
    assert "time" not in store.table.columns  # they contradict each other: of no use at all
    with pytest.raises(CellFileError, match="contradict"):
        store.column("time")
    assert run(config).n_cells["train"] > 0


def test_a_wrong_column_is_told_before_the_counts_are_read(config_of, monkeypatch, tmp_path):
    monkeypatch.setattr("dataset.keep_counts.read_counts", None)
    with pytest.raises(CellFileError, match="no obs column 'cell_tipe'"):
        keep(config_of(label_key="cell_tipe"))
    cells = ad.read_h5ad(tmp_path / "cells.h5ad")
    cells.obs["barcode"] = cells.obs_names
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(EncodeError, match="distinct values"):
        keep(config_of(label_key="barcode"))
    assert list((tmp_path / "data").rglob("*.npy")) == []
