"""Every YAML under configs/ is what its folder says, and builds its model."""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from configs.base import ConfigError
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.store.encoded_folder import EncodedFolder
from models.learner import Learner
from tests.made_up import facts
from training.config import TrainConfig

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
        made = {f"{c.data_dir}/{c.name}": c for c in map(PreprocessConfig.load, PREPROCESS)}
        cells = made[config.data]
        data = facts(
            row_length=66,
            n_segments=2,
            position_keys=tuple(cells.position_keys),
            conditions={key: ["a", "b"] for key in cells.condition_keys},
            tokenizer=cells.tokenizer.model_dump(mode="json"),
        )
        model = Learner(config.model, config.objectives, data)
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
    # with the two doublets that Scrublet makes up of each, too many for an exact neighbor search
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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optim.learning_rat=1"], "optim.learning_rat: there is no such key; there are lr,"),
        (["optim.weight_decy=1"], "did you mean 'optim.weight_decay'?"),
        (
            ["model.n_layer=3"],
            "model.n_layer: there is no such key; did you mean 'model.n_layers'?",
        ),
        (["optm.lr=1"], "optm: there is no such key; did you mean 'optim'?"),
        (["lr=1"], "lr: there is no such key; did you mean 'optim.lr'?"),
        (["context_genes=64"], "did you mean 'model.context_genes'?"),
        (["d_hidden=8"], "did you mean 'objectives.0.d_hidden'?"),
        (
            ["objectives=[{kind: masked_gene}, {kind: classify}]", "d_hidden=8"],
            "did you mean 'objectives.1.d_hidden'?",
        ),
        (["sede=1"], "did you mean 'seed'?"),
        (["augment.token_dropouts=.1"], "did you mean 'augment.token_dropout'?"),
        (["optim.lr=.inf"], "optim.lr: Input should be a finite number"),
        (["optim.weight_decay=.nan"], "optim.weight_decay: Input should be"),
        (["optim.lr=" + "9" * 5000], "optim.lr"),
    ],
)
def test_a_key_that_is_nearly_right_gets_a_hint(words, expected):
    with pytest.raises(ConfigError) as raised:
        TrainConfig.load(ROOT / "configs" / "train" / "smoke.yaml", words)
    assert expected in str(raised.value)


def test_an_item_of_a_list_that_no_file_writes_down_is_the_default_one():
    path = next(path for path in TRAIN if "objectives" not in path.read_text())
    config = TrainConfig.load(path, ["objectives.0.d_hidden=8"])
    assert [(o.kind, o.d_hidden) for o in config.objectives] == [("classify", 8)]


def test_hints_in_files_and_in_the_other_config(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: a\ninput: b\nlabel_key: c\ntokenizer: {kind: rank, n_token: 5}\n"
        "quality_control: {mingenes: 3}\nmin_gene: 5\nbatchkey: d\n"
    )
    with pytest.raises(ConfigError) as raised:
        PreprocessConfig.load(path)
    for hint in ("'tokenizer.n_tokens'", "'quality_control.min_genes'", "'batch_key'"):
        assert f"did you mean {hint}?" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is set a second time (first in line 1)"),
        ("optim: {lr: 1, lr: 2}", "'lr' is set a second time"),
        ("optim:\n  lr: 1\n  seed: 1\n  lr: 2\n", "line 4: 'lr' is set a second time"),
        ("a: &x [1]\nb: *x\n", "line 2: *x repeats another part"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "*x repeats another part"),
        ("[" * 100_000, "nested too deeply"),
        ("a: 2001-13-45", "cannot be read as YAML: month must be"),
        ("a: " + "9" * 5000, "cannot be read as YAML"),
        ("a: [1", "cannot be read as YAML"),
        ("a: !!python/object:os.system {}", "cannot be read as YAML"),
        ("a: \x00", "cannot be read as YAML"),
        ("#" * 2**21, "larger than 1,048,576 bytes"),
        ("- a", "expected 'key: value' lines, found list"),
        ("", "expected 'key: value' lines, found NoneType"),
    ],
    ids=range(14),
)
def test_a_text_that_is_no_config_is_one_sentence(tmp_path, text, expected):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        TrainConfig.load(path)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_nest_of_aliases_costs_nothing(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    start = time.perf_counter()
    with pytest.raises(ConfigError, match="repeats another part"):
        TrainConfig.load(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="repeats another part"):
        TrainConfig.load(TRAIN[0], [f"name={{{', '.join(lines)}}}"])
    assert time.perf_counter() - start < 5


def test_a_pipe_or_a_folder_is_no_config_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe: is no ordinary file"):
        TrainConfig.load(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a folder"):
        TrainConfig.load(tmp_path)
    with pytest.raises(ConfigError, match="no such config file"):
        TrainConfig.load(tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match="cannot be read: .*utf-8"):
        TrainConfig.load(tmp_path / "latin")


def test_a_large_value_is_cut_in_the_sentence():
    with pytest.raises(ConfigError) as raised:
        TrainConfig.load(TRAIN[0], [f"seed={'x' * 10_000}"])
    assert len(str(raised.value)) < 300


def test_a_heading_without_values_takes_an_override(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: a\ndata: b\nmodel: {kind: majority}\noptim:\n")
    assert TrainConfig.load(path, ["optim.lr=0.5"]).optim.lr == 0.5


def test_models_are_chosen_by_kind():
    from models import ModelConfig

    kinds = set()
    for config in ModelConfig.__args__[0].__args__:
        kinds.add(config.model_fields["kind"].default)
        assert hasattr(config, "build") != hasattr(config, "fit")
    assert {"rank_transformer", "majority", "logistic_regression"} <= kinds
    assert np.all([kind == kind.lower() for kind in kinds])
