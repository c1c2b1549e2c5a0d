"""Comparison of runs: scores, what they are of, and who is chosen by what."""

import numpy as np
import pytest

from dataset.store.checksums import write_checksums
from evaluation import METRICS, comparison_plots
from evaluation.calibration import apply_temperature, fit_temperature
from evaluation.compare import compare_runs
from evaluation.embedding import embedded_cells, embedded_runs, separation
from evaluation.verdicts import verdicts

EYE = np.eye(5)


def compared(folder, n_resamples=200, **settings):
    (comparison,) = compare_runs(folder.parent, n_resamples=n_resamples, **settings)
    return comparison


def softened(labels, n_classes=5, *, wrong=(), instead=0):
    """Return probabilities that predict every cell correctly, but those numbered ``wrong``."""
    named = np.array(labels)
    named[list(wrong)] = instead
    return 0.9 * np.eye(n_classes)[named] + 0.1 / n_classes


@pytest.fixture
def lonely_type(write_run):
    """Return runs that differ in one test cell: the only one of its type, as in the demo."""
    test = np.repeat(np.arange(5), [120, 90, 60, 40, 1])
    labels = {"val": np.repeat(np.arange(5), 10), "test": test}
    given = {"class_names": list("abcde"), "labels": labels, "donors": ("d",)}
    val, missed = softened(labels["val"]), [5, 130, 220, 280]  # the same four for both
    network, baseline = softened(test, wrong=[*missed, 310]), softened(test, wrong=missed)
    write_run("linear", probabilities={"val": val, "test": baseline}, **given)
    kind = "rank_transformer"
    return write_run("net", kind=kind, probabilities={"val": val, "test": network}, **given)


def test_runs_that_differ_in_seed_only_are_one_model(write_run):
    for seed in range(3):
        folder = write_run(f"network_s{seed}", kind="rank_transformer", seed=seed)
    write_run("network_wide_s0", kind="rank_transformer", d_model=128)
    comparison = compared(folder)
    assert {m.name: len(m.runs) for m in comparison.models} == {"network": 3, "network_wide": 1}
    row = comparison.scores.set_index("model").loc["network"]
    network = next(m for m in comparison.models if m.name == "network")
    for name in set(METRICS) - {"top3_accuracy"}:  # of three classes it is always 1
        of_seeds = [METRICS[name](comparison.labels, p) for p in network.test]
        assert len(set(of_seeds)) == 3
        assert row[name] == pytest.approx(np.mean(of_seeds)), name
        assert row[f"{name}_sd"] == pytest.approx(np.std(of_seeds, ddof=1)), name
    assert row["seeds"] == "0 1 2"
    assert row["macro_f1_low"] < row["macro_f1"] < row["macro_f1_high"]


def test_runs_and_their_predictions_are_in_the_order_of_seeds(write_run):
    for seed in (10, 2):  # s10 comes before s2
        folder = write_run(f"network_s{seed}", kind="rank_transformer", seed=seed)
    (network,) = compared(folder).models
    assert [run.config.seed for run in network.runs] == [2, 10]
    for run, probabilities, scaled in zip(network.runs, network.test, network.scaled, strict=True):
        found = run.predictions("test")
        own = found.probabilities[np.argsort(found.cell_names)]
        assert np.array_equal(probabilities, own)
        assert np.array_equal(scaled.argmax(axis=1), own.argmax(axis=1))


def test_order_of_the_cells_does_not_matter(write_run, edit_predictions):
    folder = write_run("first")
    before = compared(folder)
    for split in ("val", "test"):

        def shuffle(arrays):
            order = np.random.default_rng(0).permutation(len(arrays["labels"]))
            return {name: values[order] for name, values in arrays.items()}

        edit_predictions(folder, split, shuffle)
    assert before.scores.equals(compared(folder).scores)


def test_best_is_chosen_on_val_not_on_test(write_run):
    """In each pair one run is better on val, the other on test."""
    write_run("linear_val", skill=(3.0, 1.0))
    write_run("knn_test", kind="knn", skill=(2.0, 6.0))
    write_run("net_test", kind="rank_transformer", skill=(2.0, 6.0))
    folder = write_run("net_val", kind="rank_transformer", skill=(3.0, 1.0), d_model=128)
    comparison = compared(folder)
    assert comparison.best_baseline.name == "linear_val"
    assert comparison.best_network.name == "net_val"
    assert set(comparison.differences["against"]) == {"linear_val"}


def test_best_is_chosen_by_macro_f1_not_by_accuracy(write_run):
    """One model names the common type alone, the other all types but worse."""
    labels = {split: np.repeat([0, 1, 2], [150, 30, 20]) for split in ("val", "test")}
    common = {split: softened(np.zeros(200, int), 3) for split in labels}
    fair = {
        split: softened(own, 3, wrong=range(0, 60), instead=1) for split, own in labels.items()
    }
    folder = write_run("common", labels=labels, probabilities=common)
    write_run("fair", kind="knn", labels=labels, probabilities=fair)
    comparison = compared(folder)
    scores = comparison.scores.set_index("model")
    assert scores.loc["common", "accuracy"] > scores.loc["fair", "accuracy"]
    assert comparison.best_baseline.name == "fair"


def test_scores_on_val_come_from_the_predictions_on_val(write_run):
    comparison = compared(write_run("linear", skill=(1.0, 6.0)))
    cells = comparison.models[0].runs[0].predictions("val")
    expected = METRICS["macro_f1"](cells.labels, cells.probabilities)
    row = comparison.scores.iloc[0]
    assert row["val_macro_f1"] == pytest.approx(expected)
    assert row["val_macro_f1"] < row["macro_f1"] - 0.1


def test_every_model_is_scaled_on_its_own_val_cells(write_run, edit_predictions):
    """All are made three times too sure, on both splits: scaling undoes it for each of them."""
    folders = [
        write_run("linear", skill=1.0),
        write_run("knn", kind="knn", skill=0.8),
        write_run("network", kind="rank_transformer", skill=1.2),
    ]
    before = compared(folders[0]).scores.set_index("model")
    for folder in folders:
        for split in ("val", "test"):
            edit_predictions(folder, split, sharpen)
    after = compared(folders[0]).scores.set_index("model")
    for model in ("linear", "knn", "network"):
        assert after.loc[model, "log_loss"] > 1.2 * before.loc[model, "log_loss"]
        for score in ("log_loss_scaled", "ece_scaled"):
            kept = pytest.approx(before.loc[model, score], abs=1e-4)
            assert after.loc[model, score] == kept, (model, score)
        assert after.loc[model, "temperature"] == pytest.approx(
            3 * before.loc[model, "temperature"], rel=1e-2
        )
        for score in ("accuracy", "macro_f1", "top3_accuracy"):
            assert after.loc[model, score] == before.loc[model, score]


def sharpen(arrays):
    sharp = apply_temperature(arrays["probabilities"], 1 / 3).astype(np.float32)
    return arrays | {"probabilities": sharp}


def test_temperature_does_not_come_from_test(write_run, edit_predictions):
    """Only the test cells' probabilities are too sure, which val cannot know."""
    folder = write_run("linear", skill=1.0)
    before = compared(folder).models[0].temperatures
    edit_predictions(folder, "test", sharpen)
    comparison = compared(folder)
    assert comparison.models[0].temperatures == before
    cells = comparison.models[0].runs[0].predictions("val")
    assert before == [pytest.approx(fit_temperature(cells.labels, cells.probabilities))]
    (row,) = comparison.scores.to_dict("records")
    mended = fit_temperature(comparison.labels, comparison.models[0].test[0])
    best = apply_temperature(comparison.models[0].test[0], mended)
    assert row["log_loss_scaled"] > METRICS["log_loss"](comparison.labels, best) + 0.05


def test_the_temperature_is_the_stored_one_and_not_fitted_again(write_run, changed_run):
    folder = write_run("linear", skill=1.0)
    changed_run(folder, metrics=lambda metrics: metrics.update(temperature=1.75))
    (comparison,) = compare_runs(changed_run.folder, n_resamples=5)
    assert comparison.models[0].temperatures == [1.75]
    scaled = apply_temperature(comparison.models[0].test[0], 1.75)
    np.testing.assert_allclose(comparison.models[0].scaled[0], scaled, rtol=1e-6)


def test_the_type_of_one_cell_is_in_every_resample(lonely_type):
    comparison = compared(lonely_type)
    found = comparison.difference(comparison.best_network, comparison.best_baseline, "macro_f1")
    assert found["difference"] == pytest.approx(-0.2, abs=0.01)
    assert -0.22 < found["low"] <= found["high"] < -0.18
    for name in ("macro_f1", "balanced_accuracy"):
        values = comparison._over_cells[name]
        assert values.std(axis=0).max() < 0.02, name  # one hump


def test_a_single_cell_decides_nothing(lonely_type):
    comparison = compared(lonely_type)
    pair = comparison.best_network, comparison.best_baseline
    found = comparison.difference(*pair, "macro_f1")
    assert found["outcome"] == "cannot tell"
    assert "fewer than 10 test cells" in found["reason"]
    assert comparison.n_rare == 1
    common = comparison.difference(*pair, "macro_f1_common")
    assert abs(common["difference"]) < 0.01
    by_hand = [METRICS["macro_f1"](comparison.labels, p) for p in (pair[0].test[0],)]
    scores = comparison.scores.set_index("model")["macro_f1_common"]
    assert scores["net"] > by_hand[0] + 0.15


def test_lower_log_loss_is_better(write_run):
    write_run("linear", skill=1.0)
    folder = write_run("network", kind="rank_transformer", skill=6.0)
    comparison = compared(folder)
    models = comparison.best_network, comparison.best_baseline
    for metric in ("log_loss", "log_loss_scaled"):
        found = comparison.difference(*models, metric)
        assert found["difference"] < 0
        assert found["outcome"] == "better"
        assert comparison.difference(*models[::-1], metric)["outcome"] == "worse"


def test_differences_are_paired(write_run):
    """Two runs that fail on the same cells differ by less than their own intervals suggest."""
    rng = np.random.default_rng(0)
    labels = {split: rng.integers(5, size=300) for split in ("val", "test")}
    hard = rng.choice(300, size=90, replace=False)
    given = {"labels": labels, "class_names": list("abcde")}
    for name, kind, wrong in (("a", "knn", hard), ("b", "linear_svm", hard[3:])):
        probabilities = {
            split: softened(own, wrong=wrong, instead=(own[wrong] + 1) % 5)
            for split, own in labels.items()
        }
        folder = write_run(name, kind=kind, probabilities=probabilities, **given)
    comparison = compared(folder)
    own = comparison.scores.iloc[0]
    found = comparison.difference(*comparison.models, "accuracy")
    assert found["high"] - found["low"] < 0.3 * (own["accuracy_high"] - own["accuracy_low"])


def test_intervals_over_donors_are_wider_where_donors_differ(write_run):
    """All cells of one donor are wrong: over cells that is little, over donors it is all."""
    labels = {split: np.arange(300) % 5 for split in ("val", "test")}
    donors = tuple("wxyz")
    wrong = np.flatnonzero(np.arange(300) % 4 == 0)
    probabilities = {split: softened(own, wrong=wrong) for split, own in labels.items()}
    folder = write_run(
        "knn", kind="knn", donors=donors, labels=labels, probabilities=probabilities,
        class_names=list("abcde"),
    )  # fmt: skip
    row = compared(folder, n_resamples=500).scores.iloc[0]
    over_cells = row["accuracy_high"] - row["accuracy_low"]
    assert row["accuracy_high_donors"] - row["accuracy_low_donors"] > 3 * over_cells
    assert 0.05 < over_cells < 0.12


def test_one_donor_has_no_interval_over_donors(write_run):
    comparison = compared(write_run("linear", donors=("d1",)))
    assert comparison.scores["accuracy_low_donors"].isna().all()
    assert comparison.scores["accuracy_low"].notna().all()
    assert "one donor" in comparison.donor_note


def test_a_type_that_the_drawn_donors_lack_is_left_out_for_all(write_run):
    """Half of the resamples lack the second donor's own type; no model gains or loses by that."""
    labels = {split: np.where(np.arange(200) % 2, 1, 0) for split in ("val", "test")}
    right = {split: softened(own, 3) for split, own in labels.items()}
    folder = write_run("linear", donors=("d1", "d2"), labels=labels, probabilities=right)
    row = compared(folder).scores.iloc[0]
    assert row["macro_f1_low_donors"] == row["macro_f1_high_donors"] == 1.0


def test_a_committee_stands_in_the_table_and_in_no_verdict(write_run):
    """It is best on val, and neither the best transformer nor the best baseline."""
    write_run("linear", skill=2.0)
    write_run("net", kind="rank_transformer", skill=1.5)
    for seed in range(2):
        folder = write_run(
            f"together_s{seed}", kind="committee", seed=seed, skill=5.0,
            members=[f"runs/net_s{seed}", "runs/linear"],
        )  # fmt: skip
        for i, name in enumerate((f"net_s{seed}", "linear"), start=1):
            kind = "rank_transformer" if i == 1 else "logistic_regression"
            of = seed if i == 1 else 0
            member = write_run(f"{name}_of_{seed}", kind=kind, seed=of)
            (folder / "members").mkdir(exist_ok=True)
            member.rename(folder / "members" / f"{i}_{name}")
        write_checksums(folder)
    comparison = compared(folder)
    assert [model.name for model in comparison.models] == ["together", "linear", "net"]
    assert comparison.scores["seeds"].tolist() == ["0 1", "0", "0"]
    assert comparison.scores["kind"][0] == "committee"
    assert (comparison.best_network.name, comparison.best_baseline.name) == ("net", "linear")
    (said,) = verdicts([comparison])
    assert "together" not in said
    assert "together" in set(comparison.differences["model"])
    assert comparison_plots.curves(comparison) is not None
    assert comparison_plots.cost(comparison) is not None


def test_embedding_of_a_network(write_run):
    folder = write_run("network", kind="rank_transformer", skill=6.0)
    adata = embedded_cells(compared(folder).best_network.runs[0], max_cells=150)
    assert adata.shape == (150, 4)
    assert separation(adata)["cell type"] > separation(adata)["donor"]


def test_only_networks_with_embeddings_are_drawn(write_run, edit_predictions):
    write_run("linear", data="cortex", data_sha256="c", split_sha256="d")
    write_run("network", kind="rank_transformer")
    folder = write_run("bare", kind="rank_transformer", data="blood", data_sha256="e")
    edit_predictions(folder, "test", lambda a: {k: v for k, v in a.items() if k != "embeddings"})
    comparisons = compare_runs(folder.parent, n_resamples=5)
    assert [run.name for run in embedded_runs(comparisons)] == ["network"]


def test_embedding_of_a_baseline_is_refused(write_run):
    comparison = compared(write_run("linear"))
    with pytest.raises(ValueError, match="has no embeddings; choose a network's run"):
        embedded_cells(comparison.models[0].runs[0])
