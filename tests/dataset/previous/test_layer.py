import numpy as np
import pytest

from dataset.previous.layer import of_layer
from dataset.reading.cells import CellFileError, open_cells


@pytest.fixture
def layered(cells_adata, tmp_path):
    """Write cells whose layer has fractions in every second cell, and open them."""
    values = cells_adata.X.copy().astype(np.float64)
    factor = np.where(np.arange(values.shape[0]) % 2, 1, 1 / 3)
    values.data *= np.repeat(factor, np.diff(values.indptr))
    cells_adata.layers["mean"] = values
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    return open_cells(tmp_path / "cells.h5ad")


def test_counts_stay_and_fractions_are_per_100_000(layered, cells_adata):
    (_, block), *_ = of_layer(layered, "mean").blocks()
    counts = cells_adata.X.toarray()
    np.testing.assert_array_equal(block.toarray()[1::2], counts[1::2])
    scaled = block.toarray()[::2]
    np.testing.assert_allclose(scaled.sum(axis=1), 100_000, rtol=1e-3)
    np.testing.assert_array_equal(scaled > 0, counts[::2] > 0)
    for one, other in zip(scaled, counts[::2], strict=True):
        np.testing.assert_array_equal(
            np.argsort(-one, kind="stable"), np.argsort(-other, kind="stable")
        )


def test_a_share_of_less_than_half_a_count_stays_a_count(cells_adata, tmp_path):
    values = cells_adata.X.copy().astype(np.float64)
    values.data[0] = 1e-6
    cells_adata.layers["mean"] = values
    cells_adata.write_h5ad(tmp_path / "cells.h5ad")
    (_, block), *_ = of_layer(open_cells(tmp_path / "cells.h5ad"), "mean").blocks()
    np.testing.assert_array_equal(block.toarray() > 0, values.toarray() > 0)
    assert block.data[0] == 1


def test_a_layer_that_is_not_there_is_said(layered):
    with pytest.raises(CellFileError, match=r"no layer 'median'; .*layers: mean"):
        of_layer(layered, "median")
