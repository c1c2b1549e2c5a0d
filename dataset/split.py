"""Train, val and test: whole donors where donors are known, cells of each type otherwise."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from dataset.config import SplitConfig
from dataset.cut_list import cut_list
from dataset.encode_error import EncodeError
from dataset.store.layout import SPLITS


def split_cells(
    labels: pd.Categorical | int, groups: pd.Categorical | None, config: SplitConfig
) -> pd.Categorical:
    """Say of every cell whether it is for train, val or test.

    Groups are chosen by how many cells they have; no label is looked at. Cells by themselves are
    stratified by type, for which all labels are needed, so a label that changes may send other
    cells of its type elsewhere.

    Parameters
    ----------
    labels
        Cell type of the cells to split, ``(n,)``; without labels, how many there are.
    groups
        Their donor, or whatever ``config.key`` names; None to split by cells.
    config
        How to split.

    Returns
    -------
    ``"train"``, ``"val"`` or ``"test"`` for each cell, ``(n,)``.

    Raises
    ------
    EncodeError
        If a group that is named is not there, or there are too few groups or cells.
    """
    if groups is None:
        split = _split_cells(labels, config)
        return pd.Categorical.from_codes(split, pd.Index(SPLITS, dtype=object))
    split_of_group = _split_groups(groups, config)
    codes = [SPLITS.index(split_of_group.get(name, "train")) for name in groups.categories]
    return pd.Categorical.from_codes(
        np.array(codes, dtype=np.int8)[groups.codes], pd.Index(SPLITS, dtype=object)
    )


def _split_groups(groups: pd.Categorical, config: SplitConfig) -> dict[str, str]:
    n_of_group = groups.remove_unused_categories().value_counts().sort_index()
    n_of_group.index = n_of_group.index.astype(str)
    names = list(n_of_group.index)
    for field, wanted in (("val", config.val), ("test", config.test)):
        if unknown := sorted(set(wanted or []) - set(names)):
            raise EncodeError(
                f"split.{field}: no group {cut_list(unknown)} with labelled cells in "
                f"{config.key!r}; groups: {cut_list(names, most=20)}"
            )
    if len(names) < 3:
        raise EncodeError(
            f"split.key: {config.key!r} has {len(names)} group(s) with labelled cells "
            f"({', '.join(names)}), and train, val and test need one each: set key: null to "
            "split by cells, or name a column with more groups"
        )
    rng = np.random.default_rng(config.seed)
    test, val = list(config.test or []), list(config.val or [])
    n_cells = int(n_of_group.sum())
    if not test:
        free = [name for name in names if name not in val]
        keep_back = 1 if val else 2  # a group for train, and one for val if none is named
        test = _choose(
            n_of_group[free], config.test_fraction * n_cells, len(free) - keep_back, rng
        )
    if not val:
        free = [name for name in names if name not in test]
        val = _choose(n_of_group[free], config.val_fraction * n_cells, len(free) - 1, rng)
    if not set(names) - set(test) - set(val):
        raise EncodeError(
            f"split: val and test take every group of {config.key!r}: none to train on"
        )
    return {n: "test" if n in test else "val" if n in val else "train" for n in names}


def _choose(
    n_of_group: pd.Series, n_wanted: float, most_groups: int, rng: np.random.Generator
) -> list[str]:
    """Choose whole groups, at least one, whose cells come closest to the number wanted.

    Groups are offered in random order and each is taken if that brings the sum closer; of 50
    such tries the closest is kept.
    """
    if most_groups < 1:
        raise EncodeError(
            "split: too few groups are left to choose from: name fewer, or key: null"
        )
    best: tuple[float, list[str]] | None = None
    for _ in range(50):
        chosen: list[str] = []
        n_chosen = 0
        for name in rng.permutation(n_of_group.index.to_numpy(dtype=str)):
            n = int(n_of_group[name])
            closer = abs(n_chosen + n - n_wanted) < abs(n_chosen - n_wanted)
            if closer and len(chosen) < most_groups:
                chosen.append(str(name))
                n_chosen += n
        if not chosen:  # every group is more than twice as large as wanted
            chosen = [str(n_of_group.idxmin())]
            n_chosen = int(n_of_group.min())
        distance = abs(n_chosen - n_wanted)
        if best is None or distance < best[0]:
            best = distance, chosen
    assert best is not None
    return sorted(best[1])


def _split_cells(labels: pd.Categorical | int, config: SplitConfig) -> NDArray[np.int8]:
    """Split cells by themselves: of each type the same shares, or at random without labels."""
    n_cells = labels if isinstance(labels, int) else len(labels)
    rows = np.arange(n_cells, dtype=np.int32)
    types = None if isinstance(labels, int) else labels.remove_unused_categories().codes
    try:
        rest, test = train_test_split(
            rows, test_size=config.test_fraction, stratify=types, random_state=config.seed
        )
        share = config.val_fraction / (1 - config.test_fraction)
        of_rest = None if types is None else types[rest]
        _, val = train_test_split(
            rest, test_size=share, stratify=of_rest, random_state=config.seed
        )
    except ValueError as error:
        if isinstance(labels, int):
            raise EncodeError(
                f"split: {n_cells} cells cannot be split: {error}. Raise the fractions, or use "
                "more cells"
            ) from error
        n_of_type = labels.remove_unused_categories().value_counts().sort_values()
        raise EncodeError(
            f"split: {len(labels)} cells of {len(n_of_type)} types cannot be split by type "
            f"(rarest: {n_of_type.index[0]!r}, {n_of_type.iloc[0]} cells): {error}. Raise "
            "min_cells_per_class or the fractions, or name a key"
        ) from error
    split = np.zeros(n_cells, dtype=np.int8)
    split[val], split[test] = SPLITS.index("val"), SPLITS.index("test")
    return split
