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
    cells of its type elsewhere. Of a fold, the test cells are those of its group or number and the
    val cells those of the next one, which of the last fold is the first.

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
    if config.in_folds:
        split = _split_fold(labels, groups, config)
    elif groups is None:
        split = _split_cells(labels, config)
    else:
        split_of_group = _split_groups(groups, config)
        codes = [SPLITS.index(split_of_group.get(name, "train")) for name in groups.categories]
        split = np.array(codes, dtype=np.int8)[groups.codes]
    return pd.Categorical.from_codes(split, pd.Index(SPLITS, dtype=object))


def fold_names(groups: pd.Categorical | None, config: SplitConfig) -> list[str]:
    """Return the names of all folds, in order: the groups that have cells, or the numbers to k.

    Raises
    ------
    EncodeError
        If train, val and test cannot have a group each.
    """
    if groups is None:
        return [str(number + 1) for number in range(config.k)]
    names = list(map(str, groups.remove_unused_categories().categories))
    _check_three(names, config)
    return names


def _check_three(names: list[str], config: SplitConfig) -> None:
    if len(names) < 3:
        instead = "kind: k_fold without a key" if config.in_folds else "key: null"
        raise EncodeError(
            f"split.key: {config.key!r} has {len(names)} group(s) with labelled cells "
            f"({', '.join(names)}), and train, val and test need one each: set {instead} to "
            "split by cells, or name a column with more groups"
        )


def _split_fold(
    labels: pd.Categorical | int, groups: pd.Categorical | None, config: SplitConfig
) -> NDArray[np.int8]:
    names = fold_names(groups, config)
    if config.fold not in names:
        expected = cut_list(names, most=20)
        raise EncodeError(f"split.fold: found {config.fold!r}, expected one of {expected}")
    if groups is None:
        fold_of_cell = _deal_cells(labels, config)
    else:
        fold_of_cell = groups.remove_unused_categories().codes
    test = names.index(config.fold)
    split = np.zeros(len(fold_of_cell), dtype=np.int8)
    split[fold_of_cell == test] = SPLITS.index("test")
    split[fold_of_cell == (test + 1) % len(names)] = SPLITS.index("val")
    return split


def _deal_cells(labels: pd.Categorical | int, config: SplitConfig) -> NDArray[np.int64]:
    """Deal cells to k folds, type after type: each has its share of a type, to within a cell.

    scikit-learn's StratifiedKFold warns of types with fewer than k cells, and its folds differ in
    size by as many cells as there are types.
    """
    n_cells = labels if isinstance(labels, int) else len(labels)
    order = np.random.default_rng(config.seed).permutation(n_cells)
    if not isinstance(labels, int):
        order = order[np.argsort(labels.codes[order], kind="stable")]
    fold_of_cell = np.empty(n_cells, dtype=np.int64)
    fold_of_cell[order] = np.arange(n_cells) % config.k
    return fold_of_cell


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
    _check_three(names, config)
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
