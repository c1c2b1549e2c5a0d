"""How fast a device multiplies matrices: what a network's speed is to be held against."""

import time
from functools import cache
from statistics import median

import torch


def matrix_rate(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, n: int = 2048
) -> float:
    """FLOP per second of an ``n x n x n`` matrix product: the median of 7 times, after 2 more."""
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    on_card = torch.device(device).type == "cuda"
    n_products = 20 if on_card else 1  # a card needs a while to be at its pace
    times = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(n_products):
            a @ b
        if on_card:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return n_products * 2 * n**3 / median(times[2:])


@cache
def card_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product on a CUDA card, measured once a process.

    It takes a quarter of a second or so in bfloat16. What a data sheet promises is more.
    """
    return matrix_rate(device, dtype, n=8192)
