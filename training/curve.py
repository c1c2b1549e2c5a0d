"""The training curve: losses and speed since its last point, over all processes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from models.learner import Learner
from training.distributed import Ranks, resolve_precision, sum_over_ranks
from training.speed import matmul_flop_per_second


class Curve:
    """Sums over the cells since the last point.

    Nothing waits for the device until a point is read.

    Parameters
    ----------
    learner
        Whose objectives' losses these are, and whose network counts its FLOP.
    precision
        What it computes in, as of ``mixed_precision``.
    ranks
        All of them add batches, and read at the same updates.
    """

    def __init__(self, learner: Learner, precision: str, ranks: Ranks) -> None:
        self.learner, self.ranks = learner, ranks
        self.peak = 0.0  # FLOP per second of a matrix product; of CUDA devices only
        if ranks.device.type == "cuda":
            dtype = getattr(torch, resolve_precision(precision, ranks.device))
            self.peak = matmul_flop_per_second(ranks.device, dtype)
        self._reset()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the seconds that the block, which reads a batch, takes."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, losses: Tensor, lengths: list[int]) -> None:
        """Count a batch: its cells' losses, ``(b, objectives)``, and how many tokens each has."""
        self.losses.append(losses.detach().sum(dim=0))
        self.lengths += lengths

    def read(self) -> dict[str, float]:
        """Return the point and start the next one.

        Tokens are those given to the network, after augmentation. FLOP are those that the network
        counts, if it does, by the usual formula (``model``) and done (``hardware``); their
        ``utilization`` is the share of what matrix products alone would reach on the GPUs
        (measured, see ``matmul_flop_per_second``); without CUDA there is none.
        """
        losses = torch.stack(self.losses).sum(dim=0).tolist()  # of each objective
        lengths = np.array(self.lengths)
        seconds = time.perf_counter() - self.start
        flop = list(self.learner.network.training_flop(lengths) or [])
        n_tokens = float(lengths.sum())
        sums = [len(lengths), n_tokens, *flop, self.peak, self.waited, seconds, *losses]
        n_cells, n_tokens, *sums = sum_over_ranks(sums, self.ranks)
        flop, (peak, waited, all_seconds, *losses) = sums[: len(flop)], sums[len(flop) :]
        self._reset()
        objectives = self.learner.objectives
        total = sum(o.weight * loss for o, loss in zip(objectives, losses, strict=True))
        point = {"train/loss": total / n_cells}
        if len(objectives) > 1:
            for objective, loss in zip(objectives, losses, strict=True):
                point[f"train/{objective.kind}_loss"] = loss / n_cells
        point |= {
            "perf/cells_per_second": n_cells / seconds,
            "perf/tokens_per_second": n_tokens / seconds,
            "perf/data_wait_fraction": waited / all_seconds,
        }
        for name, done in zip(("model", "hardware"), flop, strict=False):
            point[f"perf/{name}_gflop_per_second"] = done / seconds / 1e9
            if peak:
                point[f"perf/{name}_flop_utilization"] = done / seconds / peak
        return point

    def _reset(self) -> None:
        self.losses: list[Tensor] = []
        self.lengths: list[int] = []
        self.waited: float = 0.0
        self.start: float = time.perf_counter()
