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
# # 03 · Which model, and does this data need a transformer?
#
# Reads every finished run of a folder, compares those of the same cells and the same split, and
# writes `RESULTS.md`.
#
# ```
# papermill 03_compile_evaluation_metrics.ipynb out.ipynb -p runs runs -p output RESULTS.md
# ```
#
# `runs` may be a pattern of several folders, such as `"runs/results/*"`.
#
# Runs that differ in their seed only are one model, and its scores are means over seeds. Runs of
# all folds of a dataset are one run that predicts every cell once. Runs on other cells, or on
# another split of them, never share a table: each dataset has its own, and where one name stands
# for two different sets of cells the notebook stops. Runs without test (`test: false`) are
# compared on val, in tables of their own. The answer stands at the end; `margin` is the largest
# difference that makes no difference to you.

# %% tags=["parameters"]
runs = "runs"
output = "RESULTS.md"
n_resamples = 1000
seed = 0
margin = 0.02

# %%
from IPython.display import Markdown, display
from matplotlib_inline.backend_inline import set_matplotlib_formats

from evaluation import comparison_plots as plots
from evaluation import embedding_plots, fold_scores, languages, over_sets, results
from evaluation.compare import compare_runs
from evaluation.embedding import embedded_cells, embedded_runs, separation
from evaluation.markdown import escape
from evaluation.verdicts import verdicts

set_matplotlib_formats("png")  # shows a figure also where no backend is chosen
comparisons = compare_runs(runs, n_resamples=n_resamples, seed=seed, margin=margin)
for comparison in comparisons:
    print(f"{comparison.dataset}: {len(comparison.models)} models, {comparison.donor_note}")
for sentence in results.left_out(comparisons):
    print("WARNING, left out:", sentence)

# %% [markdown]
# ## All sets of cells
#
# Where there are several, one row a model that was run on all of them. Look for a low mean rank,
# and for what it costs in seconds; each set has its own tables below.

# %%
if len(over_sets.tested(comparisons)) > 1:
    display(Markdown(escape(over_sets.about_over_sets(comparisons))))
    display(over_sets.over_sets_summary(comparisons))
    for sentence in over_sets.ours_verdicts(comparisons):
        display(Markdown(escape(sentence)))

# %% [markdown]
# ## All scores
#
# Means over seeds on the test cells, best on val first. In brackets: 95 % intervals over test
# cells. Macro-F1 weighs every cell type alike; it is the score to look at where some types are
# rare, and the column beside it leaves out types with so few test cells that one cell decides.
# Log-loss and ECE are better when lower; "scaled on val" is what they become when the model's own
# val cells say how much to believe it, as 04 does. That is done to every model. The last rows
# are controls: the true labels, labels drawn by their shares of the train cells, and the commonest
# label. "Above controls" is where between the lowest of them, 0, and the true labels, 1, a model
# stands.

# %%
for comparison in comparisons:
    display(Markdown(f"### {escape(comparison.dataset)}"), results.summary(comparison))

# %% [markdown]
# Look for intervals that do not overlap. Red is a network, blue a baseline, violet a committee;
# the small open dots are single seeds, so their spread is the luck of the seed.

# %%
for comparison in comparisons:
    display(plots.scores(comparison))

# %% [markdown]
# ## Fold by fold
#
# Where every donor was held out in turn, the scores above are of all folds together. Look for a
# donor that is hard for every model, and for models whose order changes from donor to donor.

# %%
for comparison in comparisons:
    if comparison.folds is not None:
        display(fold_scores.fold_summary(comparison), fold_scores.draw_folds(comparison))

# %% [markdown]
# ## Against the best baseline
#
# The baseline is the best one on val, chosen without looking at test. Both models are scored on
# the same resampled cells, so these intervals are narrower than those above and are the ones to
# decide by. Look for a line that does not touch 0 (better or worse), or that stays between the
# dotted lines (level); any other cannot tell. A pale bar is the interval over donors: whether the
# difference would hold for other people.

# %%
for comparison in comparisons:
    display(results.difference_summary(comparison))
    display(plots.differences(comparison) or "nothing to compare with the best baseline")

# %% [markdown]
# ## Which way of turning a cell into tokens
#
# Where networks of several tokenizers were trained: those that went through the train cells as
# often as the best on val, the first, pretraining included. Look for a difference whose interval
# leaves out 0.

# %%
for comparison in comparisons:
    if len(found := languages.language_summary(comparison)):
        display(found)

# %% [markdown]
# ## Type by type
#
# Look for rows that are dark in every column, types that no model can tell, and for rows where the
# columns differ. In brackets: test cells of the type; below ten a score is chance.

# %%
for comparison in comparisons:
    display(plots.class_f1(comparison))

# %% [markdown]
# Look at what lies off the diagonal: mistakes between sisters (two kinds of T cell) are of another
# sort than mistakes between strangers.

# %%
for comparison in comparisons:
    display(plots.confusions(comparison))

# %% [markdown]
# ## Can confidence be believed?
#
# On the diagonal, cells predicted with 80 % confidence are correct 80 % of the time. Below it a
# model is too sure of itself, above it not sure enough; either is mended by scaling, as in the
# table. A point is at least 15 cells.

# %%
for comparison in comparisons:
    display(plots.calibration(comparison))

# %% [markdown]
# ## What it costs
#
# Best on val on top. Look for a short bar among the upper ones. Seconds are those of fitting, on
# one clock for all models; reading files is not among them.

# %%
for comparison in comparisons:
    display(plots.cost(comparison) or "no run says what it cost")

# %% [markdown]
# ## How training went
#
# Val log-loss that rises while training loss falls is overfitting; val macro-F1 still rising at
# the end asks for more epochs.

# %%
for comparison in comparisons:
    display(plots.curves(comparison) or "no network among the runs")

# %% [markdown]
# ## What the network's `<cls>` embedding tells apart
#
# Look for islands of one cell type in which donors mix. An island of one donor is a batch effect;
# one of low confidence is a type the network does not know well. The printed silhouette widths are
# near 1 where groups lie apart, and near 0 where they mix.

# %%
for run in embedded_runs(comparisons):
    cells = embedded_cells(run)
    print(run.name, separation(cells).round(3).to_dict())
    display(embedding_plots.umap(cells) or "too few test cells for a UMAP")

# %% [markdown]
# ## Verdict
#
# From the paired interval of macro-F1 over the types with enough test cells. "Yes": the
# transformer is better than the best baseline, and than the same network without attention. "No":
# it is worse, or level within `margin`. "Cannot tell": these cells are too few to say; label more,
# or test on more donors, before you choose, and until then take the cheaper model. Log-loss says
# whose probabilities are better.

# %%
command = (
    f"papermill 03_compile_evaluation_metrics.ipynb out.ipynb -p runs {runs} -p output {output} "
    f"-p n_resamples {n_resamples} -p seed {seed} -p margin {margin}"
)
written = results.write_results(comparisons, output, command)
print("written:", *written)
for sentence in [*verdicts(comparisons), *languages.language_verdicts(comparisons)]:
    display(Markdown(f"**{escape(sentence)}**"))
