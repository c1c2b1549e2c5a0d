"""What this machine can do at best: inflate a file, multiply matrices."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import h5py
from isal import isal_zlib

from benchmarks.measure import seconds


def inflate(path: str, threads: int = 1) -> dict:
    """Cells per second of nothing but inflating the gzip chunks of a CSR ``.h5ad``.

    Raw chunks are read and inflated with ISA-L, the fastest inflater here; nothing is kept.
    """

    def one_pass() -> None:
        with h5py.File(path) as file, ThreadPoolExecutor(threads) as pool:
            for dataset in (file["X/data"], file["X/indices"]):
                chunk, width = dataset.chunks[0], dataset.dtype.itemsize
                raw = (
                    dataset.id.read_direct_chunk((start,))[1]
                    for start in range(0, dataset.shape[0], chunk)
                )
                inflate_one = partial(isal_zlib.decompress, bufsize=chunk * width)
                if threads == 1:
                    for block in raw:
                        inflate_one(block)
                else:
                    list(pool.map(inflate_one, raw))

    with h5py.File(path) as file:
        n_cells = file["X/indptr"].shape[0] - 1
    return {"cells_per_second": n_cells / seconds(one_pass)}


def matrix_product(device: str = "cpu") -> tuple[Callable[[], object], float]:
    """Return a plain matrix product in torch and its FLOP: float32, on a GPU bfloat16."""
    import torch

    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return partial(torch.matmul, a, b), 2.0 * n**3
