# Two commands do everything: `make demo` and `make test`. Each makes the environment it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := dev,docs,vlm,data,sim,viz
WORKERS ?= 2

.PHONY: help demo checkpoint test lint types layers unit docs site clean system floors pinned compat lerobot-compat loader-benchmark loader-memory-benchmark loader-workers-benchmark loading-benchmark inference-benchmark before-after

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-24s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is older"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "The venv module is needed: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $(READY)

system: ## Libraries for off-screen rendering: install them when root, else say which are missing
	@bash scripts/system_libraries.sh

demo: $(READY) system ## Collect, train and act on the conveyor belt; writes runs/demo/report.html
	$(BIN)/python examples/conveyor/demo.py

checkpoint: $(READY) system ## Train the demo's shipped checkpoint anew (over an hour on 2 cores); overwrites it
	$(BIN)/python examples/conveyor/checkpoint.py

test: $(READY) system lint types layers unit docs ## Everything that CI runs

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/basedpyright

layers: $(READY)
	$(BIN)/lint-imports

unit: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --doctest-modules tests moteur
	$(BIN)/python -m pytest --markdown-docs --markdown-docs-syntax=superfences README.md docs

docs: $(READY) ## Build the documentation and look for what did not render
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir .cache/site
	$(BIN)/python scripts/check_site.py .cache/site

site: $(READY) ## Serve the documentation on this machine
	$(BIN)/mkdocs serve

floors: system ## Run the tests with the oldest versions that pyproject.toml allows (builds .venvs/floors-3.11, 5 GB)
	$(PYTHON) scripts/floors.py floors --workers $(WORKERS)

pinned: system ## Run the tests under another Python, with the pinned versions: make pinned PYTHON=python3.13 (6 GB)
	$(PYTHON) scripts/floors.py pinned --workers $(WORKERS)

compat: ## Compare transformers 4.57.1 with the newest 5, and work without it (builds three environments, 4 GB)
	PYTHON=$(PYTHON) bash scripts/transformers_compat.sh

lerobot-compat: $(READY) ## Have LeRobot 0.4.4 read sets that moteur wrote (builds .venvs/lerobot, about 3 GB)
	bash scripts/lerobot_compat.sh

loader-benchmark: $(READY) ## Time the reader beside LeRobot's own (needs lerobot-compat once)
	bash benchmarks/loader.sh

loader-memory-benchmark: $(READY) ## Watch the loader's memory over an hour of samples (about 6 minutes on two free cores)
	$(BIN)/python benchmarks/loader_memory.py

loader-workers-benchmark: $(READY) ## Time the loader with 0, 1 and 2 workers, and how long a step waits (a few minutes)
	$(BIN)/python benchmarks/loader_workers.py

loading-benchmark: $(READY) ## Time loading the 3B model at full size (writes 6.5 GB, needs 8 GB of memory)
	$(BIN)/python benchmarks/loading.py

inference-benchmark: $(READY) ## Time the inference session beside a plain policy, at 3B sizes (22 GiB of memory, most of an hour)
	$(BIN)/python benchmarks/inference.py --rounds 15
	$(BIN)/python benchmarks/inference.py --rounds 15 --dtype bfloat16

before-after: $(READY) ## Time sessions, loader, loading and statistics beside BEFORE=../old, a `git worktree` of 941df50 (about an hour)
	@test -n "$(BEFORE)" || { echo "BEFORE is needed: git worktree add ../old 941df50 && make before-after BEFORE=../old"; exit 1; }
	$(BIN)/python benchmarks/before_after.py --before $(BEFORE) statistics loader loading
	$(BIN)/python benchmarks/before_after.py --before $(BEFORE) session
	$(BIN)/python benchmarks/before_after.py --before $(BEFORE) session --dtype bfloat16

clean: ## Remove everything the commands made, the environment included
	rm -rf $(VENV) .venvs .cache runs site
