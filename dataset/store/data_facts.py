"""``DataFacts``: what a network needs to know of the data that it is built for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.vocabulary import Vocabulary

READ_ERRORS = (OSError, ValueError, TypeError, RecursionError, EOFError)
# Files and folders, as far as they are there, that say what was learned from the train cells and
# how new cells are read. A run keeps a copy: its network is of no use with others.
LEARNED = (
    "vocabulary.json",
    "class_names.json",
    "conditions.json",
    "learned",
    "history",
)


class FactsError(ValueError):
    """A file does not hold what it should: ``file`` is its name, ``fault`` is what is wrong."""

    def __init__(self, file: str, fault: object) -> None:
        self.file = file
        self.fault = " ".join(str(fault).split()) or type(fault).__name__
        super().__init__(f"{self.file}: {self.fault}")


@dataclass(frozen=True)
class DataFacts:
    """Sizes and names, the same from an encoded folder and from a run that was trained on it.

    Attributes
    ----------
    vocabulary
        The genes, and with the special tokens before them the token ids.
    class_names
        Names of the classes, in the order of their ids; empty without labels.
    row_length
        Most tokens of a cell.
    n_segments
        Profiles of a cell: 1 (now), or 2 (now and previous).
    learned
        What the tokenizer learned of each gene from the train cells, by name, each
        ``(n_genes, ...)`` in the order of the vocabulary.
    conditions
        Names of the codes of each obs column that was kept, in the order of ``Batch``'s columns.
    position_keys
        The obs columns of the cells' positions; empty where cells have none.
    class_sizes
        Train cells of each class, ``(c,)``; None where there are no train cells at hand.
    tokenizer
        Settings of the tokenizer, as in ``meta.json``, for a network that has to know more of its
        tokens than how many there are, such as the number of bins.
    """

    vocabulary: Vocabulary
    class_names: list[str]
    row_length: int
    n_segments: int
    learned: dict[str, NDArray]
    conditions: dict[str, list[str]] = field(default_factory=dict)
    position_keys: tuple[str, ...] = ()
    class_sizes: NDArray[np.int64] | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.class_names)

    @property
    def is_token(self) -> NDArray[np.bool_]:
        """Whether each gene is a token where it is detected, ``(n_genes,)``."""
        return self.learned.get("is_variable", np.ones(self.vocabulary.n_genes, dtype=bool))


def read_facts(folder: Path, meta: Mapping[str, Any]) -> DataFacts:
    """Read them from an encoded folder, or from a run's copy of the files of ``LEARNED``.

    Parameters
    ----------
    folder
        Of the files.
    meta
        Content of its ``meta.json``: ``n_tokens``, ``n_segments``, ``condition_keys``,
        ``position_keys``, ``tokenizer``, and of each array in ``learned/`` its dtype, shape and
        range.

    Raises
    ------
    FactsError
        If a file is missing, cannot be read, or holds something else.
    """
    try:
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
    except READ_ERRORS as error:
        raise FactsError("vocabulary.json", error) from None
    conditions = _json(folder, "conditions.json")
    named = isinstance(conditions, dict) and all(map(_are_names, conditions.values()))
    if not named or list(conditions) != meta["condition_keys"]:
        raise FactsError("conditions.json", "expected a list of names for each condition")
    return DataFacts(
        vocabulary=vocabulary,
        class_names=read_class_names(folder),
        row_length=meta["n_tokens"],
        n_segments=meta["n_segments"],
        learned={
            name: _learned(folder, name, vocabulary.n_genes, described)
            for name, described in meta["learned"].items()
        },
        conditions=conditions,
        position_keys=tuple(meta["position_keys"]),
        tokenizer=meta["tokenizer"],
    )


def read_class_names(folder: Path) -> list[str]:
    """Read class_names.json alone.

    Raises
    ------
    FactsError
        If it is no list of different names.
    """
    names = _json(folder, "class_names.json")
    if not _are_names(names):
        raise FactsError("class_names.json", "expected a list of names")
    if len(set(names)) < len(names):
        raise FactsError("class_names.json", "a name occurs twice")
    return names


def learned_files(folder: Path) -> list[str]:
    """Return the names, relative to the folder, of all files of ``LEARNED`` that are there."""
    found = []
    for name in LEARNED:
        path = folder / name
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file.relative_to(folder).as_posix() for file in inside if file.is_file()]
    return found


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _json(folder: Path, name: str) -> Any:
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except READ_ERRORS as error:
        raise FactsError(name, error) from None


def _learned(folder: Path, name: str, n_genes: int, described: Mapping[str, Any]) -> NDArray:
    """Read what was learned of each gene: of the type, shape and range that was written."""
    file = f"learned/{name}.npy"
    try:
        array = np.load(folder / file, allow_pickle=False)
        dtype, shape = described["dtype"], (n_genes, *described["shape"][1:])
        low, high = described["range"]
    except (*READ_ERRORS, TypeError, KeyError) as error:
        raise FactsError(file, error) from None
    if array.shape != shape or array.dtype.name != dtype:
        fault = f"found {array.dtype} {array.shape}, expected {dtype} {shape}"
        raise FactsError(file, fault)
    if array.size and not (array.min() >= low and array.max() <= high):
        raise FactsError(file, f"values outside {low:g} to {high:g}")
    return array
