"""Figure of the cells in a network's embedding, colored by what is known of them."""

import warnings

import anndata as ad
import numpy as np
import scanpy as sc
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.plot_text import plain

FEWEST = 10  # cells: UMAP says nothing of fewer, and fails on the fewest
NUMBERED = 20  # more groups than this are told by numbers, not by colors alone
ROWS = 24  # of a legend
PANELS = ("cell type", "predicted", "donor", "confidence")


def umap(cells: ad.AnnData) -> Figure | None:
    """Lay out embedded cells by UMAP, colored by type, name, donor and confidence.

    Parameters
    ----------
    cells
        Of ``embedded_cells``; the layout is added to it.

    Returns
    -------
    The figure; None of too few cells.
    """
    if cells.n_obs < FEWEST:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, of equal cells for instance
        sc.pp.neighbors(cells, use_rep="X", n_neighbors=min(15, cells.n_obs - 1))
        sc.tl.umap(cells)
    most = max(cells.obs[key].nunique() for key in PANELS[:3])
    n_columns = -(-most // ROWS)
    width = 8.4 + 2 * 2.9 * n_columns
    figure = Figure(figsize=(width, 7.6), layout="constrained")
    for axis, key in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        if key == "confidence":
            x, y = cells.obsm["X_umap"].T
            points = axis.scatter(x, y, c=cells.obs[key], s=6, cmap="viridis", vmin=0, vmax=1)
            figure.colorbar(points, ax=axis, shrink=0.6)
        else:
            both = key != "donor"  # a type has one color in both panels
            present = set().union(*(cells.obs[k] for k in (PANELS[:2] if both else [key])))
            names = [name for name in cells.obs[key].cat.categories if name in present]
            _groups(axis, cells, key, names)
        axis.set(title=key, xticks=[], yticks=[])
        axis.set_aspect("auto")
    sns.despine(figure, left=True, bottom=True)
    return figure


def _groups(axis: Axes, cells: ad.AnnData, key: str, names: list[str]) -> None:
    palette = "colorblind" if len(names) <= 10 else "tab20" if len(names) <= NUMBERED else "husl"
    colors = sns.color_palette(palette, len(names))
    for number, (name, color) in enumerate(zip(names, colors, strict=True), start=1):
        own = np.asarray(cells.obs[key] == name)
        if not own.any():
            continue
        x, y = cells.obsm["X_umap"][own].T
        label = plain(name, max_length=28)
        if len(names) > NUMBERED:
            label = f"{number}  {label}"
            middle = (float(np.median(x)), float(np.median(y)))
            axis.annotate(
                str(number), middle, fontsize=7, ha="center", va="center", zorder=3,
                bbox={"boxstyle": "round,pad=0.1", "color": "white", "alpha": 0.7},
            )  # fmt: skip
        axis.scatter(x, y, s=6, color=color, label=label)
    axis.legend(
        frameon=False, fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5),
        ncols=-(-len(names) // ROWS),
    )  # fmt: skip
