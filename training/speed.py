"""How fast a GPU multiplies matrices: the peak that a network's speed is compared with."""

import time
from functools import cache
from statistics import median

import torch

PRODUCTS = 20  # at a time: a GPU needs a while to be at its pace


@cache
def matmul_flop_per_second(device: torch.device, dtype: torch.dtype, n: int = 8192) -> float:
    """FLOP per second of an ``n x n x n`` matrix product, measured once a process.

    The median of 7 times, after 2 more. It is computed to take a quarter of a second in bfloat16
    on a GPU of 800 TFLOP/s. What a data sheet promises is more.
    """
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(PRODUCTS):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return PRODUCTS * 2 * n**3 / median(times[2:])
