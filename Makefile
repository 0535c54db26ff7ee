# Every target sets up .venv by itself; PYTHON=python3.12 takes another interpreter than python3.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
JOBS ?= 2
PYTEST_ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench clean

help:
	@echo "make demo    train a small separator on songs made on the spot, score it, separate a recording"
	@echo "make test    style, types and tests"
	@echo "make lint    style and types"
	@echo "make format  put the code into the house style"
	@echo "make bench   data loader, training step, memory, separation and metrics beside their peers"
	@echo "make clean   remove the environment and the caches"

setup: $(STAMP)

$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "make: '$(PYTHON)' is not Python 3.11, 3.12 or 3.13; say make PYTHON=python3.11, for example" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "make: '$(PYTHON)' cannot make environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV), which takes a few minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip install --quiet --no-deps museval==0.4.1 # tests read one file of it
	@$(BIN)/python -m pip install --quiet diffq==0.2.4 || \
	  echo "diffq could not be built (it needs a C compiler): the tests of quantised models are left out"
	@touch $@

demo: $(STAMP)
	@$(BIN)/demucs-lightning demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/basedpyright --pythonpath $(BIN)/python --level error

# One thread for each of the JOBS processes: a second one would only stand in another's way.
test: export OMP_NUM_THREADS ?= 1
test: lint
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@$(BIN)/python benchmarks/loader.py
	@$(BIN)/python benchmarks/train_step.py
	@$(BIN)/python benchmarks/memory.py
	@$(BIN)/python benchmarks/optimizer_state.py
	@$(BIN)/python benchmarks/separate.py
	@$(BIN)/python benchmarks/metrics.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
