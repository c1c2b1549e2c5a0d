"""A run is whole, or said in one sentence not to be; which runs are the same one."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dataset.store.checksums import CHECKSUMS, write_checksums
from dataset.store.encoded_folder import EncodedFolder
from training.runs import Run, RunFolderError


@pytest.fixture
def copy(network_run, tmp_path):
    return shutil.copytree(network_run, tmp_path / "copy")


def test_reads_what_the_script_wrote(network_run):
    run = Run(network_run)
    test = run.predictions("test")
    assert len(test.labels) == run.meta["n_cells"]["test"]
    assert test.embeddings.shape == (len(test.labels), run.config.model.d_model)
    assert run.facts.vocabulary.n_genes == len(run.facts.learned["medians"])
    assert any("train/loss" in line for line in run.curves)
    stored = load_file(network_run / "model.safetensors")
    assert run.weights().keys() == stored.keys()


def test_only_a_run_without_test_has_no_test_scores(copy):
    metrics = json.loads((copy / "metrics.json").read_text())
    del metrics["test"]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    write_checksums(copy)
    with pytest.raises(
        RunFolderError, match=r"metrics.json: cannot be used \(test: Field required"
    ):
        Run(copy)
    (copy / "predictions_test.npz").unlink()
    config = (copy / "config.yaml").read_text().replace("test: true", "test: false")
    (copy / "config.yaml").write_text(config)
    write_checksums(copy)
    run = Run(copy)
    assert run.splits == ("val",)
    assert "test" not in run.metrics
    (copy / "config.yaml").write_text(config.replace("test: false", "test: true"))
    write_checksums(copy)
    with pytest.raises(RunFolderError, match=r"it has no predictions_test.npz"):
        Run(copy)


def test_a_class_that_cannot_be_is_no_fault_of_a_baseline(baseline_run, tmp_path):
    folder = shutil.copytree(baseline_run, tmp_path / "copy")
    arrays = load_file(folder / "model.safetensors")
    arrays["intercept"][0] = -np.inf
    save_file(arrays, folder / "model.safetensors")
    write_checksums(folder)
    assert np.isneginf(Run(folder).weights()["intercept"][0])
    arrays["intercept"][0] = np.inf
    save_file(arrays, folder / "model.safetensors")
    write_checksums(folder)
    with pytest.raises(RunFolderError, match="'intercept' holds NaN or infinite values"):
        Run(folder).weights()


def read_everything(folder):
    run = Run(folder)
    return (
        run.predictions("val"),
        run.predictions("test"),
        run.facts,
        run.curves,
        run.weights(),
    )


def refused(folder, match):
    """Every part is read; what is said of it is one sentence that tells nobody to delete."""
    with pytest.raises(RunFolderError, match=match) as error:
        read_everything(folder)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    assert "delete" not in text
    assert "train" in text


NAMES = [
    "metrics.json", "metrics.jsonl", "config.yaml", "model.safetensors", "predictions_val.npz",
    "predictions_test.npz", "data/vocabulary.json", "data/learned/medians.npy",
    "data/class_names.json", "data/conditions.json", "data/meta.json",
]  # fmt: skip


def test_every_file_has_a_checksum(network_run):
    assert sorted(json.loads((network_run / CHECKSUMS).read_text())) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "missing"])
def test_damage_is_one_sentence_as_soon_as_the_folder_is_opened(copy, name, damage):
    path = copy / name
    whole = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "bit":
        whole[len(whole) // 2] ^= 4
        path.write_bytes(whole)
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    with pytest.raises(RunFolderError, match=name):
        Run(copy)
    refused(copy, "is missing" if damage == "missing" else "is changed since")


def edit_json(folder, name, change):
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def permute_vocabulary(folder):
    def reverse(content):
        return {name: list(reversed(v)) if "gene" in name else v for name, v in content.items()}

    edit_json(folder, "data/vocabulary.json", reverse)


def reverse_class_names(folder):
    edit_json(folder, "data/class_names.json", lambda names: names[::-1])


def take_other_weights(folder):
    arrays = load_file(folder / "model.safetensors")
    save_file({name: 1.01 * array for name, array in arrays.items()}, folder / "model.safetensors")


def edit_the_heads(folder):
    text = (folder / "config.yaml").read_text()
    assert "n_heads: 2" in text
    (folder / "config.yaml").write_text(text.replace("n_heads: 2", "n_heads: 4"))


def multiply_probabilities(folder, factor=10.0):
    with np.load(folder / "predictions_test.npz") as file:
        arrays = dict(file)
    arrays["probabilities"] *= np.float32(factor)
    np.savez(folder / "predictions_test.npz", **arrays)


def reorder_val(folder):
    with np.load(folder / "predictions_val.npz") as file:
        arrays = dict(file)
    arrays["probabilities"] = arrays["probabilities"][::-1]
    np.savez(folder / "predictions_val.npz", **arrays)


@pytest.mark.parametrize(
    "change",
    [
        permute_vocabulary, reverse_class_names, take_other_weights, edit_the_heads,
        multiply_probabilities, reorder_val,
    ],
)  # fmt: skip
def test_other_content_of_the_right_shape_is_refused(copy, change):
    change(copy)
    refused(copy, "is changed since the run was finished")


def test_several_changed_files_are_one_sentence(copy):
    for name in NAMES:
        (copy / name).write_bytes(b"")
    (copy / "model.safetensors").unlink()
    refused(copy, r"model.safetensors is missing and .* and 6 more are changed")


# With checksums made to fit: what another program wrote, or an editor of some patience.


@pytest.mark.parametrize("value", [[], 5, None, "text", {}], ids=repr)
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("metrics.json", None), ("metrics.json", "val"), ("metrics.json", "test"),
        ("metrics.json", "val.macro_f1"), ("metrics.json", "test.accuracy"),
        ("metrics.json", "temperature"), ("metrics.json", "data_sha256"),
        ("metrics.json", "seconds"), ("metrics.json", "seed"),
        ("data/meta.json", None), ("data/meta.json", "name"), ("data/meta.json", "tokenizer"),
        ("data/meta.json", "n_cells"), ("data/meta.json", "n_cells.test"),
        ("data/class_names.json", None), ("data/vocabulary.json", None),
        ("data/vocabulary.json", "gene_ids"), (CHECKSUMS, None),
    ],
)  # fmt: skip
def test_json_of_another_type_is_one_sentence(copy, name, key, value):
    content = json.loads((copy / name).read_text())
    *parents, last = (key or "").split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    if key and (
        isinstance(value, type(inner[last]))
        or last in ("macro_f1", "accuracy", "seconds", "temperature")
    ):
        value = True  # of another type than what is there, all the same
    if key:
        inner[last] = value
    (copy / name).write_text(json.dumps(content if key else value))
    if name != CHECKSUMS:
        write_checksums(copy)
    refused(copy, "config.yaml" if value == {} and name == CHECKSUMS else name)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.safetensors", "predictions_val.npz"])
def test_what_is_no_number_is_refused(copy, name, number):
    path = copy / name
    if name.endswith("npz"):
        with np.load(path) as file:
            arrays = dict(file)
        arrays["probabilities"][3, 1] = number
        np.savez(path, **arrays)
    else:
        arrays = load_file(path)
        next(iter(arrays.values()))[0] = number
        save_file(arrays, path)
    write_checksums(copy)
    refused(copy, f"{name}.*NaN")


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("probabilities", lambda p: 10 * p, "add up to 1"),
        ("probabilities", lambda p: p[:, 1:], "expected"),
        ("labels", lambda x: x + 1000, "beyond the"),
        ("labels", lambda x: x.astype(float), "no whole numbers"),
        ("labels", lambda x: x[:, None], "no whole numbers"),
        ("cell_names", lambda x: x[1:], "texts"),
        ("batches", lambda x: np.arange(len(x)), "texts"),
        ("embeddings", lambda x: x[1:], "embeddings are"),
        ("embeddings", lambda x: x * np.float32("nan"), "embeddings that are NaN or infinite"),
    ],
)
def test_predictions_are_what_they_should_be(copy, key, change, message):
    path = copy / "predictions_test.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {key: change(arrays[key])}))
    write_checksums(copy)
    refused(copy, message)


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0])
def test_medians_are_positive_numbers(copy, value):
    medians = np.load(copy / "data/learned/medians.npy")
    medians[0] = value
    np.save(copy / "data/learned/medians.npy", medians)
    write_checksums(copy)
    refused(copy, r"learned/medians.npy: .*values outside")


def test_a_line_of_the_curves_that_is_none_is_said_so(copy):
    path = copy / "metrics.jsonl"
    path.write_text('[1, 2]\n{"step": 1}\n')
    write_checksums(copy)
    refused(copy, "metrics.jsonl, line 1")


def test_a_config_of_another_version_is_not_called_damaged(copy):
    with (copy / "config.yaml").open("a") as file:
        file.write("a_later_setting: 3\n")
    write_checksums(copy)
    refused(
        copy, r"another version of this code \(.*a_later_setting.*\); train again under another"
    )


def test_a_run_of_the_format_before_is_to_be_trained_again(copy):
    (copy / CHECKSUMS).unlink()
    refused(copy, r"another version of this code \(it has no checksums.json\); train again under")


def test_an_unfinished_run_is_not_read(tmp_path):
    with pytest.raises(RunFolderError, match="no such run folder"):
        Run(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="no finished run"):
        Run(tmp_path)


@pytest.mark.parametrize("name", ["predictions_test.npz", "data/vocabulary.json"])
def test_a_run_that_never_had_a_file_is_of_another_version(copy, name):
    (copy / name).unlink()
    write_checksums(copy)
    refused(copy, rf"another version of this code \(it has no {name}\)")


@pytest.mark.parametrize("name", ["metrics.json", "data/meta.json"])
@pytest.mark.parametrize("version", [None, 1, 99])
def test_a_run_of_another_format_is_said_so(copy, name, version):
    key = "version" if name == "metrics.json" else "schema_version"
    edit_json(copy, name, lambda content: content | {key: version})
    write_checksums(copy)
    refused(copy, rf"another version of this code \({name}: format {version}, this code reads")


def test_a_tokenizer_of_another_version_is_not_called_damaged(copy):
    def later(meta):
        return meta | {"tokenizer": meta["tokenizer"] | {"a_later_setting": 3}}

    edit_json(copy, "data/meta.json", later)
    write_checksums(copy)
    refused(copy, r"another version of this code \(data/meta.json: .*a_later_setting")


# ------------------------------------------------------------------- predictions by name


def keep(folder, split, change):
    path = folder / f"predictions_{split}.npz"
    with np.load(path) as file:
        np.savez(path, **change(dict(file)))
    write_checksums(folder)


def test_arrays_of_any_name_come_back(copy):
    n = len(Run(copy).predictions("test").labels)
    denoised = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    keep(copy, "test", lambda arrays: arrays | {"denoised": denoised})
    test = Run(copy).predictions("test")
    np.testing.assert_array_equal(test.arrays["denoised"], denoised)
    keep(copy, "test", lambda arrays: arrays | {"denoised": denoised[1:]})
    refused(copy, "denoised are")
    keep(copy, "test", lambda arrays: arrays | {"denoised": np.full((n, 3), np.inf)})
    refused(copy, "denoised that are NaN or infinite")
    keep(copy, "test", lambda arrays: arrays | {"denoised": np.full(n, "text")})
    refused(copy, "denoised are")


def test_a_run_that_predicts_no_classes_is_whole(copy):
    def unlabeled(arrays):
        return {k: v for k, v in arrays.items() if k != "probabilities"} | {
            "labels": np.full_like(arrays["labels"], -1)
        }

    for split in ("val", "test"):
        keep(copy, split, unlabeled)
    scores = {"val": {"masked_gene_loss": 2.5}, "test": {"masked_gene_loss": 2.25}}
    edit_json(copy, "metrics.json", lambda metrics: metrics | scores)
    edit_json(copy, "data/class_names.json", lambda _: [])
    edit_json(copy, "data/meta.json", lambda meta: meta | {"label_key": None})
    write_checksums(copy)
    read_everything(copy)
    run = Run(copy)
    assert run.facts.class_names == []
    assert not run.predictions("test").has_classes
    assert run.predictions("test").embeddings is not None
    assert run.metrics["test"] == {"masked_gene_loss": 2.25}


def test_labels_are_known_where_classes_are_predicted(copy):
    keep(copy, "val", lambda a: a | {"labels": np.full_like(a["labels"], -1)})
    refused(copy, "labels beyond")


def test_the_facts_are_those_of_the_encoded_folder(network_run, encoded_folder):
    ours, theirs = Run(network_run).facts, EncodedFolder(encoded_folder).facts
    assert ours.vocabulary == theirs.vocabulary
    assert (ours.class_names, ours.row_length, ours.n_segments, ours.conditions) == (
        theirs.class_names, theirs.row_length, theirs.n_segments, theirs.conditions,
    )  # fmt: skip
    assert ours.learned.keys() == theirs.learned.keys() == {"medians"}
    np.testing.assert_array_equal(ours.learned["medians"], theirs.learned["medians"])


def test_whatever_a_tokenizer_learned_is_read_by_name(copy):
    n = Run(copy).facts.vocabulary.n_genes
    np.save(copy / "data" / "learned" / "bin_edges.npy", np.ones((n, 5), dtype=np.float32))
    (copy / "data" / "conditions.json").write_text('{"donor": ["a", "b"]}')
    edges = {"dtype": "float32", "shape": [n, 5], "range": [0.0, 2.0]}
    more = {"learned": {"bin_edges": edges}, "condition_keys": ["donor"]}
    edit_json(copy, "data/meta.json", lambda meta: meta | more)
    write_checksums(copy)
    facts = Run(copy).facts
    assert facts.learned["bin_edges"].shape == (n, 5)
    assert facts.conditions == {"donor": ["a", "b"]}
    shorter = np.ones((n - 1, 5), dtype=np.float32)
    np.save(copy / "data" / "learned" / "bin_edges.npy", shorter)
    write_checksums(copy)
    refused(copy, rf"data/learned/bin_edges.npy: .*expected float32 \({n}, 5\)")
