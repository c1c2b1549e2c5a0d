"""Batches from disk: ours beside plain numpy, a loader of widened rows and AnnLoader.

Every loader gives each cell of the train split once, 64 at a time, in one thread.
"""

import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.encode import LABEL_KEY
from benchmarks.measure import DATA, alone, seconds, show
from benchmarks.simulated_cells import write_cells

BATCH_CELLS = 64


def encoded(path: str, label_key: str, n_tokens: int = 2048) -> Path:
    """Encode a file once; later calls find the folder."""
    from dataset.config import PreprocessConfig
    from dataset.encode import encode

    return encode(
        PreprocessConfig(
            name=f"encoded_{Path(path).stem}",
            input=path,
            label_key=label_key,
            quality_control={"min_genes": 1},
            tokenizer={"kind": "rank", "n_tokens": n_tokens},
            data_dir=str(DATA),
        ),
        overwrite=True,
        progress=False,
    )


def ours(folder: str, rounds: int = 3) -> dict:
    """Shuffling, sharding and reading, as the training script puts them together."""
    from dataset.store.encoded_folder import EncodedFolder

    cells = EncodedFolder(folder).split("train")

    def one_pass() -> int:
        return sum(batch["token_ids"].numel() for batch in read_batches(cells, BATCH_CELLS))

    return {"cells_per_second": len(cells) / seconds(one_pass, rounds=rounds)}


def read_batches(cells, batch_size: int):
    """Yield an epoch's batches as the training script reads them, on the CPU and not widened."""
    import torch

    from dataset.batches import BatchReader
    from training.distributed import Ranks
    from training.updates import rows_of_updates, shard_updates

    reader, updates = BatchReader(cells), rows_of_updates(cells.lengths, batch_size)
    alone = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
    for update in shard_updates(updates, cells.lengths, None, alone):
        for rows in update.batches:
            yield reader.read(rows)


def plain_numpy(folder: str, rounds: int = 3) -> dict:
    """The limit: the same cells of the same batches, padded rows, sorted in the batch."""
    from dataset.store.encoded_folder import EncodedFolder
    from training.updates import rows_of_updates

    cells = EncodedFolder(folder).split("train")
    batches = [
        (np.sort(rows), int(cells.lengths[rows].max()))
        for rows in rows_of_updates(cells.lengths, BATCH_CELLS)
    ]
    arrays = [np.asarray(array) for array in cells.arrays.values()]

    def one_pass() -> None:
        for rows, t in batches:
            for array in arrays:
                array[rows, :t]

    return {"cells_per_second": len(cells) / seconds(one_pass, rounds=rounds)}


def widened(folder: str, rounds: int = 1) -> dict:
    """The loader people start from: one cell at a time, widened to int64, default collate."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from dataset.store.encoded_folder import EncodedFolder

    cells = EncodedFolder(folder).split("train")

    class Widened(Dataset):
        def __len__(self) -> int:
            return len(cells)

        def __getitem__(self, i: int) -> dict:
            return {
                "token_ids": torch.from_numpy(cells.arrays["token_ids"][i].astype(np.int64)),
                "counts": torch.from_numpy(cells.arrays["counts"][i].astype(np.int64)),
                "labels": int(cells.labels[i]),
            }

    def one_pass() -> int:
        loader = DataLoader(Widened(), batch_size=BATCH_CELLS, shuffle=True)
        return sum(len(batch["labels"]) for batch in loader)

    return {"cells_per_second": len(cells) / seconds(one_pass, rounds=rounds, warm_up=0)}


def ann_loader(path: str, n_cells: int | None = None) -> dict:
    """Anndata's AnnLoader over the file in memory: rows of all genes, not yet tokens."""
    import anndata as ad
    from anndata.experimental import AnnLoader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = ad.read_h5ad(path)[:n_cells]
        adata.obs = adata.obs.iloc[:, :0]
        loader = AnnLoader(adata.copy(), batch_size=BATCH_CELLS, shuffle=True)

        def one_pass() -> int:
            return sum(batch.X.shape[0] for batch in loader)

        return {"cells_per_second": adata.n_obs / seconds(one_pass, rounds=1, warm_up=0)}


def step_share(folder: str, n_batches: int = 2, batch_size: int = 8) -> dict:
    """Share of a training step that waits for its batch: 6 x 256, 4 heads, whole rows."""
    import torch

    from benchmarks.train_step import SHAPES, make_model
    from dataset.batches import to_device
    from dataset.store.encoded_folder import EncodedFolder
    from training.optim import make_optimizer

    torch.manual_seed(0)
    data = EncodedFolder(folder)
    cells = data.split("train")
    shape = list(SHAPES.values())[-1]
    model = make_model(
        shape,
        n_vocabulary=data.vocabulary.n_tokens,
        n_classes=len(data.class_names),
        row_length=data.n_tokens,
    )
    optimizer = make_optimizer(model, lr=1e-4, weight_decay=0.01)
    batches, waited = read_batches(cells, batch_size), 0.0
    began = time.perf_counter()
    for number in range(n_batches + 1):
        if number == 1:  # the first step warms up
            waited, began = 0.0, time.perf_counter()
        start = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - start
        batch = to_device(batch, "cpu")
        model(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"share": waited / (time.perf_counter() - began)}


def run(*, quick: bool = False, rounds: int = 3) -> list[dict]:
    """Alternate ours and the limit; the peers once."""
    n_cells = 1_000 if quick else 20_000
    rounds = 1 if quick else rounds
    path = str(write_cells(DATA / f"cells_{n_cells}.h5ad", n_cells))
    folder = str(encoded(path, LABEL_KEY))
    own, limits = [], []
    for _ in range(rounds):
        limits.append(alone("benchmarks.load:plain_numpy", folder=folder)["cells_per_second"])
        own.append(alone("benchmarks.load:ours", folder=folder)["cells_per_second"])
    peers = {
        "one cell at a time, int64": alone("benchmarks.load:widened", folder=folder),
        "AnnLoader, in memory": alone("benchmarks.load:ann_loader", path=path, n_cells=4_000),
    }
    share = alone("benchmarks.load:step_share", folder=folder)["share"]
    limit, speed = median(limits), median(own)
    rows = [
        {
            "loader": "ours",
            "cells/s": speed,
            "ours is": "1.0x",
            "numpy gather, cells/s": limit,
            "of the gather": speed / limit,
            "of the training step": share,
        }
    ]
    for label, found in peers.items():
        theirs = found["cells_per_second"]
        rows.append(
            {
                "loader": label,
                "cells/s": theirs,
                "ours is": f"{speed / theirs:.1f}x",
                "numpy gather, cells/s": limit,
                "of the gather": theirs / limit,
            }
        )
    show("Load: tokens on disk -> batches of 64 cells, one thread, page cache warm", rows)
    return rows
