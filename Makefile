# `make` alone lists the targets. `make demo` and `make test` do all the set-up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test sweep reference check format bench docs clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("memplan needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[models,dev]'
	touch $@

demo: $(STAMP) ## Plan a small real model, run it, sample it, print plan beside measurement
	$(BIN)/memplan demo

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest -n 2 -m "not sweep"

sweep: $(STAMP) ## Hold every causal language model of transformers against the planner (minutes)
	$(BIN)/python -m pytest -n 2 -m sweep

reference: $(STAMP) ## Hold published trainings, litgpt's own model code too, against the planner (minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/reference/requirements.txt
	$(BIN)/memplan validate --cases tests/reference/training.jsonl

check: $(STAMP) ## Lint, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy -p memplan -p memplan_daemon -p memplan_tui
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(STAMP) ## Format the code and mend what the linter can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(STAMP) ## Benchmarks beside a peer
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

docs: $(STAMP) ## Write the generated parts of README.md and docs/ anew (command list, pictures)
	$(BIN)/python docs/generate.py

clean: ## Remove the environment and all caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
