"""One rule for resuming a run and for averaging over seeds."""

import json
import shutil

import numpy as np
import pytest

from training.config import TrainConfig
from training.same_run import differences, identity, model_key

NETWORK = {"kind": "rank_transformer"}


def config(**settings) -> TrainConfig:
    return TrainConfig(**({"name": "run", "data": "data/x", "model": NETWORK} | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"device": "cpu"},
        {"compile": True},
        {"parallel": "fsdp"},
        {"optim": {"tokens_per_batch": 4096}},
        {"tracking": {"tags": ["again"]}},
        {"runs_dir": "elsewhere"},
        {"data": "moved/x"},
    ],
    ids=str,
)
def test_what_changes_no_number_may_differ(settings, encoded_folder):
    ours, theirs = config(), config(**settings)
    assert differences(*(identity(c, encoded_folder) for c in (ours, theirs))) == []
    assert model_key(ours, encoded_folder) == model_key(theirs, encoded_folder)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"precision": "bfloat16"}, "precision"),
        ({"optim": {"lr": 1e-5}}, "optim"),
        ({"augment": {"token_dropout": 0.1}}, "augment"),
        ({"model": NETWORK | {"dropout": 0.3}}, "model"),
    ],
    ids=str,
)
def test_what_changes_the_numbers_is_another_run_and_model(settings, named, encoded_folder):
    ours, theirs = config(), config(**settings)
    assert differences(*(identity(c, encoded_folder) for c in (ours, theirs))) == [named]
    assert model_key(ours, encoded_folder) != model_key(theirs, encoded_folder)


def test_another_seed_or_name_is_another_run_of_the_same_model(encoded_folder):
    ours, theirs = config(), config(name="again", seed=1)
    found = differences(*(identity(c, encoded_folder) for c in (ours, theirs)))
    assert found == ["name", "seed"]
    assert model_key(ours, encoded_folder) == model_key(theirs, encoded_folder)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("meta.json", "data"),
        ("class_names.json", "data/class_names.json"),
        ("learned/scale.npy", "data/learned/scale.npy"),
        ("history/scale.npy", "data/history/scale.npy"),
    ],
)
def test_cells_and_what_was_learned_of_them_count(name, named, encoded_folder, tmp_path):
    other = shutil.copytree(encoded_folder, tmp_path / "other")
    if name == "meta.json":
        meta = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps(meta | {"split_sha256": "another"}))
    elif name == "class_names.json":
        (other / name).write_text('["a"]')
    else:
        (other / name).parent.mkdir(exist_ok=True)
        np.save(other / name, np.ones(3))
    assert differences(identity(config(), encoded_folder), identity(config(), other)) == [named]
    assert model_key(config(), encoded_folder) != model_key(config(), other)


def test_without_its_history_a_model_is_that_of_one_time_point(encoded_folder, tmp_path):
    other = shutil.copytree(encoded_folder, tmp_path / "other")
    meta = json.loads((other / "meta.json").read_text())
    meta["tokenizer"]["previous"] = {"layer": None, "shuffle": True}
    (other / "meta.json").write_text(json.dumps(meta))
    (other / "history").mkdir()
    (other / "history" / "history.json").write_text("{}")
    folders = (encoded_folder, other)
    assert len({model_key(config(), folder) for folder in folders}) == 2
    assert len({model_key(config(), folder, history=False) for folder in folders}) == 1
