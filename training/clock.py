"""How long a model took to fit: one clock for networks and baselines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Clock:
    """Seconds of fitting, the same for every model.

    Inside are all that is learned from the training cells (for a network its start from their SVD
    and every update, for a baseline its fit) and the passes over val by which an epoch or a
    penalty is chosen. Apart are reading the training cells and with it the compilation of what
    reads them, copying to the device, and the predictions after training. What ``torch.compile``
    takes is inside: whoever asks for it should see whether it pays.

    Attributes
    ----------
    seconds
        So far; a checkpoint keeps them.
    start_seconds
        Of these, before the first update.
    """

    seconds: float = 0.0
    start_seconds: float = 0.0

    def summary(self, n_cells: int) -> dict[str, float]:
        """Return the seconds, and the cells a second of a network whose updates read so many."""
        per_second = n_cells / (self.seconds - self.start_seconds)
        return {
            "seconds": round(self.seconds, 2),
            "start_seconds": round(self.start_seconds, 2),
            "cells_per_second": round(per_second, 1),
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave a block out, inside one that is counted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds -= time.perf_counter() - start
