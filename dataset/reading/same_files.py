"""Refuse a file that is given twice: each of its cells would be in train and in test."""

from dataset.encode_error import EncodeError
from dataset.reading.cells import Cells


def refuse_copies(source: Cells, hashes: list[str]) -> None:
    """Raise if two files are the same, byte for byte: their cells would be in every split."""
    first: dict[str, str] = {}
    for file, sha256 in zip(source.files, hashes, strict=True):
        if sha256 in first:
            raise EncodeError(
                f"{first[sha256]} and {file.path} are the same file, byte for byte: each of their "
                "cells would be in the data twice, in train and in test; leave one of them out"
            )
        first[sha256] = str(file.path)
