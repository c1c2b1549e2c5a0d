"""``make results``: which sets, models and seeds it runs, as its dry run prints them."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from dataset.config import PreprocessConfig
from training.config import TrainConfig

ROOT = Path(__file__).parent.parent
SETS = {
    "baron_human_folds", "baron_human_to_mouse", "pbmc3k_rank", "zeisel_fine_rank",
    "pbmc_3tech_folds", "worm_embryo_batch", "starmap_folds", "mixology_technology",
}  # fmt: skip
ABLATIONS = {"pbmc3k_rank", "zeisel_fine_rank", "worm_embryo_batch"}
MEMBERS = {
    "committee_of_ranks": [f"transformer_seed{i}" for i in range(3)],
    "committee_of_languages": ["transformer_seed0", "values_seed1", "cells_seed2"],
}
NETWORKS = {name: [f"{name}_seed{i}" for i in range(3)] for name in ("transformer", "mlp")}
BASELINES = ["logistic_regression", "gradient_boosting"]
COMMITTEES = {
    "committee": [*BASELINES, *NETWORKS["transformer"], *NETWORKS["mlp"]],
    "committee_without_attention": [*BASELINES, *NETWORKS["mlp"]],
    "committee_without_networks": BASELINES,
}
HISTORIES = {"worm_embryo_batch_history", "worm_embryo_batch_shuffled"}


def dry_run(cells: Path, *words: str) -> str:
    command = ["make", "--dry-run", "--always-make", "results", f"CELLS={cells}", *words]
    # Not with the variables of the make that runs this test, such as another VENV.
    ours = ("MAKE", "MFLAGS", "PYTHON", "VENV")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=env)
    return done.stdout


def trainings(said: str) -> list[dict[str, str]]:
    """Return the settings of every training that is printed; of one in a loop once."""
    found = []
    for command in re.findall(r"02_train_model\.py ([^;\n]+)", said.replace("\\\n", " ")):
        words = shlex.split(command.replace("--config ", "--config="))
        found.append(dict(word.split("=", 1) for word in words))
    return found


@pytest.fixture
def with_cells(tmp_path):
    (tmp_path / "some.h5ad").touch()
    return dry_run(tmp_path)


def test_every_set_is_encoded_trained_and_compared(with_cells):
    encoded = re.findall(
        r"01_preprocess\S+ .*-p config configs/preprocess/(\w+)\.yaml", with_cells
    )
    assert set(encoded) == SETS | HISTORIES
    trained = re.findall(r"runs_dir=runs/results/(\w+) .*--config", with_cells)
    assert set(trained) == SETS | HISTORIES
    assert len(re.findall(r'03_compile\S+ .*-p runs "runs/results/\*"', with_cells)) == 1
    assert "demo's set alone" not in with_cells


def test_every_set_has_every_model_and_three_seeds(with_cells):
    for name in SETS:
        of_set = [run for run in trainings(with_cells) if run["tracking.group"] == name]
        names = [run["name"] for run in of_set]
        for model in ("transformer_seed$seed", "mlp_seed$seed", *COMMITTEES):
            assert names.count(model) == 1, (name, model)
        assert names.count("$model") == 2  # baselines, comparators
    loops = re.findall(r"for (?:seed|model) in ([^;]+);", with_cells)
    assert sorted(set(loops)) == [
        "0 1 2",
        "celltypist singler lightgbm scanvi",
        "majority knn linear_svm logistic_regression gradient_boosting",
    ]
    in_their_own = re.findall(
        r"for model in cell.*?; do (\S+)/bin/python .*configs/train", with_cells
    )
    assert in_their_own == [".venv_comparators"] * len(SETS)


def test_the_configs_are_there_and_take_these_settings(with_cells):
    configs = ROOT / "configs"
    for model in re.search(r"for model in ([^;]+);", with_cells)[1].split():
        TrainConfig.load(configs / "train" / f"{model}_baron_human.yaml")
    control = re.search(r"'(model=\{.+?\})'", with_cells)[1]
    network = TrainConfig.load(configs / "train" / "example.yaml")
    without = TrainConfig.load(configs / "train" / "example.yaml", [control])
    same = {"d_model", "dropout"}
    assert network.model.model_dump(include=same) == without.model.model_dump(include=same)
    assert without.model.kind == "residual_mlp"
    rest = {"optim", "objectives", "augment", "monitor"}
    demo = {
        name: TrainConfig.load(configs / "train" / f"{name}_baron_human.yaml")
        for name in ("rank_transformer", "mlp", "scgpt", "cellplm")
    }
    for config in demo.values():  # one recipe for all
        assert config.model_dump(include=rest) == network.model_dump(include=rest)
        assert config.model.model_dump(include=same) == network.model.model_dump(include=same)
    assert demo["rank_transformer"].model == network.model
    assert demo["mlp"].model == without.model
    for name, expected in COMMITTEES.items():
        members = re.search(rf"name={name} '(model\.members=\[.+?\])'", with_cells)[1]
        committee = TrainConfig.load(configs / "train" / "committee_baron_human.yaml", [members])
        assert [Path(m).name for m in committee.members] == expected
        assert committee.model.weights == "by_kind"
    for name in SETS | HISTORIES:
        assert PreprocessConfig.load(configs / "preprocess" / f"{name}.yaml").name == name


def test_languages_and_ablations_are_of_the_networks_epochs(with_cells):
    trained = trainings(with_cells)
    models = {(run["tracking.group"], run["name"]): run for run in trained}
    for name in SETS:
        assert models[name, "values_seed$seed"]["data"] == f"data/{name}_values"
        assert models[name, "cells_seed$seed"]["model.sample_key"] == "null"
        members = "transformer_seed0,{0}values_seed1,{0}cells_seed2".format(
            f"runs/results/{name}/"
        )
        assert models[name, "committee_of_languages"]["model.members"].endswith(f"{members}]")
        assert "transformer_seed2" in models[name, "committee_of_ranks"]["model.members"]
    pretrained = {key[0] for key in models if key[1] == "pretrained_seed$seed"}
    assert pretrained == ABLATIONS
    for name in ABLATIONS:
        before, after = models[name, f"{name}_seed$seed"], models[name, "pretrained_seed$seed"]
        assert after["init_from"] == "runs/pretrained/" + before["name"]
        assert before["runs_dir"] == "runs/pretrained"  # it classifies nothing: in no table
        epochs = [int(run["optim.max_epochs"]) for run in (before, after)]
        assert (
            sum(epochs) == TrainConfig.load(ROOT / "configs/train/example.yaml").optim.max_epochs
        )
    for run in trained:
        if run["name"] not in {"$model", *COMMITTEES}:
            settings = [f"{key}={value}" for key, value in run.items() if key != "--config"]
            config = TrainConfig.load(
                ROOT / run["--config"], [w for w in settings if "$" not in w]
            )
            assert config.is_network or config.members


def test_languages_can_be_left_out(tmp_path):
    (tmp_path / "some.h5ad").touch()
    said = dry_run(tmp_path, "LANGUAGES=")
    assert "values_seed" not in said
    assert "pretrained" not in said
    assert said.count("name=committee ") == len(SETS)


def test_comparators_can_be_left_out(tmp_path):
    (tmp_path / "some.h5ad").touch()
    said = dry_run(tmp_path, "COMPARATORS=")
    assert ".venv_comparators" not in said
    assert said.count("name=committee ") == len(SETS)


def test_without_the_files_it_is_the_demos_set_and_a_sentence(tmp_path):
    said = dry_run(tmp_path / "nowhere")
    trained = re.findall(r"runs_dir=runs/results/(\w+) ", said)
    assert set(trained) == {"baron_human_rank"}
    assert f"demo's set alone, for there are no cells in {tmp_path}/nowhere" in said
    assert "data/cells" not in said
