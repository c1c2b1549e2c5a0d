"""One rule for resuming a run and for averaging over seeds."""

import json
import shutil

import numpy as np
import pytest
import torch

from configs.base import ConfigError
from training.config import TrainConfig
from training.run_writer import RunWriter
from training.runs import RunFolderError
from training.same_run import differences, identity, model_key, resolve

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
        {"init_from": "moved/pretrained"},
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
        ({"init_from_sha256": "of others"}, "init_from_sha256"),
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


def test_the_precision_that_auto_means_counts_and_not_the_word(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve(config(precision="auto"), cpu) == resolve(config(precision="float32"), cpu)
    assert resolve(config(precision="auto"), cuda) == resolve(config(precision="bfloat16"), cpu)
    baselines = [config(model={"kind": "knn"}, precision=p) for p in ("auto", "bfloat16")]
    assert {resolve(c, d).precision for c in baselines for d in (cpu, cuda)} == {"float32"}


def test_the_weights_to_begin_with_count_and_not_their_path(tmp_path):
    def resolved(path, **settings):
        return resolve(config(init_from=str(path), **settings), torch.device("cpu"))

    for name, content in (("one", b"weights"), ("two", b"weights"), ("other", b"others")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    one, two, other = (resolved(tmp_path / name) for name in ("one", "two", "other"))
    assert differences(*(identity(c, tmp_path) for c in (one, two))) == []
    assert differences(*(identity(c, tmp_path) for c in (one, other))) == ["init_from_sha256"]
    # The config of a finished run says which weights it began with: no others are taken for them.
    checksum = one.init_from_sha256
    assert resolved(tmp_path / "two", init_from_sha256=checksum).init_from_sha256 == checksum
    with pytest.raises(ConfigError, match="other/model.safetensors has other weights"):
        resolved(tmp_path / "other", init_from_sha256=checksum)
    assert resolved(tmp_path / "gone", init_from_sha256=checksum).init_from_sha256 == checksum


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


def test_an_interrupted_run_resumes_with_the_weights_it_began_with_or_without_any(tmp_path):
    pretrained, device = tmp_path / "pretrained", torch.device("cpu")
    pretrained.mkdir()
    (pretrained / "model.safetensors").write_bytes(b"weights")
    ours = config(init_from=str(pretrained), runs_dir=str(tmp_path), data=str(tmp_path / "gone"))
    begun = RunWriter(resolve(ours, device))
    begun.partial.mkdir()
    begun.checkpoint.touch()
    (begun.partial / "config.yaml").write_text(begun.config.to_yaml())
    assert not RunWriter(resolve(ours, device)).is_finished()
    (pretrained / "model.safetensors").unlink()
    resumed = RunWriter(resolve(ours, device))
    assert not resumed.is_finished()
    assert resumed.config == begun.config
    (pretrained / "model.safetensors").write_bytes(b"trained again")
    with pytest.raises(RunFolderError, match="differs in: init_from_sha256"):
        RunWriter(resolve(ours, device)).is_finished()
    with pytest.raises(RunFolderError, match="differs in: init_from_sha256"):
        RunWriter(resolve(ours.model_copy(update={"init_from": None}), device)).is_finished()
