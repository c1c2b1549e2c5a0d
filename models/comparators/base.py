"""The interface of a comparator: a baseline that another package fits, imported when needed."""

from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from configs.base import ConfigError
from models.baselines.base import BaselineConfig, LabeledCells


class ComparatorConfig(BaselineConfig):
    """Settings of a comparator: what its users would set; also has a ``kind`` of its own.

    Attributes
    ----------
    packages
        What its fit depends on, as pip calls it; a run records their versions.
    modules
        The same as Python imports it, before the clock of its fit starts.
    is_transductive
        Whether it looks at the cells to be predicted, without labels, while it is fitted. It then
        has ``fit_predict`` in place of ``fit`` and ``from_arrays``, knows no other cells, and is
        never taken for the best of those that do.
    """

    role: ClassVar[str] = "comparator"
    packages: ClassVar[tuple[str, ...]]
    modules: ClassVar[tuple[str, ...]]
    is_transductive: ClassVar[bool] = False

    def fit_predict(
        self, cells: LabeledCells, batches: np.ndarray, n_classes: int, seed: int, device: str
    ) -> np.ndarray:
        """Return class probabilities of all cells, ``(n_cells, n_classes)``.

        Parameters
        ----------
        cells
            With labels, and those to be predicted, whose labels are -1.
        batches
            Donor or batch of each cell, ``(n_cells,)``.
        n_classes
            Number of classes, with or without labeled cells.
        seed
            Of whatever is drawn at random.
        device
            As in the config of the run.
        """
        raise NotImplementedError


def package(name: str) -> Any:
    """Import a module of a comparator's package.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"model: this comparator needs {name}, which cannot be imported ({error}); "
            "pip install -r models/comparators/requirements.txt, or make comparators, which gives "
            "them an environment of their own"
        ) from None
