"""What embeddings of genes know of them: classes of genes told apart, in genes not trained on.

    python -m evaluation.gene_classes runs/my_run cells.h5ad transcription_factors.txt

Geneformer's gene classification (Theodoris et al. 2023, Methods) with folds over genes, so that no
gene is judged by what was learned from itself; ROC-AUC. Deliberate differences: the network is not
trained further, a logistic regression reads its embeddings, so that what is measured is what
pretraining left there; and simple statistics of the same genes, and the same regression on an SVD
of the cells, are judged beside it: a class of highly expressed genes needs no network.

Legend: ``g`` genes, ``n`` cells, ``d`` width.
"""

import csv
import gzip
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs.user_error import UserError
from dataset.log_expression import log_expression
from dataset.nearest_names import nearest, shortened
from dataset.vocabulary import N_SPECIALS
from evaluation.annotate import EMBEDDING_KEY
from evaluation.annotated_file import AnnotationError
from evaluation.embed import embed
from evaluation.query_cells import Profile
from evaluation.token_query import TokenQuery
from models.baselines.features import mean_and_std
from models.gene_svd import gene_svd

FEWEST = 10  # genes of the class: with fewer a fold's area under the curve says nothing


def gene_features(query: TokenQuery) -> dict[str, pd.DataFrame]:
    """Return what is known of the genes that a network reads in some cells, by name of the source.

    Returns
    -------
    Tables of the same genes, indexed by id, one column a feature: ``statistics`` of expression,
    an ``svd`` of the cells as wide as the network, the network's ``input`` embeddings, and
    ``in context`` their mean state after the second-to-last layer.
    """
    embedded, profile = embed(query), query.take(query.rows)
    network, rng = query.model.learner.network, np.random.default_rng(0)
    found = {
        "statistics": gene_statistics(profile),
        "svd": gene_svd(*profile, n_components=network.d_model, rng=rng),
        "input": network.token_embedding.detach().cpu().numpy()[N_SPECIALS:],
        "in context": embedded.varm[EMBEDDING_KEY],
    }
    is_read = embedded.var["n_cells"].to_numpy() > 0
    index = embedded.var_names[is_read]
    return {name: pd.DataFrame(table[is_read], index=index) for name, table in found.items()}


def gene_statistics(profile: Profile) -> NDArray[np.float64]:
    """Return simple statistics of each gene over the cells, ``(g, 4)``.

    Share of cells with it, mean and standard deviation of log1p counts per 10,000, and the mean
    over the cells that have it.
    """
    expression = log_expression(*profile)
    n_cells = np.bincount(expression.indices, minlength=expression.shape[1])
    mean, std = mean_and_std(expression)
    detected = n_cells / expression.shape[0]
    return np.stack([detected, mean, std, mean / np.maximum(detected, 1e-12)], axis=1)


def classify_genes(
    features: Mapping[str, pd.DataFrame],
    members: Collection[str],
    *,
    k: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Tell the genes of a class from all others, from each table of features, over k folds.

    Parameters
    ----------
    features
        Tables of the same genes, as of ``gene_features``.
    members
        Ids of the class's genes; those that the tables lack are left out.
    k
        Folds over genes, each with its share of members.
    seed
        Of the folds, the same for all tables.

    Returns
    -------
    One row a table: ROC-AUC of each fold's test genes, and their mean and standard deviation.

    Raises
    ------
    AnnotationError
        If there are too few genes in the class, or outside of it.
    """
    index = next(iter(features.values())).index
    is_member = index.isin(list(members))
    if min(is_member.sum(), (~is_member).sum()) < max(FEWEST, k):
        raise AnnotationError(
            f"gene classes: {is_member.sum():,} of the {len(index):,} genes that the network "
            f"reads are in the class; at least {max(FEWEST, k)} are needed in it, and outside"
        )
    folds = list(StratifiedKFold(k, shuffle=True, random_state=seed).split(index, is_member))
    rows = {}
    for name, table in features.items():
        x = table.to_numpy(dtype=np.float64)
        aucs = []
        for train, test in folds:
            regression = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
            fitted = make_pipeline(StandardScaler(), regression).fit(x[train], is_member[train])
            aucs.append(roc_auc_score(is_member[test], fitted.decision_function(x[test])))
        rows[name] = {f"fold {i}": auc for i, auc in enumerate(aucs, start=1)}
        rows[name] |= {"mean": float(np.mean(aucs)), "sd": float(np.std(aucs, ddof=1))}
    return pd.DataFrame(rows).T.rename_axis("features")


def read_gene_list(path: Path, name: str | None = None) -> list[str]:
    """Read genes, the first column of a list or csv, or of a .gmt (name, link, genes) a set.

    Parameters
    ----------
    path
        Of the file; it may be gzipped.
    name
        Of the set of a .gmt; None: the file is a list.

    Raises
    ------
    AnnotationError
        If there is no such set, or sets are there and none is named.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t") for line in file if line.strip()]
    sets = {line[0]: line[2:] for line in lines}
    if name is None and any(sets.values()):
        raise AnnotationError(
            f"{path}: has lines of three or more columns, as a .gmt of sets has, and no set is "
            f"named; name one with --set, or give a list of one gene a line; sets: "
            f"{shortened(list(sets))}"
        )
    if name is None:
        return [row[0].strip() for row in csv.reader(line[0] for line in lines) if row]
    if name not in sets:
        raise AnnotationError(f"{path}: has no set {name!r}{nearest(name, sets, 'sets')}")
    return sets[name]


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and print the table."""
    parser = TokenQuery.parser("evaluation.gene_classes", __doc__)
    parser.add_argument("genes", type=Path, help="symbols or ids: a list, .csv or .gmt (.gz)")
    parser.add_argument("--set", help="name of the gene set, of a .gmt")
    given = parser.parse_args(arguments)
    try:
        named = set(read_gene_list(given.genes, given.set))
        query = TokenQuery.from_command_line(given)
        known = query.model.vocabulary
        pairs = zip(known.gene_ids, known.gene_symbols, strict=True)
        members = [gene for gene, symbol in pairs if named & {gene, symbol}]
        table = classify_genes(gene_features(query), members)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for message in query.messages:
        print(message)
    print(table.to_string(float_format="{:.3f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
