from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import nbinom

from evaluation.annotated_file import AnnotationError
from evaluation.hidden_genes import check_decodes, expected_log, hide


def test_what_is_hidden_is_in_no_size(rng):
    counts, is_shown = rng.poisson(1.0, (7, 9)), rng.random((7, 9)) < 0.7
    cells = hide(csr_matrix(counts), is_shown)
    shown = np.where(is_shown, counts, 0)
    np.testing.assert_array_equal(cells.shown.toarray(), shown)
    np.testing.assert_array_equal(cells.size, shown.sum(axis=1))
    expected = {
        (i, j): np.log1p(counts[i, j] * 10_000 / max(shown[i].sum(), 1))
        for i in range(7)
        for j in range(9)
        if not is_shown[i, j]
    }
    assert list(zip(cells.cell, cells.gene, strict=True)) == list(expected)
    np.testing.assert_allclose(cells.truth, list(expected.values()))
    assert counts[~is_shown].any()
    wanted = np.arange(9) == 4
    some = hide(csr_matrix(counts), is_shown, wanted)
    assert set(some.gene) == {4}
    np.testing.assert_array_equal(some.cell, np.flatnonzero(~is_shown[:, 4]))


@pytest.mark.parametrize("theta", [0.3, 2.0, 50.0])
def test_the_expected_logarithm_is_that_of_scipy(theta):
    mean = np.array([1e-4, 0.1, 1.0, 4.0, 7.9, 8.1, 40.0, 1000.0])
    scale = np.array([20.0, 3.0, 10.0, 0.5, 2.0, 2.0, 5.0, 1.0])
    found = expected_log(mean, np.full(8, theta), scale)
    count = np.arange(60_000)
    p = nbinom.pmf(count, theta, theta / (theta + mean[:, None]))
    expected = (p * np.log1p(scale[:, None] * count)).sum(axis=1)
    np.testing.assert_allclose(found[:6], expected[:6], rtol=1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-2 if theta > 1 else 4e-2)
    assert (found < np.log1p(scale * mean)).all()


def test_a_run_without_a_decoder_is_refused():
    run = SimpleNamespace(path="runs/knn", is_network=False)
    with pytest.raises(AnnotationError, match="runs/knn: has no decoder of counts; train"):
        check_decodes(SimpleNamespace(run=run))
    objective = SimpleNamespace(decodes=True)
    of_two = SimpleNamespace(
        run=SimpleNamespace(path="runs/two", is_network=True),
        learner=SimpleNamespace(objectives=[objective]),
        tokenizer=SimpleNamespace(n_segments=2),
    )
    with pytest.raises(AnnotationError, match="runs/two: reads two time points"):
        check_decodes(of_two)
