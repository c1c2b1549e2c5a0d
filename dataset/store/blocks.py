"""Cells read at a time, and cells of one worker's share of a step."""

BLOCK_CELLS = 256
SHARE_CELLS = 1024


def cut(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Cut a range into ranges of ``size`` cells; the last may be shorter."""
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def cut_blocks(start: int, stop: int) -> list[tuple[int, int]]:
    """Cut a range into ranges that are read into memory at once."""
    return cut(start, stop, BLOCK_CELLS)


def cut_shares(start: int, stop: int, *, times: int = 1) -> list[tuple[int, int]]:
    """Cut a range into what a worker does at a time, or so many times as much."""
    return cut(start, stop, times * SHARE_CELLS)
