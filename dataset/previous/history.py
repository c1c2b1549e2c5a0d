"""The profile of a cell at the time point before, from the cells sampled there.

For each pair of neighboring time points the train cells of the later one are matched with those
of the earlier one by entropic optimal transport in principal components of log expression. What is
kept of it is one potential for each earlier cell; with these any cell, new ones included, has its
ancestors: earlier cell ``j`` with weight proportional to ``exp(potential_j - distance / epsilon)``
(the entropic map; Waddington-OT, Schiebinger et al. 2019, is the idea in biology). The previous
profile is the sum of the raw counts of the most probable ancestors. It depends on the cell itself
and on train cells only, never on labels.

Differences from Waddington-OT: no growth rates, balanced transport, and a bounded number of train
cells a time point (a seeded sample) so that memory does not grow with the data.
"""

import json
import re
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from dataset.compiled import compiled
from dataset.log_expression import log_expression
from dataset.previous.config import PreviousConfig
from dataset.store.csr_file import CsrFile, CsrWriter, Rows
from dataset.store.expression import Expression
from dataset.store.layout import OF_HISTORY

MAX_ITERATIONS = 300


@dataclass(frozen=True)
class History:
    """Gives a cell its previous profile; ``a`` ancestors, ``k`` components, ``p`` times.

    Ancestors lie sorted by time point; those of time point ``i`` are
    ``first_ancestor[i]`` to ``first_ancestor[i + 1]``.
    """

    time_points: list[str]  # (p,), in order
    n_ancestors: int
    loadings: NDArray[np.float64]  # (g, k), of the principal components
    center: NDArray[np.float64]  # (k,), the train cells' mean in components
    first_ancestor: NDArray[np.int64]  # (p + 1,)
    epsilon: NDArray[np.float64]  # (p,), entropy of the transport from this time point on
    embedding: NDArray[np.float64]  # (a, k)
    potential: NDArray[np.float64]  # (a,)
    library: NDArray[np.float64]  # (a,), library sizes over all genes
    counts: csr_matrix  # (a, g), raw counts

    def profiles(
        self, counts: csr_matrix, library_size: NDArray, time: NDArray[np.str_] | pd.Series
    ) -> tuple[csr_matrix, NDArray[np.float64]]:
        """Give cells their previous profiles.

        Parameters
        ----------
        counts
            Raw counts, ``(n_cells, g)``, columns in vocabulary order.
        library_size
            Counts of each cell over all genes, ``(n_cells,)``.
        time
            Time point of each cell, as in the preprocessed data.

        Returns
        -------
        Previous counts, ``(n_cells, g)``, and their library sizes; nothing and 0 at the first
        time point.
        """
        numbers = self._time_numbers(time)
        found = _find_ancestors(
            self._embed(counts, library_size),
            self._source(numbers),
            self.first_ancestor,
            self.epsilon,
            self.embedding,
            self.potential,
            self.n_ancestors,
        )
        rows, columns = np.nonzero(found >= 0)
        ancestors = found[rows, columns]
        shape = (counts.shape[0], self.counts.shape[0])
        chosen = csr_matrix((np.ones(len(rows), np.int32), (rows, ancestors)), shape=shape)
        previous = chosen @ self.counts
        previous.sort_indices()
        return previous, chosen @ self.library

    def largest_count(self) -> int:
        """Return a count that no previous profile exceeds."""
        return self.n_ancestors * int(self.counts.data.max(initial=0))

    def save(self, folder: Path) -> None:
        """Write the folder that ``load`` reads."""
        folder.mkdir(parents=True)
        with CsrWriter(folder / "ancestors", self.counts.shape[1]) as writer:
            writer.append(Rows.from_csr(self.counts))
        for name in OF_HISTORY:
            np.save(folder / f"{name}.npy", getattr(self, name))
        facts = {"time_points": self.time_points, "n_ancestors": self.n_ancestors}
        (folder / "history.json").write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "History":
        """Read what ``save`` wrote.

        Raises
        ------
        ValueError
            If the folder is not whole.
        """
        try:
            facts = json.loads((folder / "history.json").read_text(encoding="utf-8"))
            arrays = {n: np.load(folder / f"{n}.npy", allow_pickle=False) for n in OF_HISTORY}
            matrix = CsrFile(folder / "ancestors")
            rows = matrix.rows(0, len(matrix))
            return cls(
                **facts, **arrays, counts=rows.to_csr(len(arrays["loadings"]), dtype=np.int32)
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder}: is not a whole history ({error})") from None

    def _time_numbers(self, time: NDArray[np.str_] | pd.Series) -> NDArray[np.int64]:
        number_of = {name: i for i, name in enumerate(self.time_points)}
        names = time_names(time)
        if unknown := sorted(set(names) - set(number_of)):
            raise ValueError(
                f"time points {', '.join(unknown)} are not known; expected one of "
                f"{', '.join(self.time_points)}"
            )
        return np.array([number_of[name] for name in names], dtype=np.int64)

    def _source(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the nearest earlier time point that has ancestors, -1 where there is none."""
        source = np.full(len(self.time_points), -1)
        n_ancestors = np.diff(self.first_ancestor)
        for i in range(1, len(source)):
            source[i] = i - 1 if n_ancestors[i - 1] else source[i - 1]
        return source[numbers]

    def _embed(self, counts: csr_matrix, library_size: NDArray) -> NDArray[np.float64]:
        return log_expression(counts, library_size) @ self.loadings - self.center


def fit_history(
    expression: Expression,
    time: NDArray[np.str_],
    train_rows: NDArray[np.int64],
    time_points: list[str],
    config: PreviousConfig,
    n_genes: int,
) -> tuple[History, list[str]]:
    """Fit components and transport on the train cells.

    Parameters
    ----------
    expression, time
        Counts on disk, and time points, of all cells.
    train_rows
        The cells to fit on.
    time_points
        In order.
    config
        Ancestors, components, entropy, largest sample.
    n_genes
        Genes in the vocabulary.

    Returns
    -------
    The fitted history, and messages.
    """
    import ot  # here because it pulls in torch where that is installed

    rng = np.random.default_rng([config.seed, 1])
    messages, chosen = [], []
    for name in time_points:
        rows = train_rows[time[train_rows] == name]
        if len(rows) > config.max_cells:
            messages.append(
                f"history: {config.max_cells:,} of {len(rows):,} train cells of time {name} are "
                "candidates for ancestors"
            )
            rows = np.sort(rng.choice(rows, config.max_cells, replace=False))
        if not len(rows):
            messages.append(
                f"history: no train cells at time {name}: cells of the next time point take "
                "ancestors from an earlier one"
            )
        chosen.append(rows)
    ancestors = np.concatenate(chosen)
    first = np.concatenate([[0], np.cumsum([len(rows) for rows in chosen])]).astype(np.int64)
    counts = expression.take(ancestors).to_csr(n_genes, dtype=np.int32)
    library = expression.library_size[ancestors]

    values = log_expression(counts, library)
    n_components = min(config.n_components, min(values.shape) - 1)
    if n_components < 1:
        raise ValueError(f"history: {len(ancestors)} train cells are too few for a component")
    pca = PCA(n_components, svd_solver="arpack", random_state=config.seed).fit(values)
    loadings = pca.components_.T.astype(np.float64)
    center = pca.mean_ @ loadings
    embedding = values @ loadings - center

    epsilon, potential = np.ones(len(time_points)), np.zeros(len(ancestors))
    filled = [i for i in range(len(time_points)) if len(chosen[i])]
    for earlier, later in zip(filled[:-1], filled[1:], strict=True):
        source = slice(first[earlier], first[earlier + 1])
        target = slice(first[later], first[later + 1])
        cost = cdist(embedding[target], embedding[source], "sqeuclidean")
        scale = float(np.median(cost))
        epsilon[earlier] = config.regularization * scale if scale > 0 else 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of not converging: said below, in our words
            _, log = ot.sinkhorn(
                [], [], cost, epsilon[earlier], method="sinkhorn_log",
                numItermax=MAX_ITERATIONS, stopThr=1e-7, log=True,
            )  # fmt: skip
        potential[source] = log["log_v"]
        if log["err"][-1] > 1e-3:
            messages.append(
                f"history: transport {time_points[earlier]} -> {time_points[later]} has not "
                f"converged (error {log['err'][-1]:.1e}); a larger regularization would"
            )
    return History(
        time_points, config.n_ancestors, loadings, center, first, epsilon, embedding, potential,
        library, counts,
    ), messages  # fmt: skip


def time_names(time: NDArray | pd.Series) -> NDArray[np.str_]:
    """Write time points as text; a number the same whether it came as 10, 10.0 or "10"."""
    return np.array([_plain(str(name)) for name in np.asarray(time)], dtype=str)


def _plain(name: str) -> str:
    return name[:-2] if re.fullmatch(r"-?\d+\.0", name) else name


def order_time_points(time: pd.Series) -> list[str]:
    """Put the values of a time column in order, as text.

    An ordered categorical keeps its order and numbers go by size. Text goes by what stands before
    its first number and then by that number: ``day 2`` before ``day 10``, ``390-450`` before
    ``> 650``, ``E8.5`` before ``E10.5``.
    """
    present = time.dropna()
    if isinstance(time.dtype, pd.CategoricalDtype) and time.dtype.ordered:
        known = [_plain(str(name)) for name in time.cat.categories if (present == name).any()]
        return list(dict.fromkeys(known))
    return sorted(set(time_names(present).tolist()), key=_time_key)


def _time_key(name: str) -> tuple:
    found = re.search(r"\d+(\.\d+)?([eE][+-]?\d+)?", name)
    if not found:
        return (name.lower(), 0.0, 0, name)
    before, number = name[: found.start()].strip(), float(found.group())
    if before.endswith("-") and not before.rstrip("-"):  # a negative number
        before, number = "", -number
    sign = {"<": -1, ">": 1}.get(before[-1:], 0)
    return (before.rstrip("<>=≤≥ ").lower(), number, sign, name)


def shuffled_within(groups: NDArray, seed: int) -> NDArray[np.int64]:
    """Permute within groups of equal value: ``(n,)``, the index each one's history is from.

    A control: every cell gets the history of another one of its group (a group of one keeps its
    own).
    """
    index = np.arange(len(groups))
    for group in np.unique(groups):
        # By the group's name: which other groups there are, or how large, changes nothing in it.
        rng = np.random.default_rng([seed, 2, zlib.crc32(str(group).encode())])
        members = np.flatnonzero(groups == group)
        ring = rng.permutation(members)
        index[ring] = np.roll(ring, 1)
    return index


@compiled
def _find_ancestors(cells, source, first, epsilon, embedding, potential, n_ancestors):
    """Return each cell's most probable ancestors, most probable first, -1 where there are less.

    Plain loops: a cell's sums do not depend on the other cells, as those of a BLAS call may.
    """
    found = np.full((len(cells), n_ancestors), -1, np.int64)
    scores = np.empty(n_ancestors)
    for cell in range(len(cells)):
        if source[cell] < 0:
            continue
        n_found = 0
        for j in range(first[source[cell]], first[source[cell] + 1]):
            distance = 0.0
            for k in range(cells.shape[1]):
                step = cells[cell, k] - embedding[j, k]
                distance += step * step
            score = potential[j] - distance / epsilon[source[cell]]
            if n_found == n_ancestors and score <= scores[n_ancestors - 1]:
                continue
            at = min(n_found, n_ancestors - 1)
            while at > 0 and scores[at - 1] < score:
                scores[at] = scores[at - 1]
                found[cell, at] = found[cell, at - 1]
                at -= 1
            scores[at] = score
            found[cell, at] = j
            n_found = min(n_found + 1, n_ancestors)
    return found
