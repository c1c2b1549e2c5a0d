"""The weights that training begins with: fitted on the train cells, or those of another run.

Weights of another run are matched by name and shape; those whose rows are tokens, such as gene
embeddings, row by row through the gene ids, for the two vocabularies may differ. What has no match
keeps its own initial weights.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from configs.base import ConfigError
from dataset.batches import Batch, BatchReader, to_device
from dataset.store.data_facts import DataFacts
from dataset.store.encoded_folder import EncodedFolder
from dataset.vocabulary import N_SPECIALS, Vocabulary
from models.learner import Learner
from models.network import Network, TrainCells
from training.budget import epochs
from training.clock import Clock
from training.config import TrainConfig
from training.runs import Run

logger = logging.getLogger(__name__)


def initialize_from_train_cells(
    network: Network, config: TrainConfig, data: EncodedFolder, clock: Clock
) -> None:
    """Fit on the train cells what starts from them; reading them is not on the clock."""
    cells = data.split("train")

    def read_expression() -> tuple[csr_matrix, np.ndarray]:
        with clock.paused():
            return data.expression("train")

    def read_batch(max_cells: int) -> Batch:
        with clock.paused():
            rows = np.linspace(0, len(cells) - 1, min(max_cells, len(cells))).astype(int)
            return to_device(BatchReader(cells).read(rows), "cpu")

    rng = np.random.default_rng(config.seed)
    with clock.running():
        config.model.start(network, TrainCells(read_expression, read_batch), rng)  # type: ignore[union-attr]
    clock.start_seconds = clock.seconds


def init_from(learner: Learner, path: str | Path, facts: DataFacts) -> dict[str, Any]:
    """Copy the weights of a finished run into a learner, in place.

    Parameters
    ----------
    learner
        Built for ``facts``, not wrapped for several processes.
    path
        The run's folder.
    facts
        Of the data at hand.

    Returns
    -------
    A report: ``path``; ``epochs`` of that run's training; ``copied``, how many of the learner's
    weights have a match; ``n_weights``; ``genes_matched`` and ``n_genes``, of the vocabulary at
    hand; ``not_found`` and ``other_shape``, names of weights that keep their own initial values.

    Raises
    ------
    ConfigError
        If nothing matches, or the run is of no network.
    RunFolderError
        If the folder is no finished run.
    """
    run = Run(path)
    if not run.is_network:
        raise ConfigError(
            f"init_from: {path} is a {run.config.model.kind}; expected the run of a network"
        )
    theirs = run.weights()
    ours = learner.state_dict()
    rows, their_rows = shared_rows(facts.vocabulary, run.facts.vocabulary)
    copied, not_found, other_shape = [], [], []
    with torch.no_grad():
        for name, weight in ours.items():
            if name not in theirs:
                not_found.append(name)
            elif name in learner.by_gene and theirs[name].shape[1:] == tuple(weight.shape[1:]):
                weight[rows] = torch.from_numpy(theirs[name][their_rows])
                copied.append(name)
            elif theirs[name].shape == tuple(weight.shape):
                weight.copy_(torch.from_numpy(theirs[name]))
                copied.append(name)
            else:
                other_shape.append(name)
    if not copied:
        raise ConfigError(
            f"init_from: no weight of {path} ({run.config.model.kind}) fits this network; train "
            "with the model settings of that run"
        )
    report = {
        "path": str(path),
        "epochs": epochs(run),
        "copied": len(copied),
        "n_weights": len(ours),
        "genes_matched": len(rows) - N_SPECIALS,
        "n_genes": facts.vocabulary.n_genes,
        "not_found": not_found,
        "other_shape": other_shape,
    }
    logger.info(
        "init_from %s: %d of %d weights, %d of %d genes; not copied: %s",
        path, len(copied), len(ours), report["genes_matched"], facts.vocabulary.n_genes,
        ", ".join(not_found + other_shape) or "none",
    )  # fmt: skip
    return report


def check_held_out(path: str | Path, data: EncodedFolder) -> None:
    """Refuse weights that have seen cells which are test cells here.

    Cells are told by their names, where both runs are of a file in common.

    Raises
    ------
    ConfigError
        If a test cell of ``data`` is none of the run's own test cells.
    RunFolderError
        If the folder is no finished run.
    """
    run, meta = Run(path), data.meta
    if all(run.metrics[key] == meta[key] for key in ("data_sha256", "split_sha256")):
        return
    files, theirs = ({f["sha256"] for f in m["source"]["files"]} for m in (meta, run.meta))
    if files.isdisjoint(theirs):
        return
    held_out = run.predictions("test").cell_names.tolist() if run.config.test else []
    names = np.asarray(data.split("test").cell_names).tolist()
    if seen := sorted(set(names) - set(held_out)):
        why = "" if run.config.test else "; with test: false it has none"
        raise ConfigError(
            f"init_from: {len(seen):,} of the {len(names):,} test cells of {data.path}, such as "
            f"{seen[0]}, are no test cells of {path}, which may have learned from them{why}; "
            "train that run with the same split of the cells"
        )


def shared_rows(ours: Vocabulary, theirs: Vocabulary) -> tuple[Tensor, np.ndarray]:
    """Return the tokens of both vocabularies, as rows of either: special ones, then genes."""
    row_of = {gene: row for row, gene in enumerate(theirs.gene_ids, start=N_SPECIALS)}
    pairs = [(row, row) for row in range(N_SPECIALS)]
    pairs += [
        (row, row_of[gene])
        for row, gene in enumerate(ours.gene_ids, start=N_SPECIALS)
        if gene in row_of
    ]
    mine, other = np.array(pairs).T
    return torch.from_numpy(mine), other
