"""The table over several sets, against numbers worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from evaluation.compare import compare_runs
from evaluation.over_sets import not_on_all, ours_verdicts, over_sets, over_sets_summary
from evaluation.results import write_results
from tests.made_up import LABELS, named

# Cells, of 500 each type, that a model gets wrong: each wrong name is that of the next type. The
# errors of a set are spread over the types alike, so that accuracy and macro-F1 are the same.
WRONG = {
    "one": {"logreg": 40, "knn": 200, "net": 0, "committee": 20},
    "two": {"logreg": 40, "knn": 200, "net": 400, "committee": 40},
    "three": {"logreg": 200, "knn": 40, "net": 400, "committee": 40, "extra": 0},
}
KIND = {
    "logreg": "logistic_regression",
    "knn": "knn",
    "net": "rank_transformer",
    "committee": "residual_mlp",
    "extra": "celltypist",
}
SCORES = ("macro-F1 over types of 10+ cells", "accuracy", "log-loss, scaled on val")
SECONDS = {"logreg": 3.0, "knn": 1.0, "net": 50.0, "committee": 54.0, "extra": 9.0}


@pytest.fixture
def comparisons(write_run, tmp_path):
    """Compare three sets, each in a folder of its own, the runs of one name in all of them.

    "net" predicts val best, so that the choice on val is never the best on test in "two".
    """
    for number, (data, models) in enumerate(WRONG.items()):
        for model, n_wrong in models.items():
            val_wrong = {"net": 0, "logreg": 10}.get(model, 30 + 10 * number)
            if data == "three" and model == "knn":
                val_wrong = 6  # the best baseline on val of that set alone
            folder = write_run(
                model,
                kind=KIND[model],
                data=data,
                data_sha256=data,
                split_sha256=data,
                class_names=list("abcd"),
                labels={"val": LABELS, "test": LABELS},
                probabilities={"val": named(val_wrong), "test": named(n_wrong)},
                costs={"seconds": SECONDS[model]},
            )
            (tmp_path / "results" / data).mkdir(parents=True, exist_ok=True)
            folder.rename(tmp_path / "results" / data / model)
    (tmp_path / "results" / "RESULTS.md").write_text("of an earlier time")
    return compare_runs(tmp_path / "results" / "*", n_resamples=200)


def test_ranks_counts_means_and_seconds(comparisons):
    assert [c.dataset for c in comparisons] == ["one", "three", "two"]
    found = over_sets(comparisons)
    # Ranks on one: net 1, committee 2, logreg 3, knn 4; two: logreg and committee 1.5, knn 3, net
    # 4; three, without "extra": knn and committee 1.5, logreg 3, net 4.
    expected = {"committee": 5 / 3, "logreg": 7.5 / 3, "knn": 8.5 / 3, "net": 9 / 3}
    assert found["mean_rank"].to_dict() == pytest.approx(expected)
    assert list(found.index) == list(expected)
    assert found.loc["net", "accuracy"] == pytest.approx(1 - 800 / 6000)
    assert found.loc["net", "macro_f1_common"] == pytest.approx(1 - 800 / 6000)
    assert found.loc["committee", "accuracy"] == pytest.approx(1 - 100 / 6000)
    assert found["seconds"].to_dict() == {"committee": 162, "logreg": 9, "knn": 3, "net": 150}
    # The best baseline on val is logreg on one and two, and knn on three: not counted there.
    for metric in ("accuracy", "macro_f1_common"):  # the same here
        words = [f"{metric} {word}" for word in ("better", "level", "worse", "cannot tell")]
        assert found[words].T.to_dict("list") == {
            "committee": [1, 2, 0, 0],
            "logreg": [0, 0, 1, 0],
            "knn": [0, 0, 2, 0],
            "net": [1, 0, 2, 0],
        }
    shown = over_sets_summary(comparisons)
    assert shown.loc["committee", "accuracy: better, level, worse, cannot tell"] == "1 / 2 / 0 / 0"
    log_loss = shown["log-loss: better, level, worse, cannot tell"]
    assert [sum(map(int, text.split(" / "))) for text in log_loss] == [3, 1, 2, 3]


def test_a_model_that_a_set_lacks_is_named_and_changes_no_rank(comparisons):
    assert "extra" not in over_sets(comparisons).index
    assert not_on_all(comparisons) == ["extra"]


def test_a_sentence_a_set_says_better_or_worse_and_the_cost(comparisons):
    one, three, two = ours_verdicts(comparisons)
    assert one.startswith("one: ours is better than the best baseline. net against logreg, each")
    assert " Fitting took 50 against 3 seconds. " in one
    assert one.endswith(
        "None of 2 baselines and comparators is better for certain in any of these."
    )
    assert three.startswith("three: ours is worse than the best baseline. net against knn")
    assert " seconds. Ours is worse than the best comparator. net against extra, each" in three
    assert "best comparator" not in one + two
    assert two.startswith("two: ours is worse than the best baseline. net against logreg")
    assert "accuracy -0.180 (95 % interval -0.1" in two
    scores = [f"{name} in {score}" for name in ("logreg", "knn") for score in SCORES]
    assert two.endswith(f"Better than ours for certain: {'; '.join(scores)}.")


def test_a_committee_with_a_transformer_is_ours_where_there_is_one(comparisons):
    net, shuffled, linear, logreg, mlps, together = (
        SimpleNamespace(
            has_members=role == "committee",
            has_network=network,
            has_attention=attention,
            is_shuffled=role == "control",
        )
        for role, network, attention in (
            ("network", True, True), ("control", True, True), ("committee", False, False),
            ("baseline", False, False), ("committee", True, False), ("committee", True, True),
        )
    )  # fmt: skip
    for models, ours, without_attention, without_networks in (
        ([mlps, linear, logreg, net, together], together, mlps, linear),
        ([shuffled, linear, logreg, net], net, None, linear),
        ([shuffled, logreg], None, None, None),
    ):
        found = replace(comparisons[0], models=models)
        assert found.ours is ours
        assert found.best_committee_without_attention is without_attention
        assert found.best_committee_without_networks is without_networks


def test_results_begin_with_the_table_where_there_are_several_sets(comparisons, tmp_path):
    output = tmp_path / "RESULTS.md"
    write_results(comparisons, output, "papermill 03")
    text = output.read_text()
    assert text.index("## All sets") < text.index("Is it a transformer") < text.index("## one")
    assert "Not here, for they were not run on every set: extra." in text
    assert "- two: ours is worse than the best baseline." in text
    for title in ("mean rank", "accuracy: better, level", "above controls", "seconds"):
        assert f"| {title}" in text
    write_results(comparisons[:1], output, "papermill 03")
    assert "All sets" not in output.read_text()


def test_no_model_on_all_sets_is_an_empty_table(write_run, tmp_path):
    for data, model in (("one", "a"), ("two", "b")):
        write_run(f"{model}_run", data=data, data_sha256=data, split_sha256=data)
    comparisons = compare_runs(tmp_path / "runs", n_resamples=20)
    assert len(over_sets(comparisons)) == len(over_sets_summary(comparisons)) == 0
    assert not_on_all(comparisons) == ["a_run", "b_run"]
    assert ours_verdicts(comparisons)[0] == "one: no network or committee was run on it."
