import numpy as np
import pytest
from scipy.sparse import csr_matrix

from models.gene_svd import gene_svd


@pytest.fixture
def cells(rng: np.random.Generator) -> tuple[csr_matrix, np.ndarray]:
    programmes = rng.gamma(0.3, 1.0, (4, 60))
    counts = rng.poisson(rng.dirichlet(np.ones(4), 80) @ programmes * 5)
    counts[:, 7] = 0  # a gene no cell of this draw has
    return csr_matrix(counts), np.maximum(counts.sum(axis=1), 1).astype(np.float64)


@pytest.fixture(params=["few cells", "many cells"])
def solver(request, monkeypatch):
    """Of few cells all products with each other are taken, of many those with single vectors."""
    monkeypatch.setattr("models.gene_svd.EXACT_CELLS", 2000 if request.param == "few cells" else 0)


@pytest.mark.usefixtures("solver")
def test_equals_a_dense_svd_of_standardized_log_expression(cells):
    counts, library_size = cells
    expression = np.log1p(counts.toarray() / library_size[:, None] * 1e4)
    std = expression.std(axis=0)
    standardized = (expression - expression.mean(axis=0)) / np.where(std > 0, std, 1)
    _, singular_values, loadings = np.linalg.svd(standardized, full_matrices=False)
    expected = (loadings[:5] * singular_values[:5, None]).T

    genes = gene_svd(
        counts, library_size, n_components=5, rng=np.random.default_rng(0), max_value=1e9
    )
    expected *= np.sqrt(np.mean(genes**2)) / np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(np.abs(genes), np.abs(expected), atol=1e-4)
    assert np.sqrt(np.mean(genes**2)) == pytest.approx(1, rel=1e-4)


@pytest.mark.usefixtures("solver")
def test_clipping_equals_clipping_the_dense_values(cells):
    counts, library_size = cells
    expression = np.log1p(counts.toarray() / library_size[:, None] * 1e4)
    std = expression.std(axis=0)
    standardized = (expression - expression.mean(axis=0)) / np.where(std > 0, std, 1)
    _, values, loadings = np.linalg.svd(np.minimum(standardized, 1.5), full_matrices=False)
    expected = (loadings[:3] * values[:3, None]).T
    genes = gene_svd(
        counts, library_size, n_components=3, rng=np.random.default_rng(0), max_value=1.5
    )
    expected /= np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(np.abs(genes), np.abs(expected), atol=1e-4)


@pytest.mark.usefixtures("solver")
def test_depth_of_a_cell_does_not_matter_and_the_seed_hardly(cells):
    counts, library_size = cells
    one = gene_svd(counts, library_size, n_components=4, rng=np.random.default_rng(0))
    two = gene_svd(3 * counts, 3 * library_size, n_components=4, rng=np.random.default_rng(9))
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.usefixtures("solver")
def test_more_components_than_the_matrix_has_are_zero(cells):
    counts, library_size = cells
    genes = gene_svd(counts[:10], library_size[:10], n_components=64, rng=np.random.default_rng(0))
    assert genes.shape == (60, 64)
    assert np.isfinite(genes).all()
    assert not genes[:, 9:].any()


@pytest.mark.usefixtures("solver")
def test_a_draw_of_the_cells_is_enough_for_many(cells):
    counts, library_size = cells
    genes = gene_svd(
        counts, library_size, n_components=2, rng=np.random.default_rng(0), max_cells=40
    )
    assert np.isfinite(genes).all()
