"""``TokenQuery``: a run whose network reads tokens and a file of cells, opened once."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dataset.reading.cells import open_cells
from evaluation.command_line import command_line
from evaluation.query_cells import Profile, QueryGenes, profiles, read_obs, take
from evaluation.token_states import check_reads_tokens
from evaluation.trained_model import DEVICES, TrainedModel


class TokenQuery:
    """A run whose network reads tokens, and the cells of a file in its genes.

    Attributes
    ----------
    model, cells
        The run, and the cells of the file.
    conditions
        Codes of the cells' conditions that are known to the run, ``(n_cells, k)``; below 0:
        unknown.
    messages
        What was noticed.

    Parameters
    ----------
    run
        Folder of a finished run of a transformer.
    query
        ``.h5ad`` file of cells.
    counts, gene_map, min_match_rate, device
        As in ``annotate``.

    Raises
    ------
    AnnotationError, CellFileError, RunFolderError
        If the genes do not match, or run or file cannot be used.
    """

    def __init__(
        self,
        run: str | Path,
        query: str | Path,
        *,
        counts: str = "auto",
        gene_map: str | Path | None = None,
        min_match_rate: float = 0.5,
        device: str = "auto",
    ) -> None:
        self.model = TrainedModel(run, device=device, needs_classes=False)
        check_reads_tokens(self.model)
        self.cells = open_cells(query, counts=counts, gene_map=gene_map)
        self.messages = list(self.cells.messages)
        self._genes = QueryGenes(self.model, self.cells, min_match_rate)
        self.conditions = read_obs(self.model, self.cells, self.messages).conditions

    @staticmethod
    def parser(module: str, description: str | None) -> argparse.ArgumentParser:
        """Return a command line of run, query and how to read it; see ``from_command_line``."""
        parser = command_line(module, description)
        parser.add_argument("query", help=".h5ad of cells")
        parser.add_argument("--counts", default="auto", help="X, raw or a layer")
        parser.add_argument("--gene-map", help="csv of orthologs, of cells of another species")
        parser.add_argument(
            "--min-match-rate", type=float, default=0.5, help="of the run's genes, else refused"
        )
        parser.add_argument("--device", choices=DEVICES, default="auto")
        return parser

    @classmethod
    def from_command_line(cls, given: argparse.Namespace) -> Self:
        """Open what a command line of ``parser`` names."""
        return cls(
            given.run,
            given.query,
            counts=given.counts,
            gene_map=given.gene_map,
            min_match_rate=given.min_match_rate,
            device=given.device,
        )

    @property
    def rows(self) -> NDArray[np.int64]:
        """All cells, ``(n_cells,)``."""
        return np.arange(self.cells.n_cells)

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Profile]]:
        """Yield some cells' rows and their profiles in the run's genes, a block at a time."""
        return profiles(self.cells, self._genes, rows)

    def take(self, rows: NDArray[np.int64]) -> Profile:
        """Return the profiles of some cells, whose ``rows`` ascend."""
        return take(self.cells, self._genes, rows)
