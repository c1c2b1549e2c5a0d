import numpy as np
import pandas as pd
import pytest

from dataset.clean_names import clean, clean_names
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.store.encoded_folder import EncodedFolder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("human4 ", "human4"),
        ("\thuman4\r\n", "human4"),
        ("human4\u00a0", "human4"),
        ("T\u00a0cell", "T cell"),
        ("T\rcell", "T cell"),
        ("T\u200b cell\ufeff", "T cell"),
        ("Mu\u0308ller glia", "M\u00fcller glia"),
        ("CD4+ T  cell", "CD4+ T  cell"),  # what can be seen stays
        ("\u03b2 cell", "\u03b2 cell"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_goes(name, expected):
    assert clean(name) == expected


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_a_column_is_cleaned_and_that_is_said(dtype):
    column = pd.Series(["human4 ", "human4", None, "human1"], dtype=dtype)
    cleaned, message = clean_names(column, "donor")
    assert [None if pd.isna(v) else v for v in cleaned] == ["human4", "human4", None, "human1"]
    assert message == "obs 'donor': read without invisible characters: 'human4 ' as 'human4'"
    again, message = clean_names(cleaned, "donor")
    assert message is None
    assert again is cleaned


def test_an_order_and_numbers_stay():
    stages = pd.CategoricalDtype(["zygote ", "zygote", "adult"], ordered=True)
    cleaned, _ = clean_names(pd.Series(["adult", "zygote ", "zygote"], dtype=stages), "stage")
    assert list(cleaned.cat.categories) == ["zygote", "adult"]
    assert cleaned.cat.ordered
    assert list(cleaned) == ["adult", "zygote", "zygote"]
    numbers = pd.Series([3, 1, 2])
    assert clean_names(numbers, "stage") == (numbers, None)


def test_no_donor_is_in_two_splits_by_a_space(cells_adata, tmp_path):
    donor = cells_adata.obs["donor"].astype(object).to_numpy().copy()
    donor[::3] = [f"{name} " for name in donor[::3]]
    cells_adata.obs["donor"] = donor
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    config = PreprocessConfig(
        name="set",
        input=str(tmp_path / "cells.h5ad"),
        label_key="cell_type",
        quality_control={"min_genes": 1},
        split={"key": "donor"},
        tokenizer={"kind": "rank", "n_tokens": 24},
        data_dir=str(tmp_path / "data"),
    )
    folder = EncodedFolder(encode(config, progress=False))
    cells = folder.cells
    assert set(cells["batch"]) == {f"donor_{i}" for i in range(4)}
    assert (cells.groupby("batch")["split"].nunique() == 1).all()
    assert any("obs 'donor': read without invisible" in m for m in folder.meta["messages"])


def test_names_of_any_kind_survive(cells_adata, tmp_path):
    odd = ["a\rb", "a\nb", "a\r\nb", 'a"b', "a,b", "a;b", " a", "NA", "", "'", "a\tb", "é,\r\"'"]
    names = np.array([f"cell_{i}" for i in range(120)], dtype=object)
    names[: len(odd)] = odd
    cells_adata.obs_names = names
    types = cells_adata.obs["cell_type"].astype(object).to_numpy().copy()
    types[types == "type_0"] = 'T "cell", CD4+\r'
    cells_adata.obs["cell_type"] = types
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    config = PreprocessConfig(
        name="set",
        input=str(tmp_path / "cells.h5ad"),
        label_key="cell_type",
        quality_control={"min_genes": 1},
        tokenizer={"kind": "rank", "n_tokens": 24},
        data_dir=str(tmp_path / "data"),
    )
    folder = EncodedFolder(encode(config, progress=False))
    assert list(folder.cells["cell_name"]) == list(names)
    assert 'T "cell", CD4+' in folder.class_names
    assert set(folder.cells["label"]) == set(folder.class_names)
    rows = folder.split("train").rows
    assert list(folder.split("train").cells["cell_name"]) == list(names[rows])
