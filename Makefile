# `make` lists what there is. Everything runs from .venv, which is made on first use and again only when
# pyproject.toml or constraints.txt change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all lint format docs clean all

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | while IFS="$$(printf '\t')" read -r target text; do \
	  printf '  make %-9s %s\n' "$$target" "$$text"; done

setup: $(STAMP)  ## make .venv and install the versions of constraints.txt

# Which build of torch is installed (CPU, CUDA) is pip's own configuration's choice, PIP_EXTRA_INDEX_URL for one.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "make: Python 3.11 to 3.13 is needed; name one: make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $$("$(PYTHON)" --version)"; "$(PYTHON)" -m venv $(VENV); } \
	  || { echo "make: no virtual environment; on Debian: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	@echo "installing torch (the largest download, a minute or more)"
	@$(PIP) torch hatchling
	@echo "installing frugal and what its options need"
	@$(PIP) --no-build-isolation --editable ".[all,dev]"
	@touch $@
	@echo "installed"

train: $(STAMP)  ## run the default experiment; ARGS="data=mnist optim.lr=0.05" changes it
	@$(BIN)/frugal train $(ARGS)

test: $(STAMP)  ## run the quick tests, one worker for each core; ARGS="-k name" picks some, WORKERS=0 runs them in one process
	$(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --maxprocesses 8 $(ARGS)

test-all: $(STAMP)  ## run every test, the slow ones too
	$(BIN)/python -m pytest -q -m "" -n $(WORKERS) --maxprocesses 8 $(ARGS)

lint: $(STAMP)  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## write docs/options.md and docs/combinations.md anew from the options
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/combinations.py

clean:  ## remove .venv, caches and builds; logs and data stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

all: lint test  ## check and test everything quick
