"""The figure of predicted hidden genes: each gene's correlation, the decoder's beside others'."""

import pandas as pd
from matplotlib.figure import Figure

from evaluation.hidden_scores import DECODER


def draw(genes: pd.DataFrame) -> Figure:
    """Draw a panel for each other method, ``genes`` as of ``Judged``; above the line it is better.

    Parameters
    ----------
    genes
        Pearson correlation of each gene, a column for each method.
    """
    others = [name for name in genes if name != DECODER]
    figure = Figure(figsize=(3.2 * len(others), 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        axis.axline((0, 0), slope=1, color="0.8", linewidth=0.8, zorder=0)
        axis.plot(genes[name], genes[DECODER], "o", markersize=3, alpha=0.4, color="C3")
        better = (genes[DECODER] > genes[name]).mean()
        axis.set_title(f"decoder better in {better:.0%} of {len(genes):,} genes", fontsize=8)
        axis.set_xlabel(f"{name}: Pearson r of a gene")
        axis.set_ylabel("decoder")
        axis.set_aspect("equal")
    return figure
