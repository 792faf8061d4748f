# Two commands on a fresh machine: `make train` and `make test`. `make help` lists the rest.

PYTHON ?= python3
CONFIG ?= config.json
BIN := .venv/bin
TESTS ?= tests

# Tests of what needs packages of requirements-extra.txt; `make test` passes over them.
EXTRA := bands eomt export huge_images large_training layouts sweep timm tracking trained zoo

.PHONY: train test test-slow test-extra check lint types bench schema catalogue reference docs clean help

train: .venv/.installed  ## train on generated street scenes (or CONFIG=...), then show where the results are
	$(BIN)/python train.py --config $(CONFIG)

test: .venv/.installed-dev  ## run the test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(TESTS)

test-slow: .venv/.installed-dev  ## run the checks that take minutes
	$(BIN)/python -m pytest -m slow $(TESTS)

test-extra: .venv/.installed-extra  ## install the optional packages, and run the tests of what needs them
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(EXTRA:%=tests/test_%.py)

check: lint types test  ## lint, types and tests

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev
	$(BIN)/mypy

bench: .venv/.installed-dev  ## measure everything on a CPU (BENCH="--yassouali DIR"), and write BENCHMARKS.md
	$(BIN)/python -m benchmarks.all $(BENCH)

schema: .venv/.installed  ## write config.schema.json anew, after a signature changed
	$(BIN)/python -m engine.config > config.schema.json.new && mv config.schema.json.new config.schema.json

catalogue: .venv/.installed  ## write docs/catalogue.md anew, after a model or its arguments changed
	$(BIN)/python -m models.catalogue > docs/catalogue.md.new && mv docs/catalogue.md.new docs/catalogue.md

reference: .venv/.installed  ## write docs/reference/ anew, after a key, a flag or a signature changed
	$(BIN)/python -m docs.reference

docs: .venv-docs/.installed  ## build the documents into site/
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

clean:  ## remove what was installed and cached; runs in saved/ stay
	rm -rf .venv .venv-docs site .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/.installed-extra: requirements-extra.txt .venv/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-extra.txt
	touch $@

.venv-docs/.installed: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@
