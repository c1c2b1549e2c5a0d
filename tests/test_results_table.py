"""``make results``: which sets, models and seeds it runs, as its dry run prints them."""

import re
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
HISTORIES = {"worm_embryo_batch_history", "worm_embryo_batch_shuffled"}


def dry_run(cells: Path, *words: str) -> str:
    command = ["make", "--dry-run", "--always-make", "results", f"CELLS={cells}", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


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
        lines = [line for line in with_cells.splitlines() if f"runs/results/{name} " in line]
        text = "\n".join(lines)
        for model in ("name=transformer_seed", "name=mlp_seed", "name=committee"):
            assert text.count(model) == 1, (name, model)
        assert text.count("name=$model") == 2  # baselines, comparators
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
    for name in ("rank_transformer_baron_human", "mlp_baron_human"):  # one recipe for all
        demo = TrainConfig.load(configs / "train" / f"{name}.yaml")
        assert demo.model_dump(include=rest) == network.model_dump(include=rest)
        assert demo.model == (network if name.startswith("rank") else without).model
    members = re.search(r"'(model\.members=\[.+?\])'", with_cells)[1]
    committee = TrainConfig.load(configs / "train" / "committee_baron_human.yaml", [members])
    assert [Path(m).name for m in committee.members] == [
        "logistic_regression", "gradient_boosting",
        *(f"{network}_seed{i}" for network in ("transformer", "mlp") for i in range(3)),
    ]  # fmt: skip
    for name in SETS | HISTORIES:
        assert PreprocessConfig.load(configs / "preprocess" / f"{name}.yaml").name == name


def test_comparators_can_be_left_out(tmp_path):
    (tmp_path / "some.h5ad").touch()
    said = dry_run(tmp_path, "COMPARATORS=")
    assert ".venv_comparators" not in said
    assert said.count("name=committee") == len(SETS)


def test_without_the_files_it_is_the_demos_set_and_a_sentence(tmp_path):
    said = dry_run(tmp_path / "nowhere")
    trained = re.findall(r"runs_dir=runs/results/(\w+) ", said)
    assert set(trained) == {"baron_human_rank"}
    assert f"demo's set alone, for there are no cells in {tmp_path}/nowhere" in said
    assert "data/cells" not in said
