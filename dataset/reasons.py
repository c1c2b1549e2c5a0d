"""Why cells are dropped, and the sentence for who loses too many of them."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dataset.encode_error import EncodeError


class Reasons:
    """Why cells are dropped: of each the first reason found, four bytes a cell."""

    def __init__(self, n_cells: int) -> None:
        self.codes = np.zeros(n_cells, dtype=np.int32)  # into texts; 0: the cell stays
        self.texts = [""]
        self._numbers: dict[str, int] = {}
        self._causes: dict[str, tuple[int, str]] = {}

    def drop(self, bad: NDArray[np.bool_], reason: str, cause: str = "", advice: str = "") -> None:
        """Drop the cells that are ``bad`` and were not dropped before.

        Parameters
        ----------
        bad
            Of each cell, ``(n_cells,)``.
        reason
            Text of each of them.
        cause, advice
            The setting that does it, and what to do where it drops too many.
        """
        self.drop_coded(np.asarray(bad, dtype=np.int64) - 1, {0: reason}, cause, advice)

    def drop_coded(
        self, codes: NDArray[np.integer], reason_of: Mapping[int, str], cause: str, advice: str
    ) -> None:
        """Drop the cells whose code has a reason; codes are -1 or more, one a cell."""
        present = set(np.unique(codes).tolist())
        if not present & reason_of.keys():
            return
        number_of = np.zeros(int(codes.max()) + 2, dtype=self.codes.dtype)  # the last: code -1
        for code in sorted(present & reason_of.keys()):
            number_of[code] = self._number(reason_of[code])
        found = number_of[codes]
        if cause:
            n_before, _ = self._causes.get(cause, (0, ""))
            self._causes[cause] = n_before + int(np.count_nonzero(found)), advice
        new = self.codes == 0
        self.codes[new] = found[new]

    def _number(self, reason: str) -> int:
        if reason not in self._numbers:
            self._numbers[reason] = len(self.texts)
            self.texts.append(reason)
        return self._numbers[reason]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """True for the cells that stay, ``(n_cells,)``."""
        return self.codes == 0

    def count(self) -> dict[str, int]:
        """Return the number of cells for each reason, by name."""
        n_of_reason = np.bincount(self.codes, minlength=len(self.texts))
        counted = zip(self.texts[1:], n_of_reason[1:].tolist(), strict=True)
        return dict(sorted((text, n) for text, n in counted if n))

    def __str__(self) -> str:
        counted = [f"{n:,}: {text}" for text, n in self.count().items()]
        more = f"; {len(counted) - 12:,} more reasons" if len(counted) > 12 else ""
        return "; ".join(counted[:12]) + more or "none"

    def check_share(self, max_dropped_fraction: float) -> None:
        """Raise if more than this share of the cells is dropped, and say what does it.

        Raises
        ------
        EncodeError
            Names each cause with the number of cells that it drops by itself, most first.
        """
        n_cells, n_dropped = len(self.codes), int(np.count_nonzero(self.codes))
        if n_dropped <= max_dropped_fraction * n_cells:
            return
        causes = sorted(self._causes.items(), key=lambda cause: -cause[1][0])
        texts = [f"{cause} drops {n:,} of {n_cells:,} cells; {a}" for cause, (n, a) in causes]
        raise EncodeError(
            f"{n_dropped:,} of {n_cells:,} cells would be dropped, more than "
            f"quality_control.max_dropped_fraction ({max_dropped_fraction:g}) allows: "
            f"{'. '.join(texts)}"
        )
