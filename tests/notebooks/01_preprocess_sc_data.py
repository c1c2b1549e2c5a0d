# ---
# jupyter:
#   jupytext:
#     formats: ipynb,tests/notebooks//py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · From counts to tokens
#
# Reads labelled cells, checks and filters them, decides which cells are for training, validation
# and test, and writes every cell as a row of **rank tokens**: its detected genes, the most
# remarkable first.
#
# ```
# papermill 01_preprocess_sc_data.ipynb out.ipynb -p config configs/preprocess/<yours>.yaml
# ```
#
# Any key of the config can be set beside it, to encode the same cells by another tokenizer for
# instance: `-y "overrides: ['name=my_values', 'tokenizer={kind: gene_values}']"`.
#
# The work is done by the functions in `dataset/`; this notebook calls them and shows what they
# did. A folder that was already encoded from the same cells and config is kept as it is.

# %% tags=["parameters"]
config = "configs/preprocess/baron_human_rank.yaml"
overrides = []  # such as ["tokenizer.n_tokens=512"]
overwrite = False

# %%
import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib_inline.backend_inline import set_matplotlib_formats

from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.keep_counts import keep_counts
from dataset.quality_control import measure_cells
from dataset.store.folds import fold_table, open_folds
from evaluation import preprocessing_plots as plots
from evaluation.cell_map import add_components, draw_map

set_matplotlib_formats("png")  # shows a figure also where no backend is chosen
settings = PreprocessConfig.load(config, overrides)
print(settings.to_yaml())

# %% [markdown]
# ## Read
#
# Raw counts are looked for in `X`, in `.raw` and in the layers; a rank needs counts, so normalized
# or scaled values are refused. Duplicate gene names are summed, never renamed. They are kept
# uncompressed in `data/counts/`: what comes below, and every other encoding of these files, reads
# them there and opens the files no more.

# %%
cells = keep_counts(settings)
print(
    f"{cells.n_cells:,} cells x {cells.n_genes:,} genes, {cells.found} in {cells.counts_location}"
)
print("\n".join(cells.messages))
keys = [settings.label_key, settings.batch_key, settings.time_key, *settings.condition_keys]
pd.DataFrame({key: cells.column(key) for key in keys if key}).head()

# %% [markdown]
# ## Quality control
#
# The classic measures of a cell. Look for a lump of cells with very few genes (empty droplets), a
# long upper tail (doublets) and a high mitochondrial share (dying cells). The dashed red lines are
# the thresholds of the config; they apply to train, val and test cells alike.

# %%
prefix = settings.quality_control.mitochondrial_prefix
metrics = pd.DataFrame(measure_cells(cells, mitochondrial_prefix=prefix)._asdict())
batch_key = settings.batch_key
batches = cells.column(batch_key).rename(batch_key) if batch_key else None
plots.quality_violins(metrics, settings.quality_control, batches)
# %% [markdown]
# Deeper cells show more genes. Look for cells far below the cloud: a few genes soak up their
# counts.

# %%
plots.quality_scatter(metrics, settings.quality_control)
# %% [markdown]
# ## Filter, split, encode
#
# One call drops the cells that fail, splits the others, learns vocabulary, gene medians and class
# names **from the train cells alone**, and writes the folder. Where more than half of the cells
# would go (`quality_control.max_dropped_fraction`) it stops, and says which setting does it. Where
# the split is in folds there is a folder of each, and what is drawn below is the first.

# %%
folders = open_folds(encode(settings, overwrite=overwrite))
fold_table(folders)

# %%
folder = folders[0]
print("\n".join(folder.meta["messages"]))
pd.Series(folder.meta["dropped"], name="cells dropped", dtype=int).to_frame()

# %% [markdown]
# Look for types with a handful of cells in train (hard to learn) or in test (hard to judge).
# Unlabelled cells are one bar without a name.

# %%
plots.class_counts(folder.cells)
# %% [markdown]
# Where donors are known, no donor is in two splits:

# %%
by = ["batch"] if folder.meta["batch_key"] else ["label"]
pd.crosstab(folder.cells[by[0]], folder.cells["split"])

# %% [markdown]
# ## What the cells look like
#
# The field's usual view: log1p of counts per 10,000, the 2,000 most variable genes, PCA, UMAP. It
# is for the eye only; nothing below is used in training. At most 20,000 cells are drawn.

# %%
rng = np.random.default_rng(0)
n_shown = min(20_000, len(folder.cells))
shown = np.sort(rng.choice(len(folder.cells), n_shown, replace=False))
obs = folder.cells.iloc[shown].set_index("cell_name")
adata = ad.AnnData(folder.counts(shown), obs, pd.DataFrame(index=folder.vocabulary.gene_ids))
add_components(adata)

# %% [markdown]
# Look for the elbow: how many directions stand out of the noise.

# %%
sc.pl.pca_variance_ratio(adata, n_pcs=min(50, adata.obsm["X_pca"].shape[1]))

# %% [markdown]
# Look for types that form islands, and for islands made of one donor alone (a batch effect). The
# doublet score is drawn where Scrublet was asked for.

# %%
draw_map(adata, ["label", "batch", "split", "doublet_score"])

# %% [markdown]
# ## The tokens
#
# Each row of `token_ids.npy` is one cell. Look at the right edge: cells there had more detected
# genes than fit, and lost their weakest.

# %%
splits = {name: folder.split(name) for name in ("train", "val", "test")}
lengths = {name: split.lengths for name, split in splits.items()}
plots.token_lengths(lengths, folder.meta["n_tokens"])
# %% [markdown]
# The first genes of a few training cells. With medians as the yardstick, the top ranks should be
# genes that mark the type, not the housekeeping genes that are high everywhere.

# %%
picked = rng.choice(
    len(splits["train"].labels), min(6, len(splits["train"].labels)), replace=False
)
tokens = np.array(folder.vocabulary.token_names)[
    splits["train"].arrays["token_ids"][np.sort(picked), :11]
]
types = splits["train"].cells["label"].to_numpy()[np.sort(picked)]
pd.DataFrame(tokens, index=pd.Index(types, name="cell type"))

# %%
encoded = settings.folder
print(f"encoded: {encoded}")
print(f"next:    python 02_train_model.py --config configs/train/<yours>.yaml data={encoded}")
