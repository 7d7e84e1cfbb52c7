# Two commands do everything: `make train` and `make test`. Both create the environment (.venv) on first use.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

VARIANT ?= kav11
DATASET ?=
PRESET ?= demo
DATA ?=
WEIGHTS ?=
RUNS ?=
LR ?=
MSI ?=
MODEL ?=
VARIANTS ?= psrt_noshuffle kav11
SEEDS ?= 0
CLUSTER ?= local
JOBS ?=
SEED ?=
ARGS ?=
OUT ?= runs/train-$(PRESET)-$(or $(DATASET),default)-$(VARIANT)$(SEED:%=-seed%).ipynb

.PHONY: help setup train sharpen record laptop sweep test slow check lint verify explore figures bench screenshot lab clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## create the environment in .venv

# --no-compile: most of what is installed is never imported, and the rest is compiled then. Kernels say errors alone:
# at every start they would warn of TCP, which nobody can change who starts a notebook.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	@mkdir -p .venv/etc/ipython && echo '{"IPKernelApp": {"log_level": 40}}' >.venv/etc/ipython/ipython_kernel_config.json
	@touch $(READY)

train: $(READY) ## train a variant: make train VARIANT=kav11 DATASET=cave DATA=/path [PRESET=study] [SEED=1]
	@mkdir -p "$$(dirname "$(OUT)")"
	@$(BIN)/python -m workbook.sweeps.terminal notebooks/train.ipynb "$(OUT)" -p preset $(PRESET) -p variant $(VARIANT) $(if $(SEED),-p seed $(SEED)) $(if $(DATASET),-p dataset $(DATASET)) $(if $(DATA),-r data_root "$(DATA)") $(ARGS)
	@echo "the executed notebook: $(OUT)"

sharpen: $(READY) ## sharpen your own image, or folders of them: make sharpen LR=lr.mat MSI=rgb.png [MODEL=runs/mine] [OUT=sharp.tif] [ARGS=…]
	$(BIN)/python -m workbook.sharpening "$(LR)" "$(MSI)" $(if $(MODEL),--model "$(MODEL)") $(if $(filter file,$(origin OUT)),,--out "$(OUT)") $(ARGS)

record laptop: OUT = runs/$@
SWEEP = $(BIN)/python -m workbook.sweeps $(if $(filter sweep,$@),$(PRESET),$@) --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(JOBS),--jobs $(JOBS))

record: $(READY) ## train every row on CAVE, or go on (wants a GPU): make record DATA=/path [OUT=runs/record] [JOBS=2] [ARGS=…]
	$(SWEEP) $(ARGS)

laptop: $(READY) ## the same without a GPU, small, some 4 minutes a row: make laptop DATA=/path [OUT=runs/laptop]
	$(SWEEP) $(ARGS)

sweep: OUT = runs/sweep-$(PRESET)
sweep: $(READY) ## many notebook runs, here or on Slurm: make sweep VARIANTS="kav1 kav11" SEEDS="0 1 2" CLUSTER=local|slurm [JOBS=2] [PRESET=study DATA=/path]
	$(SWEEP) --notebooks --variants $(VARIANTS) --seeds $(SEEDS) --cluster $(CLUSTER) $(ARGS)

# What a tensor leaves is kept for the next one: given back to Linux and asked for again, it costs a third of the time.
KEEP_MEMORY = MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000

PYTEST = OMP_NUM_THREADS=1 $(KEEP_MEMORY) $(BIN)/python -m pytest -n 2 --dist worksteal

test: lint ## lint, types, and the tests that protect a change: under five minutes
	$(PYTEST)

slow: $(READY) ## the second tier: papermill, nbval, browser, servers, kills, full disks, real sweeps, CAVE
	$(PYTEST) -m "slow and not slurm"

check: test slow ## both tiers: what CI runs

lint: $(READY) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

verify: $(READY) ## prove the data pipeline: make verify DATA=/path/to/CAVE [WEIGHTS=/path/best.pth.tar]
	$(BIN)/python -m workbook.verify "$(DATA)" $(if $(WEIGHTS),"$(WEIGHTS)")

explore: $(READY) ## the explorers as a page: make explore [DATA=/path/to/CAVE] [RUNS=/path/to/runs]
	@$(BIN)/python -m workbook.explorer.serve $(if $(DATA),--data "$(DATA)") $(if $(RUNS),--runs "$(RUNS)") $(ARGS)

figures: $(READY) ## draw everything in figures/ anew, from what is committed
	$(BIN)/python -m workbook.figures
	$(BIN)/python -m benchmarks --figures

bench: $(READY) ## measure speed and memory, fast against plain (wants a quiet machine)
	$(BIN)/python -m benchmarks $(ARGS)

screenshot: $(READY) ## take docs/explorer.png anew (wants chromium)
	$(BIN)/python tests/browser.py docs/explorer.png

lab: $(READY) ## open JupyterLab
	$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS) notebooks

clean: ## remove the environment and caches, not the runs
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache *.egg-info
