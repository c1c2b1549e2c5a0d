# make demo   real cells from the package index, tokens, training, tables, annotated cells
# make test   every check
# make results CELLS=folder   the table over all sets of cells, hours
# make clean  forget the demo's data and runs (the environment stays)
# Another Python: make test PYTHON=python3.13 VENV=.venv313
# demo and results do JOBS things at once, each on one thread: together sooner than in turn
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/ready

export PYTHONUNBUFFERED = 1
at_once = --no-print-directory --jobs=$(JOBS) OMP_NUM_THREADS=1

# ---------------------------------------------------------------- set up
$(READY): requirements.txt tests/requirements.txt dataset/requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and "nanocell needs Python 3.11 to 3.13, $(PYTHON) is %d.%d: name another, as in make PYTHON=python3.13" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $@

setup: $(READY)

# ---------------------------------------------------------------- demo
NAME := baron_human
DATA := data/$(NAME)_rank/meta.json
# The longest chain, pretraining and its fine-tuning, comes first
RUNS := finetune scgpt cellplm rank_transformer committee majority logistic_regression linear_svm knn \
        gradient_boosting mlp
DONE := $(RUNS:%=runs/%_$(NAME)/metrics.json) \
        runs/rank_transformer_$(NAME)_seed1/metrics.json runs/rank_transformer_$(NAME)_seed2/metrics.json
BOOKS := runs/notebooks

# papermill writes as it goes: the finished notebook gets its name only at the end
papermill = mkdir -p $(BOOKS) && $(BIN)/papermill --cwd . --no-progress-bar --log-output $(1) $(2).partial.ipynb $(3) && mv $(2).partial.ipynb $(2)

demo: $(READY)
	@$(MAKE) $(at_once) runs/annotated.h5ad
	@$(MAKE) $(at_once) runs/folds/RESULTS.md
	@echo
	@echo "Done. Look at:"
	@echo "  RESULTS in runs/RESULTS.md           which model works on these cells, and is the difference real"
	@echo "  folds in   runs/folds/RESULTS.md     the same with every donor held out in turn"
	@echo "  figures in $(BOOKS)/*.ipynb     the four steps as they ran"
	@echo "  labels in  runs/annotated.h5ad       a donor nobody trained on, annotated"

$(DATA): configs/preprocess/$(NAME)_rank.yaml | $(READY)
	$(call papermill,01_preprocess_sc_data.ipynb,$(BOOKS)/01_preprocess_sc_data.ipynb,-p config $<)

data/%/meta.json: configs/preprocess/%.yaml | $(READY) $(DATA)
	$(call papermill,01_preprocess_sc_data.ipynb,$(BOOKS)/01_$*.ipynb,-p config $<)

runs/%/metrics.json: configs/train/%.yaml | $(READY) $(DATA)
	$(BIN)/python 02_train_model.py --config $<

MEMBERS := logistic_regression_$(NAME) gradient_boosting_$(NAME) mlp_$(NAME) \
           rank_transformer_$(NAME) rank_transformer_$(NAME)_seed1 rank_transformer_$(NAME)_seed2
runs/committee_$(NAME)/metrics.json: $(MEMBERS:%=runs/%/metrics.json)

runs/pretrain_$(NAME)/metrics.json: | data/$(NAME)_unlabeled/meta.json
runs/finetune_$(NAME)/metrics.json: runs/pretrain_$(NAME)/metrics.json
runs/scgpt_$(NAME)/metrics.json: | data/$(NAME)_values/meta.json

runs/rank_transformer_$(NAME)_seed%/metrics.json: configs/train/rank_transformer_$(NAME).yaml | $(READY) $(DATA)
	$(BIN)/python 02_train_model.py --config $< name=rank_transformer_$(NAME)_seed$* seed=$*

runs/RESULTS.md: $(DONE)
	$(call papermill,03_compile_evaluation_metrics.ipynb,$(BOOKS)/03_compile_evaluation_metrics.ipynb,-p runs runs -p output $@)

runs/annotated.h5ad: runs/RESULTS.md
	$(call papermill,04_annotate_new_cells.ipynb,$(BOOKS)/04_annotate_new_cells.ipynb,-p run runs/committee_$(NAME) -p query baron_human_new_donor -p output $@)

# ---------------------------------------------------------------- every donor held out in turn
# One command trains the four folds in order, and resumes: the last one's run is the last to be there.
folds: runs/folds/RESULTS.md

LAST := fold_human4
DATA_OF_FOLDS := data/$(NAME)_folds/$(LAST)/meta.json
RUNS_OF_FOLDS := $(foreach run,logistic_regression mlp rank_transformer,runs/folds/$(run)_$(NAME)_$(LAST)/metrics.json)

$(DATA_OF_FOLDS): configs/preprocess/$(NAME)_folds.yaml | $(READY) $(DATA)
	$(call papermill,01_preprocess_sc_data.ipynb,$(BOOKS)/01_folds.ipynb,-p config $<)

runs/folds/%_$(LAST)/metrics.json: configs/train/%.yaml | $(READY) $(DATA_OF_FOLDS)
	$(BIN)/python 02_train_model.py --config $< data=data/$(NAME)_folds runs_dir=runs/folds

runs/folds/RESULTS.md: $(RUNS_OF_FOLDS)
	$(call papermill,03_compile_evaluation_metrics.ipynb,$(BOOKS)/03_folds.ipynb,-p runs runs/folds -p output $@)

.PHONY: folds

clean:
	rm -rf data/$(NAME)_rank data/$(NAME)_folds data/$(NAME)_unlabeled data/$(NAME)_values \
	  data/$(NAME)_variable_genes data/counts/$(NAME)_* runs

# ---------------------------------------------------------------- comparators
# make comparators   their packages, in an environment of their own: CellTypist cannot be trained
#                    beside the newest scikit-learn
COMPARATORS := celltypist singler lightgbm scanvi
COMPARATORS_VENV := $(VENV)_comparators
COMPARATORS_READY := $(COMPARATORS_VENV)/ready

$(COMPARATORS_READY): requirements.txt models/comparators/requirements.txt | $(READY)
	$(PYTHON) -m venv $(COMPARATORS_VENV)
	$(COMPARATORS_VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.txt -r models/comparators/requirements.txt
	touch $@

comparators: $(COMPARATORS_READY)

.PHONY: comparators

# ---------------------------------------------------------------- the table over all sets
# make results CELLS=folder   every model on every set; stopped, the same command resumes
# The files are in that folder; without it there is the demo's set alone. COMPARATORS= leaves the
# comparators and their packages out, LANGUAGES= scGPT's and CellPLM's networks.
CELLS ?= data/cells
SETS := baron_human_folds baron_human_to_mouse pbmc3k_rank zeisel_fine_rank pbmc_3tech_folds \
        worm_embryo_batch starmap_folds mixology_technology
HISTORIES := worm_embryo_batch_history worm_embryo_batch_shuffled
LANGUAGES := values cells
ABLATIONS := pbmc3k_rank zeisel_fine_rank worm_embryo_batch
CELLS_FOUND := $(wildcard $(CELLS)/*.h5ad)
ifeq ($(CELLS_FOUND),)
SETS := $(NAME)_rank
HISTORIES :=
ABLATIONS :=
endif

# PRECISION=bfloat16 is 1.4 times as fast on a CPU that computes in it (avx512_bf16, amx); a GPU that
# does takes it by itself
PRECISION ?= auto
SEEDS := 0 1 2
BASELINES := majority knn linear_svm logistic_regression gradient_boosting
NETWORK := configs/train/example.yaml precision=$(PRECISION)
WITHOUT_ATTENTION := 'model={kind: residual_mlp, d_model: 128, dropout: 0.2}'
MEMBERS_BASELINES := logistic_regression gradient_boosting
MEMBERS_MLP := $(SEEDS:%=mlp_seed%)
COMMITTEE := $(MEMBERS_BASELINES) $(SEEDS:%=transformer_seed%) $(MEMBERS_MLP)

comma := ,
empty :=
train_on = 02_train_model.py data=data/$(1) runs_dir=runs/results/$* tracking.group=$* --config
train = $(call train_on,$*)
members = [$(subst $(empty) $(empty),$(comma),$(strip $(1:%=runs/results/$*/%)))]
committee = $(BIN)/python $(train) configs/train/committee_$(NAME).yaml name=$(1) 'model.members=$(call members,$(2))'

# First the sets, one after the other: some are of one file, which one process reads and keeps
results: $(READY)
	@$(MAKE) --no-print-directory --jobs=1 $(patsubst %,$(BOOKS)/01_%.ipynb,$(SETS) $(HISTORIES))
	@$(MAKE) $(at_once) runs/results/RESULTS.md
	@echo
	@echo "The table is in runs/results/RESULTS.md"
	$(if $(CELLS_FOUND),,@echo "It is of the demo's set alone, for there are no cells in $(CELLS): make results CELLS=folder")

# A link to the folder of this call, whatever it was before
.PHONY: data/cells
data/cells:
	@mkdir -p data
	@[ "$(abspath $(CELLS))" -ef $@ ] || { [ ! -d $@ ] || [ -L $@ ]; } || \
		{ echo "$@ is a folder: expected a link to the one that CELLS= names; move it away"; exit 1; }
	@[ "$(abspath $(CELLS))" -ef $@ ] || ln -sfn "$(abspath $(CELLS))" $@

$(BOOKS)/01_%.ipynb: configs/preprocess/%.yaml | $(READY) $(if $(CELLS_FOUND),data/cells)
	$(call papermill,01_preprocess_sc_data.ipynb,$@,-p config $<)

$(SETS:%=runs/results/%/finished): runs/results/%/finished: $(BOOKS)/01_%.ipynb
	set -e; for model in $(BASELINES); do $(BIN)/python $(train) configs/train/$${model}_$(NAME).yaml name=$$model; done
	set -e; for seed in $(SEEDS); do \
		$(BIN)/python $(train) $(NETWORK) name=transformer_seed$$seed seed=$$seed; \
		$(BIN)/python $(train) $(NETWORK) name=mlp_seed$$seed seed=$$seed $(WITHOUT_ATTENTION); done
	$(call committee,committee,$(COMMITTEE))
	$(call committee,committee_without_attention,$(MEMBERS_BASELINES) $(MEMBERS_MLP))
	$(call committee,committee_without_networks,$(MEMBERS_BASELINES))
	touch $@

$(SETS:%=runs/results/%/compared): runs/results/%/compared: runs/results/%/finished $(COMPARATORS_READY)
	set -e; for model in $(COMPARATORS); do $(COMPARATORS_VENV)/bin/python $(train) configs/train/$${model}.yaml name=$$model; done
	touch $@

# Other languages than ranks, each with the epochs of the networks above: scGPT's genes with values,
# CellPLM's cells as tokens, and a committee of all three, beside one of the three seeds of ranks
$(BOOKS)/01_%_values.ipynb: configs/preprocess/%.yaml $(BOOKS)/01_%.ipynb
	$(call papermill,01_preprocess_sc_data.ipynb,$@,-p config $< -y "overrides: ['name=$*_values'$(comma) 'tokenizer={kind: gene_values}']")

$(BOOKS)/01_%_log1p.ipynb: configs/preprocess/%.yaml $(BOOKS)/01_%.ipynb
	$(call papermill,01_preprocess_sc_data.ipynb,$@,-p config $< -y "overrides: ['name=$*_log1p'$(comma) 'tokenizer={kind: gene_values$(comma) values: log1p}']")

VALUES := configs/train/scgpt_$(NAME).yaml precision=$(PRECISION)
CELLS_AS_TOKENS := configs/train/cellplm_$(NAME).yaml model.sample_key=null precision=$(PRECISION)

$(SETS:%=runs/results/%/languages): runs/results/%/languages: $(BOOKS)/01_%_values.ipynb runs/results/%/finished
	set -e; for seed in $(SEEDS); do \
		$(BIN)/python $(call train_on,$*_values) $(VALUES) name=values_seed$$seed seed=$$seed; \
		$(BIN)/python $(train) $(CELLS_AS_TOKENS) name=cells_seed$$seed seed=$$seed; done
	$(call committee,committee_of_ranks,$(SEEDS:%=transformer_seed%))
	$(call committee,committee_of_languages,transformer_seed0 values_seed1 cells_seed2)
	touch $@

# What of a language matters, on three sets: rank positions, soft bins, values that are no bins; and
# pretraining on the train cells, its epochs taken from those of the fine-tuning
$(ABLATIONS:%=runs/results/%/ablated): runs/results/%/ablated: $(BOOKS)/01_%_log1p.ipynb runs/results/%/languages
	set -e; for seed in $(SEEDS); do \
		$(BIN)/python $(train) $(NETWORK) name=rank_set_seed$$seed seed=$$seed model.rank_position=none; \
		$(BIN)/python $(call train_on,$*_values) $(VALUES) name=soft_bins_seed$$seed seed=$$seed model.value_embedding=soft_bins; \
		$(BIN)/python $(call train_on,$*_log1p) $(VALUES) name=log1p_seed$$seed seed=$$seed; \
		$(BIN)/python $(train) $(NETWORK) name=$*_seed$$seed seed=$$seed runs_dir=runs/pretrained test=false \
			'objectives=[{kind: masked_gene}]' optim.gene_embedding_lr=1 optim.max_epochs=15; \
		$(BIN)/python $(train) $(NETWORK) name=pretrained_seed$$seed seed=$$seed init_from=runs/pretrained/$*_seed$$seed optim.max_epochs=10; done
	touch $@

$(HISTORIES:%=runs/results/%/finished): runs/results/%/finished: $(BOOKS)/01_%.ipynb
	set -e; for seed in $(SEEDS); do $(BIN)/python $(train) $(NETWORK) \
		name=transformer_$(lastword $(subst _, ,$*))_seed$$seed seed=$$seed; done
	touch $@

runs/results/RESULTS.md: $(patsubst %,runs/results/%/finished,$(SETS) $(HISTORIES)) \
                         $(if $(strip $(COMPARATORS)),$(SETS:%=runs/results/%/compared)) \
                         $(if $(strip $(LANGUAGES)),$(SETS:%=runs/results/%/languages) $(ABLATIONS:%=runs/results/%/ablated))
	$(call papermill,03_compile_evaluation_metrics.ipynb,$(BOOKS)/03_results.ipynb,-p runs "runs/results/*" -p output $@)

.PHONY: results

# ---------------------------------------------------------------- checks
test: lint pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The packages that a few tests compare ours with: without their dependencies, which ours exclude.
# Where they do not install, those tests are skipped
ORIGINALS := $(VENV)/originals

$(ORIGINALS): tests/originals.txt | $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r $< || \
		echo "NOT INSTALLED: the tests that compare ours with scGPT and CellPLM are skipped"
	touch $@

pytest: $(READY) $(ORIGINALS)
	$(BIN)/python -m pytest

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: setup demo test lint pytest clean

# ---------------------------------------------------------------- speed and scale
PEERS := $(VENV)/peers

$(PEERS): benchmarks/requirements.txt | $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -r $<
	touch $@

bench: $(PEERS)
	$(BIN)/python -m benchmarks --json data/benchmarks/bench.json

bench-scale: | $(READY)
	$(BIN)/python -m benchmarks.scale --json data/benchmarks/scale.json

.PHONY: bench bench-scale
