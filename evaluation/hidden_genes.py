"""Cells of which some genes are hidden, and what the decoder of a network says of those genes.

What denoising (``evaluation/denoise.py``) and imputation (``evaluation/impute.py``) are judged on.
Expression is log1p of counts per 10,000 counts of the genes that are shown, of the truth as of
what is predicted: nobody is told how many counts were hidden. Of a decoder's negative binomial for
a gene's count the expected log expression is taken, as baselines are means of log expression too:
the logarithm of the mean count would be larger. The genes that are hidden are in no token: a
network that reads tokens was trained with ``<mask>`` in their place, and does worse here.

Legend: ``n`` cells, ``g`` genes of the vocabulary, ``m`` genes of cells that are to be predicted.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import gammaincinv, logsumexp

from dataset.batches import BatchReader, BatchRows, to_device
from dataset.log_expression import TARGET_SUM
from evaluation.annotated_file import AnnotationError
from evaluation.trained_model import TrainedModel
from training.updates import cut_to_budget, samples_of

MAX_COUNT = 256  # below it the expectation is summed count by count
N_QUANTILES = 64
AT_ONCE = 2**16  # hidden genes of cells whose expectations are summed


@dataclass(frozen=True)
class HiddenGenes:
    """Cells with some of their genes hidden."""

    shown: csr_matrix  # (n, g), raw counts, without those of hidden genes
    size: NDArray[np.float64]  # (n,), their sums
    is_shown: NDArray[np.bool_]  # (n, g)
    cell: NDArray[np.int64]  # (m,), of each gene that is to be predicted, ascending
    gene: NDArray[np.int64]  # (m,)
    truth: NDArray[np.float64]  # (m,), log expression
    conditions: NDArray[np.int64] | None = None  # (n, k), codes known to the run; None: unknown
    positions: NDArray[np.float32] | None = None  # (n, 2)

    def __len__(self) -> int:
        return self.shown.shape[0]

    def told(
        self, conditions: NDArray[np.int64] | None, positions: NDArray[np.float32] | None
    ) -> "HiddenGenes":
        """Return the cells with what else a network is told of them."""
        return replace(self, conditions=conditions, positions=positions)


def hide(
    counts: csr_matrix, is_shown: NDArray[np.bool_], wanted: NDArray[np.bool_] | None = None
) -> HiddenGenes:
    """Hide genes of cells.

    Parameters
    ----------
    counts
        Raw counts, ``(n, g)``.
    is_shown
        Which genes of each cell stay, ``(n, g)``; a gene without counts may be hidden as well.
    wanted
        Which of the hidden genes are to be predicted, ``(g,)``; None: all.
    """
    shown = counts_shown(counts, is_shown)
    size = np.asarray(shown.sum(axis=1), dtype=np.float64).ravel()
    asked = ~is_shown if wanted is None else ~is_shown & wanted
    cell, gene = np.nonzero(asked)
    hidden = np.asarray(counts[cell, gene], dtype=np.float64).ravel()
    truth = np.log1p(hidden * (TARGET_SUM / np.maximum(size, 1))[cell])
    return HiddenGenes(shown, size, is_shown, cell, gene, truth)


def counts_shown(counts: csr_matrix, is_shown: NDArray[np.bool_]) -> csr_matrix:
    """Return the counts of the genes that are shown; both ``(n, g)``."""
    cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    shown = counts.copy()
    shown.data = np.where(is_shown[cell, counts.indices], counts.data, 0)
    shown.eliminate_zeros()
    return shown


def check_decodes(model: TrainedModel) -> None:
    """Raise an AnnotationError if the model's run has no objective that decodes counts."""
    if not (model.run.is_network and any(o.decodes for o in model.learner.objectives)):
        raise AnnotationError(
            f"{model.run.path}: has no decoder of counts; train a network with the objective "
            "of configs/train/denoise_baron_human.yaml"
        )
    if model.tokenizer.n_segments != 1:
        raise AnnotationError(
            f"{model.run.path}: reads two time points, of which genes are not hidden together; "
            "expected a network of one"
        )


@torch.no_grad()
def decode(
    model: TrainedModel, cells: HiddenGenes, *, batch_size: int = 64
) -> NDArray[np.float64]:
    """Return the log expression that a run's decoder expects of the hidden genes, ``(m,)``.

    Parameters
    ----------
    model
        That ``check_decodes`` lets pass.
    cells
        The network sees what is shown of them.
    batch_size
        Cells computed at a time, or as many whole sets as have about so many.
    """
    encoded = model.encode(
        [(csr_matrix(cells.shown, dtype=np.int32), cells.size)], cells.conditions, cells.positions
    )
    learner, reader, mean = model.learner, BatchReader(encoded), np.empty(len(cells.cell))
    size = np.maximum(cells.size, 1)
    objective = next(o for o in learner.objectives if o.decodes)
    samples = samples_of(learner, encoded)
    order: BatchRows = np.arange(len(cells)) if samples is None else samples.sets()
    starts = np.searchsorted(cells.cell, np.arange(len(cells) + 1))
    for rows in cut_to_budget(order, np.ones(len(cells), dtype=np.int64), batch_size):
        batch = to_device(reader.read(rows), model.device)
        decoded = objective.decode(learner.network(batch), learner.heads[objective.kind], batch)
        index = batch["cell_index"].cpu().numpy()
        for log_share, i in zip(decoded.log_share.double().cpu().numpy(), index, strict=True):
            asked = slice(starts[i], starts[i + 1])
            of_shown = logsumexp(log_share[cells.is_shown[i]])
            mean[asked] = size[i] * np.exp(log_share[cells.gene[asked]] - of_shown)
    theta = decoded.log_theta.double().exp().cpu().numpy()
    each = mean, theta[cells.gene], (TARGET_SUM / size)[cells.cell]
    parts = zip(*(np.array_split(x, -(-len(mean) // AT_ONCE) or 1) for x in each), strict=True)
    return np.concatenate([expected_log(*part) for part in parts])


def expected_log(
    mean: NDArray[np.float64], theta: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean of ``log1p(scale * count)`` under negative binomials, ``(m,)``.

    Summed up to ``MAX_COUNT`` where the mean is at most an eighth of it, what lies beyond at that
    count. Larger counts are taken for their rates, at quantiles of the gamma distribution that
    rates have.

    Parameters
    ----------
    mean, theta
        Of the negative binomials, the latter their inverse dispersion, ``(m,)``.
    scale
        Expression of one count, ``(m,)``.
    """
    p = np.exp(-theta * np.log1p(mean / theta))  # of no count
    ratio, seen, total = mean / (theta + mean), p.copy(), np.zeros_like(mean)
    for count in range(1, MAX_COUNT):
        p = p * ratio * ((count - 1 + theta) / count)
        total += p * np.log1p(scale * count)
        seen += p
    total += np.maximum(1 - seen, 0) * np.log1p(scale * MAX_COUNT)
    (large,) = np.nonzero(mean > MAX_COUNT / 8)
    quantiles = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    rate = (mean / theta)[large, None] * gammaincinv(theta[large, None], quantiles)
    total[large] = np.log1p(scale[large, None] * rate).mean(axis=1)
    return total
