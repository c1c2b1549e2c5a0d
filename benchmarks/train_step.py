"""The training step: ours, the peers, and how much of the machine it uses.

Cells have the lengths of an atlas (log-normal, median 1,100 genes, 300 to 2,048): most of the work
of a padded model is on padding. Useful FLOP are those of ``models/flops.py``, times 3.
"""

import math
import time

import numpy as np

from benchmarks.measure import PeakMemory, alone, show
from models.flops import forward_flop

CONTEXT = 2048
N_GENES, N_CLASSES = 20_000, 16
SHAPES = {
    "4 x 256, 6 heads of 16": {
        "n_layers": 4, "d_model": 256, "n_heads": 6, "d_head": 16, "d_feed_forward": 256,
    },
    "6 x 256, 4 heads of 64": {
        "n_layers": 6, "d_model": 256, "n_heads": 4, "d_head": 64, "d_feed_forward": 512,
    },
}  # fmt: skip


def lengths(n_cells: int, seed: int = 0) -> np.ndarray:
    """Tokens of each cell, ``<cls>`` included."""
    drawn = np.random.default_rng(seed).lognormal(math.log(1100), 0.5, n_cells)
    return np.clip(drawn, 300, CONTEXT).astype(np.int64)


def make_batches(n_cells: int, batch_size: int, *, bucketed: bool) -> list[np.ndarray]:
    """Token ids of each batch, ``(b, t)``: bucketed by length, or all padded to the context."""
    from dataset.npy_dataset import padded_length

    rng = np.random.default_rng(1)
    sizes = lengths(n_cells)
    sizes = np.sort(sizes) if bucketed else sizes
    batches = []
    for start in range(0, n_cells, batch_size):
        here = sizes[start : start + batch_size]
        width = padded_length(int(here.max()), CONTEXT) if bucketed else CONTEXT
        ids = np.zeros((len(here), width), np.int64)
        for row, n in enumerate(here):
            ids[row, 1:n] = 4 + rng.choice(N_GENES, n - 1, replace=False)
        ids[:, 0] = 1
        batches.append(ids)
    return [batches[i] for i in rng.permutation(len(batches))]


def make_model(
    shape: dict,
    *,
    n_vocabulary: int = N_GENES + 4,
    n_classes: int = N_CLASSES,
    n_tokens: int = CONTEXT,
):
    """The project's own network at this shape, random and without dropout."""
    from models.rank_transformer import RankTransformerConfig

    config = RankTransformerConfig(
        **shape, gene_init="random", cls_init="learned", dropout=0.0, d_hidden=16
    )
    return config.build(
        n_vocabulary=n_vocabulary, n_classes=n_classes, n_tokens=n_tokens, n_segments=1
    )


def make_batch(ids: np.ndarray, device: str = "cpu") -> dict:
    """What the network reads, for these token ids."""
    import torch

    token_ids = torch.from_numpy(ids).to(device)
    b = len(ids)
    return {
        "token_ids": token_ids,
        "counts": (token_ids > 3).float(),
        "library_size": torch.full((b, 1), 1e4, device=device),
        "labels": torch.arange(b, device=device) % N_CLASSES,
    }


def ours(
    shape: dict, batch_size: int, n_cells: int, device: str = "cpu", bf16: bool = False
) -> dict:
    """Train on every batch once with the project's own model, loss and optimiser.

    ``device="cuda", bf16=True`` has not been measured yet.
    """
    import torch

    from models.objectives import classify
    from training.optim import make_optimizer

    torch.manual_seed(0)
    model = make_model(shape).to(device)
    optimizer = make_optimizer(model, lr=1e-4, weight_decay=0.01)

    def step(ids: np.ndarray) -> None:
        batch = make_batch(ids, device)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            output = model(batch)
        classify(output, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    found = _timed(step, make_batches(n_cells, batch_size, bucketed=True), shape, n_cells)
    return found | _cuda_memory(device)


def _cuda_memory(device: str) -> dict:
    import torch

    return {"peak_mb": torch.cuda.max_memory_allocated() / 2**20} if device == "cuda" else {}


def naive(shape: dict, batch_size: int, n_cells: int) -> dict:
    """The same cells through the padded einsum model."""
    import torch
    import torch.nn.functional as F

    from benchmarks.reference_like import NaiveTransformer

    torch.manual_seed(0)
    model = NaiveTransformer(n_vocabulary=N_GENES + 4, n_classes=N_CLASSES, **shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(ids: np.ndarray) -> None:
        labels = torch.arange(len(ids)) % N_CLASSES
        optimizer.zero_grad()
        F.cross_entropy(model(torch.from_numpy(ids)), labels).backward()
        optimizer.step()

    return _timed(step, make_batches(n_cells, batch_size, bucketed=False), shape, n_cells)


def make_bert(shape: dict):
    """Hugging Face's BertForSequenceClassification of the same width, depth and feed-forward."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=N_GENES + 4,
            hidden_size=shape["d_model"],
            num_hidden_layers=shape["n_layers"],
            num_attention_heads=4,  # a head of BERT is hidden_size / heads wide
            intermediate_size=shape["d_feed_forward"],
            max_position_embeddings=CONTEXT,
            num_labels=N_CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def bert(shape: dict, batch_size: int, n_cells: int) -> dict:
    """BERT, cells in any order, each batch padded to its longest, as its tokeniser pads."""
    import torch

    torch.manual_seed(0)
    model = make_bert(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(ids: np.ndarray) -> None:
        token_ids = torch.from_numpy(trim(ids))
        labels = torch.arange(len(ids)) % N_CLASSES
        optimizer.zero_grad()
        model(input_ids=token_ids, attention_mask=token_ids != 0, labels=labels).loss.backward()
        optimizer.step()

    return _timed(step, make_batches(n_cells, batch_size, bucketed=False), shape, n_cells)


def trim(ids: np.ndarray) -> np.ndarray:
    """Leave out the columns that are padding in every cell."""
    return ids[:, : int((ids != 0).sum(axis=1).max())]


def _timed(step, batches: list[np.ndarray], shape: dict, n_cells: int) -> dict:
    with PeakMemory() as memory:
        step(batches[0])
        began = time.perf_counter()
        for ids in batches:
            step(ids)
        elapsed = time.perf_counter() - began
    return {
        "cells_per_second": n_cells / elapsed,
        "tokens_per_second": float(lengths(n_cells).sum()) / elapsed,
        "flop_per_second": 3 * forward_flop(lengths(n_cells), **shape) / elapsed,
        "peak_mb": memory.peak - memory.start,
    }


PEERS = {
    "ours": ("ours", 16),
    "naive, padded to 2,048": ("naive", 4),
    "BERT, padded to the batch": ("bert", 8),
}


def run(*, quick: bool = False, rounds: int = 1) -> list[dict]:
    """Alternate ours and the peers, ``rounds`` times; medians."""
    rounds = 1 if quick else rounds
    rows = []
    for name, shape in SHAPES.items():
        results: dict[str, list[dict]] = {label: [] for label in PEERS}
        limits = []
        for _ in range(rounds):
            limits.append(alone("benchmarks.limits:matrix_rate")["flop_per_second"])
            for label, (function, n_cells) in PEERS.items():
                arguments = {"shape": shape, "batch_size": 4, "n_cells": 4 if quick else n_cells}
                if function != "bert" or has_transformers():
                    results[label].append(alone(f"benchmarks.train_step:{function}", **arguments))
        rows += compare(name, results, limits)
    show("Training step, CPU, one thread, fp32, batches of 4", rows)
    return rows + cuda_rows(__name__, "Training step", n_cells=512)


def compare(model: str, results: dict[str, list[dict]], limits: list[float]) -> list[dict]:
    """Table rows of one shape: medians, beside ours and the rate of a plain matrix product."""
    own, limit = _median(results["ours"], "cells_per_second"), float(np.median(limits))
    return [
        {
            "model": model,
            "implementation": label,
            "cells/s": _median(found, "cells_per_second"),
            "tokens/s": _median(found, "tokens_per_second"),
            "ours is": f"{own / _median(found, 'cells_per_second'):.1f}x",
            "peak MB": _median(found, "peak_mb"),
            "useful GFLOP/s": _median(found, "flop_per_second") / 1e9,
            "matmul GFLOP/s": limit / 1e9,
            "of matmul": _median(found, "flop_per_second") / limit,
        }
        for label, found in results.items()
        if found
    ]


def cuda_rows(module: str, title: str, n_cells: int) -> list[dict]:
    """The same on a CUDA card, bf16, ours only. NOT MEASURED YET: written where there was none."""
    import torch

    if not torch.cuda.is_available():
        print("\nNo CUDA card here: bf16 on CUDA is not measured.")
        return []
    limit = alone("benchmarks.limits:matrix_rate", device="cuda", dtype="bfloat16", n=8192)
    rows = []
    for name, shape in SHAPES.items():
        found = alone(
            f"{module}:ours", shape=shape, batch_size=64, n_cells=n_cells, device="cuda", bf16=True
        )
        rows += compare(f"{name}, CUDA bf16", {"ours": [found]}, [limit["flop_per_second"]])
    show(f"{title}, CUDA, bf16, batches of 64", rows)
    return rows


def _median(found: list[dict], key: str) -> float:
    return float(np.median([result[key] for result in found]))


def has_transformers() -> bool:
    """Whether the peer is installed (benchmarks/requirements.txt)."""
    from importlib.util import find_spec

    return find_spec("transformers") is not None
