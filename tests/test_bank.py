"""Train cells that are looked up: which, with whose weights, as stored with a run and in 04.

Resumed runs are compared in tests/test_train_script.py, several processes in
tests/test_several_processes.py.
"""

import shutil

import anndata as ad
import numpy as np
import pytest
import torch
import yaml

from dataset.encode import encode
from dataset.store.checksums import read_checksums, write_checksums
from dataset.store.encoded_folder import EncodedFolder
from evaluation.annotate import AnnotationError, TrainedModel, annotate
from evaluation.calibration import apply_temperature
from models.objectives.neighbors import FLOOR
from tests.two_processes import load_script
from training.bank import draw_by_class, remember
from training.config import TrainConfig
from training.distributed import Ranks
from training.predict import embed, predict
from training.runs import Run, RunFolderError
from training.weight_averaging import averaged

ALONE = Ranks(0, 1, torch.device("cpu"))
MODEL = {
    "kind": "rank_transformer", "d_model": 16, "n_heads": 2, "context_genes": 24, "dropout": 0.3,
}  # fmt: skip


# ---------------------------------------------------------------------------- drawn by class


def test_rare_classes_keep_their_cells_and_common_ones_share_the_rest(rng):
    labels = rng.permutation(np.repeat([-1, 0, 1, 2, 3], [50, 400, 300, 7, 60]))
    assert (draw_by_class(labels, 767, rng) == np.flatnonzero(labels >= 0)).all()
    rows = draw_by_class(labels, 200, np.random.default_rng(3))
    assert (np.diff(rows) > 0).all()
    n = np.bincount(labels[rows])
    assert n[2] == 7
    assert sorted([n[0], n[1], n[3]]) == [60, 66, 67]
    assert (rows == draw_by_class(labels, 200, np.random.default_rng(3))).all()
    assert (rows != draw_by_class(labels, 200, np.random.default_rng(4))).any()
    first = np.flatnonzero(labels == 0)  # at random among those of a class
    assert np.isin(first, rows)[:200].mean() == pytest.approx(n[0] / 400, abs=0.06)
    assert len(draw_by_class(labels, 3, rng)) == 3


# ---------------------------------------------------------------- whose weights, which cells


@pytest.fixture(scope="module")
def data(encoded_folder) -> EncodedFolder:
    return EncodedFolder(encoded_folder)


@pytest.fixture
def config(tmp_path, encoded_folder) -> TrainConfig:
    values = {
        "name": "run", "data": str(encoded_folder), "model": MODEL, "runs_dir": str(tmp_path),
        "optim": {"max_epochs": 3, "batch_size": 24, "lr": 3e-3, "weight_averaging": 0.9},
        "objectives": [{"kind": "classify"}, {"kind": "neighbors"}],
        "augment": {"token_dropout": 0.3, "count_thinning": 0.5},
        "tracking": {"wandb": "disabled"}, "device": "cpu",
    }  # fmt: skip
    return TrainConfig.model_validate(values)


@pytest.mark.parametrize("tokens_per_batch", [None, 300])
def test_embeddings_of_some_cells_are_those_of_all(data, config, tokens_per_batch):
    optim = config.optim.model_copy(update={"tokens_per_batch": tokens_per_batch})
    config = config.model_copy(update={"optim": optim})
    learner, cells = load_script().build_learner(config, data), data.split("train")
    remember(learner, cells, config, ALONE)
    expected = predict(learner, cells, config, ALONE)["embeddings"]
    rows = np.array([40, 3, 17, 101])
    found = embed(learner, cells, rows, config, ALONE)
    np.testing.assert_allclose(found, expected[rows], atol=1e-5)


def test_a_set_of_cells_is_embedded_whole(data, config, monkeypatch):
    learner, cells = load_script().build_learner(config, data), data.split("train")
    sets = np.split(np.random.default_rng(0).permutation(len(cells)), [30, 70, 120])

    class Sets:
        def sets(self):
            return sets

    monkeypatch.setattr("training.predict.samples_of", lambda *_: Sets())
    seen = []
    learner.network.register_forward_hook(
        lambda _, inputs, __: seen.extend(inputs[0]["cell_index"].tolist())
    )
    rows = np.array([sets[3][5], sets[1][0], sets[1][7]])
    found = embed(learner, cells, rows, config, ALONE)
    assert sorted(seen) == sorted([*sets[1], *sets[3]])
    expected = embed(learner, cells, np.arange(len(cells)), config, ALONE)
    np.testing.assert_allclose(found, expected[rows], atol=1e-5)


@pytest.mark.parametrize("order", [1, -1])
def test_each_objective_looks_up_as_many_as_it_asks_for(data, config, order):
    few, more = {"kind": "neighbors", "max_cells": 9}, {"kind": "elastic_similarity"}
    objectives = [few, more | {"max_cells": 31}][::order]
    config = TrainConfig.model_validate(config.model_dump() | {"objectives": objectives})
    learner, train = load_script().build_learner(config, data), data.split("train")
    stored = remember(learner, train, config, ALONE)
    for kind, n in (("neighbors", 9), ("elastic_similarity", 31)):
        rows = draw_by_class(train.labels, n, np.random.default_rng(config.seed))
        assert learner.heads[kind].bank[-1].tolist() == rows.tolist(), kind
    assert torch.equal(stored.cell_index, learner.heads["neighbors"].bank[-1])
    assert stored.labels.tolist() == train.labels[stored.cell_index.numpy()].tolist()


def test_an_epoch_looks_up_what_the_average_embedded_before_it(data, config, monkeypatch):
    script = load_script()
    train_epoch, banks = script.train_epoch, []
    train = data.split("train")
    rows = np.arange(len(train))

    def directions(training) -> torch.Tensor:
        vectors = torch.from_numpy(embed(training.learner, train, rows, config, ALONE))
        return torch.nn.functional.normalize(vectors, dim=1)

    def watched(training, *others):
        plain = directions(training)
        with averaged(training.average, training.learner):
            expected = directions(training)
        found, _, cell_index = training.learner.heads["neighbors"].bank
        assert cell_index.tolist() == rows.tolist()
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)  # but for float16
        if training.epoch:
            assert (found - plain).abs().max() > 0.01
        banks.append(found)
        train_epoch(training, *others)
        assert training.learner.heads["neighbors"].bank[0] is found

    monkeypatch.setattr(script, "train_epoch", watched)
    path = f"{config.runs_dir}/config.yaml"
    with open(path, "w") as file:
        file.write(config.to_yaml())
    assert script.main(["--config", path]) == 0
    assert len(banks) == 3
    assert (banks[2] - banks[1]).abs().max() > 0.01


# ------------------------------------------------------------------------ stored with a run


@pytest.fixture(scope="module")
def run(make_run):
    """Train on neighbors alone; of the train cells few are kept."""
    few = "objectives=[{kind: neighbors, max_cells: 90}]"
    return make_run("neighbors", "smoke", few, "optim.patience=2", "optim.max_epochs=8", "seed=5")


@pytest.fixture(scope="module")
def both_run(make_run):
    objectives = "objectives=[{kind: classify}, {kind: neighbors}]"
    return make_run("both", "smoke", objectives, "optim.weight_averaging=0.9")


def shares_by_numpy(embeddings, bank, n_classes) -> tuple[np.ndarray, np.ndarray]:
    """Class shares, and cosine similarities, in float64."""
    x, y = embeddings.astype(np.float64), bank.embeddings.astype(np.float64)
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    weights = np.exp(x @ y.T / 0.1)
    shares = weights @ np.eye(n_classes)[bank.labels] / weights.sum(axis=1, keepdims=True)
    return (shares + FLOOR) / (1 + n_classes * FLOOR), x @ y.T


def test_the_bank_holds_names_classes_and_float16_of_cells_drawn_by_class(run, data):
    bank, train = Run(run).bank(), data.split("train")
    assert "bank.npz" in read_checksums(run)
    n = np.bincount(bank.labels, minlength=4)
    assert n.sum() == 90
    assert n.min() >= min(np.bincount(train.labels).min(), 22)
    rows = draw_by_class(train.labels, 90, np.random.default_rng(5))
    assert bank.cell_names.tolist() == train.cell_names[rows].tolist()
    assert bank.batches.tolist() == train.batches[rows].tolist()
    assert bank.labels.tolist() == train.labels[rows].tolist()
    assert (bank.embeddings.dtype, bank.embeddings.shape) == (np.float16, (90, 32))


def test_what_is_predicted_follows_from_the_bank_as_it_is_stored(run):
    found = Run(run)
    for split in ("val", "test"):
        cells = found.predictions(split)
        shares, _ = shares_by_numpy(cells.embeddings, found.bank(), 4)
        np.testing.assert_allclose(cells.probabilities, shares, atol=1e-5)
    assert found.metrics["test"]["macro_f1"] > 0.8  # neighbors alone tell the types


@pytest.mark.parametrize("name", ["run", "both_run"])
def test_the_bank_is_of_the_weights_that_the_run_ends_with(name, request, data):
    folder = request.getfixturevalue(name)
    learner, config = TrainedModel(folder, device="cpu").learner, Run(folder).config
    if name == "run":
        assert 1 < Run(folder).metrics["best_epoch"] < 8  # not the last one trained
    bank, train = Run(folder).bank(), data.split("train")
    names = train.cell_names.tolist()
    rows = np.array([names.index(cell) for cell in bank.cell_names])
    expected = embed(learner, train, rows, config, ALONE)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(bank.embeddings, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["run", "both_run"])
def test_04_answers_as_in_training_and_names_the_nearest_train_cell(
    name, request, synthetic_h5ad, tmp_path, monkeypatch
):
    monkeypatch.setattr("evaluation.annotate.BLOCK_CELLS", 70)
    monkeypatch.setattr("evaluation.nearest.BLOCK_CELLS", 70)
    folder, query, output = request.getfixturevalue(name), tmp_path / "q.h5ad", tmp_path / "a.h5ad"
    cells = ad.read_h5ad(synthetic_h5ad)
    cells = cells[np.random.default_rng(0).permutation(cells.n_obs)].copy()
    del cells.obs["cell_type"]
    cells.obs["nearest_similarity"] = 7.0
    cells.write_h5ad(query)
    found = annotate(folder, query, output)
    assert any("replaced: nearest_similarity" in message for message in found.messages)
    bank, test = Run(folder).bank(), Run(folder).predictions("test")
    rows = found.cells.index.get_indexer(test.cell_names)
    expected = apply_temperature(test.probabilities, found.temperature)
    np.testing.assert_allclose(found.probabilities[rows], expected, atol=1e-5)
    cosine = shares_by_numpy(found.embedding, bank, 4)[1]
    obs = ad.read_h5ad(output).obs
    nearest = obs["nearest_train_cell"].astype(str).tolist()
    assert nearest == bank.cell_names[cosine.argmax(axis=1)].tolist()
    np.testing.assert_allclose(obs["nearest_similarity"], cosine.max(axis=1), atol=1e-5)
    at = {cell: i for i, cell in enumerate(found.cells.index)}
    of_bank = [at[cell] for cell in bank.cell_names]  # the train cells are in the query too
    assert np.mean(obs.index[of_bank] == np.array(nearest)[of_bank]) > 0.9
    assert obs["nearest_similarity"].iloc[of_bank].min() > 0.999


def test_a_run_without_a_bank_names_no_train_cells(network_run, synthetic_h5ad, tmp_path):
    assert not (network_run / "bank.npz").exists()
    annotate(network_run, synthetic_h5ad, tmp_path / "a.h5ad")
    obs = ad.read_h5ad(tmp_path / "a.h5ad").obs
    assert not any(name.startswith("nearest") for name in obs.columns)


def test_a_committee_names_the_nearest_train_cells_of_the_network_whose_embedding_it_gives(
    run, baseline_run, network_run, synthetic_h5ad, encoded_folder, tmp_path
):
    for name, members in {"with": [baseline_run, run], "without": [network_run, run]}.items():
        config = {
            "name": name, "data": str(encoded_folder), "runs_dir": str(tmp_path), "device": "cpu",
            "model": {"kind": "committee", "members": [str(member) for member in members]},
            "tracking": {"wandb": "disabled"},
        }  # fmt: skip
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
        assert load_script().main(["--config", str(tmp_path / "c.yaml")]) == 0
        annotate(tmp_path / name, synthetic_h5ad, tmp_path / f"{name}.h5ad")
    annotate(run, synthetic_h5ad, tmp_path / "alone.h5ad")
    alone, found = (ad.read_h5ad(tmp_path / f"{name}.h5ad").obs for name in ("alone", "with"))
    assert (found["nearest_train_cell"] == alone["nearest_train_cell"]).all()
    assert "nearest_train_cell" not in ad.read_h5ad(tmp_path / "without.h5ad").obs


def test_cells_without_labels_are_looked_up_and_the_run_opens(
    preprocess_config, make_run, tmp_path
):
    unlabeled = preprocess_config.model_copy(
        update={"name": "unlabeled", "label_key": None, "data_dir": str(tmp_path)}
    )
    folder = make_run(
        "unlabeled", "smoke", "objectives=[{kind: elastic_similarity}]", "monitor=last",
        "optim.max_epochs=1", data=encode(unlabeled, progress=False),
    )  # fmt: skip
    bank = Run(folder).bank()
    assert len(bank.labels) > 100
    assert (bank.labels == -1).all()
    assert TrainedModel(folder, device="cpu", needs_classes=False).bank is not None


@pytest.fixture
def changed(run, tmp_path):
    """Return a function that copies the run with other arrays in its bank."""

    def change(**arrays):
        copy = shutil.copytree(run, tmp_path / "copy", dirs_exist_ok=True)
        with np.load(run / "bank.npz") as file:
            np.savez(copy / "bank.npz", **(dict(file) | arrays))
        write_checksums(copy)
        return copy

    return change


def test_a_bank_that_was_changed_or_is_gone_is_said_so(run, changed):
    copy = changed()
    TrainedModel(copy)
    content = bytearray((copy / "bank.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "bank.npz").write_bytes(content)
    with pytest.raises(RunFolderError, match="bank.npz is changed since"):
        TrainedModel(copy)
    (copy / "bank.npz").unlink()
    with pytest.raises(RunFolderError, match="bank.npz is missing"):
        TrainedModel(copy)
    write_checksums(copy)
    with pytest.raises(RunFolderError, match=r"bank.npz: cannot be used .* train again"):
        TrainedModel(copy)


def test_a_bank_that_another_program_wrote_is_said_so(run, changed):
    bank = Run(run).bank()
    for arrays in (
        {"embeddings": bank.embeddings.astype(np.float32)},
        {"embeddings": bank.embeddings[1:]},
        {"embeddings": bank.embeddings * np.float16("nan")},
        {"labels": bank.labels - 1},
        {"labels": bank.labels + 4},
        {"cell_names": np.arange(90)},
    ):
        with pytest.raises(RunFolderError, match=r"bank.npz: cannot be used"):
            TrainedModel(changed(**arrays))
    with pytest.raises(AnnotationError, match="embeddings of another network, 31 wide"):
        TrainedModel(changed(embeddings=bank.embeddings[:, 1:]))
