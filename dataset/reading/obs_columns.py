"""``ObsColumns``: obs of all cells by column, whether of files or of what was kept of them."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

import pandas as pd

from dataset.clean_names import clean_names
from dataset.nearest_names import nearest, shortened
from dataset.reading.cell_file import CellFileError

logger = logging.getLogger(__name__)


class ObsColumns(ABC):
    """What has obs columns.

    Attributes
    ----------
    messages
        Everything that was noticed or changed in reading, for people.
    """

    messages: list[str]

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """Names of the columns of all files."""

    @property
    @abstractmethod
    def file_names(self) -> list[str]:
        """Names of the files, for people."""

    @abstractmethod
    def stored_column(self, key: str, *, needs_order: bool = False) -> pd.Series:
        """Read one of ``columns`` as it is stored; see ``column``."""

    def column(self, key: str, *, needs_order: bool = False) -> pd.Series:
        """Read an obs column of all cells, ``(n_cells,)``, or say which ones there are.

        Texts lose what is invisible in them (see ``clean_names``).

        Parameters
        ----------
        key
            Name of the column.
        needs_order
            Raise if files have categories in an order, and it is not known what it is over all.

        Raises
        ------
        CellFileError
            If there is no such column, or it cannot be read.
        """
        if key not in self.columns:
            raise CellFileError(
                f"{shortened(self.file_names)}: no obs column {key!r}{nearest(key, self.columns)}"
            )
        column, message = clean_names(self.stored_column(key, needs_order=needs_order), key)
        if message is not None and message not in self.messages:
            self.messages.append(message)
            logger.info(message)
        return column
