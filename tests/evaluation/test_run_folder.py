"""A run folder is whole, or said in one sentence not to be."""

import shutil

import pytest

from evaluation.run_folder import RunFolder, RunFolderError


@pytest.fixture
def copy(network_run, tmp_path):
    return shutil.copytree(network_run, tmp_path / "copy")


def test_reads_what_the_script_wrote(network_run):
    run = RunFolder(network_run)
    test = run.predictions("test")
    assert len(test.labels) == run.meta["n_cells"]["test"]
    assert test.embeddings.shape == (len(test.labels), run.config.model.d_model)
    assert run.vocabulary.n_genes == len(run.gene_medians)
    assert any("train/loss" in line for line in run.curves)


def read_everything(folder):
    run = RunFolder(folder)
    return run.predictions("test"), run.vocabulary, run.gene_medians


@pytest.mark.parametrize(
    "name",
    ["metrics.json", "config.yaml", "predictions_test.npz", "data/vocabulary.json",
     "data/gene_medians.npy", "data/class_names.json"],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_damage_is_one_sentence(copy, name, damage):
    path = copy / name
    whole = path.read_bytes()
    # What YAML loses between two lines of settings with a default cannot be seen.
    kept = 20 if name == "config.yaml" else len(whole) // 2
    path.write_bytes(whole[:kept] if damage == "cut" else b"")
    with pytest.raises(RunFolderError, match=path.name) as error:
        read_everything(copy)
    assert "\n" not in str(error.value)


def test_an_unfinished_run_is_not_read(copy):
    (copy / "metrics.json").unlink()
    with pytest.raises(RunFolderError, match="no finished run"):
        RunFolder(copy)
