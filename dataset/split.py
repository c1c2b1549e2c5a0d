"""Train, val and test: whole donors where donors are known, cells of each type otherwise."""

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from configs.schema import SplitConfig


def split_cells(obs: pd.DataFrame, *, label_key: str, config: SplitConfig) -> pd.Series:
    """Say of every cell whether it is for train, val or test.

    Parameters
    ----------
    obs
        The cells that are kept, indexed by name.
    label_key
        Column of the cell type.
    config
        How to split.

    Returns
    -------
    ``"train"``, ``"val"`` or ``"test"`` for each cell, indexed as ``obs``.

    Raises
    ------
    ValueError
        If the key or a group it names is not there, or there are too few groups or cells.
    """
    if config.key is None:
        return _split_by_type(obs[label_key], config)
    if config.key not in obs:
        raise ValueError(
            f"split.key: no obs column {config.key!r}; columns: {', '.join(map(str, obs.columns))}"
        )
    if n_missing := int(obs[config.key].isna().sum()):
        raise ValueError(
            f"split.key: {n_missing} cells have no {config.key!r}: fill it in, or set key: null"
        )
    groups = obs[config.key].astype(str)
    split_of_group = _split_groups(groups, config)
    return groups.map(split_of_group).astype(object).rename("split")


def _split_groups(groups: pd.Series, config: SplitConfig) -> dict[str, str]:
    n_of_group = groups.value_counts().sort_index()
    names = [str(name) for name in n_of_group.index]
    for field, wanted in (("val", config.val), ("test", config.test)):
        if unknown := sorted(set(wanted or []) - set(names)):
            raise ValueError(
                f"split.{field}: no group {', '.join(unknown)} in {config.key!r}; "
                f"groups: {', '.join(names)}"
            )
    if len(names) < 3:
        raise ValueError(
            f"split.key: {config.key!r} has {len(names)} group(s) ({', '.join(names)}), and "
            "train, val and test need one each: set key: null to split by cells, or name a "
            "column with more groups"
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
        raise ValueError(
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
        raise ValueError("split: too few groups are left to choose from: name fewer, or key: null")
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


def _split_by_type(labels: pd.Series, config: SplitConfig) -> pd.Series:
    rows = np.arange(len(labels))
    types, _ = pd.factorize(labels.astype(str), sort=True)  # small numbers: less to sort and hold
    try:
        rest, test = train_test_split(
            rows, test_size=config.test_fraction, stratify=types, random_state=config.seed
        )
        share = config.val_fraction / (1 - config.test_fraction)
        _, val = train_test_split(
            rest, test_size=share, stratify=types[rest], random_state=config.seed
        )
    except ValueError as error:
        n_of_type = labels.astype(str).value_counts()
        raise ValueError(
            f"split: {len(labels)} cells of {len(n_of_type)} types cannot be split by type "
            f"(rarest: {n_of_type.index[-1]!r}, {n_of_type.iloc[-1]} cells): {error}. Raise "
            "min_cells_per_class or the fractions, or name a key"
        ) from error
    split = np.full(len(labels), "train", dtype=object)
    split[val], split[test] = "val", "test"
    return pd.Series(split, index=labels.index, name="split")
