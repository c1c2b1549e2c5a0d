import numpy as np
import pandas as pd
import pytest

from dataset.choose_cells import categories
from dataset.config import SplitConfig
from dataset.encode_error import EncodeError
from dataset.split import split_cells


@pytest.fixture
def obs(rng):
    sizes = {"a": 100, "b": 30, "c": 60, "d": 40, "e": 20}
    donors = rng.permutation(np.repeat(list(sizes), list(sizes.values())))
    types = rng.choice(["T", "B", "NK"], 250, p=[0.6, 0.3, 0.1])
    obs = pd.DataFrame({"donor": donors, "cell_type": types})
    obs.index = [f"cell_{i}" for i in range(250)]
    return obs.astype({"donor": "category"})


def split_of_donor(obs, **config):
    donors = categories(obs["donor"])
    split = split_cells(categories(obs["cell_type"]), donors, SplitConfig(key="donor", **config))
    assert list(split.categories) == ["train", "val", "test"]
    assert len(split) == len(obs)
    of_donor = pd.Series(split.astype(str)).groupby(donors.astype(str)).agg(["nunique", "first"])
    assert (of_donor["nunique"] == 1).all()  # no donor in two splits
    return of_donor["first"].to_dict()


def test_named_groups_are_honoured(obs):
    chosen = split_of_donor(obs, val=["b"], test=["c", "e"])
    assert chosen == {"a": "train", "b": "val", "c": "test", "d": "train", "e": "test"}


def test_val_is_chosen_from_the_rest(obs):
    for seed in range(5):
        chosen = split_of_donor(obs, test=["a"], val_fraction=0.16, seed=seed)
        assert [d for d, split in chosen.items() if split == "test"] == ["a"]
        assert [d for d, split in chosen.items() if split == "val"] in (["d"], ["b"])


def test_val_is_never_a_group_of_test(obs):
    """Not even where that group has as many cells as val should have."""
    chosen = split_of_donor(obs, test=["e"], val_fraction=20 / 250)
    assert chosen["e"] == "test"
    assert list(chosen.values()).count("val") == 1


def test_chosen_groups_come_close_to_the_fractions_and_repeat(obs):
    sizes = obs["donor"].value_counts()
    chosen = split_of_donor(obs, val_fraction=0.16, test_fraction=0.24)
    assert sum(sizes[d] for d, s in chosen.items() if s == "test") == 60
    assert sum(sizes[d] for d, s in chosen.items() if s == "val") == 40
    assert chosen == split_of_donor(obs, val_fraction=0.16, test_fraction=0.24)
    shuffled = obs.sample(frac=1, random_state=0)
    assert chosen == split_of_donor(shuffled, val_fraction=0.16, test_fraction=0.24)


def test_three_groups_are_enough_and_two_are_not(obs):
    for seed in range(10):
        split_of_donor(obs[obs["donor"].isin(["a", "b", "c"])], seed=seed)
    with pytest.raises(EncodeError, match=r"2 group\(s\) with .* \(a, b\).*set key: null"):
        split_of_donor(obs[obs["donor"].isin(["a", "b"])])


def test_mistakes_are_named(obs):
    with pytest.raises(ValueError, match=r"split\.test: no group human9.*groups: a, b, c, d, e"):
        split_of_donor(obs, test=["human9"])
    with pytest.raises(ValueError, match="none to train on"):
        split_of_donor(obs, val=["a", "b"], test=["c", "d", "e"])


def test_numbers_as_group_names(obs):
    obs["donor"] = obs["donor"].cat.codes
    assert split_of_donor(obs, test=["2"])["2"] == "test"


def test_without_a_key_every_split_has_every_type(obs):
    config = SplitConfig(val_fraction=0.2, test_fraction=0.2, seed=4)
    types = categories(obs["cell_type"])
    split = split_cells(types, None, config)
    assert split.value_counts().to_dict() == {"train": 150, "val": 50, "test": 50}
    n_of_type = pd.crosstab(types, split)
    for name in ("val", "test"):  # as close to a fifth of each type as whole cells come
        expected = 0.2 * n_of_type.sum(axis=1)
        assert (abs(n_of_type[name] - expected) < 1).all()
    assert (split == split_cells(types, None, config)).all()
    other = SplitConfig(val_fraction=0.2, test_fraction=0.2, seed=5)
    for name in ("val", "test"):  # other cells are held out, in either
        assert ((split == name) != (split_cells(types, None, other) == name)).any()


def test_every_type_of_a_few_cells_is_in_every_split():
    types = pd.Categorical(np.repeat([f"type_{i:02d}" for i in range(20)], 8))
    for seed in range(5):
        split = split_cells(types, None, SplitConfig(seed=seed))
        assert (pd.crosstab(types, split) > 0).all(axis=None)


def test_the_seed_chooses_the_groups():
    donors = pd.Categorical(np.repeat([f"d{i:02d}" for i in range(20)], 10))
    labels = pd.Categorical(["T"] * 200)
    chosen = {
        tuple(split_cells(labels, donors, SplitConfig(key="donor", seed=seed)).codes[::10])
        for seed in range(6)
    }
    assert len(chosen) > 3


def test_no_label_is_looked_at_where_groups_are_held_out(obs, rng):
    donors, config = categories(obs["donor"]), SplitConfig(key="donor", seed=2)
    split = split_cells(categories(obs["cell_type"]), donors, config)
    other = split_cells(categories(pd.Series(rng.permutation(obs["cell_type"]))), donors, config)
    assert (split == other).all()


def test_a_type_of_one_cell_cannot_be_stratified(obs):
    obs.loc["cell_0", "cell_type"] = "rare"
    with pytest.raises(ValueError, match=r"rarest: 'rare', 1 cells.*min_cells_per_class"):
        split_cells(categories(obs["cell_type"]), None, SplitConfig())
