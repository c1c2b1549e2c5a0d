"""Paths, addresses and globs, and the files that they stand for."""

import glob
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dataset.reading.cell_file import CellFileError, named_errors
from dataset.reading.cell_url import CellPath, CellUrl


def find_files(
    input: str | CellPath | Sequence[str | CellPath], *, names: Collection[str] = ()
) -> list[CellPath]:
    """Turn paths, addresses and globs into files.

    Parameters
    ----------
    input
        One, or a list of them.
    names
        What else the caller knows, for the message.

    Raises
    ------
    CellFileError
        If nothing is there.
    """
    if isinstance(input, CellUrl):
        return [input]
    if not isinstance(input, str | Path):
        return all_of(input, find_files)
    text = str(input)
    if "://" in text:
        return _at_address(CellUrl(text))
    try:
        path = Path(text).expanduser()
        is_there = path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, a ~name of nobody
        raise CellFileError(f"{text[:100]}: is no path that can be read ({error})"[:400]) from None
    if is_there:
        return [_regular(path)]
    if glob.has_magic(text):
        if found := sorted(Path(name) for name in glob.glob(str(path), recursive=True)):
            return [_regular(path) for path in found]
        raise CellFileError(f"{text}: no file matches (looked from {Path.cwd()})")
    other = f", and no dataset of that name; names: {', '.join(names)}" if names else ""
    raise CellFileError(f"{text}: no such file{other}")


def all_of(
    parts: Sequence[str | CellPath], find: Callable[[str | CellPath], list[CellPath]]
) -> list[CellPath]:
    """Find the files of every part, none of them twice."""
    if not parts:
        raise CellFileError("input: an empty list; expected at least one file of cells")
    paths = [path for part in parts for path in find(part)]
    if repeated := {str(path) for path in paths if paths.count(path) > 1}:
        raise CellFileError(f"input: listed twice: {', '.join(sorted(repeated))}")
    return paths


def _regular(path: Path) -> CellPath:
    """Return a file or a folder as it came; a pipe would be waited for without end."""
    if not (path.is_file() or path.is_dir()):
        raise CellFileError(f"{path}: a pipe or a device; expected a file on the disk or a folder")
    return path


def _at_address(url: CellUrl) -> list[CellPath]:
    with named_errors(url, "opening it"):
        found: list[CellPath] = url.matching()
        if not found:
            raise CellFileError(f"{url}: no file matches")
        for path in found:
            if isinstance(path, CellUrl):
                path.is_dir()  # asks whether it is there
            elif not path.exists():
                raise CellFileError(f"{url}: no such file")
        return found
