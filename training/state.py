"""The state of training: all that an update changes, and that a checkpoint holds."""

import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from training import checkpoint
from training.clock import Clock
from training.distributed import Ranks
from training.sharding import broadcast, gather_full_state, load_full_state
from training.weight_averaging import averaged, start_average, update_average

COUNTERS = ("epoch", "step", "best_epoch", "best_rating", "init_from")


@dataclass
class Training:
    """A learner in training, on this process and, by ``ranks``, on the others."""

    learner: nn.Module
    model: nn.Module  # the learner as the loop calls it: itself, or wrapped for several processes
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    average_decay: float | None = None  # of the weights' moving average; None: there is none
    epoch: int = 0  # epochs done
    step: int = 0  # optimizer updates done
    clock: Clock = field(default_factory=Clock)
    init_from: dict = field(default_factory=dict)  # which weights came from another run
    best_epoch: int = -1
    best_rating: tuple[float, float] = (-math.inf, -math.inf)  # of training.monitor
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)  # on the first process
    average: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.average = {} if self.average_decay is None else start_average(self.learner)

    def end_update(self) -> None:
        """Count an update that the optimizer has made, and let the average follow."""
        self.step += 1
        if self.average_decay is not None:
            update_average(self.average, self.learner, self.step, self.average_decay)

    def averaged(self) -> AbstractContextManager:
        """Give the learner the averaged weights inside the block, if an average is kept."""
        return averaged(self.average, self.learner)

    def keep_if_best(self, rating: tuple[float, float]) -> None:
        """Keep a copy of the weights, or of their average, if they are the best so far."""
        if rating > self.best_rating:
            self.best_rating, self.best_epoch = rating, self.epoch
            weights = self.learner.state_dict() | self.average
            self.best_weights = gather_full_state(weights, self.ranks)

    def restore_best(self) -> None:
        """Load the best weights into the learner."""
        load_full_state(self.best_weights, self.learner.state_dict(), self.ranks)

    def summary(self, n_train: int) -> dict:
        """Return what metrics.json says of the training; ``n_train`` cells are an epoch."""
        return (
            self.clock.summary(self.epoch * n_train)
            | {
                "best_epoch": self.best_epoch + 1,
                "n_parameters": sum(p.numel() for p in self.learner.parameters()),
            }
            | ({"init_from": self.init_from} if self.init_from else {})
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint; all processes call it and the first one writes.

        It needs no random state (see ``seed_everything``) and nothing that depends on the number
        of processes.
        """
        tensors = gather_full_state(
            {f"model/{name}": t for name, t in self.learner.state_dict().items()}
            | {f"average/{name}": t for name, t in self.average.items()}
            | checkpoint.optimizer_tensors(self.optimizer, self.learner, "optimizer/"),
            self.ranks,
        )
        if self.ranks.is_first:
            best = {f"best/{name}": t for name, t in self.best_weights.items()}
            header = {name: getattr(self, name) for name in COUNTERS} | {
                "clock": asdict(self.clock)
            }
            checkpoint.save_tensors(path, tensors | best, header=header)

    def resume(self, path: Path) -> None:
        """Load a checkpoint, on any number of processes; the first one reads it."""
        tensors: dict[str, torch.Tensor] = {}
        header: dict = {}
        if self.ranks.is_first:
            tensors, header = checkpoint.load_tensors(path)
            if header.keys() != {*COUNTERS, "clock"}:
                raise checkpoint.CheckpointError(
                    f"{path}: written by another version of this code; {checkpoint.ADVICE}"
                )
        self.best_weights = checkpoint.without_prefix(tensors, "best/")
        load_full_state(
            checkpoint.without_prefix(tensors, "model/"), self.learner.state_dict(), self.ranks
        )
        load_full_state(checkpoint.without_prefix(tensors, "average/"), self.average, self.ranks)
        checkpoint.initialize_optimizer_state(self.optimizer)
        load_full_state(
            checkpoint.without_prefix(tensors, "optimizer/"),
            checkpoint.optimizer_tensors(self.optimizer, self.learner),
            self.ranks,
        )
        header = broadcast(header, self.ranks)
        self.clock = Clock(**header.pop("clock"))
        for name, value in header.items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)
