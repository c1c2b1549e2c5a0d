"""The training step: ours, the peers, and how much of the machine it uses.

Cells have the lengths of an atlas (log-normal, median 1,100 genes, 300 up to the context): most of
the work of a padded model is on padding. Model FLOP are those of the real tokens by the usual
formula (``models/flops.py``), the same for all; hardware FLOP are those each does, less where our
last block computes ``<cls>`` only, more where a peer computes on padding. Beside the rate of a
plain matrix product timed in between they are the model and the hardware FLOP utilization. BERT's
heads fill its width, so that it stands beside shapes of which this is true. The rows for CUDA
have not been measured yet: they were written without a GPU.
"""

import math
import time
from functools import partial
from itertools import product

import numpy as np

from benchmarks.limits import matrix_product
from benchmarks.measure import PeakMemory, alone, show
from models.flops import Flop, forward_flop

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
CUDA_SHAPES = {  # context and cells in a batch of each
    "6 x 256, 4 heads of 64": (2048, 128, SHAPES["6 x 256, 4 heads of 64"]),
    "12 x 768, 12 heads of 64": (4096, 32, {
        "n_layers": 12, "d_model": 768, "n_heads": 12, "d_head": 64, "d_feed_forward": 3072,
    }),
}  # fmt: skip


def lengths(n_cells: int, context: int, seed: int = 0) -> np.ndarray:
    """Tokens of each cell, ``<cls>`` included."""
    drawn = np.random.default_rng(seed).lognormal(math.log(1100), 0.5, n_cells)
    return np.clip(drawn, 300, context).astype(np.int64)


def make_batches(
    n_cells: int, batch_size: int, context: int, *, bucketed: bool
) -> list[np.ndarray]:
    """Token ids of each batch, ``(b, t)``: bucketed by length, or all padded to the context."""
    rng = np.random.default_rng(1)
    sizes = lengths(n_cells, context)
    sizes = np.sort(sizes) if bucketed else sizes
    batches = []
    for start in range(0, n_cells, batch_size):
        here = sizes[start : start + batch_size]
        width = int(here.max()) if bucketed else context
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
    row_length: int = CONTEXT,
    checkpoint: bool = False,
):
    """The project's own network and head at this shape, random and without dropout."""
    from dataset.store.data_facts import DataFacts
    from dataset.vocabulary import N_SPECIALS, Vocabulary
    from models.learner import Learner
    from models.objectives.classify import ClassifyConfig
    from models.rank_transformer import RankTransformerConfig

    config = RankTransformerConfig(
        **shape,
        gene_init="random",
        cls_init="learned",
        dropout=0.0,
        context_genes=row_length - 1,
        checkpoint_activations=checkpoint,
    )
    genes = tuple(f"gene{i}" for i in range(n_vocabulary - N_SPECIALS))
    names = [f"type{i}" for i in range(n_classes)]
    facts = DataFacts(
        Vocabulary(genes, genes), names, row_length, n_segments=1, learned={},
        tokenizer={"kind": "rank"},
    )  # fmt: skip
    return Learner(config, [ClassifyConfig(d_hidden=16)], facts)


def make_batch(ids: np.ndarray, device: str = "cpu"):
    """What the network reads, for these token ids: without their padding."""
    from dataset.batches import BatchReader, EncodedCells, to_device

    b = len(ids)
    cells = EncodedCells(
        arrays={"token_ids": ids, "counts": (ids > 3).astype(np.float32)},
        lengths=(ids != 0).sum(axis=1).astype(np.int32),
        library_size=np.full((b, 1), 1e4, dtype=np.float32),
        labels=np.arange(b) % N_CLASSES,
        conditions=np.zeros((b, 0), dtype=np.int64),
    )
    return to_device(BatchReader(cells).read(np.arange(b)), device)


def ours(
    shape: dict,
    batch_size: int,
    n_cells: int,
    context: int = CONTEXT,
    device: str = "cpu",
    compiled: bool = False,
    checkpoint: bool = False,
) -> dict:
    """Train on every batch once with the project's own model, loss and optimizer.

    In float32, on CUDA in bfloat16. What is on a GPU has not been measured yet.
    """
    import torch

    from training.distributed import compile_blocks, mixed_precision
    from training.optim import make_optimizer

    torch.manual_seed(0)
    model = make_model(shape, row_length=context, checkpoint=checkpoint).to(device)
    if compiled:
        compile_blocks(model)
    optimizer = make_optimizer(model, lr=1e-4, weight_decay=0.01)

    def step(ids: np.ndarray) -> None:
        batch = make_batch(ids, device)
        with mixed_precision("auto", torch.device(device)):
            losses = model(batch)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    batches = make_batches(n_cells, batch_size, context, bucketed=True)
    flop = model.network.training_flop(lengths(n_cells, context))
    return timed(step, batches, flop, device)


def naive(shape: dict, batch_size: int, n_cells: int, context: int = CONTEXT) -> dict:
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

    batches = make_batches(n_cells, batch_size, context, bucketed=False)
    return timed(step, batches, padded_flop(shape, batches, passes=3))


def make_bert(shape: dict, context: int):
    """Hugging Face's BertForSequenceClassification of the same sizes, attention's included."""
    if not is_like_bert(shape):
        raise ValueError(f"{shape}: BERT's heads fill its width, these do not: unlike sizes")
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=N_GENES + 4,
            hidden_size=shape["d_model"],
            num_hidden_layers=shape["n_layers"],
            num_attention_heads=shape["n_heads"],
            intermediate_size=shape["d_feed_forward"],
            max_position_embeddings=context,
            num_labels=N_CLASSES,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def is_like_bert(shape: dict) -> bool:
    """Whether BERT can have this shape: its heads are ``d_model / n_heads`` wide."""
    return shape["n_heads"] * shape["d_head"] == shape["d_model"]


def bert(shape: dict, batch_size: int, n_cells: int, context: int = CONTEXT) -> dict:
    """BERT, cells in any order, each batch padded to its longest, as its tokenizer pads."""
    import torch

    torch.manual_seed(0)
    model = make_bert(shape, context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(ids: np.ndarray) -> None:
        token_ids = torch.from_numpy(ids)
        labels = torch.arange(len(ids)) % N_CLASSES
        optimizer.zero_grad()
        model(input_ids=token_ids, attention_mask=token_ids != 0, labels=labels).loss.backward()
        optimizer.step()

    batches = [trim(ids) for ids in make_batches(n_cells, batch_size, context, bucketed=False)]
    return timed(step, batches, padded_flop(shape, batches, passes=3))


def trim(ids: np.ndarray) -> np.ndarray:
    """Leave out the columns that are padding in every cell."""
    return ids[:, : int((ids != 0).sum(axis=1).max())]


def padded_flop(shape: dict, batches: list[np.ndarray], passes: int) -> Flop:
    """FLOP of a model that computes on padding, and all rows of every layer."""
    real, padded = (
        sum(forward_flop(sizes, **shape).model for sizes in of_batches)
        for of_batches in (
            ((ids != 0).sum(axis=1) for ids in batches),
            (np.full(len(ids), ids.shape[1]) for ids in batches),
        )
    )
    return Flop(passes * real, passes * padded)


def timed(step, batches: list[np.ndarray], flop: Flop, device: str = "cpu") -> dict:
    """Time ``step`` over all batches, which are ``flop`` of work; memory of the device.

    After every step a plain matrix product is timed, so that what else the machine does, or how
    warm the GPU is, slows both. Memory of a GPU includes the product's 0.4 GB.
    """
    import torch

    matmul, matmul_flop = matrix_product(device)

    def seconds(function) -> float:
        began = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    with PeakMemory() as memory:
        for ids in batches[: 3 if device == "cuda" else 1]:  # warm up
            step(ids)
            matmul()
        times = [(seconds(partial(step, ids)), seconds(matmul)) for ids in batches]
    elapsed, of_matmuls = np.sum(times, axis=0).tolist()
    peak = memory.peak - memory.start
    return {
        "cells_per_second": sum(len(ids) for ids in batches) / elapsed,
        "tokens_per_second": sum(int((ids != 0).sum()) for ids in batches) / elapsed,
        "model_flop_per_second": flop.model / elapsed,
        "hardware_flop_per_second": flop.hardware / elapsed,
        "matmul_flop_per_second": len(batches) * matmul_flop / of_matmuls,
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak,
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
        for _ in range(rounds):
            for label, (function, n_cells) in PEERS.items():
                arguments = {"shape": shape, "batch_size": 4, "n_cells": 4 if quick else n_cells}
                if function == "bert" and not (has_transformers() and is_like_bert(shape)):
                    continue
                results[label].append(alone(f"benchmarks.train_step:{function}", **arguments))
        rows += compare(name, results)
    show("Training step, CPU, one thread, fp32, batches of 4", rows)
    return rows + cuda_rows(__name__, "Training step", n_cells=2048, checkpoint=(False, True))


def compare(model: str, results: dict[str, list[dict]]) -> list[dict]:
    """Table rows of one shape: medians, beside ours."""
    rows = [table_row(model, label, found) for label, found in results.items() if found]
    return [row | {"ours is": f"{rows[0]['cells/s'] / row['cells/s']:.1f}x"} for row in rows]


def table_row(model: str, label: str, found: list[dict]) -> dict:
    """Medians of what was found, beside the rate of a plain matrix product."""
    cells, tokens, model_flop, hardware_flop, matmul, peak = (
        float(np.median([result[key] for result in found]))
        for key in (
            "cells_per_second",
            "tokens_per_second",
            "model_flop_per_second",
            "hardware_flop_per_second",
            "matmul_flop_per_second",
            "peak_mb",
        )
    )
    return {
        "model": model,
        "implementation": label,
        "cells/s": cells,
        "tokens/s": tokens,
        "peak MB": peak,
        "matmul GFLOP/s": matmul / 1e9,
        "model FLOP of matmul": model_flop / matmul,
        "hardware FLOP of matmul": hardware_flop / matmul,
    }


def cuda_rows(
    module: str, title: str, n_cells: int, checkpoint: tuple[bool, ...] = (False,)
) -> list[dict]:
    """Ours on a CUDA GPU, bf16, compiled or not. NOT MEASURED YET: written without a GPU."""
    import torch

    if not torch.cuda.is_available():
        print("\nNo CUDA GPU here: bf16 on CUDA is not measured.")
        return []
    rows = []
    for name, (context, batch_size, shape) in CUDA_SHAPES.items():
        for again, compiled in product(checkpoint, (False, True)):
            arguments = {"shape": shape, "batch_size": batch_size, "n_cells": n_cells}
            arguments |= {"context": context, "device": "cuda", "compiled": compiled}
            if again:
                arguments["checkpoint"] = True
            found = alone(f"{module}:ours", **arguments)
            label = ("compiled" if compiled else "eager") + ", checkpoints" * again
            model = f"{name}, context {context:,}, batches of {batch_size}"
            rows.append(table_row(model, label, [found]))
    show(f"{title}, CUDA, bf16, one GPU", rows)
    return rows


def has_transformers() -> bool:
    """Whether the peer is installed (benchmarks/requirements.txt)."""
    from importlib.util import find_spec

    return find_spec("transformers") is not None
