"""Runs that differ in their seed only, as one model: what is compared."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.budget import epochs, seconds
from training.runs import Run


@dataclass(frozen=True)
class Model:
    """Runs that differ in their seed only.

    Attributes
    ----------
    name
        What their names have in common.
    runs
        In the order of their seeds, and of the folds of each.
    test
        Probabilities of every run, ``(n_cells, n_classes)``, cells in the order of the comparison.
    scaled
        The same at the temperature of the run's val cells.
    temperatures
        Of every run; above 1 it was too sure of itself.
    val
        Scores on the val cells, means over seeds, log-loss at these temperatures.
    """

    name: str
    runs: list[Run]
    test: list[np.ndarray]
    scaled: list[np.ndarray]
    temperatures: list[float]
    val: dict[str, float]

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return list(dict.fromkeys(run.config.seed for run in self.runs))

    @property
    def folds(self) -> list[str]:
        """Names of the folds of its data, in order; none where cells were held out once."""
        fold = self.runs[0].fold
        return [] if fold is None else fold.of

    @property
    def role(self) -> str:
        """``network``, ``committee``, ``baseline`` or ``comparator``."""
        return self.runs[0].config.model.role

    @property
    def is_transductive(self) -> bool:
        """Whether it was fitted on the cells that it predicts too, without their labels."""
        return self.runs[0].config.is_transductive

    @property
    def is_transformer(self) -> bool:
        """Whether it is a network with attention."""
        return getattr(self.runs[0].config.model, "attends", False)

    @property
    def is_without_attention(self) -> bool:
        """Whether it is a network, but no transformer: the control of what attention adds."""
        return not getattr(self.runs[0].config.model, "attends", True)

    @property
    def has_members(self) -> bool:
        """Whether it is a committee."""
        return bool(self.runs[0].members)

    @property
    def has_network(self) -> bool:
        """Whether it is a network, or a committee with one among its members."""
        return any(run.config.model.role == "network" for run in self._parts)

    @property
    def has_attention(self) -> bool:
        """Whether it is a transformer, or a committee with one among its members."""
        return any(getattr(run.config.model, "attends", False) for run in self._parts)

    @property
    def _parts(self) -> list[Run]:
        return self.runs[0].members or self.runs[:1]

    @property
    def epochs(self) -> int | None:
        """How often its training went through the train cells; None if it is no network."""
        return epochs(self.runs[0])

    @property
    def history(self) -> Literal["none", "previous", "shuffled"]:
        """Whether a cell's tokens tell of the time point before, or of another cell's."""
        previous = self.runs[0].meta["tokenizer"].get("previous")
        if self.role != "network" or previous is None:
            return "none"
        return "shuffled" if previous["shuffle"] else "previous"

    @property
    def is_shuffled(self) -> bool:
        """Whether it was told the histories of other cells: a control, and never the best."""
        return self.history == "shuffled"

    def cost(self, key: str) -> float:
        """Mean over seeds of a key of ``COST``, of all folds; NaN if it is not known.

        Seconds are with those of pretraining.
        """
        found = [
            seconds(run.metrics) if key == "seconds" else run.metrics.get(key) for run in self.runs
        ]
        values = [v if isinstance(v, int | float) else np.nan for v in found]
        return float(np.sum(values) / len(self.seeds) if key == "seconds" else np.mean(values))
