"""How well a network's decoder imputes genes that cells of another kind were not measured in.

    python -m evaluation.impute runs/my_run spatial.h5ad scores.csv

For a run with an objective that decodes counts, trained on dissociated cells in which all genes
are measured, and cells such as those of a tissue, of which a panel of genes was counted. The genes
that both have are split into folds; each fold is hidden of all cells of the query, and predicted
from the other folds, so that the truth is known. Nobody learns from the query. The decoder is
compared with the gene's mean over the train cells, its mean over the most similar ones, as SpaGE
(Abdelaal et al. 2020), and ridge regression, which are learned from the train cells with the same
genes shown (``evaluation/hidden_baselines.py``). Where the train cells have many more genes than
the panel, train with ``measured_genes`` of the objective: a network that was never shown so few
genes has no chance. Writes the scores, beside them the correlation of each gene,
``scores_genes.csv``, and its figure, ``scores.png``.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.user_error import UserError
from dataset.reading.cells import open_cells
from evaluation.annotated_file import AnnotationError
from evaluation.command_line import command_line
from evaluation.denoise import train_counts, write
from evaluation.hidden_baselines import baselines
from evaluation.hidden_genes import check_decodes, decode, hide
from evaluation.hidden_scores import DECODER, Judged, judge
from evaluation.query_cells import QueryGenes, read_obs, take
from evaluation.trained_model import TrainedModel
from evaluation.trained_on import trained_on


def impute(
    run: str | Path,
    query: str | Path,
    *,
    data: str | None = None,
    folds: int = 5,
    max_cells: int = 1000,
    counts: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> Judged:
    """Hide genes of all cells of a file, and judge what is predicted of them.

    Parameters
    ----------
    run
        Folder of a finished run whose objectives decode counts.
    query
        ``.h5ad`` file of cells.
    data
        The encoded folder that the run was trained on; None: where it was.
    folds
        Of the genes that run and query share; each is hidden once.
    max_cells
        More cells than this are sampled.
    counts, device
        As in ``annotate``.
    seed
        Of the sample, the folds and the bootstrap.

    Raises
    ------
    AnnotationError, CellFileError, EncodedFolderError, RunFolderError
        If the run has no decoder, its encoded folder is not what it was trained on, or the query
        has too few of its genes.
    """
    model = TrainedModel(run, device=device, needs_classes=False)
    check_decodes(model)
    cells, rng = open_cells(query, counts=counts), np.random.default_rng(seed)
    aligned = QueryGenes(model, cells, 0.0)
    columns = aligned.match.columns
    shared = np.unique(columns[columns >= 0])
    if not 2 <= folds <= len(shared) // 2:
        raise AnnotationError(
            f"folds: found {folds}, of {len(shared):,} genes that {query} shares with "
            f"{model.run.path}; expected from 2 to half as many as genes"
        )
    folder, obs = trained_on(model.run, data), read_obs(model, cells, [])
    rows = np.sort(rng.permutation(cells.n_cells)[:max_cells])
    profile, _ = take(cells, aligned, rows)
    positions = None if obs.positions is None else obs.positions[rows]
    train, n_genes = train_counts(folder, rng), folder.vocabulary.n_genes
    parts, predicted = [], []
    for fold in np.array_split(rng.permutation(shared), folds):
        shown, wanted = (np.isin(np.arange(n_genes), g) for g in (shared, fold))
        shown &= ~wanted

        def hiding(n_cells: int, shown: NDArray[np.bool_] = shown) -> NDArray[np.bool_]:
            return np.broadcast_to(shown, (n_cells, n_genes))

        part = hide(profile, hiding(len(rows)), wanted).told(obs.conditions[rows], positions)
        others = baselines(train, hiding, rng, wanted)
        found = {name: method(part) for name, method in others.items()}
        predicted.append({DECODER: decode(model, part)} | found)
        parts.append(part)
    cell, gene, truth = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("cell", "gene", "truth")
    )
    predictions = {name: np.concatenate([p[name] for p in predicted]) for name in predicted[0]}
    names = np.asarray(folder.vocabulary.gene_ids)
    return judge(cell, gene, truth, predictions, names, seed=seed)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, impute, write table and figure."""
    parser = command_line("evaluation.impute", __doc__)
    parser.add_argument("query", help=".h5ad of cells")
    parser.add_argument("output", type=Path, help=".csv to write; the figure is beside it")
    parser.add_argument("--data", help="the run's encoded folder, where that has moved")
    parser.add_argument("--folds", type=int, default=5, help="of the shared genes")
    given = parser.parse_args(arguments)
    try:
        found = impute(given.run, given.query, data=given.data, folds=given.folds)
        write(found, given.output)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
