"""``checksums.json``: what each file of a finished folder held when it was written.

An array with the right shape may still hold something else: a vocabulary in another order, weights
of another seed, labels of other cells. A folder that we finish therefore keeps a checksum of each
of its files, and who opens the folder compares.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKSUMS = "checksums.json"
PIECE = 2**20
BUFFER = 2**18
# Files up to this many bytes are hashed whole; of a larger one, this many bytes in evenly spaced
# pieces, its first and last among them, and its size: an atlas is opened in a second, not minutes.
HASHED_BYTES = 32 * PIECE


def file_checksum(path: Path) -> str:
    """Return the sha256 of a file's size and content; of a large file, of a fixed sample of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    n_pieces = HASHED_BYTES // PIECE
    with path.open("rb") as file:
        if size <= HASHED_BYTES:
            while piece := file.read(BUFFER):
                digest.update(piece)
        else:
            for i in range(n_pieces):
                file.seek((size - PIECE) * i // (n_pieces - 1))
                digest.update(file.read(PIECE))
    return digest.hexdigest()


def write_checksums(folder: Path, known: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """Write ``checksums.json`` for every file below the folder, itself left out.

    ``known`` has the checksums of sub-folders whose files were written, and hashed, before.
    """
    sums = {f"{sub}/{name}": s for sub, of in (known or {}).items() for name, s in of.items()}
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    names = [n for n, p in paths.items() if p.is_file() and n not in sums and n != CHECKSUMS]
    sums |= zip(names, _file_checksums([paths[name] for name in names]), strict=True)
    text = json.dumps(dict(sorted(sums.items())), indent=2)
    (folder / CHECKSUMS).write_text(text + "\n", encoding="utf-8")


def _file_checksums(paths: list[Path]) -> list[str]:
    with ThreadPoolExecutor() as threads:  # hashing lets other threads run
        return list(threads.map(file_checksum, paths))


def read_checksums(folder: Path) -> dict[str, str]:
    """Read ``checksums.json``.

    Raises
    ------
    OSError, ValueError
        If it is missing, or is not a table of texts.
    """
    sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    if not isinstance(sums, dict) or not all(isinstance(v, str) for v in sums.values()):
        raise ValueError("expected a table of checksums")
    return sums


def changed_files(
    folder: Path, checksums: Mapping[str, str], names: Iterable[str] | None = None
) -> list[str]:
    """Return the files that are missing or hold something else than when they were written.

    Parameters
    ----------
    folder, checksums
        The folder, and what ``read_checksums`` said of it.
    names
        Files to look at; all that have a checksum by default. A name without a checksum counts as
        changed.
    """
    names = list(checksums if names is None else names)
    there = [name for name in names if name in checksums and (folder / name).is_file()]
    found = dict(zip(there, _file_checksums([folder / name for name in there]), strict=True))
    return [name for name in names if name not in found or found[name] != checksums[name]]
