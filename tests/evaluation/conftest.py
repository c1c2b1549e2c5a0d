"""Runs that are made up, and copies of runs with other content."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.sparse import csr_matrix

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.store.checksums import write_checksums
from dataset.store.encoded_folder import SCHEMA_VERSION
from dataset.vocabulary import Vocabulary
from evaluation import METRICS
from evaluation.calibration import fit_temperature
from training.runs import RUN_VERSION

CLASSES = ["alpha", "beta", "gamma"]
SHARES = [0.6, 0.3, 0.1]  # accuracy and macro-F1 differ


def made_up_predictions(rng, labels, skill, n_classes):
    """Return probabilities that favor the true class the more, the larger ``skill``."""
    logits = rng.normal(size=(len(labels), n_classes))
    logits[np.arange(len(labels)), labels] += skill
    exponents = np.exp(logits)
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def write_run(tmp_path):
    """Return a function that writes ``runs/<name>`` as 02 leaves it, without training.

    ``labels`` and ``probabilities`` (split -> array) are drawn unless they are given; ``skill``
    may be one number or one for val and one for test.
    """

    def write(
        name,
        *,
        kind="logistic_regression",
        seed=0,
        skill=3.0,
        data="pancreas",
        data_sha256="cells",
        split_sha256="split",
        previous=None,
        tokenizer=None,
        donors=("d1", "d2", "d3"),
        n_cells=200,
        class_names=CLASSES,
        labels=None,
        probabilities=None,
        settings=None,
        costs=None,
        **model,
    ):
        folder = tmp_path / "runs" / name
        (folder / "data").mkdir(parents=True)
        truth = np.random.default_rng(7)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        config = {"name": name, "data": f"data/{data}", "model": {"kind": kind, **model}}
        config |= {"seed": seed, **(settings or {})}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        hashes = {"data_sha256": data_sha256, "split_sha256": split_sha256}
        is_network = kind in ("rank_transformer", "residual_mlp", "value_transformer")
        metrics = {
            "version": RUN_VERSION,
            **hashes,
            "train_class_sizes": ([60, 30, 10] + [1] * len(class_names))[: len(class_names)],
            "seconds": 2.0,
            "peak_memory_mb": 300.0,
            "seed": seed,
        }
        metrics |= {"n_parameters": 1000 if is_network else None, "device": "cpu"} | (costs or {})
        skills = skill if isinstance(skill, tuple) else (skill, skill)
        splits = ("val", "test") if config.get("test", True) else ("val",)
        for split, split_skill in zip(splits, skills, strict=False):
            if labels is None:
                own = truth.choice(len(CLASSES), size=n_cells, p=SHARES)
            else:
                own = np.asarray(labels[split])
            if probabilities is None:
                p = made_up_predictions(rng, own, split_skill, len(class_names))
            else:
                p = np.asarray(probabilities[split], dtype=np.float32)
            metrics[split] = {key: float(metric(own, p)) for key, metric in METRICS.items()}
            if split == "val":
                metrics["temperature"] = round(fit_temperature(own, p), 6)
            arrays = {
                "cell_names": np.array([f"{split}-{i}" for i in range(len(own))]),
                "batches": np.array(donors)[np.arange(len(own)) % len(donors)],
                "labels": own.astype(np.int64),
                "probabilities": p,
            }
            if is_network:
                arrays["embeddings"] = p @ rng.normal(size=(p.shape[1], 4)).astype(np.float32)
            np.savez(folder / f"predictions_{split}.npz", **arrays)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        meta = {
            "name": data,
            "tokenizer": tokenizer or {"kind": "rank", "n_tokens": 8, "previous": previous},
            "schema_version": SCHEMA_VERSION,
            "n_tokens": 9,
            "n_segments": 1,
            "condition_keys": [],
            "position_keys": [],
            "learned": {"medians": {"dtype": "float32", "shape": [2], "range": [1.0, 1.0]}},
            "n_cells": dict.fromkeys(("train", "val", "test"), n_cells),
            "source": {"files": [{"path": f"{data}.h5ad"}]},
            **hashes,
        }
        (folder / "data" / "meta.json").write_text(json.dumps(meta))
        (folder / "data" / "class_names.json").write_text(json.dumps(class_names))
        Vocabulary(("g0", "g1"), ("G0", "G1")).save(folder / "data" / "vocabulary.json")
        (folder / "data" / "conditions.json").write_text("{}")
        (folder / "data" / "conditions.json").write_text("{}")
        (folder / "data" / "learned").mkdir()
        np.save(folder / "data/learned/medians.npy", np.ones(2, dtype=np.float32))
        if is_network:
            lines = [
                {"step": step, "train/loss": 1 / step, "val/macro_f1": step / 10, "optim/lr": 1e-3}
                for step in range(1, 6)
            ]
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        write_checksums(folder)
        return folder

    return write


@pytest.fixture
def query(tmp_path, synthetic_h5ad):
    """Return a function that writes the synthetic cells, changed and without labels."""

    def write(change=lambda adata: adata, name="query"):
        adata = ad.read_h5ad(synthetic_h5ad)
        adata.obs = adata.obs[["donor"]]
        path = tmp_path / f"{name}.h5ad"
        change(adata).write_h5ad(path)
        return path

    return write


@pytest.fixture
def edit_predictions():
    """Return a function that changes arrays of ``predictions_<split>.npz`` as 02 might have."""

    def edit(folder, split, change):
        path = folder / f"predictions_{split}.npz"
        arrays = change(dict(np.load(path)))
        np.savez(path, **arrays)
        if split == "val":
            p = arrays.get("probabilities")
            temperature = None if p is None else round(fit_temperature(arrays["labels"], p), 6)
            path = folder / "metrics.json"
            metrics = json.loads(path.read_text()) | {"temperature": temperature}
            path.write_text(json.dumps(metrics))
        write_checksums(folder)

    return edit


class ChangedRun:
    """Copies runs with other content, their checksums taken anew."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n_runs = folder, 0

    def __call__(
        self,
        run: Path,
        *,
        meta: Callable[[dict], object] | None = None,
        metrics: Callable[[dict], object] | None = None,
        predictions: dict[str, Callable[[dict], object]] | None = None,
    ) -> Path:
        self.n_runs += 1
        copy = self.folder / f"changed_{self.n_runs}"
        shutil.copytree(run, copy)
        for name, change in (("data/meta.json", meta), ("metrics.json", metrics)):
            if change is not None:
                facts = json.loads((copy / name).read_text())
                change(facts)
                (copy / name).write_text(json.dumps(facts))
        for split, change in (predictions or {}).items():
            path = copy / f"predictions_{split}.npz"
            arrays = dict(np.load(path))
            change(arrays)
            np.savez(path, **arrays)
        self.sum_up(copy)
        return copy

    def sum_up(self, run: Path) -> None:
        write_checksums(run)


@pytest.fixture
def changed_run(tmp_path):
    """Return a function that copies a run with another meta.json, metrics or predictions."""
    return ChangedRun(tmp_path)


@pytest.fixture(scope="session")
def planted_cells(tmp_path_factory):
    """Write 160 cells of types a and b, which only genes G0 and G1 tell apart; return the path."""
    rng = np.random.default_rng(0)
    is_b = np.arange(160) % 2 == 1
    counts = rng.poisson(2, (160, 60)).astype(np.float32)
    counts[:, 0], counts[:, 1] = 15 * ~is_b, 15 * is_b
    obs = {"cell_type": np.where(is_b, "b", "a"), "donor": [f"d{i // 40}" for i in range(160)]}
    adata = ad.AnnData(
        csr_matrix(counts), obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(160)])
    )
    adata.var_names = [f"G{i}" for i in range(60)]
    path = tmp_path_factory.mktemp("planted") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def encode_planted(planted_cells, name, **more):
    config = PreprocessConfig(
        name=name,
        input=str(planted_cells),
        label_key="cell_type",
        quality_control={"min_genes": 5},
        split={"key": "donor"},
        data_dir=str(planted_cells.parent),
        **more,
    )
    return encode(config, progress=False)


@pytest.fixture(scope="session")
def planted_run(planted_cells, make_run):
    """Train the smoke config on them; return the run folder."""
    tokenizer = {"kind": "rank", "n_tokens": 60}
    data = encode_planted(planted_cells, "planted", tokenizer=tokenizer)
    return make_run("planted", "smoke", "optim.max_epochs=5", data=data)


@pytest.fixture(scope="session")
def planted_values(planted_cells):
    """Encode 40 of their genes with values, and their donors; return the folder."""
    tokenizer = {"kind": "gene_values", "n_top_genes": 40}
    return encode_planted(planted_cells, "values", tokenizer=tokenizer, condition_keys=["donor"])


@pytest.fixture(scope="session")
def told_donors(planted_values, make_run):
    """Train a network that is told the donor; return the run folder."""
    words = ["model.conditions=[donor]", "model.d_model=32", "optim.max_epochs=1"]
    return make_run("told_donors", "scgpt_baron_human", *words, data=planted_values)
