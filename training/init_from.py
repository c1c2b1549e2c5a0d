"""The weights that training begins with: fitted on the train cells, or those of another run.

Weights of another run are matched by name and shape; those whose rows belong to genes, classes or
conditions, such as donors, row by row by these names, for the two runs' may differ. What has no
match keeps its own initial weights.
"""

import logging
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from configs.base import ConfigError
from dataset.batches import Batch, BatchReader, to_device
from dataset.store.data_facts import DataFacts
from dataset.store.encoded_folder import EncodedFolder
from models.learner import Learner
from models.network import Network, NetworkConfig, TrainCells
from models.objectives.base import Objective
from training.budget import epochs, seconds
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
    A report: ``path``; ``model_sha256``, the same for all seeds of that run's model; ``epochs``
    and ``seconds`` of its training; ``copied``, how many of the learner's weights have a match, of
    some rows at least; ``n_weights``; ``genes_matched`` and
    ``n_genes``, of the vocabulary at hand; ``not_found`` and ``other_shape``, names of weights
    that keep their own initial values.

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
    names = row_names(learner, learner.config, learner.objectives, facts)
    model = cast(NetworkConfig, run.config.model)
    their_names = row_names(learner, model, run.config.objectives, run.facts)
    copied: list[str] = []
    not_found: list[str] = []
    other_shape: list[str] = []
    with torch.no_grad():
        for name, weight in ours.items():
            if name not in theirs:
                not_found.append(name)
            elif name in names and theirs[name].shape[1:] == tuple(weight.shape[1:]):
                n_unnamed = len(weight) - len(names[name])
                rows, their_rows = shared_rows(names[name], their_names[name], n_unnamed)
                weight[rows] = torch.from_numpy(theirs[name][their_rows])
                (copied if len(rows) else not_found).append(name)
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
    genes = facts.vocabulary.gene_ids
    report = {
        "path": str(path),
        "model_sha256": sha256(run.model_key().encode()).hexdigest(),
        "epochs": epochs(run),
        "seconds": seconds(run.metrics),
        "copied": len(copied),
        "n_weights": len(ours),
        "genes_matched": len(set(genes) & set(run.facts.vocabulary.gene_ids)),
        "n_genes": len(genes),
        "not_found": not_found,
        "other_shape": other_shape,
    }
    logger.info(
        "init_from %s: %d of %d weights, %d of %d genes; not copied: %s",
        path, len(copied), len(ours), report["genes_matched"], len(genes),
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


def row_names(
    learner: Learner, model: NetworkConfig, objectives: Iterable[Objective], facts: DataFacts
) -> dict[str, Sequence[str]]:
    """Return, by weight of a learner so built, what its last rows are called, where they are."""
    genes: Sequence[str] = facts.vocabulary.gene_ids
    found = dict.fromkeys(learner.gene_embeddings, genes)
    found |= {f"network.{name}": names for name, names in model.row_names(facts).items()}
    for o in objectives:
        found |= {f"heads.{o.kind}.{name}": names for name, names in o.row_names(facts).items()}
    return found


def shared_rows(
    ours: Sequence[str], theirs: Sequence[str], n_unnamed: int
) -> tuple[Tensor, np.ndarray]:
    """Return the rows of a name that both have, as rows of either, after the first ``n_unnamed``.

    Those, such as the special tokens, are in both.
    """
    row_of = {name: row for row, name in enumerate(theirs, start=n_unnamed)}
    pairs = [(row, row) for row in range(n_unnamed)]
    pairs += [
        (row, row_of[name]) for row, name in enumerate(ours, start=n_unnamed) if name in row_of
    ]
    mine, other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return torch.from_numpy(mine), other
