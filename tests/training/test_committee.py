"""A committee is the mean of its members, runs that fit together, and complete in itself."""

import json
import os
import runpy
import shutil

import numpy as np
import pytest
import yaml

from dataset.store.checksums import write_checksums
from evaluation.classification import log_loss
from models.committee import CommitteeConfig
from tests.conftest import ROOT
from training.runs import Run


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / "02_train_model.py"))["main"]


@pytest.fixture
def make(main, tmp_path, encoded_folder, capfd):
    """Return a function: member folders, words -> exit status, and what was said."""

    def run(members, *words, name="together"):
        content = {
            "name": name, "data": str(encoded_folder), "runs_dir": str(tmp_path / "runs"),
            "model": {"kind": "committee", "members": [str(member) for member in members]},
            "tracking": {"wandb": "disabled"}, "device": "cpu",
        }  # fmt: skip
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        capfd.readouterr()
        return main(["--config", str(path), *words]), capfd.readouterr().err

    return run


def at_own_temperature(member, split):
    powers = member.predictions(split).probabilities.astype(float) ** (
        1 / member.metrics["temperature"]
    )
    return powers / powers.sum(axis=1, keepdims=True)


def test_it_is_the_mean_of_its_members_and_costs_their_sum(
    make, network_run, baseline_run, tmp_path
):
    assert make([baseline_run, network_run])[0] == 0
    run, members = Run(tmp_path / "runs" / "together"), [Run(baseline_run), Run(network_run)]
    for split in ("val", "test"):
        found, parts = run.predictions(split), [m.predictions(split) for m in members]
        mean = sum(at_own_temperature(member, split) for member in members) / 2
        np.testing.assert_allclose(found.probabilities, mean, atol=1e-7)
        assert np.abs(mean - sum(part.probabilities for part in parts) / 2).max() > 0.01
        np.testing.assert_array_equal(found.cell_names, parts[0].cell_names)
        np.testing.assert_array_equal(found.embeddings, parts[1].embeddings)
    costs = [member.metrics for member in members]
    assert run.metrics["seconds"] == pytest.approx(sum(cost["seconds"] for cost in costs))
    assert run.metrics["n_parameters"] == costs[1]["n_parameters"]
    assert run.metrics["peak_memory_mb"] == max(cost["peak_memory_mb"] for cost in costs)
    assert run.metrics["members"] == {str(baseline_run): 0.5, str(network_run): 0.5}
    assert run.metrics["temperature"] > 0
    assert (run.is_baseline, run.is_network) == (False, False)


def test_it_holds_its_members_once_on_the_disk(make, network_run, baseline_run, tmp_path):
    make([network_run, baseline_run])
    folder = tmp_path / "runs" / "together" / "members"
    assert sorted(path.name for path in folder.iterdir()) == ["1_network", "2_logistic"]
    ours, theirs = folder / "1_network" / "model.safetensors", network_run / "model.safetensors"
    assert ours.samefile(theirs)
    (folder / "2_logistic" / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"2_logistic/metrics\.jsonl is missing"):
        Run(tmp_path / "runs" / "together")


def test_a_disk_without_hard_links_gets_copies(
    make, network_run, baseline_run, tmp_path, monkeypatch
):
    def no_link(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", no_link)
    assert make([network_run, baseline_run])[0] == 0
    ours = tmp_path / "runs/together/members/1_network/model.safetensors"
    assert not ours.samefile(network_run / "model.safetensors")
    assert len(Run(tmp_path / "runs" / "together").members) == 2


def test_done_again_there_is_nothing_to_do_wherever_the_members_are(
    make, network_run, baseline_run, tmp_path
):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in (network_run, baseline_run)]
    make(copies)
    folder = tmp_path / "runs" / "together"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make([network_run, baseline_run])[0] == 0
    shutil.rmtree(copies[0])
    assert make(copies)[0] == 0  # what is gone cannot differ
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len({*Run(folder).config.model.members_sha256}) == 2
    (copies[1] / "model.safetensors").unlink()
    (copies[1] / "model.safetensors").write_bytes(b"trained again")
    status, said = make(copies)
    assert (status, "differs in: model" in said) == (2, True)


def test_other_members_under_a_taken_name_are_refused(make, make_run, network_run, baseline_run):
    majority = make_run("majority_for_committee", "majority_baron_human")
    assert make([network_run, baseline_run])[0] == 0
    status, said = make([network_run, majority])
    assert (status, "differs in: model" in said) == (2, True)
    status, said = make([network_run, baseline_run], "model.weights=val")
    assert (status, "differs in: model" in said) == (2, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrics.json": {"data_sha256": "x"}}, "has other cells than"),
        ({"metrics.json": {"split_sha256": "x"}}, "has other split than"),
        ({"data/class_names.json": ["a", "b", "c", "d"]}, "has other classes than"),
        ("names", "has other test cells than"),
        ("labels", "has other val cells than"),
        ("unfinished", "is no finished run"),
        ("gone", "no such run folder"),
        ("committee", "is itself a committee; list its members instead"),
    ],
    ids=str,
)
def test_a_member_that_does_not_fit_is_named_with_what_differs(
    change, said, make, network_run, baseline_run, tmp_path
):
    member = shutil.copytree(network_run, tmp_path / "member")
    if change == "unfinished":
        (member / "metrics.json").unlink()
        (member / "checksums.json").unlink()
    elif change == "gone":
        shutil.rmtree(member)
    elif change == "committee":
        make([network_run, baseline_run], name="first")
        member = tmp_path / "runs" / "first"
    elif isinstance(change, dict):
        ((name, content),) = change.items()
        old = json.loads((member / name).read_text())
        new = old | content if isinstance(content, dict) else content
        (member / name).write_text(json.dumps(new))
        write_checksums(member)
    else:
        path = member / f"predictions_{'test' if change == 'names' else 'val'}.npz"
        arrays = dict(np.load(path))
        key = "cell_names" if change == "names" else "labels"
        np.savez(path, **arrays | {key: arrays[key][::-1]})
        write_checksums(member)
    status, error = make([baseline_run, member])
    assert status == 2
    assert error.count("\n") == 1
    assert said in error
    assert str(member) in error
    assert not (tmp_path / "runs" / "together").exists()
    assert not list((tmp_path / "runs").glob(".*"))


def test_a_member_counts_once():
    with pytest.raises(ValueError, match="listed twice: runs/a"):
        CommitteeConfig(members=["runs/a", "runs/b", "runs/a"])
    with pytest.raises(ValueError, match="one for each member"):
        CommitteeConfig(members=["runs/a", "runs/b"], members_sha256=["x"])
    with pytest.raises(ValueError, match="at least 2"):
        CommitteeConfig(members=["runs/a"])


def mixed(rng, n_cells, skills):
    """Return labels, and probabilities of members that are right the more often, by skill."""
    labels = rng.integers(4, size=n_cells)
    logits = [rng.normal(size=(n_cells, 4)) + s * np.eye(4)[labels] for s in skills]
    return labels, [np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in logits]


def test_weights_of_val_are_those_of_the_least_log_loss(rng):
    labels, members = mixed(rng, 300, (2.0, 1.9, 1.8))
    config = CommitteeConfig(members=["a", "b", "c"], weights="val")
    found = config.fit(labels, members, ["a", "b", "c"])
    grid = np.linspace(0, 1, 41)
    points = [(a, b, 1 - a - b) for a in grid for b in grid if a + b <= 1]
    losses = [log_loss(labels, config.average(np.array(point), members)) for point in points]
    np.testing.assert_allclose(found, points[int(np.argmin(losses))], atol=0.026)
    assert found.sum() == pytest.approx(1)
    assert log_loss(labels, config.average(found, members)) <= min(losses) + 1e-9
    assert 0.01 < found.min()
    equal = CommitteeConfig(members=["a", "b", "c"]).fit(labels, members, ["a", "a", "b"])
    np.testing.assert_allclose(equal, 1 / 3)


def test_the_runs_of_one_kind_share_its_weight(rng):
    labels, members = mixed(rng, 30, (1.0, 2.0, 3.0, 4.0, 5.0))
    config = CommitteeConfig(members=["a", "b", "c", "d", "e"], weights="by_kind")
    kinds = ["transformer", "svm", "transformer", "mlp", "transformer"]
    found = config.fit(labels, members, kinds)
    np.testing.assert_allclose(found, [1 / 9, 1 / 3, 1 / 9, 1 / 3, 1 / 9])


def test_a_member_that_knows_nothing_gets_no_weight_and_one_that_knows_all_gets_it_all(rng):
    labels, (good,) = mixed(rng, 200, (3.0,))
    known, wrong = np.eye(4)[labels], np.eye(4)[(labels + 1) % 4]
    config = CommitteeConfig(members=["a", "b"], weights="val")
    for members in ([good, wrong], [known, wrong]):
        np.testing.assert_allclose(config.fit(labels, members, ["a", "b"]), [1, 0], atol=1e-3)


def test_the_weights_of_val_are_the_runs(make, network_run, baseline_run, tmp_path):
    assert make([network_run, baseline_run], "model.weights=val")[0] == 0
    run = Run(tmp_path / "runs" / "together")
    weights = run.weights()["weights"]
    val, test = ([at_own_temperature(m, split) for m in run.members] for split in ("val", "test"))
    expected = run.config.model.fit(run.predictions("val").labels, val, ["a", "b"])
    np.testing.assert_allclose(weights, expected, atol=1e-4)
    mean = run.config.model.average(weights, test)
    np.testing.assert_allclose(run.predictions("test").probabilities, mean, atol=1e-6)
    assert abs(weights[0] - 0.5) > 0.01


def test_committees_of_other_seeds_are_one_model(
    make, make_run, network_run, baseline_run, tmp_path
):
    other = make_run("network_seed1", "smoke", "seed=1", "optim.max_epochs=6")
    make([network_run, baseline_run], name="first")
    make([baseline_run, other], "seed=1", name="second")
    make([network_run, other], "seed=2", name="third")
    runs = [Run(tmp_path / "runs" / name) for name in ("first", "second", "third")]
    assert runs[0].model_key() == runs[1].model_key() != runs[2].model_key()
    assert len({run.metrics["test"]["log_loss"] for run in runs}) == 3
    assert len({Run(path).model_key() for path in (network_run, other)}) == 1
    make([network_run, baseline_run, other], "model.weights=by_kind", name="fourth")
    fourth = Run(tmp_path / "runs" / "fourth")
    np.testing.assert_allclose(fourth.weights()["weights"], [1 / 4, 1 / 2, 1 / 4])


def test_without_test_nothing_of_test_is_averaged_and_with_it_members_need_theirs(
    make, main, network_run, baseline_run, tmp_path, capfd
):
    assert make([network_run, baseline_run], "test=false")[0] == 0
    run = Run(tmp_path / "runs" / "together")
    assert run.splits == ("val",)
    assert not (run.path / "predictions_test.npz").exists()
    blind = str(tmp_path / "runs")
    config = str(baseline_run / "config.yaml")
    assert main(["--config", config, "name=blind", f"runs_dir={blind}", "test=false"]) == 0
    status, said = make([network_run, f"{blind}/blind"], name="seeing")
    assert status == 2
    assert "blind was trained with test: false" in said
