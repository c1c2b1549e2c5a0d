"""The figures and tables of 04."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from evaluation import annotation_plots as plots
from evaluation.annotate import annotate


@pytest.fixture
def cells():
    return pd.DataFrame(
        {
            "predicted_cell_type": pd.Categorical(list("aab"), categories=list("abc")),
            "confidence": [0.9, 0.4, 0.8],
            "uncertain": [False, True, False],
        }
    )


def test_type_counts_keep_the_uncertain_apart(cells):
    sure, uncertain = plots.type_counts(cells).axes[0].containers[:2]
    assert [bar.get_width() for bar in sure] == [1, 1]
    assert [bar.get_width() for bar in uncertain] == [0, 1]


def test_confidence_histogram_counts_every_cell(cells):
    axis = plots.confidence_histogram(cells, 0.5).axes[0]
    assert sum(patch.get_height() for patch in axis.patches) == len(cells)
    assert axis.lines[0].get_xdata()[0] == 0.5


def test_rare_types_are_left_out(cells):
    kept = plots.without_rare_types(
        ad.AnnData(np.ones((3, 2)), obs=cells.set_index(pd.Index(["x", "y", "z"]))),
        "predicted_cell_type",
        fewest=2,
    )
    assert list(kept.obs_names) == ["x", "y"]
    assert list(kept.obs["predicted_cell_type"].cat.categories) == ["a"]


def test_runner_up_is_the_second_best(network_run, synthetic_h5ad, tmp_path):
    found = annotate(network_run, synthetic_h5ad, tmp_path / "annotated.h5ad")
    second = plots.runner_up(found)
    assert (second["its_probability"] <= found.cells["confidence"]).all()
    assert (second["runner_up"] != found.cells["predicted_cell_type"].astype(str)).all()
