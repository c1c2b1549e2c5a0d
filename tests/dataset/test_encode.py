import errno
import hashlib
import json
import os
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

import dataset.describe
import dataset.encode
import dataset.keep_counts
import dataset.store.blocks
from dataset.batches import BatchReader, to_device
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.encode_error import EncodeError
from dataset.previous.history import History
from dataset.reading.cells import CellFileError
from dataset.sources import synthetic_cells
from dataset.store.atomic import FolderError
from dataset.store.checksums import write_checksums
from dataset.store.csr_file import NpyWriter
from dataset.store.encoded_folder import EncodedFolder, EncodedFolderError
from dataset.store.expression import Expression
from dataset.store.layout import check_replaceable
from dataset.vocabulary import CLS, N_SPECIALS, SEP
from tests.made_up import Presence

N_TOKENS = 30
# sha256 of what the first version of the rank tokenizer wrote of made-up cells.
GOLDEN = {
    "expression/library_size.npy": "a12a3c4f",
    "learned/medians.npy": "2824f1b3", "test/counts.npy": "991fb3f1",
    "test/labels.npy": "f1fe217a", "test/lengths.npy": "17807d0a",
    "test/library_size.npy": "6b1baf5f", "test/rows.npy": "586cd241",
    "test/token_ids.npy": "29661d26", "train/counts.npy": "80769cfa",
    "train/labels.npy": "d0639551", "train/lengths.npy": "5b59cb05",
    "train/library_size.npy": "db0d074d", "train/rows.npy": "6108122e",
    "train/token_ids.npy": "55c00cf7", "val/counts.npy": "c794bce2",
    "val/labels.npy": "f1fe217a", "val/lengths.npy": "a0bd48ef",
    "val/library_size.npy": "31e58839", "val/rows.npy": "e6439a60",
    "val/token_ids.npy": "c22a7fe4", "vocabulary.json": "e7655e05",
    "class_names.json": "d8a8383c",
}  # fmt: skip


GOLDEN_EXPRESSION = {"indptr": "6fb5e63a", "gene_index": "6c894185", "counts": "c28d5e72"}


@pytest.fixture
def cells():
    """Return 160 cells x 80 genes of 4 types, 4 donors and 2 times."""
    return synthetic_cells(
        np.random.default_rng(5), n_cells=160, n_genes=80, n_times=2, counts_per_cell=150
    )


@pytest.fixture
def config_of(tmp_path):
    """Write cells and return the config that encodes them."""

    def make(adata, name="set", file="cells.h5ad", **settings):
        path = tmp_path / file
        if adata is not None:
            adata.write_h5ad(path)
        defaults = {
            "name": name,
            "input": str(path),
            "label_key": "cell_type",
            "quality_control": {"min_genes": 5},
            "split": {"key": "donor", "val": ["donor_2"], "test": ["donor_3"]},
            "tokenizer": {"kind": "rank", "n_tokens": N_TOKENS},
            "data_dir": str(tmp_path / "data"),
        }
        return PreprocessConfig.model_validate(defaults | settings)

    return make


def run(config, **settings):
    return EncodedFolder(encode(config, progress=False, **settings))


def contents(folder):
    """Return the hash of every file of a folder; what names commit and folder is left out."""
    path = folder.path if isinstance(folder, EncodedFolder) else folder
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and file.name not in ("config.yaml", "meta.json", "store.json", "checksums.json")
    }


def leftovers(config):
    """Return what is there besides the counts of whole files."""
    folder = Path(config.data_dir)
    left = [path.name for path in folder.glob("*") if path.name != "counts"]
    return left + [path.name for path in folder.glob("counts/.*")]


def stores(config):
    return sorted(path.name for path in Path(config.data_dir).glob("counts/*"))


def numpy_reference(adata, train):
    """Encode dense arrays by the definitions: vocabulary, medians and tokens of all cells."""
    counts = adata.X.toarray().astype(np.int64)
    library_size = counts.sum(axis=1)
    genes = np.flatnonzero((counts[train] > 0).any(axis=0))
    medians = []
    for gene in genes:
        have = train & (counts[:, gene] > 0)
        values = counts[have, gene].astype(np.float64) * 1e4 / library_size[have]
        medians.append(np.median(values.astype(np.float32)))
    medians = np.array(medians, dtype=np.float32)
    token_ids = np.zeros((len(counts), 1 + N_TOKENS), dtype=np.uint16)
    token_ids[:, 0] = CLS
    behind = np.zeros_like(token_ids)
    for row, cell in enumerate(counts[:, genes]):
        found = np.flatnonzero(cell)
        value = cell[found].astype(np.float32) / medians[found]
        found = found[np.argsort(-value, kind="stable")][:N_TOKENS]
        token_ids[row, 1 : 1 + len(found)] = found + N_SPECIALS
        behind[row, 1 : 1 + len(found)] = cell[found]
    return genes, medians, token_ids, behind, library_size


def donors_of(adata, *names):
    return adata.obs["donor"].isin([f"donor_{name}" for name in names]).to_numpy()


# ------------------------------------------------------------------ what is encoded


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_equal_to_a_plain_numpy_reference(cells, config_of, kind):
    stored = cells.copy()
    stored.X = {"csr": csr_matrix, "csc": csc_matrix, "dense": lambda x: x.toarray()}[kind](
        cells.X
    )
    folder = run(config_of(stored))
    train = donors_of(cells, 0, 1)
    genes, medians, token_ids, behind, library_size = numpy_reference(cells, train)
    assert folder.vocabulary.gene_ids == tuple(cells.var_names[genes])
    np.testing.assert_array_equal(folder.facts.learned["medians"], medians)
    for name, mask in (
        ("train", train),
        ("val", donors_of(cells, 2)),
        ("test", donors_of(cells, 3)),
    ):
        split = folder.split(name)
        np.testing.assert_array_equal(split.arrays["token_ids"], token_ids[mask])
        np.testing.assert_array_equal(split.arrays["counts"], behind[mask])
        np.testing.assert_array_equal(split.lengths, (token_ids[mask] > 0).sum(axis=1))
        np.testing.assert_array_equal(split.library_size[:, 0], library_size[mask])
        assert split.cell_names.tolist() == cells.obs_names[mask].tolist()
        counts, all_genes = folder.expression(name)
        np.testing.assert_array_equal(counts.toarray(), cells.X[mask][:, genes].toarray())
        np.testing.assert_array_equal(all_genes, library_size[mask])
        types = cells.obs["cell_type"][mask]
        assert [folder.class_names[i] for i in split.labels] == types.tolist()


def test_blocks_and_threads_change_no_byte(cells, config_of, monkeypatch):
    settings = {"time_key": "time", "tokenizer": {"kind": "rank", "n_tokens": 20, "previous": {}}}
    expected = contents(run(config_of(cells, "a", n_threads=1, **settings)))
    for block, n_threads in ((7, 1), (64, 3)):
        monkeypatch.setattr(dataset.store.blocks, "BLOCK_CELLS", block)
        monkeypatch.setattr(dataset.store.blocks, "SHARE_CELLS", 10 + 2 * block)
        monkeypatch.setattr(dataset.describe, "TABLE_CELLS", 3 * block)
        config = config_of(None, f"b{block}", n_threads=n_threads, **settings)
        assert contents(run(config)) == expected


def test_several_files_are_as_one(cells, config_of, tmp_path):
    expected = contents(run(config_of(cells, "one")))
    paths = [tmp_path / "1.h5ad", tmp_path / "2.h5ad"]
    cells[:70].write_h5ad(paths[0])
    cells[70:].write_h5ad(paths[1])
    assert contents(run(config_of(None, "two", input=[str(p) for p in paths]))) == expected


def test_val_and_test_cells_change_nothing_that_is_learned(cells, config_of):
    before = contents(run(config_of(cells, "before")))
    changed = cells.copy()
    held_out = donors_of(cells, 2, 3)
    rng = np.random.default_rng(0)
    counts = changed.X.toarray()
    counts[held_out] = (
        rng.permuted(counts[held_out], axis=1) * 3 + rng.poisson(2, counts.shape)[held_out]
    )
    changed.X = csr_matrix(counts)
    changed.obs["cell_type"] = changed.obs["cell_type"].astype(str)
    changed.obs.loc[held_out, "cell_type"] = rng.permutation(changed.obs["cell_type"][held_out])
    after = contents(run(config_of(changed, "after", file="changed.h5ad")))
    learned = ["vocabulary.json", "learned/medians.npy", "class_names.json", "conditions.json"]
    learned += [name for name in before if name.startswith("train/")]
    assert len(learned) == 11
    for name in learned:
        assert after[name] == before[name], name
    assert after["val/token_ids.npy"] != before["val/token_ids.npy"]


def learned(folder):
    """Return what is learned or trained on: hashes, and the names of the train cells.

    ``train/rows.npy`` counts all cells that stay, so it moves when one of another split goes.
    """
    hashes = contents(folder)
    facts = ("vocabulary.json", "learned/medians.npy", "class_names.json", "conditions.json")
    found = {n: h for n, h in hashes.items() if n in facts or n.startswith(("train/", "history/"))}
    del found["train/rows.npy"]
    return found, folder.split("train").cell_names.tolist()


HISTORY = {"kind": "rank", "n_tokens": 20, "previous": {"n_ancestors": 3, "n_components": 4}}
SHUFFLED = HISTORY | {"previous": HISTORY["previous"] | {"shuffle": True}}
LEAKS = {
    "ranks": {},
    "groups chosen by seed": {"split": {"key": "donor", "seed": 3}},
    "histories": {"time_key": "time", "tokenizer": HISTORY},
    "shuffled histories": {"time_key": "time", "tokenizer": SHUFFLED},
    "conditions": {"condition_keys": ["plate", "time"]},
    "doublets of batches in all splits": {
        "batch_key": "plate",
        "quality_control": {"min_genes": 5, "scrublet": True, "max_doublet_score": 0.1},
    },
}


@pytest.fixture
def leaky():
    """Return 480 cells of a rare type, of two plates and of two times in each of four donors."""
    cells = synthetic_cells(
        np.random.default_rng(8), n_cells=480, n_genes=160, n_times=2, counts_per_cell=150
    )
    cells.obs["plate"] = np.where(np.arange(480) % 2, "odd", "even")
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    of_train = np.flatnonzero(donors_of(cells, 0, 1))
    cells.obs.iloc[of_train[:2], cells.obs.columns.get_loc("cell_type")] = "rare"
    return cells


@pytest.mark.parametrize("settings", LEAKS.values(), ids=LEAKS)
def test_labels_of_val_and_test_change_nothing_that_is_learned(leaky, config_of, settings):
    before = run(config_of(leaky, "before", **settings))
    held_out = np.flatnonzero(~leaky.obs_names.isin(before.split("train").cell_names)
                              & (leaky.obs["cell_type"] != "rare"))  # fmt: skip
    leaky.obs["cell_type"] = leaky.obs["cell_type"].astype(object)  # not as it was written
    column = leaky.obs.columns.get_loc("cell_type")
    rng = np.random.default_rng(0)
    leaky.obs.iloc[held_out, column] = rng.permutation(leaky.obs.iloc[held_out, column])
    leaky.obs.iloc[held_out[::6], column] = "rare"
    leaky.obs.iloc[held_out[1::6], column] = "only held out"
    leaky.obs.iloc[held_out[2::6], column] = np.nan
    leaky.obs.iloc[held_out[3::12], column] = "ignored"
    settings = settings | {"ignore_labels": ["ignored"]}
    after = run(config_of(leaky, "after", file="changed.h5ad", **settings))
    assert learned(after) == learned(before)
    assert after.n_cells["test"] < before.n_cells["test"]
    assert "rare" not in after.class_names


@pytest.mark.parametrize("settings", LEAKS.values(), ids=LEAKS)
def test_counts_of_val_and_test_change_nothing_that_is_learned(leaky, config_of, settings):
    if settings.get("split"):
        pytest.skip("groups are chosen by their number of cells, which counts decide")
    before = run(config_of(leaky, "before", **settings))
    held_out = ~donors_of(leaky, 0, 1)
    counts, rng = leaky.X.toarray(), np.random.default_rng(0)
    counts[held_out] = rng.permuted(counts[held_out], axis=1) * rng.integers(0, 4)
    counts[np.flatnonzero(held_out)[::5]] = 0
    leaky.X = csr_matrix(counts)
    after = run(config_of(leaky, "after", file="changed.h5ad", **settings))
    assert learned(after) == learned(before)
    assert after.n_cells["test"] < before.n_cells["test"]


def test_a_time_point_stays_one_though_all_its_cells_lose_their_labels(leaky, config_of):
    """Or the labels of held out cells would change whose past is whose."""
    leaky.obs["time"] = leaky.obs["time"].astype(str).astype(object)
    late = np.flatnonzero(~donors_of(leaky, 0, 1))[:20]
    leaky.obs.iloc[late, leaky.obs.columns.get_loc("time")] = "day 99"
    before = run(config_of(leaky, "before", **LEAKS["histories"]))
    leaky.obs.iloc[late, leaky.obs.columns.get_loc("cell_type")] = np.nan
    after = run(config_of(leaky, "after", file="changed.h5ad", **LEAKS["histories"]))
    assert after.meta["dropped"]["no label"] == 20
    assert learned(after) == learned(before)


def test_doublets_are_dropped_by_the_threshold_and_their_scores_are_listed(leaky, config_of):
    settings = LEAKS["doublets of batches in all splits"] | {"min_cells_per_class": 2}
    every = settings | {"quality_control": settings["quality_control"] | {"max_doublet_score": 1}}
    scores = run(config_of(leaky, "every", **every)).cells.set_index("cell_name")["doublet_score"]
    folder = run(config_of(None, "some", **settings))
    assert folder.meta["dropped"]["doublet score above 0.1"] == (scores > 0.1).sum() > 5
    dropped = pd.read_csv(folder.path / "dropped.csv").set_index("cell_name")["reason"]
    as_doublets = set(dropped.index[dropped == "doublet score above 0.1"])
    assert as_doublets == set(scores.index[scores > 0.1])
    assert set(folder.cells["cell_name"]) == set(scores.index) - set(dropped.index)


def test_a_type_counts_in_train_alone(cells, config_of):
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    column = cells.obs.columns.get_loc("cell_type")
    for n_train, name in ((3, "enough"), (2, "too few")):
        of_train = np.flatnonzero(donors_of(cells, 0, 1) & cells.obs["cell_type"].str.startswith(
            "type").to_numpy())  # fmt: skip
        of_test = np.flatnonzero(donors_of(cells, 3) & cells.obs["cell_type"].str.startswith(
            "type").to_numpy())  # fmt: skip
        cells.obs.iloc[of_train[:n_train], column] = name
        cells.obs.iloc[of_test[:5], column] = name
    folder = run(config_of(cells))
    assert "enough" in folder.class_names
    assert "too few" not in folder.class_names
    assert folder.meta["dropped"] == {"type 'too few': 2 train cells, fewer than 3": 7}
    kept = run(config_of(None, "two", min_cells_per_class=2))
    assert "too few" in kept.class_names


def test_a_gene_of_val_only_is_not_in_the_vocabulary_but_in_the_library_size(cells, config_of):
    counts = cells.X.toarray()
    counts[~donors_of(cells, 2), 3] = 0
    counts[donors_of(cells, 2), 3] = 50
    cells.X = csr_matrix(counts)
    folder = run(config_of(cells))
    assert cells.var_names[3] not in folder.vocabulary.gene_ids
    val = donors_of(cells, 2)
    np.testing.assert_array_equal(folder.split("val").library_size[:, 0], counts[val].sum(axis=1))


def test_a_count_beyond_16_bits(cells, config_of):
    counts = cells.X.toarray()
    counts[100, 5] = 70_000
    cells.X = csr_matrix(counts)
    folder = run(config_of(cells))
    split = next(s for s in map(folder.split, ("train", "val", "test")) if 100 in s.rows)
    row = split.rows.tolist().index(100)
    assert split.arrays["counts"].dtype == np.int32
    assert split.arrays["counts"][row].max() == 70_000


def test_a_cell_without_any_gene_of_the_vocabulary_is_cls_alone(cells, config_of):
    counts = cells.X.toarray()
    counts[:, 3] = 0
    of_val = np.flatnonzero(donors_of(cells, 2))[0]
    counts[of_val] = 0
    counts[of_val, 3] = 9
    cells.X = csr_matrix(counts)
    folder = run(config_of(cells, quality_control={"min_genes": 0}))
    val = folder.split("val")
    assert val.lengths[0] == 1
    assert val.arrays["token_ids"][0].tolist() == [CLS] + [0] * N_TOKENS
    assert val.library_size[0, 0] == 9


# --------------------------------------------------------------------- who is dropped


def test_who_is_dropped_is_counted_listed_and_said(cells, config_of):
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    column = cells.obs.columns.get_loc("cell_type")
    test = np.flatnonzero(donors_of(cells, 3))
    cells.obs.iloc[test[:5], column] = "only in test"
    cells.obs.iloc[0, column] = np.nan
    cells.obs.iloc[1, column] = "lonely"
    cells.obs.iloc[2, column] = "unclear"
    counts = cells.X.toarray()
    counts[4] = 0
    counts[5] = 0
    counts[5, :3] = 1
    cells.X = csr_matrix(counts)
    folder = run(config_of(cells, ignore_labels=["unclear"]))
    expected = {
        "fewer than 5 genes": 1,
        "label 'unclear'": 1,
        "no counts": 1,
        "no label": 1,
        "type 'lonely': 1 train cells, fewer than 3": 1,
        "type 'only in test': 0 train cells, fewer than 3": 5,
    }
    assert folder.meta["dropped"] == expected
    listed = pd.read_csv(folder.path / "dropped.csv")
    assert listed["reason"].value_counts().to_dict() == expected
    assert len(folder.cells) + len(listed) == 160
    assert "only in test" not in folder.class_names
    assert any("10 of 160 cells dropped" in message for message in folder.meta["messages"])
    assert not set(listed["cell_name"]) & set(folder.cells["cell_name"])


def test_nobody_left_is_said(cells, config_of):
    config = config_of(cells, quality_control={"min_genes": 500})
    with pytest.raises(EncodeError, match="min_genes 500 drops 160 of 160 cells; the median cell"):
        run(config)
    assert leftovers(config) == []
    everything = {"min_genes": 500, "max_dropped_fraction": 1.0}
    with pytest.raises(EncodeError, match=r"no cell is left.*160: fewer than 500 genes"):
        run(config_of(None, quality_control=everything))


def test_who_is_dropped_after_the_split_counts_too(cells, config_of):
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(object)
    column = cells.obs.columns.get_loc("cell_type")
    held_out = np.flatnonzero(donors_of(cells, 2, 3))
    cells.obs.iloc[held_out[::2], column] = "only held out"
    config = config_of(cells, quality_control={"min_genes": 5, "max_dropped_fraction": 0.2})
    with pytest.raises(EncodeError, match=r"40 of 160 cells would .* min_cells_per_class 3 drops"):
        run(config)
    assert leftovers(config) == []
    enough = config_of(None, quality_control={"min_genes": 5, "max_dropped_fraction": 0.25})
    run(enough)
    # It changes no byte, so it is no other config.
    run(config_of(None, quality_control={"min_genes": 5, "max_dropped_fraction": 0.9}))


def test_labels_that_name_cells_are_refused_before_a_count_is_read(cells, config_of, monkeypatch):
    cells.obs["barcode"] = [f"{i:04d}" + "ACGT" * 30 for i in range(160)]
    monkeypatch.setattr(dataset.keep_counts, "read_counts", None)
    with pytest.raises(EncodeError, match="'barcode' has 160 distinct values for 160 cells") as e:
        run(config_of(cells, label_key="barcode"))
    assert len(str(e.value)) < 400


def test_many_batches_are_no_page_of_messages(cells, config_of):
    cells.obs["barcode"] = [f"{i:04d}" for i in range(160)]
    quality = {"min_genes": 5, "scrublet": True}
    folder = run(config_of(cells, batch_key="barcode", quality_control=quality))
    (message,) = [m for m in folder.meta["messages"] if "doublet" in m]
    assert "and 155 more" in message


def test_a_missing_column_is_said(cells, config_of):
    for key in ("label_key", "batch_key", "time_key"):
        with pytest.raises(CellFileError, match="no obs column 'nothing'"):
            run(config_of(cells, **{key: "nothing"}))


def test_a_type_named_na_and_names_with_commas_survive(cells, config_of):
    names = {"type_0": "NA", "type_1": 'T cell, "naive"', "type_2": "β, γ", "type_3": "nan"}
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).map(names)
    cells.obs_names = [f"cell, {i}" if i % 2 == 0 else f"cell\r{i}" for i in range(160)]
    folder = run(config_of(cells))
    assert folder.class_names == sorted(names.values())
    assert set(folder.cells["label"]) == set(folder.class_names)
    assert folder.split("train").cell_names[:2].tolist() == ["cell, 0", "cell\r1"]


def test_the_bytes_are_those_of_the_first_version(config_of, tmp_path):
    """Whole numbers alone, so that no machine and no version of numpy makes other cells."""
    rng = np.random.default_rng(11)
    counts = rng.integers(0, 9, (60, 40)) * (rng.integers(0, 3, (60, 40)) == 0)
    obs = {"cell_type": np.arange(60) % 3, "donor": [f"donor_{i // 15}" for i in range(60)]}
    adata = ad.AnnData(csr_matrix(counts), pd.DataFrame(obs, index=[f"c{i}" for i in range(60)]))
    folder = run(config_of(adata, tokenizer={"kind": "rank", "n_tokens": 9}))
    hashes = contents(folder)
    assert {name: hashes[name][:8] for name in GOLDEN} == GOLDEN
    expression = Expression.open(folder.path)
    rows = expression.take(np.arange(len(expression)))._asdict()
    for name, array in rows.items():
        np.save(tmp_path / f"{name}.npy", array)
    hashes = contents(tmp_path)
    assert {name: hashes[f"{name}.npy"][:8] for name in rows} == GOLDEN_EXPRESSION


# ---------------------------------------------------------- unlabelled cells, conditions


@pytest.mark.parametrize("split", [{"key": "donor"}, {"key": None}])
def test_unlabelled_cells(cells, config_of, split):
    labelled = run(config_of(cells, "labelled", split=split | {"seed": 2}))
    folder = run(config_of(None, "unlabelled", label_key=None, split=split | {"seed": 2}))
    assert folder.class_names == folder.facts.class_names == []
    assert sum(folder.n_cells.values()) == 160
    for name in ("train", "val", "test"):
        assert (folder.split(name).labels == -1).all()
        assert len(folder.split(name).batches) == folder.n_cells[name] > 0
    if split["key"]:
        for name, array in labelled.split("train").arrays.items():
            np.testing.assert_array_equal(folder.split("train").arrays[name], array)
    assert folder.meta["label_key"] is None
    assert (folder.cells["label"] == "").all()


def test_without_labels_neither_types_nor_their_number_drop_a_cell(cells, config_of):
    cells.obs["cell_type"] = [f"type_{i}" for i in range(160)]
    folder = run(config_of(cells, label_key=None, min_cells_per_class=50))
    assert folder.meta["dropped"] == {}
    with pytest.raises(ValueError, match="ignore_labels names values of an obs column"):
        config_of(None, label_key=None, ignore_labels=["type_1"])


def test_conditions_are_codes_of_the_names_in_train(cells, config_of):
    plate = np.array([f"plate_{i % 3}" for i in range(160)], dtype=object)
    plate[donors_of(cells, 3)] = "plate_new"
    plate[0] = np.nan
    cells.obs["plate"] = plate
    folder = run(config_of(cells, condition_keys=["time", "plate", "donor"]))
    names = folder.facts.conditions
    assert list(names) == ["time", "plate", "donor"]
    assert names["time"] == ["0", "1"]
    assert names["plate"] == ["plate_0", "plate_1", "plate_2"]
    assert names["donor"] == ["donor_0", "donor_1"]
    for name in ("train", "val", "test"):
        split = folder.split(name)
        assert split.conditions.shape == (len(split), 3)
        assert split.conditions.dtype == np.int64
        for column, (key, known) in enumerate(names.items()):
            code_of = {value: code for code, value in enumerate(known)}
            stored = cells.obs.loc[split.cell_names, key]
            values = ["nan" if pd.isna(value) else str(value) for value in stored]
            codes = split.conditions[:, column].tolist()
            # One that no train cell has is below -1, and each such value has a code of its own.
            unknown = sorted({*values} - {*known, "nan"})
            code_of |= {value: code for code, value in zip(codes, values, strict=True)
                        if value in unknown} | {"nan": -1}  # fmt: skip
            assert codes == [code_of[value] for value in values]
            assert max((code_of[value] for value in unknown), default=-2) < -1
            assert len({code_of[value] for value in unknown}) == len(unknown)
    test = folder.split("test")
    assert (test.conditions[:, 1:] < -1).all()
    assert (BatchReader(test).read(np.arange(3))["conditions"][:, 1:] == -1).all()
    assert folder.split("train").conditions[0, 1] == -1
    assert run(config_of(None, "none")).split("train").conditions.shape == (80, 0)


def test_a_condition_that_is_not_there_or_named_twice_is_said(cells, config_of):
    with pytest.raises(CellFileError, match="no obs column 'nothing'"):
        run(config_of(cells, condition_keys=["nothing"]))
    with pytest.raises(ValueError, match="names a column twice"):
        config_of(None, condition_keys=["time", "time"])


def test_positions_are_kept_as_they_are(cells, config_of):
    cells.obs["x"], cells.obs["y"] = np.linspace(-1, 7, 160), np.arange(160)
    cells.obs.loc["cell_4", "x"] = np.nan
    folder = run(config_of(cells, position_keys=["x", "y"]))
    assert folder.facts.position_keys == ("x", "y")
    assert folder.meta["dropped"] == {"no x": 1}
    for name in ("train", "val", "test"):
        split = folder.split(name)
        expected = cells.obs.loc[split.cell_names, ["x", "y"]].to_numpy(np.float32)
        np.testing.assert_array_equal(split.positions, expected)
        assert split.positions.dtype == np.float32
        rows = np.array([2, 0])
        batch = to_device(BatchReader(split).read(rows), "cpu")
        np.testing.assert_array_equal(batch["positions"].numpy(), expected[rows])
    check_replaceable(folder.path)


def test_without_positions_no_array_is_written(cells, config_of):
    folder = run(config_of(cells))
    assert not list(folder.path.glob("*/positions.npy"))
    assert folder.split("val").positions is None
    assert "positions" not in BatchReader(folder.split("val")).read(np.arange(3))


def test_positions_that_cannot_be_are_said(cells, config_of):
    cells.obs["x"] = [f"{i} um" for i in range(160)]
    with pytest.raises(CellFileError, match="no obs column 'y'"):
        run(config_of(cells, position_keys=["time", "y"]))
    with pytest.raises(EncodeError, match="position_keys: obs 'x' holds .*expected numbers"):
        run(config_of(None, position_keys=["time", "x"]))
    for keys in (["time"], ["time", "time"], ["time", "x", "donor"]):
        with pytest.raises(ValueError, match=r"position_keys: found .*expected two obs columns"):
            config_of(None, position_keys=keys)


# ----------------------------------------------------------------- another tokenizer


# Presence is in no union, so that no config of it could be read back.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_another_tokenizer_names_its_own_arrays(cells, config_of):
    ranked = run(config_of(cells, "ranked"))
    config = config_of(None, "presence").model_copy(update={"tokenizer": Presence()})
    folder = run(config)
    assert folder.vocabulary == ranked.vocabulary
    assert sorted(folder.facts.learned) == ["known", "sums"]
    detected = cells.X[donors_of(cells, 0, 1)].toarray() > 0
    genes = np.flatnonzero(detected.any(axis=0))
    np.testing.assert_array_equal(folder.facts.learned["sums"][:, 0], detected.sum(axis=0)[genes])
    split = folder.split("val")
    assert sorted(split.arrays) == ["is_rare", "token_ids"]
    assert split.arrays["is_rare"].dtype == bool
    counts = cells.X[donors_of(cells, 2)].toarray()[:, genes]
    for row, cell in enumerate(counts):
        expected = np.flatnonzero(cell)[:12] + N_SPECIALS
        assert split.arrays["token_ids"][row, : split.lengths[row]].tolist() == expected.tolist()
    check_replaceable(folder.path)
    assert not any(name.endswith("medians.npy") for name in contents(folder))


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        ({"labels": np.ones(3)}, "array 'labels'"),
        ({"../x": np.ones(3)}, "array '../x'"),
        ({"x": np.ones(3)}, "learned 'x': expected finite numbers"),
        ({"x": None}, "learned 'x': expected finite numbers"),
    ],
)
def test_what_a_tokenizer_cannot_have_learned_is_refused(cells, config_of, learned, said):
    class Wrong(Presence):
        def fit(self, train, workers):
            return {
                n: np.full(train.n_genes, np.nan) if a is None else a for n, a in learned.items()
            }

    config = config_of(cells).model_copy(update={"tokenizer": Wrong()})
    with pytest.raises(ValueError, match=said):
        run(config)
    assert leftovers(config) == []


# --------------------------------------------------------------------- two time points


def test_the_previous_profile_of_a_layer(cells, config_of):
    previous = cells.X.toarray()[::-1]
    previous[3] = 0
    cells.layers["X_previous"] = csr_matrix(previous)
    tokenizer = {"kind": "rank", "n_tokens": 20, "previous": {"layer": "X_previous"}}
    folder = run(config_of(cells, tokenizer=tokenizer))
    assert (folder.n_tokens, folder.n_segments) == (42, 2)
    medians = pd.Series(folder.facts.learned["medians"], index=folder.vocabulary.gene_ids)
    columns = [cells.var_names.get_loc(gene) for gene in folder.vocabulary.gene_ids]
    for name in ("train", "val", "test"):
        split = folder.split(name)
        for row, cell in enumerate(split.rows):
            tokens = split.arrays["token_ids"][row, : split.lengths[row]].astype(int)
            half = tokens.tolist().index(SEP)
            before = previous[cell, columns]
            found = np.flatnonzero(before)
            value = before[found].astype(np.float32) / medians.to_numpy()[found]
            expected = found[np.argsort(-value, kind="stable")][:20] + N_SPECIALS
            np.testing.assert_array_equal(tokens[half + 1 :], expected)
            assert split.library_size[row, 1] == previous[cell].sum()
    assert not (folder.path / "history").exists()


def test_a_layer_of_fractions_is_ranked_and_counted_per_100_000(cells, config_of):
    fractions = cells.X.copy().astype(np.float32)
    fractions.data /= 7
    cells.layers["X_previous"] = fractions
    tokenizer = {"kind": "rank", "n_tokens": 20, "previous": {"layer": "X_previous"}}
    split = run(config_of(cells, tokenizer=tokenizer)).split("train")
    for row in range(len(split)):
        tokens = split.arrays["token_ids"][row, : split.lengths[row]].astype(int).tolist()
        half = tokens.index(SEP)
        assert set(tokens[half + 1 :]) == set(tokens[1:half])
        assert split.library_size[row, 1] == pytest.approx(100_000, rel=0.01)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_a_layer_that_cannot_be_ranked_is_refused(cells, config_of, value):
    layer = cells.X.copy().astype(np.float32)
    layer.data[1000] = value
    cells.layers["X_previous"] = layer
    config = config_of(cells, tokenizer={"kind": "rank", "previous": {"layer": "X_previous"}})
    with pytest.raises(CellFileError, match="X_previous"):
        run(config)
    assert leftovers(config) == []


def test_a_layer_that_is_not_there_is_said(cells, config_of):
    with pytest.raises(CellFileError, match="no layer 'nothing'; layers: none"):
        run(config_of(cells, tokenizer={"kind": "rank", "previous": {"layer": "nothing"}}))


@pytest.fixture
def timed(cells, config_of):
    tokenizer = {"kind": "rank", "n_tokens": 20, "previous": {"n_ancestors": 3, "n_components": 4}}
    return run(config_of(cells, "timed", time_key="time", tokenizer=tokenizer))


def test_the_previous_profile_by_transport(cells, timed):
    history = History.load(timed.path / "history")
    assert history.time_points == ["0", "1"]
    for name in ("train", "val", "test"):
        split = timed.split(name)
        first = split.cells["time"].to_numpy() == "0"
        counts, library_size = timed.expression(name)
        previous, library = history.profiles(counts, library_size, split.cells["time"])
        np.testing.assert_array_equal(split.library_size[:, 1], library)
        assert not split.library_size[first, 1].any()
        for row in range(len(split)):
            tokens = split.arrays["token_ids"][row, : split.lengths[row]].astype(int)
            half = tokens.tolist().index(SEP)
            genes = tokens[half + 1 :] - N_SPECIALS
            assert len(genes) == min(previous[row].nnz, 20)
            behind = split.arrays["counts"][row, half + 1 : split.lengths[row]]
            np.testing.assert_array_equal(behind, previous[row].toarray()[0, genes])


def test_a_folder_with_a_history_has_its_checksums_and_may_be_replaced(timed):
    check_replaceable(timed.path)
    path = timed.path / "history" / "potential.npy"
    np.save(path, np.load(path)[::-1])
    with pytest.raises(EncodedFolderError, match=r"history/potential\.npy: its content is not"):
        EncodedFolder(timed.path)


def test_the_history_looks_at_no_label(cells, config_of, timed):
    cells.obs["cell_type"] = np.random.default_rng(0).permutation(cells.obs["cell_type"])
    tokenizer = {"kind": "rank", "n_tokens": 20, "previous": {"n_ancestors": 3, "n_components": 4}}
    other = run(config_of(cells, "other", file="b.h5ad", time_key="time", tokenizer=tokenizer))
    one, other = contents(timed), contents(other)
    assert [n for n in one if n.startswith("history/") and one[n] != other[n]] == []


def test_the_control_has_the_histories_of_others(config_of, timed):
    tokenizer = {
        "kind": "rank",
        "n_tokens": 20,
        "previous": {"n_ancestors": 3, "n_components": 4, "shuffle": True},
    }
    control = run(config_of(None, "control", time_key="time", tokenizer=tokenizer))
    assert control.meta["split_sha256"] == timed.meta["split_sha256"]
    for name in ("train", "val", "test"):
        true, shuffled = timed.split(name), control.split(name)
        np.testing.assert_array_equal(true.library_size[:, 0], shuffled.library_size[:, 0])
        later = true.cells["time"].to_numpy() == "1"
        moved = true.library_size[later, 1] != shuffled.library_size[later, 1]
        assert moved.mean() > 0.5
        assert sorted(true.library_size[later, 1]) == sorted(shuffled.library_size[later, 1])
        half = [list(row).index(SEP) for row in true.arrays["token_ids"]]
        for row, at in enumerate(half):
            np.testing.assert_array_equal(
                true.arrays["token_ids"][row, :at], shuffled.arrays["token_ids"][row, :at]
            )


def test_a_history_needs_a_layer_or_a_time(cells, config_of):
    with pytest.raises(EncodeError, match="time_key"):
        run(config_of(cells, tokenizer={"kind": "rank", "previous": {}}))
    cells.obs["time"] = 0
    with pytest.raises(EncodeError, match="one time point only"):
        run(config_of(cells, time_key="time", tokenizer={"kind": "rank", "previous": {}}))


# -------------------------------------------------------------------------- the folder


def test_meta_says_what_was_done(cells, config_of, tmp_path):
    folder = run(config_of(cells, organism="human"))
    meta = folder.meta
    assert meta["source"]["files"] == [
        {
            "path": "cells.h5ad",
            "sha256": hashlib.sha256((tmp_path / "cells.h5ad").read_bytes()).hexdigest(),
            "n_cells": 160,
        }
    ]
    assert meta["n_cells"] == {"train": 80, "val": 40, "test": 40}
    assert meta["n_tokens"] == 1 + N_TOKENS
    assert meta["batch_key"] == "donor"
    assert meta["tokenizer"]["kind"] == "rank"
    text = json.dumps(meta)
    assert str(tmp_path) not in text
    assert PreprocessConfig.load(folder.path / "config.yaml").name == "set"
    assert leftovers(config_of(None)) == ["set"]


def test_the_cells_hash_depends_on_split_and_labels_but_not_on_the_tokenizer(cells, config_of):
    one = run(config_of(cells, "one")).meta
    tokens = run(config_of(None, "tokens", tokenizer={"kind": "rank", "n_tokens": 9})).meta
    split = run(config_of(None, "split", split={"key": None})).meta
    assert tokens["data_sha256"] == split["data_sha256"] == one["data_sha256"]
    assert tokens["split_sha256"] == one["split_sha256"] != split["split_sha256"]


def test_finished_work_is_not_done_again(cells, config_of, monkeypatch):
    first = run(config_of(cells))
    monkeypatch.setattr(dataset.keep_counts, "open_cells", None)
    times = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    assert run(config_of(None, n_threads=1)).path == first.path
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == times


def test_another_config_or_other_cells_under_the_same_name_are_refused(cells, config_of):
    run(config_of(cells))
    other = config_of(None, tokenizer={"kind": "rank", "n_tokens": 9})
    with pytest.raises(EncodeError, match=r"another config \(tokenizer.*choose another name"):
        run(other)
    assert run(other, overwrite=True).n_tokens == 10
    with pytest.raises(EncodeError, match="other files"):
        run(config_of(cells[:150], tokenizer={"kind": "rank", "n_tokens": 9}))
    assert leftovers(other) == ["set"]


def test_a_damaged_folder_is_said_and_can_be_overwritten(cells, config_of):
    config = config_of(cells)
    path = run(config).path
    (path / "train" / "labels.npy").unlink()
    with pytest.raises(EncodedFolderError, match="missing"):
        run(config)
    run(config, overwrite=True)


def test_a_folder_of_another_version_is_not_called_damaged(cells, config_of):
    config = config_of(cells)
    folder = run(config).path
    with (folder / "config.yaml").open("a") as file:
        file.write("a_later_setting: 3\n")
    write_checksums(folder)
    with pytest.raises(
        EncodeError, match=r"another version of this code \(.*later.*\): ch"
    ) as error:
        run(config)
    assert "\n" not in str(error.value)
    assert "damaged" not in str(error.value)
    run(config, overwrite=True)


def test_a_folder_of_something_else_is_never_overwritten(cells, config_of):
    config = config_of(cells)
    thesis = Path(config.data_dir) / "set" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(FolderError, match="something else"):
        run(config, overwrite=True)
    assert thesis.read_text() == "years of work"
    assert leftovers(config) == ["set"]


def test_a_file_of_somebody_else_in_our_folder_is_never_lost(cells, config_of):
    config = config_of(cells)
    thesis = run(config).path / "thesis.tex"
    thesis.write_text("years of work")
    other = config_of(None, tokenizer={"kind": "rank", "n_tokens": 9})
    with pytest.raises(FolderError, match=r"encode does not write \(thesis\.tex\)"):
        run(other, overwrite=True)
    assert thesis.read_text() == "years of work"
    assert leftovers(config) == ["set"]


def test_a_full_disk_is_said_and_nothing_stays(cells, config_of, monkeypatch):
    config = config_of(cells)
    write, pwrite, room = NpyWriter._write, os.pwrite, [0]

    def take(n):
        room[0] -= n
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(NpyWriter, "_write", lambda s, d: (take(len(d)), write(s, d))[1])
    monkeypatch.setattr(os, "pwrite", lambda f, d, at: (take(len(d)), pwrite(f, d, at))[1])
    for room[0] in (100, 3_000, 20_000, 36_000):
        with pytest.raises(FolderError, match="the disk is full"):
            run(config)
        assert leftovers(config) == []
    monkeypatch.undo()
    run(config)


@pytest.mark.parametrize(
    "step",
    [
        "write_cell_table",
        "read_counts",
        "find_vocabulary",
        "fit_tokenizer",
        "encode_cells",
        "EncodedFolder",
    ],
)
def test_an_error_or_ctrl_c_leaves_nothing(cells, config_of, monkeypatch, step):
    def stop(*_, **__):
        raise KeyboardInterrupt

    in_reading = step in ("read_counts", "write_cell_table")
    monkeypatch.setattr(dataset.keep_counts if in_reading else dataset.encode, step, stop)
    config = config_of(cells)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert leftovers(config) == []
    assert len(stores(config)) == (0 if in_reading else 1)


def test_a_bad_value_in_a_later_block_names_file_and_cell(config_of):
    cells = synthetic_cells(np.random.default_rng(5), n_cells=2500, n_genes=20)
    cells.X.data[cells.X.indptr[1700]] = 1.5
    config = config_of(cells)
    with pytest.raises(CellFileError, match=r"cells\.h5ad.*cell_1700"):
        run(config)
    assert leftovers(config) == stores(config) == []


def cut_in_a_chunk(path):
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(1)
    path.write_bytes(path.read_bytes()[: chunk.byte_offset + chunk.size // 2])


def zeros_in_a_chunk(path):
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(1)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(bytes(40))


def entry_of_cell_150(array, value):
    def change(path):
        with h5py.File(path, "r+") as file:
            at = 150 if array == "indptr" else file["X/indptr"][150]
            file[f"X/{array}"][at] = value

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_in_a_chunk, "cut short"),
        (zeros_in_a_chunk, "reading X.* damaged"),
        (entry_of_cell_150("data", -1), "'cell_150' .* negative"),
        (entry_of_cell_150("data", 0.5), "'cell_150' .* fractional"),
        (entry_of_cell_150("data", np.nan), "'cell_150' .* not finite"),
        (entry_of_cell_150("data", 3e9), "'cell_150' .* larger than"),
        (entry_of_cell_150("indices", 80), "'cell_150' .* outside the matrix"),
        (entry_of_cell_150("indptr", 7), "indptr"),
    ],
)
def test_a_mended_file_gives_what_it_gave_before_it_broke(
    cells, config_of, tmp_path, monkeypatch, damage, message
):
    monkeypatch.setattr(
        "dataset.reading.find_counts.PEEK_CELLS", 4
    )  # the first look passes over the damage
    monkeypatch.setattr("dataset.store.blocks.SHARE_CELLS", 50)
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path, compression="gzip")
    whole, expected = path.read_bytes(), contents(run(config_of(None, "before")))
    damage(path)
    config = config_of(None, data_dir=str(tmp_path / "other"))
    with pytest.raises(CellFileError, match=rf"cells\.h5ad: .*{message}"):
        run(config)
    assert leftovers(config) == stores(config) == []
    path.write_bytes(whole)
    assert contents(run(config)) == expected


def test_a_file_that_changes_meanwhile_is_noticed(cells, config_of, monkeypatch):
    config = config_of(cells)
    write = dataset.keep_counts.write_cell_table

    def meanwhile(*arguments):
        with Path(config.input).open("r+b") as file:
            file.write(b"\x89")
        os.utime(config.input, ns=(1, 1))
        return write(*arguments)

    monkeypatch.setattr(dataset.keep_counts, "write_cell_table", meanwhile)
    with pytest.raises(CellFileError, match="changed"):
        run(config)
    assert leftovers(config) == stores(config) == []


def test_two_processes_do_not_write_one_folder(cells, config_of, monkeypatch):
    config = config_of(cells)
    find_vocabulary = dataset.encode.find_vocabulary

    def meanwhile(*arguments):
        with pytest.raises(FolderError, match="another process"):
            encode(config, progress=False)
        return find_vocabulary(*arguments)

    monkeypatch.setattr(dataset.encode, "find_vocabulary", meanwhile)
    run(config)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("baron_human_pancreas", {"split": {"key": "donor", "test": ["human3"]}}),
        ("pbmc3k_labelled", {"split": {}, "gene_id_key": "ensembl_id"}),
        ("zeisel_cortex_4000", {"split": {}, "label_key": "cell_type_fine"}),
        (
            "worm_embryo_timecourse",
            {
                "split": {"key": "batch"},
                "time_key": "time_bin",
                "tokenizer": {"kind": "rank", "previous": {}},
            },
        ),
    ],
)
def test_real_cells(real_cells, config_of, name, settings):
    path = real_cells(name)
    folder = run(config_of(None, input=str(path), **settings))
    assert sum(folder.n_cells.values()) == ad.read_h5ad(path, backed="r").n_obs - len(
        pd.read_csv(folder.path / "dropped.csv")
    )
