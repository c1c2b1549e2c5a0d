"""A network that looks across cells: whole sets of one sample, everywhere, for any processes."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from configs.base import ConfigError
from dataset.batches import BatchReader, flat, to_device
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.sources import synthetic_cells
from dataset.store.encoded_folder import EncodedFolder
from evaluation.calibration import apply_temperature
from models.learner import Learner
from models.network import CellSets
from models.objectives.classify import ClassifyConfig
from tests.made_up import facts
from tests.new_family.house import build_house, run_python
from tests.new_family.toy_set_network import ToySetNetworkConfig
from tests.two_processes import run_on_two
from training.distributed import Ranks
from training.predict import predict_cells
from training.runs import Run
from training.updates import Samples, read_samples, rows_of_updates, samples_of

TOY = ("toy_set_network", "models", "models/__init__.py", "ToySetNetworkConfig")
ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
LARGEST = 12  # cells of a set


def preprocess(folder: Path, **more) -> PreprocessConfig:
    return PreprocessConfig(
        **{
            "name": "cells", "input": str(folder / "cells.h5ad"), "label_key": "cell_type",
            "quality_control": {"min_genes": 5}, "split": {"key": "donor"},
            "tokenizer": {"kind": "rank", "n_tokens": 60}, "data_dir": str(folder / "data"),
            "condition_keys": ["donor", "field"], "position_keys": ["x", "y"], **more,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """Encode cells of two fields of view a donor; the fields of a donor lie among each other."""
    house = build_house(tmp_path_factory.mktemp("house"), [TOY])
    rng = np.random.default_rng(0)
    cells = synthetic_cells(rng, n_cells=240, n_genes=80)
    half = np.where(np.arange(240) // 16 % 2, "left", "right")
    cells.obs["field"] = [f"{d}_{h}" for d, h in zip(cells.obs["donor"], half, strict=True)]
    cells.obs[["x", "y"]] = rng.random((240, 2)) * [3, 5]
    cells.write_h5ad(house / "cells.h5ad")
    encode(preprocess(house), progress=False)
    return house


@pytest.fixture(scope="module")
def runs(house) -> Path:
    """Make one run alone, on two processes, in parts, and in two halves.

    An epoch has an update of eleven sets and one of a single set, which one process has none of.
    """
    values = {
        "name": "one", "data": "data/cells", "model": {"kind": "toy_set_network"},
        "optim": {"max_epochs": 6, "batch_size": 110, "lr": 0.01},
        "augment": {"token_dropout": 0.1, "count_thinning": 0.3},
        "tracking": {"wandb": "disabled"}, "device": "cpu",
    }  # fmt: skip
    (house / "train.yaml").write_text(yaml.safe_dump(values))
    command, parts = "--config train.yaml name=", "optim.tokens_per_batch=100"  # below every set
    on_two = [f"-1 {command}two", f"-1 {command}two_in_parts {parts}", f"3 {command}halves"]
    alone = [f"-1 {command}one", f"-1 {command}one_in_parts {parts}", f"-1 {command}halves"]
    run_on_two(on_two, house, 300)
    run_on_two(alone, house, 300, world_size=1)
    return house / "runs"


@pytest.fixture
def data(house) -> EncodedFolder:
    return EncodedFolder(house / "data" / "cells")


def learner_of(run: Path, data: EncodedFolder) -> Learner:
    learner = Learner(ToySetNetworkConfig(), [ClassifyConfig()], data.facts)
    learner.load_state_dict(load_file(run / "model.safetensors"))
    return learner.eval()


@torch.no_grad()
def one_set_at_a_time(learner: Learner, cells, sets) -> np.ndarray:
    """Embed each set by itself; return the cells' embeddings in the order of the split."""
    embeddings = np.full((len(cells), learner.network.d_model), np.nan, dtype=np.float32)
    for of_set in sets:
        batch = to_device(BatchReader(cells).read([of_set]), "cpu")
        embeddings[of_set] = learner(batch, predict=["classify"])["embeddings"]
    return embeddings


@pytest.mark.parametrize("name", ["two", "one_in_parts", "two_in_parts", "halves"])
def test_neither_processes_nor_parts_nor_a_resume_matter(runs, name):
    one, other = (load_file(runs / n / "model.safetensors") for n in ("one", name))
    for key, weight in one.items():
        torch.testing.assert_close(other[key], weight, atol=1e-5, rtol=0, msg=key)
    for split in ("val", "test"):
        a, b = (np.load(runs / n / f"predictions_{split}.npz") for n in ("one", name))
        for array in ("probabilities", "embeddings"):
            np.testing.assert_allclose(b[array], a[array], atol=1e-4)
    losses = [
        [json.loads(line).get("val/log_loss") for line in text.splitlines()]
        for text in ((runs / n / "metrics.jsonl").read_text() for n in ("one", name))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_are_of_whole_sets_in_the_order_of_the_split(runs, data, split):
    cells, learner = data.split(split), learner_of(runs / "one", data)
    samples = samples_of(learner, cells)
    assert len(np.unique(samples.of_cell)) == 2 * len(set(cells.batches))
    assert samples.of_cell.max() < -1  # no train cell has these fields
    sets = samples.sets()
    found = Run.predictions(_Unchecked(runs / "one"), split).embeddings
    np.testing.assert_allclose(found, one_set_at_a_time(learner, cells, sets), atol=1e-5)
    for size, tokens in ((1, None), (25, None), (7, 200)):
        other = predict_cells(
            learner, cells, ALONE, batch_size=size, tokens_per_batch=tokens, sets=sets
        )
        np.testing.assert_allclose(other["embeddings"], found, atol=1e-5)


class _Unchecked(Run):
    """A run whose network only the house knows: its predictions alone are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.class_names = path, [f"type_{i}" for i in range(4)]


def test_without_a_condition_all_cells_are_of_one_sample():
    conditions = np.arange(20).reshape(10, 2)
    samples = read_samples(CellSets(None, 4), ["donor", "field"], conditions)
    assert sorted(map(len, samples.sets())) == [3, 3, 4]
    alone = read_samples(CellSets(None, 4), [], np.empty((10, 0), dtype=np.int64))
    assert all(map(np.array_equal, samples.sets(), alone.sets()))
    assert len(read_samples(CellSets("field", 4), ["donor", "field"], conditions).sets()) == 10


def test_updates_are_those_that_were_meant(data):
    train = data.split("train")
    samples = samples_of(Learner(ToySetNetworkConfig(), [ClassifyConfig()], data.facts), train)
    updates = rows_of_updates(train.lengths, 110, samples=samples)
    assert sorted(map(len, updates)) == [1, 11]


def test_the_set_is_looked_at(runs, data):
    cells, learner = data.split("test"), learner_of(runs / "one", data)
    sets = samples_of(learner, cells).sets()
    moved = one_set_at_a_time(learner, cells, [*np.array_split(flat(sets), 3)])
    assert np.abs(moved - one_set_at_a_time(learner, cells, sets)).max() > 0.01


ANNOTATE = """
import sys
from evaluation.annotate import annotate
for name in sys.argv[1:]:
    try:
        said = annotate("runs/one", f"{name}.h5ad", f"{name}_out.h5ad").messages
    except ValueError as error:
        said = [str(error)]
    with open(f"{name}.txt", "w") as file:
        file.write("\\n".join(said))
"""


@pytest.fixture(scope="module")
def said(house, runs) -> dict[str, str]:
    """Annotate queries, all in one process; return what was said of each."""
    cells, data = ad.read_h5ad(house / "cells.h5ad"), EncodedFolder(house / "data" / "cells")
    queries = {
        "test": cells[data.split("test").cell_names].copy(),
        "no_field": cells[data.split("train").cell_names].copy(),
        "one_missing": cells.copy(),
        "no_x": cells.copy(),
    }
    del queries["no_field"].obs["field"], queries["no_x"].obs["x"]
    queries["one_missing"].obs.loc["cell_7", "x"] = np.nan
    for name, query in queries.items():
        query.write_h5ad(house / f"{name}.h5ad")
    run_python(house, "-c", ANNOTATE, *queries)
    return {name: (house / f"{name}.txt").read_text() for name in queries}


def test_new_cells_get_the_answer_of_training(house, runs, data, said):
    """The test cells, in their order: the run knows neither their donor nor its fields."""
    n, found = len(data.split("test")), ad.read_h5ad(house / "test_out.h5ad")
    expected = np.load(runs / "one" / "predictions_test.npz")["embeddings"]
    np.testing.assert_allclose(found.obsm["X_nanocell"], expected, atol=1e-4)
    for key in ("donor", "field"):
        unknown = f"{n} of {n} cells have a value that the run does not know"
        assert f"condition '{key}': {unknown}" in said["test"]


COMMITTEE = """
import runpy, sys
from evaluation.annotate import annotate
main = runpy.run_path("02_train_model.py")["main"]
models = {"knn": "{kind: knn}", "all": "{kind: committee, members: [runs/knn, runs/one]}"}
for name, model in models.items():
    assert main(["--config", "train.yaml", f"name={name}", f"model={model}"]) == 0
annotate("runs/all", "test.h5ad", "all_out.h5ad")
"""


def test_a_committee_is_given_whole_sets_where_a_member_looks_at_them(house, runs, said):
    run_python(house, "-c", COMMITTEE)
    found = ad.read_h5ad(house / "all_out.h5ad")
    expected = np.load(runs / "all" / "predictions_test.npz")
    temperature = json.loads((runs / "all" / "metrics.json").read_text())["temperature"]
    calibrated = apply_temperature(expected["probabilities"], temperature)
    np.testing.assert_allclose(found.obsm["class_probabilities"], calibrated, atol=1e-4)
    np.testing.assert_allclose(found.obsm["X_nanocell"], expected["embeddings"], atol=1e-4)


def test_without_the_column_sets_are_cut_in_the_order_of_the_file(house, runs, data, said):
    train, found = data.split("train"), ad.read_h5ad(house / "no_field_out.h5ad")
    sets = Samples(np.zeros(len(train), dtype=int), LARGEST).sets(np.arange(len(train)))
    assert all((np.diff(of_set) == 1).all() for of_set in sets)
    expected = one_set_at_a_time(learner_of(runs / "one", data), train, sets)
    np.testing.assert_allclose(found.obsm["X_nanocell"], expected, atol=1e-4)
    n = len(train)
    assert f"condition 'donor': 0 of {n} cells have a value that the run" in said["no_field"]
    assert f"condition 'field': {n} of {n} cells have no value" in said["no_field"]


def test_positions_that_a_query_lacks_are_said(house, said):
    assert "1 of 240 cells have no position" in said["one_missing"]
    assert "no obs column 'x'" in said["no_x"]
    assert not (house / "no_x_out.h5ad").exists()


def test_what_the_folder_lacks_is_said():
    where = {"position_keys": ("x", "y"), "conditions": {"donor": ["a"]}}
    with pytest.raises(ConfigError, match=r"obs column 'field'.*condition_keys: \['donor'\]"):
        Learner(ToySetNetworkConfig(), [ClassifyConfig()], facts(**where))
    where = {"conditions": {"field": ["a"]}}
    with pytest.raises(ConfigError, match="needs positions, and the cells were encoded without"):
        Learner(ToySetNetworkConfig(), [ClassifyConfig()], facts(**where))


def test_real_fields_of_view(real_cells, tmp_path):
    path = real_cells("starmap_mpfc_spatial")
    config = preprocess(
        tmp_path, input=str(path), condition_keys=["fov"], split={"key": "fov"},
        ignore_labels=["NA"], quality_control={"min_genes": 10},
    )  # fmt: skip
    data = EncodedFolder(encode(config, progress=False))
    obs = ad.read_h5ad(path).obs
    learner = Learner(ToySetNetworkConfig(sample_key="fov", cells_per_set=100),
                      [ClassifyConfig()], data.facts)  # fmt: skip
    for name in ("train", "val", "test"):
        cells = data.split(name)
        expected = obs.loc[cells.cell_names, ["x", "y"]].to_numpy(np.float32)
        np.testing.assert_array_equal(cells.positions, expected)
        sets = samples_of(learner, cells).sets()
        assert {len(set(obs.loc[cells.cell_names[s], "fov"])) for s in sets} == {1}
        assert max(map(len, sets)) <= 100 < min(map(len, sets)) + 10
        found = predict_cells(learner, cells, ALONE, batch_size=250, sets=sets)
        expected = one_set_at_a_time(learner.eval(), cells, sets)
        np.testing.assert_allclose(found["embeddings"], expected, atol=1e-4)
