"""Every YAML under configs/ is what its folder says, and builds its model."""

import re
from pathlib import Path

import numpy as np
import pytest

from configs.base import ConfigError
from configs.schema import PreprocessConfig, TrainConfig
from dataset.encode import encode
from dataset.encoded_folder import EncodedFolder

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


@pytest.mark.parametrize(
    ("name", "file", "n_cells", "n_types"),
    [
        ("worm_embryo_rank", "worm_embryo_timecourse", 1805, 9),
        ("zeisel_fine_rank", "zeisel_cortex_4000", 2816, 47),
        ("pbmc3k_rank", "pbmc3k_labelled", 2638, 9),
    ],
)
def test_the_sets_of_the_readme_have_the_cells_it_says(
    name, file, n_cells, n_types, real_cells, tmp_path
):
    path = ROOT / "configs" / "preprocess" / f"{name}.yaml"
    assert PreprocessConfig.load(path).input == f"data/cells/{file}.h5ad"
    config = PreprocessConfig.load(path, [f"input={real_cells(file)}", f"data_dir={tmp_path}"])
    encoded = EncodedFolder(encode(config, progress=False))
    assert (len(encoded.cells), len(encoded.class_names)) == (n_cells, n_types)


@pytest.mark.slow
def test_the_example_scores_doublets_of_three_thousand_cells(real_cells, tmp_path):
    # with the two doublets that Scrublet makes up of each, too many for an exact neighbour search
    changes = {
        "input": real_cells("zeisel_cortex_4000"),
        "batch_key": "batch",
        "split.key": "null",
        "quality_control.max_percent_mitochondrial": "null",  # its genes have no names
        "data_dir": tmp_path,
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    config = PreprocessConfig.load(ROOT / "configs" / "preprocess" / "example.yaml", overrides)
    assert config.quality_control.scrublet
    cells = EncodedFolder(encode(config, progress=False)).cells
    assert len(cells) == 3005
    assert cells["doublet_score"].between(0, 1).all()


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
