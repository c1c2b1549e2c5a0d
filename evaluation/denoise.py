"""How well a network's decoder restores counts that were hidden from it at random.

    python -m evaluation.denoise runs/my_run scores.csv

For a run with an objective that decodes counts (``configs/train/denoise_baron_human.yaml``), on
the cells of its last split: test, or val where the run was trained with ``test: false``. Every
gene of a cell is hidden with the same probability, whether it was detected or not: who hides
detected genes only, as is usual, says of each of them that it is there. The decoder is compared
with the gene's mean, smoothing over neighbors and linear regression, all learned from the train
cells (``evaluation/hidden_baselines.py``). Writes the scores, beside them the correlation of each
gene, ``scores_genes.csv``, and its figure, ``scores.png``.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from configs.user_error import UserError
from dataset.store.encoded_folder import EncodedFolder
from evaluation.annotated_file import AnnotationError
from evaluation.command_line import command_line
from evaluation.hidden_baselines import baselines
from evaluation.hidden_genes import check_decodes, decode, hide
from evaluation.hidden_plot import draw
from evaluation.hidden_scores import DECODER, Judged, judge
from evaluation.trained_model import TrainedModel
from evaluation.trained_on import trained_on

MAX_TRAIN_CELLS = 5000


def denoise(
    run: str | Path,
    *,
    data: str | None = None,
    fraction: float = 0.2,
    max_cells: int = 1000,
    seed: int = 0,
    device: str = "auto",
) -> Judged:
    """Hide genes of cells at random, and judge what is predicted of them.

    Parameters
    ----------
    run
        Folder of a finished run whose objectives decode counts.
    data
        The encoded folder that it was trained on; None: where it was.
    fraction
        Of the genes of a cell that are hidden.
    max_cells
        More cells than this are sampled.
    seed
        Of the sample, of what is hidden, and of the bootstrap.
    device
        As in ``annotate``.

    Raises
    ------
    AnnotationError, EncodedFolderError, RunFolderError
        If the run has no decoder, or its encoded folder is not what it was trained on.
    """
    if not 0 < fraction < 1:
        raise AnnotationError(f"fraction: found {fraction}; expected one between 0 and 1")
    model = TrainedModel(run, device=device, needs_classes=False)
    check_decodes(model)
    folder, rng = trained_on(model.run, data), np.random.default_rng(seed)
    split = folder.split(model.run.splits[-1])
    rows = np.sort(rng.permutation(len(split))[:max_cells])
    n_genes = folder.vocabulary.n_genes

    def hiding(n_cells: int) -> NDArray[np.bool_]:
        return rng.random((n_cells, n_genes), dtype=np.float32) >= fraction

    counts = folder.counts(np.asarray(split.rows)[rows])
    cells = hide(counts, hiding(len(rows)))
    positions = None if split.positions is None else np.asarray(split.positions)[rows]
    cells = cells.told(np.maximum(split.conditions[rows], -1), positions)
    others = baselines(train_counts(folder, rng), hiding, rng)
    predictions = {DECODER: decode(model, cells)}
    predictions |= {name: method(cells) for name, method in others.items()}
    names = np.asarray(folder.vocabulary.gene_ids)
    return judge(cells.cell, cells.gene, cells.truth, predictions, names, seed=seed)


def train_counts(data: EncodedFolder, rng: np.random.Generator) -> csr_matrix:
    """Return raw counts of train cells, ``(n, g)``, a sample where there are very many."""
    rows = np.asarray(data.split("train").rows)
    return data.counts(np.sort(rng.permutation(rows)[:MAX_TRAIN_CELLS]))


def write(found: Judged, output: Path) -> None:
    """Write the scores, the correlations of genes and their figure, and print the scores."""
    found.scores.to_csv(output, index=False)
    found.genes.to_csv(output.with_name(f"{output.stem}_genes.csv"))
    draw(found.genes).savefig(output.with_suffix(".png"), dpi=150)
    print(found.scores.to_string(index=False, na_rep="", float_format="{:.4f}".format))


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, denoise, write table and figure."""
    parser = command_line("evaluation.denoise", __doc__)
    parser.add_argument("output", type=Path, help=".csv to write; the figure is beside it")
    parser.add_argument("--data", help="its encoded folder, where that has moved")
    parser.add_argument("--fraction", type=float, default=0.2, help="of a cell's genes hidden")
    given = parser.parse_args(arguments)
    try:
        write(denoise(given.run, data=given.data, fraction=given.fraction), given.output)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
