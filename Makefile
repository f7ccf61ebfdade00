# Everything happens in .venv, which the first target makes; only Python 3.11+ and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
LOWEST := .venv-lowest
# Processes that share the tests.
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help run test test-lowest test-slow test-models models test-browser test-ray torture torture-mutants train-check gpu-check screenshots docs site site-check coverage lint types fmt check dist dist-check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "batchgen needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (make PYTHON=python3.12 …)")'
	@echo '1/2 making the environment $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@echo '2/2 installing torch (the largest part: about 1 GB), transformers and what the tests need; this takes a minute or two'
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

run: $(READY)  ## three prompts to one padded, masked batch and three continuations
	@$(BIN)/batchgen run prompts/rain.txt --repetition-penalty 1.3 --format table
	@echo 'Next:'
	@echo '  source $(BIN)/activate                   then batchgen is a command'
	@echo '  batchgen demo                              what padding and masks do, in a minute'
	@echo '  batchgen run prompts.txt -o answers.jsonl  your own prompts, one per line'

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) -m 'not slow and not browser and not ray'

$(LOWEST)/.ready: pyproject.toml tools/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tools/lowest.py constrained fast parquet zstd test > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet -c $(LOWEST)/constraints.txt -e '.[test]'
	@touch $@

test-lowest: $(LOWEST)/.ready  ## the test suite with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest -n $(JOBS) -m 'not slow and not browser and not ray'

test-slow: $(READY)  ## the checks that take longer
	$(BIN)/python -m pytest -m slow

test-models: $(READY)  ## every family of models against docs/models.md, in about five minutes
	$(BIN)/python -m pytest tests/test_models_table.py

models: $(READY)  ## try every family of models, and write docs/models.md
	PYTHONPATH=. $(BIN)/python tools/models_table.py

test-ray: $(READY)  ## the same on Ray, on two CPUs of this machine
	$(BIN)/pip install --quiet -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m ray

torture: $(READY)  ## kills, full disks, races, hostile input: ONLY="kill race" SEED=0 SHARE=1 CASE=3 JOBS=2
	$(BIN)/python -m torture $(ONLY) --seed $(or $(SEED),0) --share $(or $(SHARE),1) --jobs $(JOBS) $(if $(PATIENCE),--patience $(PATIENCE)) $(if $(CASE),--case $(CASE))

torture-mutants: $(READY)  ## faults put into copies of the source: torture must find each; ONLY="fsync lock" JOBS=2
	$(BIN)/python -m torture.mutants $(ONLY) --jobs $(JOBS)

test-browser: $(READY)  ## the pages of `inspect` and of results in headless Chromium (apt-get install chromium)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,browser]'
	$(BIN)/python -m pytest -m browser -rs

screenshots: $(READY)  ## pictures of the pages for docs/pictures/, in headless Chromium
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,browser]'
	$(BIN)/python tools/screenshots.py

docs: $(READY)  ## rerun the commands in README.md and docs/, and write what they print; the manual page
	$(BIN)/python tools/refresh_docs.py README.md docs/*.md tools/website/start.md
	$(BIN)/python tools/terminal_pictures.py
	PYTHONPATH=. $(BIN)/python tools/man_page.py > share/man/man1/batchgen.1

coverage: $(READY)  ## the test suite, and which lines of batchgen/ it runs: at least 95%
	$(BIN)/python -m pytest -n $(JOBS) -m 'not slow and not browser and not ray' --cov --cov-report=term-missing --cov-fail-under=95

site: $(READY)  ## the site in build/site/, from docs/ and generated reference pages
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,site]'
	PYTHONPATH=tools $(BIN)/python -m website

site-check: $(READY)  ## the same, opened in headless Chromium: accessibility, search, screenshots
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,site]'
	PYTHONPATH=tools $(BIN)/python -m website --check

train-check: $(READY)  ## the recipe of the bundled model, for a minute, on a made-up corpus
	$(BIN)/python -m pytest tests/test_train_bundled.py

# Its own torch is a GPU box's best: no environment is made for a Python that imports torch and transformers.
HAS_TORCH = $(shell $(PYTHON) -c 'import torch, transformers' >/dev/null 2>&1 && echo yes)
gpu-check:  ## parity, speed, memory, back-off on a GPU, in 8 minutes; PYTHON=… with torch and transformers
	@if [ "$(HAS_TORCH)" = yes ]; then $(PYTHON) -m benchmarks.gpu_check $(GPU_CHECK); \
	else $(MAKE) --no-print-directory $(READY) && $(BIN)/python -m benchmarks.gpu_check $(GPU_CHECK); fi

lint: $(READY)  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

fmt: $(READY)  ## format and fix what can be fixed automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test  ## lint, types and test

dist: $(READY)  ## sdist and wheel in dist/
	$(BIN)/python -m build

dist-check: $(READY)  ## the same, built twice and compared, and looked at by twine and check-wheel-contents
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,release]'
	rm -rf dist build/again
	$(BIN)/python -m build
	$(BIN)/python -m build --outdir build/again
	cd dist && sha256sum * | (cd ../build/again && sha256sum --check)
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	@ls -l dist | awk 'NR > 1 {printf "%s: %.1f MB\n", $$NF, $$5 / 1e6}'

clean:  ## remove the environment and everything that was made
	rm -rf $(VENV) $(LOWEST) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
