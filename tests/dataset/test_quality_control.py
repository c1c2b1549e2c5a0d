import re

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.sparse import csr_matrix

from dataset.choose_cells import categories
from dataset.config import QualityControlConfig
from dataset.encode_error import EncodeError
from dataset.quality_control import (
    Measures,
    drop_cells,
    drop_rare_types,
    drop_unlabelled,
    measure_cells,
)
from dataset.reasons import Reasons
from tests.made_up import store_of


@pytest.fixture
def cells(cells_adata, tmp_path):
    counts = cells_adata.X.toarray()
    counts[7] = 0
    cells_adata.X = csr_matrix(counts)
    return store_of(cells_adata, tmp_path / "cells")


def test_measures_are_those_of_scanpy_whatever_the_share(cells, cells_adata, monkeypatch):
    adata = cells_adata
    adata.var["mt"] = adata.var["gene_symbol"].str.startswith("MT-")
    expected, _ = sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False)
    for share in (7, 1024):
        monkeypatch.setattr("dataset.store.blocks.SHARE_CELLS", share)
        measures = measure_cells(cells)
        np.testing.assert_array_equal(measures.n_genes, expected["n_genes_by_counts"])
        np.testing.assert_array_equal(measures.total_counts, expected["total_counts"])
        np.testing.assert_allclose(
            measures.pct_counts_mt, expected["pct_counts_mt"].fillna(0), rtol=1e-6
        )
    assert measures.total_counts[7] == 0


def test_mitochondrial_genes_are_found_in_any_case(cells):
    assert (
        measure_cells(cells, mitochondrial_prefix="mt-").pct_counts_mt.max()
        == measure_cells(cells).pct_counts_mt.max()
        > 0
    )


def test_symbols_in_small_letters_are_mitochondrial_too(cells, cells_adata, tmp_path):
    """As those of mice are written."""
    cells_adata.var_names = cells_adata.var_names.str.lower()
    cells_adata.var["gene_symbol"] = cells_adata.var["gene_symbol"].str.lower()
    mouse = measure_cells(store_of(cells_adata, tmp_path / "mouse")).pct_counts_mt
    assert mouse.max() > 0
    np.testing.assert_array_equal(mouse, measure_cells(cells).pct_counts_mt)


def test_no_mitochondrial_gene_is_an_error_only_with_a_threshold(cells):
    measures = measure_cells(cells, mitochondrial_prefix="mito:")
    reasons = Reasons(120)
    drop_cells(reasons, measures, QualityControlConfig(min_genes=1))
    assert reasons.kept.sum() == 119
    with pytest.raises(ValueError, match="no gene symbol starts with"):
        drop_cells(reasons, measures, QualityControlConfig(max_percent_mitochondrial=10))


def measures_of(n_genes, total_counts=None, percent=None):
    n_genes = np.array(n_genes)
    total = n_genes * 2.0 if total_counts is None else np.array(total_counts, dtype=float)
    mitochondrial = np.zeros(len(n_genes)) if percent is None else np.array(percent, dtype=float)
    return Measures(n_genes, total, mitochondrial)


def test_every_dropped_cell_has_its_first_reason():
    measures = measures_of(
        [0, 5, 50, 500, 50, 50, 50],
        [0, 9, 100, 900, 100, 19, 100],
        [0, 0, 20, 0, 30, 0, 0],
    )
    config = QualityControlConfig(
        min_genes=20, max_genes=200, min_counts=20, max_percent_mitochondrial=20
    )
    reasons = Reasons(7)
    drop_cells(reasons, measures, config)
    assert [reasons.texts[code] for code in reasons.codes] == [
        "no counts",
        "fewer than 20 counts",
        "",
        "more than 200 genes",
        "more than 20 % mitochondrial counts",
        "fewer than 20 counts",
        "",
    ]
    assert reasons.kept.tolist() == [False, False, True, False, False, False, True]
    assert reasons.count()["fewer than 20 counts"] == 2
    assert str(reasons).startswith("2: fewer than 20 counts; 1: more than 20 % mito")


@pytest.mark.parametrize(
    ("threshold", "dropped"),
    [
        ({"min_genes": 30}, [20, 29]),
        ({"max_genes": 100}, [101, 250]),
        ({"min_counts": 60}, [20, 29]),
        ({"max_percent_mitochondrial": 10}, [30, 100]),
    ],
)
def test_every_threshold_drops_what_lies_beyond_it_and_not_what_lies_on_it(threshold, dropped):
    n_genes = [20, 29, 30, 100, 101, 250]
    measures = measures_of(n_genes, percent=[0, 10, 10.1, 50, 0, 10])
    reasons = Reasons(6)
    drop_cells(reasons, measures, QualityControlConfig(**{"min_genes": 1} | threshold))
    assert [n for n, kept in zip(n_genes, reasons.kept, strict=True) if not kept] == dropped


def test_cells_without_a_type():
    stored = pd.Series(["T", "T", "T", "B", None, np.nan, " ", "doublet", "B"], dtype="category")
    reasons = Reasons(9)
    drop_unlabelled(reasons, categories(stored, strip=True), "cell_type", ["doublet", "absent"])
    assert [reasons.texts[code] for code in reasons.codes] == [
        "", "", "", "", "no label", "no label", "no label", "label 'doublet'", ""
    ]  # fmt: skip


def test_rare_types_are_dropped_by_the_number_that_is_given():
    labels = pd.Categorical(["T", "T", "B", "B", "NK"])
    reasons = Reasons(5)
    reasons.drop(np.array([True, False, False, False, False]), "no counts")
    drop_rare_types(reasons, labels, np.array([3, 0, 2]), 3, "train cells")
    assert [reasons.texts[code] for code in reasons.codes] == [
        "no counts",
        "type 'T': 2 train cells, fewer than 3",
        "",
        "",
        "type 'NK': 0 train cells, fewer than 3",
    ]


# ------------------------------------------------------------------------ too many of them


def test_a_threshold_that_drops_too_many_is_named_with_the_usual_cell():
    reasons = Reasons(100)
    measures = measures_of([48] * 90 + [300] * 10)
    drop_cells(reasons, measures, QualityControlConfig(min_genes=200))
    reasons.check_share(0.9)
    with pytest.raises(EncodeError) as caught:
        reasons.check_share(0.5)
    assert str(caught.value) == (
        "90 of 100 cells would be dropped, more than quality_control.max_dropped_fraction (0.5) "
        "allows: min_genes 200 drops 90 of 100 cells; the median cell has 48 genes: set "
        "quality_control.min_genes"
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"min_counts": 500}, "min_counts 500 drops 60 of 100 cells; the median cell has 80 c"),
        ({"max_genes": 30}, "max_genes 30 drops 60 of 100 cells; the median cell has 40 genes: "),
        (
            {"max_percent_mitochondrial": 5},
            "max_percent_mitochondrial 5 drops 60 of 100 cells; the median cell has 7.5 %: set",
        ),
    ],
)
def test_every_threshold_says_what_it_drops(settings, told):
    reasons = Reasons(100)
    measures = measures_of([40] * 60 + [20] * 40, [80] * 60 + [600] * 40, [7.5] * 60 + [1] * 40)
    drop_cells(reasons, measures, QualityControlConfig(**{"min_genes": 1} | settings))
    with pytest.raises(EncodeError, match=re.escape(told)):
        reasons.check_share(0.5)


def test_labels_that_drop_too_many_say_so_each_by_itself_the_worst_first():
    labels = pd.Categorical([None] * 30 + ["doublet"] * 45 + ["T"] * 20 + list("abcde"))
    reasons = Reasons(100)
    drop_unlabelled(reasons, labels, "cell_type", ["doublet", "unknown"])
    n_of_type = labels.value_counts(dropna=True).reindex(labels.categories).to_numpy()
    drop_rare_types(reasons, labels, n_of_type, 3, "train cells")
    with pytest.raises(EncodeError) as caught:
        reasons.check_share(0.5)
    said = str(caught.value)
    causes = [
        "80 of 100 cells would be dropped",
        "ignore_labels (doublet, unknown) drops 45 of 100 cells; take out",
        "label_key 'cell_type' without a value drops 30 of 100 cells; name a column",
        "min_cells_per_class 3 drops 5 of 100 cells; 5 of 6 types have fewer train cells",
    ]
    places = [said.index(cause) for cause in causes]
    assert places == sorted(places)
    assert "\n" not in said


def test_half_of_the_cells_is_not_more_than_half():
    reasons = Reasons(4)
    reasons.drop(np.array([True, True, False, False]), "reason", "cause", "advice")
    reasons.check_share(0.5)
    with pytest.raises(EncodeError):
        reasons.check_share(0.49)


def test_many_reasons_are_not_a_page():
    reasons = Reasons(50_000)
    codes = np.arange(50_000)
    reasons.drop_coded(codes, {c: f"type {c}" for c in range(40_000)}, "cause", "advice")
    assert not reasons.kept[39_999]
    assert reasons.kept[40_000]
    assert reasons.texts[reasons.codes[39_999]] == "type 39999"
    assert len(str(reasons)) < 400
    assert "39,988 more reasons" in str(reasons)
