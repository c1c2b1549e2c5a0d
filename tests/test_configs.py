"""Every YAML under configs/ is what its folder says, and builds its model."""

import re
from pathlib import Path

import numpy as np
import pytest

from configs.base import ConfigError
from configs.schema import PreprocessConfig, TrainConfig

ROOT = Path(__file__).parent.parent
TRAIN = sorted((ROOT / "configs" / "train").glob("*.yaml"))
PREPROCESS = sorted((ROOT / "configs" / "preprocess").glob("*.yaml"))


def test_there_are_configs():
    assert len(TRAIN) >= 7
    assert len(PREPROCESS) >= 2


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_train_configs_validate_and_build_their_model(path, rng):
    config = TrainConfig.load(path)
    assert config.name == path.stem
    if hasattr(config.model, "build"):
        model = config.model.build(n_vocabulary=50, n_classes=3, n_tokens=66, n_segments=2)
        assert sum(p.numel() for p in model.parameters()) > 0
    else:
        assert callable(config.model.fit)


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_train_configs_use_data_that_a_preprocess_config_makes(path):
    made = {f"{c.data_dir}/{c.name}" for c in map(PreprocessConfig.load, PREPROCESS)}
    assert TrainConfig.load(path).data in made


@pytest.mark.parametrize("path", PREPROCESS, ids=lambda path: path.stem)
def test_preprocess_configs_validate(path):
    PreprocessConfig.load(path)


@pytest.mark.parametrize("path", [*TRAIN, *PREPROCESS], ids=lambda path: path.stem)
def test_configs_open_with_what_they_answer_and_how_to_run_them(path):
    comment = re.match(r"(#.*\n)+", path.read_text())
    assert comment
    if path.stem != "example":
        assert "?" in comment[0]
        assert str(path.relative_to(ROOT)) in comment[0]


def test_the_saved_config_is_the_config(tmp_path):
    config = TrainConfig.load(TRAIN[0], ["seed=7", "optim.lr=1e-4"])
    assert (config.seed, config.optim.lr) == (7, 1e-4)
    (tmp_path / "saved.yaml").write_text(config.to_yaml())
    assert TrainConfig.load(tmp_path / "saved.yaml") == config


def test_every_error_is_listed_with_its_path():
    with pytest.raises(ConfigError) as raised:
        TrainConfig.load(TRAIN[0], ["optim.lrr=1", "optim.batch_size=0", "seed=x"])
    for path in ("optim.lrr", "optim.batch_size", "seed"):
        assert path in str(raised.value)


def test_models_are_chosen_by_kind():
    from models import ModelConfig

    kinds = set()
    for config in ModelConfig.__args__[0].__args__:
        kinds.add(config.model_fields["kind"].default)
        assert hasattr(config, "build") != hasattr(config, "fit")
    assert {"rank_transformer", "majority", "logistic_regression"} <= kinds
    assert np.all([kind == kind.lower() for kind in kinds])
