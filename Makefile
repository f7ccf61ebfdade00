# Everything happens in .venv, which the first target makes; only Python 3.11+ and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help run test test-slow train-check lint types fmt check dist clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "batchgen needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (make PYTHON=python3.12 …)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

run: $(READY)  ## three prompts to one padded, masked batch and three continuations
	@$(BIN)/batchgen run prompts/rain.txt --format table

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(READY)  ## the checks that take longer
	$(BIN)/python -m pytest -m slow

train-check: $(READY)  ## the recipe of the bundled model, for a minute, on a made-up corpus
	$(BIN)/python -m pytest tests/test_train_bundled.py

lint: $(READY)  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

fmt: $(READY)  ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test  ## lint, types and test

dist: $(READY)  ## sdist and wheel in dist/
	$(BIN)/python -m build

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
