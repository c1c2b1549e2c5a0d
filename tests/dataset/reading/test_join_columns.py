import anndata as ad
import pandas as pd
import pytest

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.previous.history import order_time_points
from dataset.reading.cell_file import CellFileError
from dataset.reading.cells import open_cells

STAGES = ["zygote", "larva", "adult"]


@pytest.fixture
def write(cells_adata, tmp_path):
    """Return a function that writes one file for each column of stages; it returns the glob."""

    def files(*columns):
        n = cells_adata.n_obs // len(columns)
        for i, column in enumerate(columns):
            part: ad.AnnData = cells_adata[i * n : (i + 1) * n].copy()
            values = list(column) * n
            part.obs["stage"] = pd.Series(values[:n], index=part.obs_names, dtype=column.dtype)
            part.write_h5ad(tmp_path / f"{i}.h5ad")
        return str(tmp_path / "*.h5ad")

    return files


def in_order(*categories):
    return pd.Series(categories, dtype=pd.CategoricalDtype(list(categories), ordered=True))


@pytest.mark.parametrize(
    "columns",
    [
        (in_order(*STAGES), in_order(*STAGES)),
        (in_order("zygote", "larva"), in_order("larva", "adult")),
        (in_order("larva", "adult"), in_order("zygote", "larva")),
        (in_order("zygote", "adult"), in_order(*STAGES)),
        (in_order(*STAGES), pd.Series(["larva", "zygote"], dtype="category")),
        (pd.Series(["adult", "larva"], dtype=object), in_order(*STAGES)),
    ],
)
def test_an_order_is_kept_over_several_files(write, columns):
    column = open_cells(write(*columns)).column("stage", needs_order=True)
    assert column.cat.ordered
    assert list(column.cat.categories) == STAGES
    assert order_time_points(column) == STAGES
    expected = [list(c)[i % len(c)] for c in columns for i in range(120 // len(columns))]
    assert list(column) == expected


def test_files_that_contradict_each_other_are_refused(write):
    cells = open_cells(write(in_order("zygote", "larva"), in_order("larva", "zygote")))
    with pytest.raises(
        CellFileError, match=r"0\.h5ad, 1\.h5ad: obs 'stage': the files contradict.*larva < zyg"
    ):
        cells.column("stage")
    assert cells.column("donor").notna().all()  # the rest is there


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((in_order("zygote"), in_order("adult")), "of values that are never in one file"),
        ((in_order("zygote", "adult"), pd.Series(["larva"], dtype="category")), "of larva"),
    ],
)
def test_an_order_that_nobody_knows_is_asked_for(write, columns, said):
    cells = open_cells(write(*columns))
    assert not cells.column("stage").cat.ordered
    with pytest.raises(CellFileError, match=f"obs 'stage': the order {said} is not known"):
        cells.column("stage", needs_order=True)


def test_the_past_of_an_adult_is_a_larva(write, tmp_path):
    config = PreprocessConfig(
        name="set",
        input=write(in_order(*STAGES), in_order(*STAGES)),
        label_key="cell_type",
        time_key="stage",
        quality_control={"min_genes": 1},
        split={"key": "donor"},
        tokenizer={"kind": "rank", "n_tokens": 24, "previous": {}},
        data_dir=str(tmp_path / "data"),
    )
    meta = (encode(config, progress=False) / "meta.json").read_text()
    assert "time points in order: zygote, larva, adult" in meta
    unordered = pd.Series(["larva"], dtype="category")
    again = config.model_copy(update={"input": write(in_order("zygote", "adult"), unordered)})
    with pytest.raises(CellFileError, match="the order of larva is not known"):
        encode(again, overwrite=True, progress=False)
