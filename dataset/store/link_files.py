"""A second name for files that never change: what two folders share, the disk holds once."""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

# How file systems say that a file cannot have two names.
NO_HARD_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


def link_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Hard-link files into a new folder, or copy them where the disk has no hard links.

    Parameters
    ----------
    source, target
        The folders.
    names
        Files below ``source``, which get the same names below ``target``.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target / name)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            shutil.copy2(source / name, target / name)
