"""Runs of all folds are one run: scores by hand, classes by name, what is missing is named."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from dataset.store.checksums import write_checksums
from evaluation.calibration import apply_temperature, fit_temperature
from evaluation.compare import compare_runs
from evaluation.controls import with_controls
from evaluation.fold_scores import draw_folds, fold_scores, fold_summary
from evaluation.group_runs import ComparisonError
from evaluation.results import write_results

FOLDS = ["donor 1", "donor 2", "donor 3"]
CLASSES = {"donor 1": ["B", "T"], "donor 2": ["B", "NK", "T"], "donor 3": ["NK", "T"]}


def compared(folder, **settings):
    return compare_runs(folder.parent, **{"n_resamples": 20, **settings})


@pytest.fixture
def write_fold(write_run):
    """Return a function that writes the run of a fold, as of cells that only it has."""

    def write(name, fold, *, sha256="folds", cells=None, skill=2.0, n_cells=40, **settings):
        names = CLASSES[fold]
        rng = np.random.default_rng([FOLDS.index(fold), int(skill * 100)])
        labels = {
            split: np.random.default_rng(FOLDS.index(fold)).integers(len(names), size=n_cells)
            for split in ("val", "test")
        }
        probabilities = {}
        for split, own in labels.items():
            logits = rng.normal(size=(n_cells, len(names)))
            logits[np.arange(n_cells), own] += skill
            probabilities[split] = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        folder = write_run(
            f"{name}_fold_{fold.replace(' ', '_')}", class_names=names, labels=labels,
            probabilities=probabilities, split_sha256=f"split of {fold}", donors=(fold,),
            **settings,
        )  # fmt: skip
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["train_class_sizes"] = [10 * (FOLDS.index(fold) + 1)] * len(names)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        meta = json.loads((folder / "data" / "meta.json").read_text())
        meta["fold"] = {"name": fold, "of": FOLDS, "sha256": sha256}
        meta["source"]["n_cells"] = 130
        (folder / "data" / "meta.json").write_text(json.dumps(meta))
        for split in ("val", "test"):
            path = folder / f"predictions_{split}.npz"
            arrays = dict(np.load(path))
            # the folds' cells lie among each other by name
            arrays["cell_names"] = np.array([f"{i} {cells or fold}" for i in range(n_cells)])
            np.savez(path, **arrays)
        write_checksums(folder)
        return folder

    return write


def write_all(write_fold, name, **settings):
    return [write_fold(name, fold, **settings) for fold in FOLDS]


def stored(folders, split="test"):
    """Return labels as names, and what each cell's probabilities are of every class by name."""
    labels, rows = [], []
    for folder in folders:
        names = json.loads((folder / "data" / "class_names.json").read_text())
        arrays = np.load(folder / f"predictions_{split}.npz")
        labels += [names[label] for label in arrays["labels"]]
        rows += [dict(zip(names, p, strict=True)) for p in arrays["probabilities"].tolist()]
    return labels, rows


def test_scores_over_all_folds_are_those_computed_by_hand(write_fold):
    folders = write_all(write_fold, "linear")
    (comparison,) = compared(folders[0])
    (model,) = comparison.models
    assert (model.name, model.seeds, len(model.runs)) == ("linear", [0], 3)
    assert comparison.class_names == ["B", "NK", "T"]
    labels, rows = stored(folders)
    predicted = [max(row, key=row.get) for row in rows]
    scores = comparison.scores.iloc[0]
    assert scores["accuracy"] == pytest.approx(np.mean(np.array(labels) == predicted))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    by_hand = -np.mean([np.log(row[name]) for row, name in zip(rows, labels, strict=True)])
    assert scores["log_loss"] == pytest.approx(by_hand, abs=1e-6)
    labels, rows = stored(folders, "val")
    predicted = [max(row, key=row.get) for row in rows]
    assert scores["val_macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_each_fold_is_scaled_at_its_own_temperature(write_fold):
    folders = write_all(write_fold, "linear")
    (comparison,) = compared(folders[0])
    total, temperatures = 0.0, []
    for folder in folders:
        val, test = (np.load(folder / f"predictions_{split}.npz") for split in ("val", "test"))
        temperatures.append(fit_temperature(val["labels"], val["probabilities"]))
        scaled = apply_temperature(test["probabilities"], temperatures[-1])
        n_classes = scaled.shape[1]
        total += log_loss(test["labels"], scaled, labels=range(n_classes), normalize=False)
    assert comparison.models[0].temperatures == pytest.approx(temperatures, abs=1e-5)
    assert len(set(temperatures)) == 3
    assert comparison.scores["log_loss_scaled"][0] == pytest.approx(total / 120, abs=1e-5)


def test_controls_know_the_classes_of_all_folds(write_fold):
    folders = [*write_all(write_fold, "net_s0"), *write_all(write_fold, "net_s1", seed=1)]
    (comparison,) = compared(folders[0])
    found = with_controls(comparison).set_index("model")
    assert found.loc["true labels", "accuracy"] == 1
    share = comparison.n_cells[comparison.class_names.index("T")] / len(comparison.labels)
    assert found.loc["majority labels", "accuracy"] == pytest.approx(share)


def test_a_class_that_a_fold_does_not_know_has_no_probability_in_it(write_fold):
    (comparison,) = compared(write_all(write_fold, "linear")[0])
    (model,) = comparison.models
    for probabilities in (*model.test, *model.scaled):
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        unknown = {"donor 1": "NK", "donor 3": "B"}
        for fold, name in unknown.items():
            column = probabilities[comparison.folds == fold, comparison.class_names.index(name)]
            assert (column == 0).all()
    assert set(comparison.n_cells) != {0}


def test_intervals_are_over_cells_and_over_donors(write_fold):
    write_all(write_fold, "linear", skill=3.0)
    folders = write_all(write_fold, "net", kind="rank_transformer", skill=1.0)
    (comparison,) = compared(folders[0])
    assert comparison.n_donors == 3
    found = comparison.difference(comparison.best_network, comparison.best_baseline, "accuracy")
    assert found["low"] < found["difference"] < found["high"]
    assert found["low_donors"] <= found["difference"] <= found["high_donors"]
    assert found["outcome"] == "worse"


def test_folds_of_seeds_are_one_model_and_cost_their_sum(write_fold):
    for seed in (0, 1):
        for fold in FOLDS:
            folder = write_fold(
                f"net_seed{seed}", fold, kind="rank_transformer", seed=seed, skill=2.0 + seed,
                costs={"seconds": 10.0 * (seed + 1)},
            )  # fmt: skip
    (comparison,) = compared(folder)
    (model,) = comparison.models
    assert (model.name, model.seeds, len(model.test)) == ("net", [0, 1], 2)
    assert [run.config.seed for run in model.runs] == [0] * 3 + [1] * 3
    row = comparison.scores.iloc[0]
    assert (row["seeds"], row["seconds"], row["peak_memory_mb"]) == ("0 1", 45, 300)


def test_a_model_that_lacks_a_fold_is_named_and_the_others_stand(write_fold):
    write_all(write_fold, "linear")
    for fold in FOLDS[:2]:
        folder = write_fold("net", fold, kind="rank_transformer")
    (comparison,) = compared(folder)
    assert [model.name for model in comparison.models] == ["linear"]
    assert comparison.left_out == [
        "net: not compared, for 1 of its 3 folds are not finished (net_fold_donor_3); give the "
        "command that trains it again"
    ]


def test_where_every_model_lacks_a_fold_nothing_is_compared(write_fold):
    folder = write_fold("net", "donor 1")
    with pytest.raises(ComparisonError, match="net: not compared, for 2 of its 3 folds"):
        compared(folder)


def test_a_fold_counts_once(write_fold):
    folders = write_all(write_fold, "linear")
    copy = write_fold("other", "donor 2")
    (comparison,) = compared(copy)
    assert len(comparison.labels) == 120
    assert comparison.left_out == [
        f"{copy}: has the config, the seed and the fold of {folders[1]}, and a fold counts once"
    ]


def test_a_cell_of_two_folds_is_refused(write_fold):
    folders = write_all(write_fold, "linear", cells="of all")
    with pytest.raises(ComparisonError, match="a cell is held out twice"):
        compared(folders[0])


def test_folds_of_other_settings_are_another_model(write_fold):
    """Not put together, though names and folds fit: each lacks folds."""
    for fold in FOLDS:
        folder = write_fold("linear", fold, sha256="other" if fold == "donor 2" else "folds")
    with pytest.raises(ComparisonError, match="1 of its 3 folds.*2 of its 3 folds"):
        compared(folder)


def test_folds_and_a_holdout_have_tables_of_their_own(write_fold, write_run):
    write_run("alone", data="alone", data_sha256="cells")
    folders = write_all(write_fold, "linear")
    found = compared(folders[0])
    assert [comparison.dataset for comparison in found] == ["alone", "pancreas"]
    assert [comparison.folds is None for comparison in found] == [True, False]
    assert fold_scores(found[0]) is None
    assert draw_folds(found[0]) is None


def test_every_fold_is_shown(write_fold, tmp_path):
    write_all(write_fold, "linear", skill=3.0)
    folders = write_all(write_fold, "net", kind="rank_transformer")
    (comparison,) = compared(folders[0])
    table = fold_scores(comparison)
    assert list(table["fold"]) == [fold for fold in FOLDS for _ in comparison.models]
    for folder, fold in zip(folders, FOLDS, strict=True):
        row = table[(table["fold"] == fold) & (table["model"] == "net")].iloc[0]
        test = np.load(folder / "predictions_test.npz")
        predicted = test["probabilities"].argmax(axis=1)
        assert row["accuracy"] == pytest.approx(np.mean(predicted == test["labels"]))
        expected = f1_score(test["labels"], predicted, average="macro")
        assert row["macro_f1"] == pytest.approx(expected)
        assert (row["n_cells"], row["n_types"]) == (40, len(CLASSES[fold]))
    assert len(draw_folds(comparison).axes) == 3
    write_results([comparison], tmp_path / "RESULTS.md", "a command")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "130 cells in 3 folds, each of them test once and val once: 120 test cells" in text
    assert "donor 3" in text.split("Fold by fold")[1]
    assert text.count("02_train_model.py") == 6  # every run can be made again
    assert len(fold_summary(comparison)) == 6
