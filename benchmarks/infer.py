"""Prediction of cells of an atlas's lengths: ours beside BERT of the same size.

Cells, lengths and useful FLOP are those of ``train_step.py``; one forward pass a cell.
"""

import time

import numpy as np

from benchmarks.measure import PeakMemory, alone, show
from benchmarks.train_step import (
    SHAPES,
    compare,
    cuda_rows,
    has_transformers,
    lengths,
    make_batch,
    make_batches,
    make_bert,
    make_model,
    trim,
)
from models.flops import forward_flop


def ours(
    shape: dict, batch_size: int, n_cells: int, device: str = "cpu", bf16: bool = False
) -> dict:
    """Predict every cell once; cells of like length together, as the project predicts.

    ``device="cuda", bf16=True`` has not been measured yet.
    """
    import torch

    torch.manual_seed(0)
    model = make_model(shape).to(device).eval()

    def predict(ids: np.ndarray) -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            model(make_batch(ids, device)).logits.float().cpu()

    return _timed(predict, make_batches(n_cells, batch_size, bucketed=True), shape, n_cells)


def bert(shape: dict, batch_size: int, n_cells: int) -> dict:
    """Predict the same cells with BERT, padded to the longest of the batch."""
    import torch

    torch.manual_seed(0)
    model = make_bert(shape).eval()

    def predict(ids: np.ndarray) -> None:
        token_ids = torch.from_numpy(trim(ids))
        with torch.inference_mode():
            model(input_ids=token_ids, attention_mask=token_ids != 0)

    return _timed(predict, make_batches(n_cells, batch_size, bucketed=False), shape, n_cells)


def _timed(predict, batches: list[np.ndarray], shape: dict, n_cells: int) -> dict:
    with PeakMemory() as memory:
        predict(batches[0])
        began = time.perf_counter()
        for ids in batches:
            predict(ids)
        elapsed = time.perf_counter() - began
    return {
        "cells_per_second": n_cells / elapsed,
        "tokens_per_second": float(lengths(n_cells).sum()) / elapsed,
        "flop_per_second": forward_flop(lengths(n_cells), **shape) / elapsed,
        "peak_mb": memory.peak - memory.start,
    }


def run(*, quick: bool = False, rounds: int = 1) -> list[dict]:
    """Alternate ours and BERT, ``rounds`` times; medians."""
    rounds, batch_size, n_cells = (1, 4, 8) if quick else (rounds, 16, 32)
    rows = []
    for name, shape in SHAPES.items():
        results: dict[str, list[dict]] = {"ours": [], "BERT, padded to the batch": []}
        limits = []
        for _ in range(rounds):
            limits.append(alone("benchmarks.limits:matrix_rate")["flop_per_second"])
            for label, found in results.items():
                function = "ours" if label == "ours" else "bert"
                if function == "bert" and not has_transformers():
                    continue
                arguments = {"shape": shape, "batch_size": batch_size, "n_cells": n_cells}
                found.append(alone(f"benchmarks.infer:{function}", **arguments))
        rows += compare(name, results, limits)
    show(f"Inference, CPU, one thread, fp32, batches of {batch_size}", rows)
    return rows + cuda_rows(__name__, "Inference", n_cells=2048)
