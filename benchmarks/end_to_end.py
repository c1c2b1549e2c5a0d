"""One small file all the way: .h5ad -> tokens -> one epoch of a small model -> predictions."""

import shutil
import time

from benchmarks.encode import LABEL_KEY
from benchmarks.measure import DATA, alone, show
from benchmarks.simulated_cells import write_cells

MODEL = {"n_layers": 1, "d_model": 32, "n_heads": 2, "context_genes": 64}


def encode_train_predict(
    path: str, label_key: str, n_threads: int = 1, n_tokens: int = 2048, batch_size: int = 64
) -> dict:
    """Do it once, with the project's own functions; cells, and seconds and peak MB by part."""
    import torch

    from benchmarks.encode import config_for, load_compiled
    from benchmarks.load import read_batches
    from benchmarks.measure import PeakMemory, own_memory
    from dataset.batches import to_device
    from dataset.config import COUNTS
    from dataset.encode import encode
    from dataset.store.encoded_folder import EncodedFolder
    from models.learner import Learner
    from models.objectives import default_objectives
    from models.rank_transformer import RankTransformerConfig
    from training.optim import make_optimizer

    torch.manual_seed(0)
    torch.set_num_threads(1)  # two wait for each other where a machine is shared
    config = config_for("end_to_end", path, label_key, n_threads, n_tokens)
    imported = own_memory()
    load_compiled(config)
    shutil.rmtree(DATA / COUNTS, ignore_errors=True)
    with PeakMemory() as encoding:
        folder = encode(config, overwrite=True, progress=False)

    with PeakMemory() as training:
        data = EncodedFolder(folder)
        train = data.split("train")
        network = RankTransformerConfig(**MODEL, gene_init="random", cls_init="learned")
        model = Learner(network, default_objectives(), data.facts)
        optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.01)
        for batch in read_batches(train, batch_size):
            batch = to_device(batch, "cpu")
            model(batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    right = n_predicted = 0
    model.eval()
    with PeakMemory() as predicting, torch.inference_mode():
        for name in ("val", "test"):
            for batch in read_batches(data.split(name), batch_size):
                batch = to_device(batch, "cpu")
                found = model(batch, predict=["classify"])["probabilities"]
                right += int((found.argmax(1) == batch["labels"]).sum())
                n_predicted += len(batch["labels"])
    n_train = len(train)
    for made in (folder, DATA / COUNTS):
        shutil.rmtree(made)
    return {
        "n_cells": n_train + n_predicted,
        "encode_seconds": encoding.seconds,
        "train_seconds": training.seconds,
        "predict_seconds": predicting.seconds,
        "encode_mb": encoding.peak - imported,
        "model_mb": max(training.peak, predicting.peak) - imported,
        "accuracy": right / n_predicted,
    }


def run(*, quick: bool = False) -> list[dict]:
    """Run once, two threads to encode and one to train; seconds and share of each part."""
    n_cells = 1_000 if quick else 20_000
    path = str(write_cells(DATA / f"cells_{n_cells}.h5ad", n_cells))
    began = time.perf_counter()
    found = alone(
        "benchmarks.end_to_end:encode_train_predict", path=path, label_key=LABEL_KEY,
        n_threads=2,
    )  # fmt: skip
    wall = time.perf_counter() - began
    parts = {
        "encode": found["encode_seconds"],
        "train, one epoch": found["train_seconds"],
        "predict val and test": found["predict_seconds"],
    }
    parts["start Python, import, compile"] = wall - sum(parts.values())
    rows = [
        {"part": name, "seconds": s, "of the whole": s / wall, "cells/s": found["n_cells"] / s}
        for name, s in parts.items()
    ]
    rows[2]["accuracy"] = found["accuracy"]
    show(f"End to end: {found['n_cells']:,} cells, 1 layer x 32 on the top 64 genes", rows)
    return rows
