"""In-silico perturbation: delete or overexpress genes in cells and see what a network makes of it.

    python -m evaluation.perturb runs/my_run cells.h5ad shifts.csv --genes PDX1 INS INS+IAPP \
        --cells "cell_type=type B pancreatic cell" --goal "cell_type=pancreatic A cell"

Writes a table and, beside it, its figure. Geneformer's analysis (Theodoris et al. 2023, Methods):
the embeddings of the genes that remain are compared with those in the cell as it was, and a cell's
mean over them with the mean of cells in a goal state. Deliberate differences: counts are perturbed
and encoded anew, so that it works for every tokenizer and for what reads the counts behind the
tokens; a deleted gene's count is 0, an overexpressed one's just enough to rank first; library
sizes stay, so that other genes keep their expression. The null are random genes that are detected
as often and rank as high in the same cells, as many as are perturbed, and not all genes; those of
the other perturbations may be among them.

Legend: ``n`` cells, ``m`` genes of them that the network reads, ``c`` classes, ``d`` width.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from configs.user_error import UserError
from dataset.nearest_names import nearest
from dataset.reading.cells import Cells
from dataset.vocabulary import Vocabulary
from evaluation.annotated_file import AnnotationError
from evaluation.matched_genes import detection_and_rank, matched_random, medians_of
from evaluation.perturbation_plot import draw
from evaluation.query_cells import Profile
from evaluation.token_query import TokenQuery
from evaluation.token_states import token_states
from evaluation.trained_model import TrainedModel
from models.objectives.base import mean_of_cells

Mode = Literal["delete", "overexpress"]
STATISTICS = ("gene_shift", "class_shift", "goal_shift")
FDR = 0.05  # below which the figure says that a perturbation shifts more than random ones


@dataclass(frozen=True)
class Perturbation:
    """The result of ``perturb``.

    Attributes
    ----------
    table
        One row a perturbation. ``n_cells`` that it changed, over which the others are means;
        ``gene_shift``, 1 - cosine between the remaining genes' embeddings before and after;
        ``class_shift``, half the sum of absolute changes of the class probabilities (0 to 1);
        ``goal_shift``, cosine of the cell's mean over the remaining genes to the goal's centroid,
        after minus before. ``<statistic>_p``: share of matched random perturbations that shift as
        much; ``<statistic>_fdr``: over all perturbations (Benjamini & Hochberg 1995).
    classes
        Mean change of each class's probability, one row a perturbation; empty without classes.
    null
        The statistics of the matched random perturbations, indexed by the one they are matched to.
    messages
        What keeps the table from saying more.
    """

    table: pd.DataFrame
    classes: pd.DataFrame
    null: pd.DataFrame
    messages: list[str]


class State(NamedTuple):
    """Cells as a network sees them."""

    key: Tensor  # (m,), cell * n_genes + gene, ascending
    states: Tensor  # (m, d), of the genes
    probabilities: NDArray[np.float64] | None  # (n, c), calibrated
    conditions: NDArray[np.int64] | None  # (n, k), that the network was told; None: all unknown


def perturb(
    query: TokenQuery,
    perturbations: Sequence[str | Sequence[str]],
    *,
    mode: Mode = "delete",
    cells: tuple[str, str] | None = None,
    goal: tuple[str, str] | None = None,
    max_cells: int = 100,
    n_null: int = 200,
    seed: int = 0,
) -> Perturbation:
    """Perturb genes in cells of a file, and as many random ones for comparison.

    Parameters
    ----------
    query
        The run, and the file of cells; of a pretraining there are no class shifts.
    perturbations
        Each a gene, by id or symbol, or several that are perturbed together.
    mode
        ``delete`` or ``overexpress``.
    cells, goal
        obs column and value of the cells that are perturbed (None: all), and of those that are in
        the goal state (None: no ``goal_shift``).
    max_cells
        More cells than this, of either, are sampled.
    n_null
        Matched random perturbations of each, fewer where the network reads fewer genes; the
        smallest p is ``1 / (n_null + 1)``.
    seed
        Of the samples and of the random genes.

    Raises
    ------
    AnnotationError, CellFileError
        If a gene or a state is not known, or too few genes are there to compare with.
    """
    if mode not in get_args(Mode):
        raise AnnotationError(f"mode: found {mode!r}; expected one of {', '.join(get_args(Mode))}")
    if min(max_cells, n_null) < 1:
        raise AnnotationError(
            f"max_cells, n_null: found {max_cells}, {n_null}; expected at least 1 of each"
        )
    model, rng = query.model, np.random.default_rng(seed)
    n_genes = model.vocabulary.n_genes
    sets = {_name(genes): genes_of(model.vocabulary, genes) for genes in perturbations}

    def sampled(state: tuple[str, str] | None) -> tuple[Profile, State]:
        at = _rows(query.cells, state, max_cells, rng)
        profile = query.take(at)
        return profile, look(model, profile, query.conditions[at])

    profile, before = sampled(cells)
    toward = None
    if goal is not None:
        (counts, _), seen = sampled(goal)
        means = mean_of_cells(seen.states, seen.key // n_genes, counts.shape[0])
        toward = normalize(means.mean(dim=0), dim=0)
    how_seen = detection_and_rank(model, profile)
    how_seen[~np.isin(np.arange(n_genes), before.key % n_genes)] = np.nan  # that it never reads
    measured: dict[tuple[int, ...], tuple[dict[str, float], NDArray]] = {}

    def measure(genes: tuple[int, ...]) -> tuple[dict[str, float], NDArray]:
        if genes not in measured:
            after = perturb_counts(profile, genes, mode, medians_of(model))
            measured[genes] = shifts(model, profile, before, after, genes, toward)
        return measured[genes]

    rows, classes, null = [], [], []
    for genes in sets.values():
        row, changes = measure(genes)
        random = matched_random(genes, how_seen, n_null, rng)
        of_null = pd.DataFrame([measure(matched)[0] for matched in random])
        for statistic in STATISTICS:
            if statistic in row:
                as_much = (of_null[statistic] >= row[statistic]).sum()
                row = row | {f"{statistic}_p": (1 + as_much) / (1 + len(of_null))}
        rows.append(row)
        classes.append(changes)
        null.append(of_null)
    table = pd.DataFrame(rows, index=pd.Index(list(sets), name="perturbed"))
    for statistic in STATISTICS:
        if statistic in table:
            table[f"{statistic}_fdr"] = false_discovery_control(table[f"{statistic}_p"])
    names = model.class_names if before.probabilities is not None else []
    return Perturbation(
        table,
        pd.DataFrame(classes, index=table.index, columns=pd.Index(names)),
        pd.concat(dict(zip(table.index, null, strict=True)), names=["perturbed"]).droplevel(1),
        _out_of_reach(len(table), min(map(len, null)), n_null),
    )


def perturb_counts(
    profile: Profile, genes: Sequence[int], mode: Mode, medians: NDArray[np.floating]
) -> Profile:
    """Return the profile with these genes at 0, or each raised to just rank above all others.

    Parameters
    ----------
    profile
        Counts, ``(n, n_genes)``, and library sizes, which stay.
    genes
        Columns of the counts.
    mode
        Which of the two.
    medians
        What a gene's count is divided by to be ranked, ``(n_genes,)``.
    """
    counts, library_size = profile
    changed = counts.copy()
    changed.data[np.isin(changed.indices, list(genes))] = 0
    changed.eliminate_zeros()
    if mode == "overexpress":
        value = csr_matrix(changed, dtype=np.float64)
        value.data /= medians[value.indices]
        top = value.max(axis=1).toarray().ravel()  # (n,)
        n = len(top)
        first = np.floor(top[:, None] * medians[list(genes)]).astype(changed.dtype) + 1
        first = np.maximum(first, counts[:, list(genes)].toarray())  # none is lowered
        place = np.tile(list(genes), n), np.arange(n + 1) * len(genes)
        changed = csr_matrix(changed + csr_matrix((first.ravel(), *place), shape=counts.shape))
        changed.sort_indices()
    return changed, library_size


def look(
    model: TrainedModel, profile: Profile, conditions: NDArray[np.int64] | None = None
) -> State:
    """Return cells as the network sees them, told their conditions."""
    n_genes = model.vocabulary.n_genes
    found = [
        (
            torch.from_numpy(part.rows)[part.cell.cpu()] * n_genes + part.gene.cpu(),
            part.states.cpu(),
        )
        for part in token_states(model, *profile, conditions)
    ]
    key = torch.cat([key for key, _ in found])
    order = key.argsort()
    probabilities = None
    if hasattr(model, "temperature"):
        probabilities, _ = model.predict([profile], conditions=conditions)
    states = torch.cat([states for _, states in found])[order]
    return State(key[order], states, probabilities, conditions)


def shifts(
    model: TrainedModel,
    profile: Profile,
    before: State,
    perturbed: Profile,
    genes: Sequence[int],
    toward: Tensor | None,
) -> tuple[dict[str, float], NDArray]:
    """Return the statistics of one perturbation, and the change of each class's probability.

    Parameters
    ----------
    model
        That looks at the cells.
    profile, before
        The cells, and as the network sees them.
    perturbed
        The cells after it.
    genes
        That were perturbed.
    toward
        Unit vector of the goal, ``(d,)``; None: there is none.
    """
    is_changed = np.asarray((profile[0] != perturbed[0]).sum(axis=1)).ravel() > 0
    rows = np.flatnonzero(is_changed)
    if not len(rows):  # nobody had the gene: nothing moves
        none = {"n_cells": 0, "gene_shift": 0.0}
        if before.probabilities is not None:
            none["class_shift"] = 0.0
        if toward is not None:
            none["goal_shift"] = 0.0
        n_classes = 0 if before.probabilities is None else before.probabilities.shape[1]
        return none, np.zeros(n_classes)
    conditions = None if before.conditions is None else before.conditions[rows]
    after = look(model, (perturbed[0][rows], perturbed[1][rows]), conditions)
    n_genes = model.vocabulary.n_genes
    key = torch.from_numpy(rows)[after.key // n_genes] * n_genes + after.key % n_genes
    place = torch.searchsorted(before.key, key).clamp(max=len(before.key) - 1)
    remains = (before.key[place] == key) & ~torch.isin(key % n_genes, torch.tensor(list(genes)))
    cell = (after.key // n_genes)[remains]
    old, new = before.states[place[remains]], after.states[remains]  # (m, d)
    moved = 1 - cosine_similarity(old, new)
    old_means, new_means = (mean_of_cells(states, cell, len(rows)) for states in (old, new))
    per_cell = mean_of_cells(moved, cell, len(rows))
    found = {"n_cells": len(rows), "gene_shift": float(per_cell.mean())}
    change = np.zeros(0)
    if before.probabilities is not None and after.probabilities is not None:
        changes = after.probabilities - before.probabilities[rows]  # (n, c)
        found["class_shift"] = float(np.abs(changes).sum(axis=1).mean() / 2)
        change = changes.mean(axis=0)
    if toward is not None:
        nearer = normalize(new_means, dim=1) @ toward - normalize(old_means, dim=1) @ toward
        found["goal_shift"] = float(nearer.mean())
    return found, change


def genes_of(vocabulary: Vocabulary, genes: str | Sequence[str]) -> tuple[int, ...]:
    """Return the genes of these ids or symbols, each once, by their index in the vocabulary.

    Raises
    ------
    AnnotationError
        If a name is of no gene, or a symbol is of several.
    """
    by_symbol: dict[str, list[int]] = {}
    for i, symbol in enumerate(vocabulary.gene_symbols):
        by_symbol.setdefault(symbol, []).append(i)
    known = by_symbol | {gene: [i] for i, gene in enumerate(vocabulary.gene_ids)}
    found = []
    for name in [genes] if isinstance(genes, str) else genes:
        if name not in known:
            hint = nearest(name, known, "genes")
            raise AnnotationError(f"gene {name!r}: is not in the run's vocabulary{hint}")
        if len(known[name]) > 1:
            ids = ", ".join(vocabulary.gene_ids[i] for i in known[name])
            raise AnnotationError(f"gene {name!r}: is the symbol of {ids}; give one of these ids")
        found += known[name]
    return tuple(dict.fromkeys(found))


def _name(genes: str | Sequence[str]) -> str:
    return genes if isinstance(genes, str) else "+".join(genes)


def _rows(
    cells: Cells, state: tuple[str, str] | None, most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    rows = np.arange(cells.n_cells)
    if state is not None:
        key, value = state
        column = cells.column(key).astype(str).to_numpy()
        rows = np.flatnonzero(column == value)
        if not len(rows):
            hint = nearest(value, sorted(set(column)), "values")
            raise AnnotationError(f"obs column {key!r}: no cell has {value!r}{hint}")
    return np.sort(rng.permutation(rows)[:most])


def _out_of_reach(n: int, n_random: int, n_null: int) -> list[str]:
    """Say so where one of ``n`` perturbations cannot be told from random ones."""
    least = n / (n_random + 1)  # of a single one that shifts more than all random ones
    if least < FDR:
        return []
    advice = "perturb fewer genes: these cells have no others that could be random ones"
    if n_random == n_null:
        advice = f"take n_null {round(n / FDR):,}, or perturb fewer genes"
    return [
        f"n_null: with {n_random:,} random perturbations beside each of {n:,}, the FDR of a "
        f"single one that shifts more than all random ones is {least:.3f}; for {FDR:g} {advice}"
    ]


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, perturb, write table and figure."""
    parser = TokenQuery.parser("evaluation.perturb", __doc__)
    parser.add_argument("output", type=Path, help=".csv to write; the figure is beside it")
    parser.add_argument("--genes", nargs="+", required=True, help="A, or A+B for both at once")
    parser.add_argument("--mode", choices=get_args(Mode), default="delete")
    parser.add_argument("--cells", metavar="COLUMN=VALUE", help="that are perturbed")
    parser.add_argument("--goal", metavar="COLUMN=VALUE", help="cells of the goal state")
    parser.add_argument("--max-cells", type=int, default=100, help="more of either are sampled")
    parser.add_argument("--n-null", type=int, default=200, help="random perturbations of each")
    parser.add_argument("--seed", type=int, default=0, help="of samples and random genes")
    given = parser.parse_args(arguments)
    states = [s and tuple(s.split("=", 1)) for s in (given.cells, given.goal)]
    if any(s and len(s) != 2 for s in states):
        parser.error("--cells and --goal take COLUMN=VALUE")
    try:
        asked = [g.split("+") if "+" in g else g for g in given.genes]
        query = TokenQuery.from_command_line(given)
        found = perturb(
            query,
            asked,
            mode=given.mode,
            cells=states[0],
            goal=states[1],
            max_cells=given.max_cells,
            n_null=given.n_null,
            seed=given.seed,
        )
        found.table.join(found.classes.add_prefix("change of ")).to_csv(given.output)
        draw(found.table, found.classes, found.null).savefig(
            given.output.with_suffix(".png"), dpi=150
        )
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for message in (*query.messages, *found.messages):
        print(message)
    print(found.table.to_string(float_format="{:.4f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
