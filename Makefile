PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-cluster lint types check breaks fuzz bench docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with the killswitch command in it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "killswitch needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install ## a cluster of trading nodes is stopped by its own rules, with proof
	$(BIN)/killswitch demo

test: install ## all tests; those that need Docker run where Docker answers
	$(BIN)/python -m tests.run

test-cluster: install ## the whole cluster in containers, pulled apart on purpose (needs Docker, some minutes)
	KILLSWITCH_REQUIRE_DOCKER=1 $(BIN)/python -m tests.run containers

lint: install ## ruff and the house rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install ## mypy, strict
	$(BIN)/mypy

check: lint types ## lint and types

breaks: install ## break the code once per promise and watch its tests turn red (some minutes)
	$(BIN)/python -m tests.breaks

fuzz: install ## every law on random examples, for MINUTES (10); SEED=N tries those of an earlier run again
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

bench: install ## figures, each beside its baseline in the same run
	$(BIN)/python -m tests.bench

docs: $(VENV)/.docs ## the documents as a site, in build/site; every link must lead somewhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

clean: ## remove what the other targets made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
