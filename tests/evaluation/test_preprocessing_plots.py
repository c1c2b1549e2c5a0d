"""The figures of 01 show what they are given, and cope with what is not known."""

import numpy as np
import pandas as pd
import pytest

from configs.schema import QualityControlConfig
from evaluation import preprocessing_plots as plots


@pytest.fixture
def metrics(rng):
    n = 200
    return pd.DataFrame(
        {
            "n_genes": rng.integers(100, 3000, n),
            "total_counts": rng.integers(500, 9000, n).astype(float),
            "pct_counts_mt": np.full(n, np.nan),  # a file without mitochondrial genes
            "doublet_score": rng.random(n),
        },
        index=[f"cell_{i}" for i in range(n)],
    )


def test_a_violin_for_each_known_measure_and_batch(metrics):
    donors = pd.Series(np.repeat(["a", "b"], 100), metrics.index, name="donor")
    config = QualityControlConfig(min_genes=200, max_genes=2500)
    figure = plots.quality_violins(metrics, config, donors)
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["detected genes", "counts (library size)", "doublet score"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["a", "b"]
    dashed = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert dashed == [200, 2500]


def test_scatter_leaves_out_cells_without_counts(metrics):
    metrics.loc["cell_0", "total_counts"] = 0
    figure = plots.quality_scatter(metrics, QualityControlConfig())
    assert len(figure.axes[0].collections[0].get_offsets()) == len(metrics) - 1


def test_class_counts_are_counted():
    cells = pd.DataFrame({"label": list("aaab"), "split": ["train", "train", "val", "train"]})
    figure = plots.class_counts(cells)
    widths = {c.get_label(): [bar.get_width() for bar in c] for c in figure.axes[0].containers}
    assert widths == {"train": [1, 2], "val": [0, 1], "test": [0, 0]}


def test_token_lengths_draws_every_split():
    lengths = {"train": np.arange(50), "val": np.arange(20), "test": np.arange(10)}
    legend = plots.token_lengths(lengths, 64).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["train", "val", "test"]
