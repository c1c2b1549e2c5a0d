"""RESULTS.md and the table beside it: what they say, how it is written, and where it fails."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from evaluation.compare import compare_runs
from evaluation.results import difference_summary, summary, write_results
from evaluation.verdicts import verdict

NASTY = ["<img src=x>", "a|b\nc", "[click](http://x.y) **now** `run`"]


def compared(folder, **settings):
    return compare_runs(folder.parent, n_resamples=50, **settings)


def written(comparisons, tmp_path):
    markdown, table = write_results(comparisons, tmp_path / "out" / "RESULTS.md", "papermill 03")
    return markdown.read_text(), pd.read_csv(table)


def test_results_name_what_they_are_made_of(write_run, tmp_path):
    write_run("linear")
    folder = write_run("network", kind="rank_transformer", skill=4.0)
    comparisons = compared(folder)
    text, table = written(comparisons, tmp_path)
    for expected in ("papermill 03", "split `split`", "linear", "macro-F1", "alpha", "cpu"):
        assert expected in text
    assert verdict(comparisons[0]) in text
    assert "Left out" not in text
    controls = ["true labels", "random labels", "majority labels"]
    models = [model.name for model in comparisons[0].models]
    assert list(table["model"]) == [*models, *controls]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"RESULTS.md", "RESULTS.csv"}


def test_every_score_has_its_column(write_run, tmp_path):
    write_run("linear", skill=1.0)
    folder = write_run("network", kind="rank_transformer", skill=1.5)
    (comparison,) = compared(folder)
    shown = summary(comparison).loc["linear"]
    row = comparison.scores.set_index("model").loc["linear"]
    for title, key in (
        ("accuracy", "accuracy"),
        ("macro-F1", "macro_f1"),
        ("macro-F1, types of 10+ cells", "macro_f1_common"),
        ("log-loss", "log_loss"),
        ("log-loss, scaled on val", "log_loss_scaled"),
        ("ECE", "ece"),
        ("ECE, scaled on val", "ece_scaled"),
        ("val macro-F1", "val_macro_f1"),
    ):
        assert shown[title].split()[0] == f"{row[key]:.3f}", title
    assert shown["macro-F1"].endswith(f"[{row['macro_f1_low']:.3f}, {row['macro_f1_high']:.3f}]")
    numbers = [row[key] for key in ("accuracy", "macro_f1", "log_loss", "log_loss_scaled", "ece")]
    assert len(set(numbers)) == 5


def test_table_and_sentence_use_the_same_words(write_run):
    write_run("linear", skill=1.0)
    folder = write_run("network", kind="rank_transformer", skill=6.0)
    (comparison,) = compared(folder)
    table = difference_summary(comparison)
    assert set(table["outcome"]) <= {"better", "worse", "level", "cannot tell"}
    said = table.set_index("score").loc["macro-F1, types of 10+ cells", "outcome"]
    assert said == "better"
    assert f"over donors), {said}" in verdict(comparison)


def test_a_table_on_val_says_so(write_run, tmp_path):
    settings = {"test": False}
    write_run("linear", settings=settings)
    folder = write_run("network", kind="rank_transformer", skill=4.0, settings=settings)
    text, table = written(compared(folder), tmp_path)
    assert "## pancreas, on val" in text
    assert "their scores flatter. Val scores, means over seeds" in text
    assert "Test scores" not in text
    assert "| cell_type | precision | recall | f1 | val cells |" in text
    assert set(table["dataset"]) == {"pancreas, on val"}


def test_margin_is_printed(write_run, tmp_path):
    write_run("linear")
    text, _ = written(compared(write_run("knn", kind="knn"), margin=0.07), tmp_path)
    assert "Level: it lies within 0.07" in text


@pytest.mark.parametrize("mark", ["", "-changed"])
def test_results_of_edited_code_say_so(write_run, tmp_path, mark):
    folder = write_run("linear", costs={"git_commit": f"{'0123456789' * 4}{mark}"})
    text, _ = written(compared(folder), tmp_path)
    assert f"| 012345678901{mark} |" in text


def test_dashboards_are_linked_where_there_are_any(write_run, tmp_path):
    write_run("linear", costs={"wandb_url": "https://wandb.ai/me/nanocell/runs/a1?workspace=x"})
    write_run("odd", costs={"wandb_url": "https://x/> <b>"}, kind="linear_svm")
    folder = write_run("knn", kind="knn")
    text, _ = written(compared(folder), tmp_path)
    pages = text[text.index("Their dashboards:") :].split()
    assert pages[3:5] == ["linear:", "<https://wandb.ai/me/nanocell/runs/a1?workspace=x>"]
    assert pages[6:] == ["odd:", "<https://x/%3E%20%3Cb%3E>"]
    for name in ("linear", "odd"):
        shutil.rmtree(folder.with_name(name))
    assert "Their dashboards:" not in written(compared(folder), tmp_path)[0]


def test_what_is_left_out_is_said(write_run, tmp_path):
    write_run("linear")
    folder = write_run("knn", kind="knn")
    (folder / "config.yaml").unlink()
    text, _ = written(compared(folder), tmp_path)
    assert "Left out, and in no table:" in text
    assert "knn: config.yaml is missing" in text


def test_names_are_no_markup(write_run, tmp_path):
    write_run("linear", class_names=NASTY)
    folder = write_run("network", kind="rank_transformer", class_names=NASTY)
    folder.rename(folder.with_name("net|<b>work"))
    text, _ = written(compared(folder), tmp_path)
    shown = re.sub(r"`[^`]*`", "", text)  # in code nothing is markup
    assert "<img" not in shown
    assert "<b>" not in shown
    assert not re.search(r"(?<!\\)\]\(http", shown)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    borders = [line.replace(r"\|", "").count("|") for line in rows]
    tables = [line for line in rows if line.startswith("| ---")]
    assert sorted(set(borders)) == sorted({line.count("|") for line in tables})


def test_few_cells_leave_gaps_and_no_nan(write_run, tmp_path):
    labels = {split: [0, 1, 2, 0, 1] for split in ("val", "test")}
    write_run("linear", labels=labels)
    folder = write_run("network", kind="rank_transformer", labels=labels)
    text, _ = written(compared(folder), tmp_path)
    assert "nan" not in text
    assert "cannot tell" in text


def test_the_table_may_not_be_the_text(write_run, tmp_path):
    with pytest.raises(ValueError, match="end it in .md"):
        write_results(compared(write_run("linear")), tmp_path / "RESULTS.csv", "03")


def test_a_full_disk_is_a_sentence_with_the_path_and_changes_nothing(write_run, tmp_path):
    """The limit on a file's size fails as a full disk does, in the middle of a write."""
    folder = write_run("linear")
    output = tmp_path / "RESULTS.md"
    output.write_text("before")
    code = (
        "import resource\n"
        "from evaluation.compare import compare_runs\n"
        "from evaluation.results import write_results\n"
        f"found = compare_runs({str(folder.parent)!r}, n_resamples=5)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        f"write_results(found, {str(output)!r}, '03')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError")
    assert f"{output}: could not be written (File too large)" in last
    assert output.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "RESULTS.md"}


def test_costs_that_are_not_known_are_gaps(write_run):
    (comparison,) = compared(write_run("linear"))
    shown = summary(comparison).iloc[0]
    assert shown["parameters"] == ""
    assert shown["seconds"] == "2.0"
    assert np.isnan(comparison.scores["n_parameters"]).all()
