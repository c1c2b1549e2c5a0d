"""Prediction of cells of an atlas's lengths: ours beside BERT of the same size.

Cells, lengths and FLOP are those of ``train_step.py``; one forward pass a cell. The rows
for CUDA have not been measured yet: they were written without a GPU.
"""

import numpy as np

from benchmarks.measure import alone, show
from benchmarks.train_step import (
    CONTEXT,
    SHAPES,
    compare,
    cuda_rows,
    has_transformers,
    is_like_bert,
    lengths,
    make_batch,
    make_batches,
    make_bert,
    make_model,
    padded_flop,
    timed,
    trim,
)
from models.flops import forward_flop

ANCHOR = 4295  # cells/s that nano-Geneformer prints for an A100; its lengths may differ from ours


def ours(
    shape: dict,
    batch_size: int,
    n_cells: int,
    context: int = CONTEXT,
    device: str = "cpu",
    compiled: bool = False,
) -> dict:
    """Predict every cell once; cells of like length together, as the project predicts.

    In float32, on CUDA in bfloat16. What is on a GPU has not been measured yet.
    """
    import torch

    from training.distributed import compile_blocks, mixed_precision

    torch.manual_seed(0)
    model = make_model(shape, row_length=context).to(device).eval()
    if compiled:
        compile_blocks(model)

    def predict(ids: np.ndarray) -> None:
        with torch.inference_mode(), mixed_precision("auto", torch.device(device)):
            model(make_batch(ids, device), predict=["classify"])

    batches = make_batches(n_cells, batch_size, context, bucketed=True)
    return timed(predict, batches, forward_flop(lengths(n_cells, context), **shape), device)


def bert(shape: dict, batch_size: int, n_cells: int, context: int = CONTEXT) -> dict:
    """Predict the same cells with BERT, padded to the longest of the batch."""
    import torch

    torch.manual_seed(0)
    model = make_bert(shape, context).eval()

    def predict(ids: np.ndarray) -> None:
        token_ids = torch.from_numpy(ids)
        with torch.inference_mode():
            model(input_ids=token_ids, attention_mask=token_ids != 0)

    batches = [trim(ids) for ids in make_batches(n_cells, batch_size, context, bucketed=False)]
    return timed(predict, batches, padded_flop(shape, batches, passes=1))


def run(*, quick: bool = False, rounds: int = 1) -> list[dict]:
    """Alternate ours and BERT, ``rounds`` times; medians."""
    rounds, batch_size, n_cells = (1, 4, 8) if quick else (rounds, 16, 32)
    rows = []
    for name, shape in SHAPES.items():
        results: dict[str, list[dict]] = {"ours": [], "BERT, padded to the batch": []}
        for _ in range(rounds):
            for label, found in results.items():
                function = "ours" if label == "ours" else "bert"
                if function == "bert" and not (has_transformers() and is_like_bert(shape)):
                    continue
                arguments = {"shape": shape, "batch_size": batch_size, "n_cells": n_cells}
                found.append(alone(f"benchmarks.infer:{function}", **arguments))
        rows += compare(name, results)
    show(f"Inference, CPU, one thread, fp32, batches of {batch_size}", rows)
    on_cuda = cuda_rows(__name__, "Inference", n_cells=4096)
    for row in on_cuda[:2]:  # of 6 x 256, 4 heads
        print(
            f"{row['implementation']}: {row['cells/s'] / ANCHOR:.1f}x the {ANCHOR:,} cells/s that "
            "nano-Geneformer prints for an A100"
        )
    return rows + on_cuda
