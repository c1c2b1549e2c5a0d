"""Gene embeddings from the training cells: truncated SVD of their standardized log expression.

Genes that rise and fall together start close to each other, so that a small set of cells does not
have to teach the network what expression alone already says.
"""

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from models.baselines.features import (
    EXACT_CELLS,
    axes_of_products,
    log_normalize,
    mean_and_std,
)


def gene_svd(
    counts: sparse.csr_matrix,
    library_size: np.ndarray,
    *,
    n_components: int,
    rng: np.random.Generator,
    max_cells: int = 50_000,
    max_value: float = 10.0,
) -> np.ndarray:
    """Embed genes by their loadings on the leading components of the training cells.

    Parameters
    ----------
    counts
        Raw counts of training cells, ``(n_cells, n_genes)``.
    library_size
        Total counts of each cell, ``(n_cells,)``, over all its genes.
    n_components
        Width of the embedding. Components beyond what the matrix has are 0.
    rng
        Chooses the cells when there are more than ``max_cells``, and the solver's first vector.
    max_cells
        The SVD of a gene correlation structure does not need an atlas.
    max_value
        Standardized values are clipped here, as ``scanpy.pp.scale`` is usually asked to: a gene
        seen in one cell would otherwise be a component of its own.

    Returns
    -------
    Loadings times singular values, ``(n_genes, n_components)``, float32, scaled so that the
    entries have root mean square 1.
    """
    if counts.shape[0] > max_cells:
        rows = np.sort(rng.choice(counts.shape[0], max_cells, replace=False))
        counts, library_size = counts[rows], np.asarray(library_size)[rows]
    expression = log_normalize(counts, library_size)
    n_cells, n_genes = expression.shape
    mean, std = mean_and_std(expression)
    inverse_std = np.divide(1.0, std, out=np.zeros_like(std), where=std > 1e-6)

    # A standardized value is scaled - shift; kept as sparse matrix and row of shifts, never dense.
    shift = mean * inverse_std
    scaled = sparse.csr_matrix(expression @ sparse.diags(inverse_std))
    np.minimum(scaled.data, max_value + shift[scaled.indices], out=scaled.data)
    embedding = np.zeros((n_genes, n_components), dtype=np.float32)
    k = min(n_components, min(n_cells, n_genes) - 1)
    if k < 1 or not scaled.data.any():
        return embedding
    if n_cells <= EXACT_CELLS:
        loadings, singular_values = axes_of_products(scaled.astype(np.float32), shift, k)
    else:
        loadings, singular_values = _lanczos(scaled, shift, k, rng)
    # The sign of a component is arbitrary: fix it, so that the same cells give the same start.
    k = len(singular_values)
    signs = np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(k)])
    embedding[:, :k] = loadings * (signs * singular_values)
    root_mean_square = np.sqrt(np.mean(embedding**2))
    return embedding / root_mean_square if root_mean_square > 0 else embedding


def _lanczos(
    scaled: sparse.csr_matrix, shift: np.ndarray, k: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Find what ``axes_of_products`` does from products with single vectors, of many cells."""
    standardized = LinearOperator(
        shape=scaled.shape,
        dtype=np.float64,
        matvec=lambda v: scaled @ v.ravel() - shift @ v.ravel(),
        rmatvec=lambda u: scaled.T @ u.ravel() - shift * u.sum(),
    )
    start = rng.standard_normal(min(scaled.shape))
    _, singular_values, axes = svds(standardized, k=k, v0=start)
    order = np.argsort(-singular_values)
    return axes[order].T, singular_values[order]
