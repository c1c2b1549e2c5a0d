"""Better, worse, level or cannot tell: what a difference and its interval allow to be said."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

# The equivalence margin: "level" means that the difference is no larger than this.
MARGIN = 0.02
# Macro-F1 weighs a type of one cell like one of a thousand: with fewer test cells than this a
# type's score is chance, and its interval does not know it.
RARE = 10
# With fewer test cells nothing is said.
FEWEST_CELLS = 30
# What was not seen once among n cells may still be true of 3 / n of them (the rule of three).
UNSEEN = 3


@dataclass(frozen=True)
class Outcome:
    """A word for a difference, and why there is no other."""

    word: Literal["better", "worse", "level", "cannot tell"]
    reason: str = ""


def outcome(
    low: float,
    high: float,
    *,
    margin: float,
    n_cells: int,
    resolution: float,
    lower_is_better: bool = False,
) -> Outcome:
    """Say what the 95 % interval of a difference allows to be said.

    Parameters
    ----------
    low, high
        Of the interval; NaN if there is none.
    margin
        Largest difference that counts as none.
    n_cells
        Test cells behind it.
    resolution
        Largest difference that so many cells may fail to show at all: two models that agree on
        all of 30 cells have an interval of 0 to 0, and may still differ in one cell of ten.
    lower_is_better
        As for log-loss.
    """
    if n_cells < FEWEST_CELLS:
        return Outcome("cannot tell", f"{n_cells} test cells are too few (fewest: {FEWEST_CELLS})")
    if np.isnan(low) or np.isnan(high):
        return Outcome("cannot tell", f"no type has {RARE} test cells")
    if low > 0 or high < 0:
        return Outcome("better" if (low > 0) != lower_is_better else "worse")
    if max(-low, high) > margin:
        why = f"the interval holds 0 and reaches beyond the margin of {margin:g}"
        return Outcome("cannot tell", why)
    if resolution > margin:
        why = f"with so few test cells a difference of {margin:g} may not show"
        return Outcome("cannot tell", why)
    return Outcome("level")
