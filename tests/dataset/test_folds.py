"""Folds: every cell is held out once, nothing of it reaches train, the file is read once."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import dataset.encode
from configs.base import ConfigError
from dataset.choose_cells import categories
from dataset.config import PreprocessConfig, SplitConfig
from dataset.encode import encode
from dataset.encode_error import EncodeError
from dataset.sources import synthetic_cells
from dataset.split import split_cells
from dataset.store.atomic import FolderError
from dataset.store.encoded_folder import EncodedFolder, EncodedFolderError
from dataset.store.folds import fold_paths, open_folds

BY_DONOR = {"kind": "leave_one_group_out", "key": "donor"}
DONORS = ["donor_0", "donor_1", "donor_2", "donor_3"]


@pytest.fixture
def cells():
    return synthetic_cells(
        np.random.default_rng(5), n_cells=160, n_genes=80, n_times=2, counts_per_cell=150
    )


@pytest.fixture
def config_of(tmp_path):
    def make(adata, split=BY_DONOR, **settings):
        if adata is not None:
            adata.write_h5ad(tmp_path / "cells.h5ad")
        defaults = {
            "name": "set", "input": str(tmp_path / "cells.h5ad"), "label_key": "cell_type",
            "quality_control": {"min_genes": 5}, "split": split,
            "tokenizer": {"kind": "rank", "n_tokens": 30}, "data_dir": str(tmp_path / "data"),
        }  # fmt: skip
        return PreprocessConfig.model_validate(defaults | settings)

    return make


def run(config, **settings):
    return open_folds(encode(config, progress=False, **settings))


def contents(folder):
    """Return the bytes of every array and of what was learned, by name."""
    files = [
        *folder.path.rglob("*.npy"),
        folder.path / "vocabulary.json",
        folder.path / "cells.csv",
    ]
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


def test_every_donor_is_test_once_and_val_once(config_of, cells):
    folds = run(config_of(cells))
    assert [fold.path.name for fold in folds] == [f"fold_{donor}" for donor in DONORS]
    for number, fold in enumerate(folds):
        assert set(fold.split("test").batches) == {DONORS[number]}
        assert set(fold.split("val").batches) == {DONORS[(number + 1) % 4]}
        of_fold = [set(fold.split(split).cell_names) for split in ("train", "val", "test")]
        assert sum(map(len, of_fold)) == len(set.union(*of_fold)) == 160
    for split in ("val", "test"):
        names = np.concatenate([fold.split(split).cell_names for fold in folds])
        assert sorted(names) == sorted(cells.obs_names)


def test_a_fold_is_what_the_same_split_by_name_is(config_of, cells):
    """Byte for byte, so that all that holds of a holdout holds of a fold."""
    settings = {
        "condition_keys": ["donor", "time"],
        "quality_control": {"scrublet": True, "min_genes": 5},
    }
    *_, last = run(config_of(cells, **settings, time_key="time"))
    named = {"key": "donor", "val": ["donor_0"], "test": ["donor_3"]}
    config = config_of(None, named, **settings, time_key="time", name="named")
    found = contents(last)
    assert found == contents(EncodedFolder(encode(config, progress=False)))
    assert len(found) > 25


def test_nothing_of_val_and_test_reaches_train(config_of, cells):
    expected = {fold.path.name: contents(fold) for fold in run(config_of(cells))}
    of_donor = (cells.obs["donor"] == "donor_2").to_numpy()
    rng = np.random.default_rng(0)
    dense = cells.X.toarray()
    dense[of_donor] = rng.poisson(5, dense[of_donor].shape)
    cells.X = type(cells.X)(dense.astype(np.float32))
    new = cells.obs["cell_type"].astype(str)
    new[of_donor] = np.where(np.arange(of_donor.sum()) % 2, "type_0", "new type")
    cells.obs["cell_type"] = new
    folds = {fold.path.name: fold for fold in run(config_of(cells), overwrite=True)}
    for name in ("fold_donor_1", "fold_donor_2"):  # where donor_2 is val, and test
        found = contents(folds[name])
        for file, content in expected[name].items():
            if file.startswith(("train/", "learned/", "vocabulary")) and "rows" not in file:
                assert found[file] == content, file
        assert "new type" not in folds[name].class_names
    for name in ("fold_donor_0", "fold_donor_3"):
        assert "new type" in folds[name].class_names
        assert (
            contents(folds[name])["learned/medians.npy"] != (expected[name]["learned/medians.npy"])
        )


def test_a_gene_of_one_donor_is_in_no_vocabulary_without_it(config_of, cells):
    dense = cells.X.toarray()
    dense[(cells.obs["donor"] != "donor_1").to_numpy(), 7] = 0
    cells.X = type(cells.X)(dense)
    folds = run(config_of(cells))
    known = [bool(np.isin("GENE7", fold.vocabulary.gene_ids)) for fold in folds]
    assert known == [False, False, True, True]


@pytest.mark.parametrize("split", [BY_DONOR, {"kind": "k_fold", "k": 4}], ids=str)
def test_the_file_is_read_once(config_of, cells, tmp_path, monkeypatch, split):
    expected = [contents(fold) for fold in run(config_of(cells, split))]
    shutil.rmtree(tmp_path / "data")
    encode_into, calls = dataset.encode._encode_into, []

    def encode_without_file(*arguments):
        (tmp_path / "cells.h5ad").unlink(missing_ok=True)
        calls.append(arguments)
        encode_into(*arguments)

    monkeypatch.setattr(dataset.encode, "_encode_into", encode_without_file)
    folds = run(config_of(None, split))
    assert len(calls) == 4
    assert [contents(fold) for fold in folds] == expected
    for fold in folds:  # the counts are on the disk once
        assert (fold.path / "counts" / "counts.npy").stat().st_nlink == 5
    shutil.rmtree(tmp_path / "data" / "counts")  # and come back from any fold
    assert [contents(fold) for fold in run(config_of(None, split))] == expected


def test_stopped_between_folds_it_resumes(config_of, cells, tmp_path, monkeypatch):
    encode_into, calls = dataset.encode._encode_into, []

    def stop_at_the_third(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        encode_into(*arguments)

    config = config_of(cells)
    with monkeypatch.context() as patched:
        patched.setattr(dataset.encode, "_encode_into", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            encode(config, progress=False)
    folder = tmp_path / "data" / "set"
    assert sorted(path.name for path in folder.iterdir()) == ["fold_donor_0", "fold_donor_1"]
    with pytest.raises(EncodedFolderError, match="fold_donor_2, fold_donor_3 of 4 folds not enc"):
        fold_paths(folder)
    made = [path.stat().st_mtime_ns for path in sorted(folder.glob("fold_*/meta.json"))]
    folds = run(config)
    assert [fold.path.name for fold in folds] == [f"fold_{donor}" for donor in DONORS]
    files = sorted(folder.glob("fold_*/meta.json"))
    assert [path.stat().st_mtime_ns for path in files][:2] == made
    run(config)
    assert [path.stat().st_mtime_ns for path in files][:2] == made


def test_folds_of_another_config_are_not_put_beside_each_other(config_of, cells):
    config = config_of(cells)
    folder = encode(config, progress=False)
    with pytest.raises(EncodeError, match="made with another config"):
        encode(config_of(None, min_cells_per_class=4), progress=False)
    shutil.rmtree(folder / "fold_donor_3")
    one = {**BY_DONOR, "fold": "donor_3"}
    encode(config_of(None, one, min_cells_per_class=4), progress=False)
    with pytest.raises(EncodedFolderError, match=r"fold_donor_3: is a fold of other cells"):
        fold_paths(folder)
    run(config_of(None, min_cells_per_class=4), overwrite=True)


def test_overwriting_removes_the_folds_of_the_split_before(config_of, cells, tmp_path):
    folder = encode(config_of(cells), progress=False)
    (folder / "fold_donor_1" / "mine.txt").write_text("x")
    k_fold = config_of(None, {"kind": "k_fold", "k": 3})
    with pytest.raises(FolderError, match=r"mine\.txt"):
        encode(k_fold, progress=False, overwrite=True)
    (folder / "fold_donor_1" / "mine.txt").unlink()
    assert [fold.path.name for fold in run(k_fold, overwrite=True)] == [
        "fold_1", "fold_2", "fold_3",
    ]  # fmt: skip
    assert len(list(folder.iterdir())) == 3


def test_cells_in_folds_do_not_replace_cells_without(config_of, cells):
    encode(config_of(cells, {"key": "donor"}), progress=False)
    with pytest.raises(EncodeError, match="not split in folds; choose another name"):
        encode(config_of(None), progress=False, overwrite=True)


def test_one_fold_alone(config_of, cells):
    config = config_of(cells, {**BY_DONOR, "fold": "donor_1"})
    assert encode(config, progress=False).name == "fold_donor_1"
    with pytest.raises(EncodeError, match=r"found 'donor_9', expected one of donor_0, donor_1"):
        encode(config_of(None, {**BY_DONOR, "fold": "donor_9"}), progress=False)


def test_names_of_donors_are_made_names_of_folders(config_of, cells):
    cells.obs["donor"] = cells.obs["donor"].astype(str).replace("donor_0", "d 0/left")
    folds = run(config_of(cells))
    assert folds[0].path.name == "fold_d_0_left"
    assert folds[0].meta["fold"]["name"] == "d 0/left"
    cells.obs["donor"] = cells.obs["donor"].astype(str).replace("donor_1", "D 0_left")
    with pytest.raises(EncodeError, match=r"'d 0/left' and 'D 0_left'|'D 0_left' and 'd 0/left'"):
        encode(config_of(cells, name="other"), progress=False)


def test_a_type_of_one_donor_is_dropped_where_it_cannot_be_learned(config_of, cells):
    names = cells.obs["cell_type"].astype(str)
    names[(cells.obs["donor"] == "donor_1") & (names == "type_2")] = "rare"
    cells.obs["cell_type"] = names
    folds = run(config_of(cells))
    assert ["rare" in fold.class_names for fold in folds] == [False, False, True, True]
    n_rare = int((names == "rare").sum())
    assert [sum(fold.meta["dropped"].values()) for fold in folds] == [n_rare, n_rare, 0, 0]


def test_a_donor_that_no_cell_passes_for_is_no_fold(config_of, cells):
    labels = cells.obs["cell_type"].astype(str)
    labels[cells.obs["donor"] == "donor_2"] = "none"
    cells.obs["cell_type"] = labels
    folds = run(config_of(cells, ignore_labels=["none"]))
    assert [fold.meta["fold"]["name"] for fold in folds] == ["donor_0", "donor_1", "donor_3"]
    for fold in folds:
        assert fold.meta["fold"]["of"] == ["donor_0", "donor_1", "donor_3"]
    labels[cells.obs["donor"] == "donor_3"] = "none"
    cells.obs["cell_type"] = labels
    with pytest.raises(EncodeError, match=r"2 group\(s\).*set kind: k_fold without a key"):
        encode(config_of(cells, ignore_labels=["none"], name="two"), progress=False)


def test_unlabelled_cells_have_folds_too(config_of, cells):
    folds = run(config_of(cells, {"kind": "k_fold", "k": 3}, label_key=None))
    assert [len(fold.split("test")) for fold in folds] == [54, 53, 53]


def k_folds(types, **settings):
    config = SplitConfig(kind="k_fold", **settings)
    names = [str(number + 1) for number in range(config.k)]
    return [
        split_cells(types, None, config.model_copy(update={"fold": name})).astype(str)
        for name in names
    ]


def test_k_folds_are_stratified_and_repeat(rng):
    types = categories(pd.Series(rng.choice(["T", "B", "NK"], 203, p=[0.6, 0.37, 0.03])))
    splits = np.stack(k_folds(types, k=4, seed=2))
    for split in ("val", "test"):
        assert ((splits == split).sum(axis=0) == 1).all()
    sizes = [pd.crosstab(types, split) for split in splits]
    for table in sizes:
        expected = table.sum(axis=1) / 4
        for split in ("val", "test"):
            assert (abs(table[split] - expected) < 1).all()
            assert 50 <= table[split].sum() <= 51
    np.testing.assert_array_equal(splits, k_folds(types, k=4, seed=2))
    assert (splits != np.stack(k_folds(types, k=4, seed=3))).any()
    # each fold's val is the test of the next, and the last one's that of the first
    for number, split in enumerate(splits):
        np.testing.assert_array_equal(split == "val", splits[(number + 1) % 4] == "test")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"kind": "leave_one_group_out"}, "name it with key"),
        ({"kind": "k_fold", "key": "donor"}, "leave key out"),
        ({"kind": "k_fold", "k": 2}, "split.k"),
        ({**BY_DONOR, "test": ["donor_1"]}, "val and test once: leave them out"),
        ({"key": "donor", "fold": "donor_1"}, "a holdout has no folds"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path, split, expected):
    values = {"name": "a", "input": "b", "label_key": "c", "tokenizer": {"kind": "rank"}}
    (tmp_path / "config.yaml").write_text(json.dumps(values | {"split": split}))
    with pytest.raises(ConfigError, match=expected):
        PreprocessConfig.load(tmp_path / "config.yaml")


def test_the_four_donors_of_baron(real_cells, tmp_path):
    config = PreprocessConfig.load(
        "configs/preprocess/baron_human_folds.yaml",
        [
            f"input={real_cells('baron_human_pancreas')}", "label_key=cell_type",
            f"data_dir={tmp_path}", "tokenizer.n_tokens=64",
        ],
    )  # fmt: skip
    folds = run(config)
    sizes = {fold.meta["fold"]["name"]: len(fold.split("test")) for fold in folds}
    assert sizes == {"human1": 467, "human2": 450, "human3": 914, "human4": 305}
    assert [len(fold.class_names) for fold in folds] == [11, 12, 12, 10]
    names = np.concatenate([fold.split("test").cell_names for fold in folds])
    assert len(set(names)) == len(names) == 2136
