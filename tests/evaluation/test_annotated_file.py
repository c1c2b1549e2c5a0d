"""What is written: the query and what was found, whole, readable by any anndata, or nothing."""

import errno
import gzip
import os
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from dataset.store import atomic
from evaluation.annotate import COLUMNS, AnnotationError, annotate

# 12 cells, saved by either anndata
FILES = Path(__file__).parents[1] / "dataset" / "reading" / "files"


def walk(file):
    """Return every array of a file by its path, its content and attributes as text."""
    found = {}
    file.visititems(
        lambda name, node: found.update({
            name: (
                str(np.asarray(node[()]).tolist()) if isinstance(node, h5py.Dataset) else None,
                sorted((key, str(value)) for key, value in node.attrs.items()),
            )
        })
    )  # fmt: skip
    return found


@pytest.mark.parametrize("version", ["0.12", "0.13"])
def test_a_file_of_either_anndata_stays_one(version, baseline_run, tmp_path):
    path, output = tmp_path / "query.h5ad", tmp_path / "annotated.h5ad"
    path.write_bytes(gzip.decompress((FILES / f"anndata_{version}.h5ad.gz").read_bytes()))
    found = annotate(baseline_run, path, output, min_match_rate=0.01)

    with h5py.File(path) as query, h5py.File(output) as written:
        before, after = walk(query), walk(written)
        order = list(query["obs"].attrs["column-order"])
        assert list(written["obs"].attrs["column-order"]) == [*order, *COLUMNS]
        encodings = {
            node.attrs["encoding-type"]: node.attrs["encoding-version"]
            for name in COLUMNS
            for node in [written["obs"][name]]
        }
        assert encodings == {"categorical": "0.2.0", "array": "0.2.0"}
        for name in ("predicted_cell_type", "uncertain_reason"):
            assert written[f"obs/{name}/categories"].attrs["encoding-type"] == "string-array"
    added = set(after) - set(before)
    assert {name for name in before if after[name] != before[name]} <= {"obs", "obsm", "uns"}
    assert {name.split("/")[1] for name in added if "/" in name} == {
        *COLUMNS,
        "class_probabilities",
        "nanocell",
    }

    adata = ad.read_h5ad(output)  # the anndata that is installed here
    original = ad.read_h5ad(path)
    pd.testing.assert_frame_equal(adata.obs[original.obs.columns], original.obs)
    assert list(adata.obs_names) == list(original.obs_names)
    for name in COLUMNS:
        assert adata.obs[name].tolist() == found.cells[name].tolist()
    np.testing.assert_array_equal(adata.obsm["class_probabilities"], found.probabilities)
    about = adata.uns["nanocell"]
    assert about["class_names"].tolist() == found.class_names
    assert about["temperature"] == found.temperature
    assert about["uncertain_below"] == found.threshold
    assert about["run"] == "logistic"


def test_a_table_of_anndata_0_7_is_added_to_in_its_own_encoding(baseline_run, query, tmp_path):
    path = query()
    with h5py.File(path, "r+") as file:  # categories apart from their codes
        obs = file["obs"]
        codes = obs["donor/codes"][:]
        obs.move("donor/categories", "__categories/donor")
        del obs["donor"]
        obs["donor"] = codes
        obs["donor"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        obs["__categories/donor"].attrs["ordered"] = False
        obs["donor"].attrs["categories"] = obs["__categories/donor"].ref
        obs.attrs["encoding-version"] = "0.1.0"
    found = annotate(baseline_run, path, tmp_path / "annotated.h5ad")
    adata = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert adata.obs["donor"].tolist() == ad.read_h5ad(path).obs["donor"].tolist()
    for name in COLUMNS:
        assert adata.obs[name].tolist() == found.cells[name].tolist()


def test_an_obs_that_cannot_be_added_to_is_refused(baseline_run, query, tmp_path):
    path = query()
    names = ad.read_h5ad(path).obs_names
    with h5py.File(path, "r+") as file:
        del file["obs"]
        table = np.array([(name.encode(),) for name in names], dtype=[("index", "S16")])
        file.create_dataset("obs", data=table)
    with pytest.raises(AnnotationError, match=r"before anndata 0\.7"):
        annotate(baseline_run, path, tmp_path / "annotated.h5ad")


def test_columns_of_our_names_are_replaced_and_that_is_said(baseline_run, query, tmp_path):
    def add(adata):
        adata.obs["confidence"] = "high"
        adata.obs["uncertain"] = pd.Categorical(["yes"] * adata.n_obs)
        adata.obsm["class_probabilities"] = np.ones((adata.n_obs, 2))
        adata.uns["nanocell"] = "something"
        return adata

    found = annotate(baseline_run, query(add), tmp_path / "annotated.h5ad")
    assert "obs columns of the query are replaced: confidence, uncertain" in found.messages
    adata = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert sorted(adata.obs.columns) == sorted(["donor", *COLUMNS])
    np.testing.assert_array_equal(adata.obs["confidence"], found.cells["confidence"])
    assert adata.obsm["class_probabilities"].shape == (300, 4)
    again = annotate(baseline_run, tmp_path / "annotated.h5ad", tmp_path / "again.h5ad")
    assert ad.read_h5ad(tmp_path / "again.h5ad").obs.equals(adata.obs)
    assert any("replaced" in message for message in again.messages)


def test_cell_names_under_one_of_our_names_are_not_lost(baseline_run, query, tmp_path):
    def name_index(adata):
        adata.obs.index.name = "confidence"
        return adata

    with pytest.raises(AnnotationError, match="its obs index is named 'confidence'"):
        annotate(baseline_run, query(name_index), tmp_path / "annotated.h5ad")


@pytest.mark.parametrize("how", ["external", "soft"])
@pytest.mark.parametrize("place", ["obs", "obsm", "uns", "obs/donor"])
def test_a_link_out_of_the_query_is_not_followed(place, how, baseline_run, query, tmp_path):
    path, other = query(), tmp_path / "other.h5ad"
    shutil.copyfile(path, other)
    before = other.read_bytes()
    with h5py.File(path, "r+") as file:
        del file[place]
        file["elsewhere"] = h5py.ExternalLink(str(other), place)
        if how == "external":
            file.move("elsewhere", place)
        else:
            file[place] = h5py.SoftLink("/elsewhere")
    with pytest.raises(ValueError, match="another file"):
        annotate(baseline_run, path, tmp_path / "annotated.h5ad")
    assert other.read_bytes() == before
    assert not (tmp_path / "annotated.h5ad").exists()


@pytest.mark.parametrize(("part", "other"), [("obsm", "uns"), ("uns", "obs")])
def test_two_tables_that_are_one_are_refused(part, other, baseline_run, query, tmp_path):
    path = query()
    with h5py.File(path, "r+") as file:
        del file[part]
        file[part] = h5py.SoftLink(f"/{other}")
    with pytest.raises(AnnotationError, match="are one table"):
        annotate(baseline_run, path, tmp_path / "a.h5ad")
    assert not (tmp_path / "a.h5ad").exists()


def test_a_query_without_obs_is_not_called_old(baseline_run, query, tmp_path):
    path = query()
    with h5py.File(path, "r+") as file:
        del file["obs"]
    with pytest.raises(AnnotationError, match="has no obs"):
        annotate(baseline_run, path, tmp_path / "a.h5ad")


def test_a_home_of_nobody_is_no_output(baseline_run, query):
    with pytest.raises(AnnotationError, match="output: ~nobody-of-that-name"):
        annotate(baseline_run, query(), "~nobody-of-that-name/a.h5ad")


def test_the_query_is_safe_under_all_its_names(baseline_run, query, tmp_path):
    path = query()
    before = path.read_bytes()
    (tmp_path / "symlink.h5ad").symlink_to(path)
    (tmp_path / "hardlink.h5ad").hardlink_to(path)
    for name in ("query.h5ad", "symlink.h5ad", "hardlink.h5ad"):
        with pytest.raises(AnnotationError, match="query itself"):
            annotate(baseline_run, path, tmp_path / name)
        with pytest.raises(AnnotationError, match="query itself"):
            annotate(baseline_run, tmp_path / name, path)
    assert path.read_bytes() == before


def test_only_what_was_written_here_is_replaced(baseline_run, query, tmp_path):
    theirs = query(name="theirs")
    before = theirs.read_bytes()
    with pytest.raises(AnnotationError, match="did not write it"):
        annotate(baseline_run, query(), theirs)
    (tmp_path / "notes.h5ad").write_text("a text")
    with pytest.raises(AnnotationError, match="did not write it"):
        annotate(baseline_run, query(), tmp_path / "notes.h5ad")
    assert theirs.read_bytes() == before
    annotate(baseline_run, query(), tmp_path / "ours.h5ad")
    annotate(baseline_run, query(lambda adata: adata[:3].copy()), tmp_path / "ours.h5ad")
    assert ad.read_h5ad(tmp_path / "ours.h5ad").n_obs == 3


def test_places_that_cannot_be_written_are_named_before_anything_is_computed(
    query, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.h5ad").mkdir()
    for output, sentence in (
        ("annotated.txt", r"must end in \.h5ad"),
        ("folder.h5ad", "is a folder"),
        ("file/annotated.h5ad", "no folder to write to"),
    ):
        with pytest.raises(AnnotationError, match=sentence):
            annotate(tmp_path / "no run", query(), tmp_path / output)
    monkeypatch.setattr(os, "access", lambda *_: False)  # a user's right; root has them all
    with pytest.raises(AnnotationError, match="no folder to write to"):
        annotate(tmp_path / "no run", query(), tmp_path / "annotated.h5ad")


def test_a_full_disk_is_named_and_nothing_is_left(baseline_run, query, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = query()
    for broken in ("copyfileobj", "flush_to_disk"):
        with monkeypatch.context() as patch:
            owner = shutil if broken == "copyfileobj" else atomic
            patch.setattr(owner, broken, fail)
            with pytest.raises(AnnotationError, match=r"annotated\.h5ad: the disk is full"):
                annotate(baseline_run, path, tmp_path / "annotated.h5ad")
    with pytest.raises(AnnotationError, match="cannot be written"):
        annotate(baseline_run, path, tmp_path / f"{'a' * 249}.h5ad")  # no room for a longer name
    assert [p.name for p in tmp_path.iterdir()] == ["query.h5ad"]


def test_a_query_that_changes_meanwhile_is_not_mixed(baseline_run, query, tmp_path, monkeypatch):
    path = query()
    other = query(lambda adata: adata[::-1].copy(), "other")
    copy = shutil.copyfileobj

    def replaced_first(source, target, length):
        os.replace(other, path)
        with path.open("rb") as new:
            copy(new, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", replaced_first)
    with pytest.raises(ValueError, match="changed while"):
        annotate(baseline_run, path, tmp_path / "annotated.h5ad")
    assert not list(tmp_path.glob("*annotated*"))
