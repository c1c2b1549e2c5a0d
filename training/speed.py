"""How fast a device multiplies matrices: what a network's speed is to be held against."""

import time
from functools import cache
from statistics import median

import torch


def matrix_rate(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, n: int = 2048
) -> float:
    """FLOP per second of an ``n x n x n`` matrix product: the median of 7, after two more."""
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        a @ b
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / median(times[2:])


@cache
def card_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product on a CUDA card, measured once a process.

    It takes some tens of milliseconds in bfloat16. What a data sheet promises is more.
    """
    return matrix_rate(device, dtype, n=8192)
