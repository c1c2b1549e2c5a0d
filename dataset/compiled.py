"""``compiled``: numba for the loops over counts; threads may run such a function side by side."""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable)


def compiled(function: Function) -> Function:
    """Compile a loop at its first call and keep the machine code for the next process.

    Floating point stays exact (no fast-math): a value never depends on the machine.
    """
    try:
        made = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep the machine code in can be written
        made = njit(nogil=True, error_model="numpy")(function)
    return cast(Function, made)
