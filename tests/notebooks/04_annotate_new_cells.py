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
# # 04 · Annotate new cells
#
# Takes a finished run and an `.h5ad` file **without labels**, and writes the same file again with
# a cell type, a confidence and an embedding for every cell.
#
# ```
# papermill 04_annotate_new_cells.ipynb out.ipynb \
#     -p run runs/<yours> -p query new.h5ad -p output annotated.h5ad
# ```
#
# A cell's prediction depends on that cell alone: not on others in the file, nor on their order.
# Only with a network that looks across cells it depends on the other cells of its sample.

# %% tags=["parameters"]
run = "runs/committee_baron_human"
query = "baron_human_new_donor"
output = "runs/annotated.h5ad"
counts = "auto"
time_key = None
gene_map = None
min_match_rate = 0.5

# %%
import anndata as ad
import pandas as pd
from matplotlib_inline.backend_inline import set_matplotlib_formats

from evaluation import annotation_plots as plots
from evaluation.annotate import annotate

set_matplotlib_formats("png")  # shows a figure also where no backend is chosen

# %% [markdown]
# ## Annotate
#
# Genes are matched by id or symbol as in training; below `min_match_rate` the notebook stops and
# shows names that were not found. Of cells of another species, `gene_map` is a csv of one-to-one
# orthologs, as in the preprocess config. A network that was trained on histories reads them as in
# training: from a layer of the query, or worked out from `time_key`. Obs columns that the run
# kept as conditions are read where the query has them; it is said how many cells have an unknown
# value.

# %%
found = annotate(
    run,
    query,
    output,
    counts=counts,
    time_key=time_key,
    gene_map=gene_map,
    min_match_rate=min_match_rate,
)
missing = len(found.match.missing)
print(*found.messages, sep="\n")
print(f"{found.match.match_rate:.1%} of the model's genes are in the query ({missing:,} missing)")
uncertain = found.cells["uncertain"].mean()
print(f"{len(found.cells):,} cells annotated; {uncertain:.1%} of them uncertain")
print(f"written: {found.output}")

# %%
adata = ad.read_h5ad(output)
print(adata)

# %% [markdown]
# ## How many of each type
#
# Look for types that should not be in this tissue, and for types whose cells are mostly uncertain.

# %%
plots.type_counts(found.cells)
# %% [markdown]
# ## How sure
#
# `confidence` is the probability of the predicted type, calibrated on the run's own validation
# cells (temperature scaling). Cells left of the dashed line are marked `uncertain`: of correctly
# predicted validation cells, one in twenty lies there. A hump on the left says that the query
# holds cells unlike any the model has seen.

# %%
plots.confidence_histogram(found.cells, found.threshold)
# %% [markdown]
# ## Why uncertain
#
# A model may be very sure of a cell that it knows nothing of. So a cell is `uncertain` by rule,
# whatever its confidence, if the quality control of the run's own cells would have dropped it, or
# if it has fewer genes than any training cell. No cell is dropped here. Many cells flagged by rule
# say that the query is shallower than the cells the run was trained on.

# %%
found.cells["uncertain_reason"].value_counts().to_frame()
# %% [markdown]
# ## Where they lie
#
# Look for islands of two types, and for islands of low confidence: candidates for a type that
# was not in the training cells.

# %%
plots.cell_map(found)
# %% [markdown]
# ## Do the genes agree
#
# The genes that set each predicted type apart from the others in this file. Known markers of the
# type should be among them.

# %%
plots.marker_genes(adata, found.counts_location)
# %% [markdown]
# ## The least sure cells
#
# These are the ones to look at by eye first.

# %%
pd.concat([found.cells, plots.runner_up(found)], axis=1).sort_values("confidence").head(10)
