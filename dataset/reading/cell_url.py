"""A file of cells at an address (s3://, gs://, https://, memory://, ...), read through fsspec.

``CellUrl`` has what the readers of cells ask of a ``pathlib.Path``, so that they need not know
which of the two they were given. The addresses that work are those whose package is installed:
s3fs for s3://, gcsfs for gs://, aiohttp and requests for https://.
"""

import re
import weakref
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

# Values and genes are read in turn, each from front to back, far apart in the file, and threads
# read several stretches at once. Whole blocks are fetched and the latest kept, so that each reader
# finds its block again after the others had their turn, and every byte is fetched about once.
# Larger blocks cost memory, smaller ones round trips.
BLOCK_BYTES = 2 * 2**20
KEPT_BLOCKS = 32
KEPT_FILES = 2
# What a store says of an object that changes when its content does. What else it says, such as
# the address a server redirected to, may change by itself.
MARKS = frozenset(
    "size etag content-md5 md5hash digest crc32c generation versionid mtime created updated "
    "last-modified lastmodified last_modified".split()
)

# user@, user:password@ (a password may have a / in it, what follows host:80 may have an @)
USER = re.compile(r"(?<=://)(?:[^\s/?#@:]*:(?!\d+[/?#])[^\s@]*@|[^\s/?#@:]+@)")
QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]*")
SHORTEST_SECRET = 3  # what is shorter is no secret, and would be found everywhere


def without_secrets(text: str) -> str:
    """Return a text without the passwords, and what follows a ``?``, of the addresses in it."""
    return QUERY.sub(r"\1", USER.sub("", text))


@dataclass(frozen=True)
class CellUrl:
    """Address of an ``.h5ad`` file or a ``.zarr`` folder."""

    url: str

    def __str__(self) -> str:
        """Return the address for people, without what is secret in it."""
        return without_secrets(self.url)

    def __repr__(self) -> str:
        return f"CellUrl({str(self)!r})"

    @property
    def has_secrets(self) -> bool:
        """Return whether the address holds a key, a password or a signature."""
        return str(self) != self.url

    def hide_secrets(self, text: str) -> str:
        """Take what is secret in this address, or in any, out of a text such as a message."""
        _, _, query = self.url.partition("?")
        settings = query.split("&")
        named = [query, *settings, *(setting.partition("=")[2] for setting in settings)]
        for user in USER.findall(self.url):
            named += [user, user.partition(":")[2].rstrip("@")]
        for secret in sorted(named, key=len, reverse=True):
            if len(secret) > SHORTEST_SECRET:
                text = text.replace(secret, "...")
        return without_secrets(text)

    @cached_property
    def _place(self) -> tuple[AbstractFileSystem, str]:
        return url_to_fs(self.url)

    @property
    def _path(self) -> PurePosixPath:
        # simplecache::s3://bucket/a.h5ad and zip://a.h5ad::s3://bucket/b.zip both name a.h5ad
        link = next(link for link in str(self).split("::") if "://" in link)
        return PurePosixPath(link.partition("://")[2])

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self._path.name

    @property
    def stem(self) -> str:
        """Last part of the path, without its suffix."""
        return self._path.stem

    @property
    def suffix(self) -> str:
        """Suffix of the path, such as ``.h5ad``."""
        return self._path.suffix

    @property
    def parent(self) -> PurePosixPath:
        """Folder of the path."""
        return self._path.parent

    @cached_property
    def _is_dir(self) -> bool:
        fs, path = self._place
        return fs.info(path)["type"] == "directory"

    def is_dir(self) -> bool:
        """Tell whether this is a folder; FileNotFoundError if it is nothing."""
        return self._is_dir

    def open(self, mode: str = "rb") -> Any:
        """Open the file; it is fetched in large blocks, and only what is read of it."""
        fs, path = self._place
        cache = {"maxblocks": KEPT_BLOCKS}
        return fs.open(
            path, mode, block_size=BLOCK_BYTES, cache_type="blockcache", cache_options=cache
        )

    def open_shared(self) -> "SharedFile":
        """Open the file as it is now, for HDF5, or return the one that is open already.

        Each share of the cells is read through a file opened anew, and finds here the blocks that
        others fetched. The one position is no harm: HDF5 lets a single thread in at a time.
        """
        fingerprint = self.fingerprint()
        with _KEPT_LOCK:
            return _kept_open(self, fingerprint)

    def parts(self) -> list[tuple[str, "CellUrl"]]:
        """List the files of a folder with their paths inside it."""
        fs, root = self._place
        inside = [(PurePosixPath(path).relative_to(root), path) for path in fs.find(root)]
        return [(str(name), self._beside(path)) for name, path in sorted(inside)]

    def fingerprint(self) -> tuple:
        """Return what changes when the object does, as far as its store tells."""
        fs, path = self._place
        fs.invalidate_cache()  # or an old listing would hide the change
        found = fs.find(path, detail=True) if self.is_dir() else {path: fs.info(path)}
        return tuple(
            (name, key, str(value))
            for name, info in sorted(found.items())
            for key, value in sorted(info.items())
            if key.lower() in MARKS
        )

    def matching(self) -> "list[CellPath]":
        """List what an address with ``*`` stands for; file:// addresses become paths."""
        fs, path = self._place
        if "*" not in str(self):
            return [Path(path) if isinstance(fs, LocalFileSystem) else self]
        paths = sorted(fs.glob(path))
        if isinstance(fs, LocalFileSystem):
            return [Path(path) for path in paths]
        return [self._beside(path) for path in paths]

    def _beside(self, path: str) -> "CellUrl":
        links = self.url.split("::")
        at = next(i for i, link in enumerate(links) if "://" in link)
        scheme = links[at].partition("://")[0]
        links[at] = path if "://" in path else f"{scheme}://{path}"
        return CellUrl("::".join(links))


class SharedFile:
    """An open file that is closed when the last who uses it is done."""

    def __init__(self, file: Any) -> None:
        self._file = file
        weakref.finalize(self, file.close)

    def __getattr__(self, name: str) -> Any:
        """Be the file in everything else."""
        return getattr(self._file, name)


@lru_cache(KEPT_FILES)
def _kept_open(url: CellUrl, fingerprint: tuple) -> SharedFile:
    return SharedFile(url.open())


_KEPT_LOCK = Lock()
CellPath = Path | CellUrl
