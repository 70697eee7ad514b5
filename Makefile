# `make` alone lists the targets. `make demo` and `make test` do all the set-up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINES := .venv-engines
PEERS := .venv-peers
# What `make test` leaves to the other targets.
QUICK := not sweep and not faults and not limits and not engines and not llamacpp

# Two workers, each with modules of its own until it has none left and takes half of the other's: a
# fixture of a module that starts real processes is made once, not once in each.
TWICE := -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test sweep faults limits engines reference llamacpp check format bench peers docs messages captures clean

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
	$(BIN)/python -m pytest $(TWICE) -m "$(QUICK)"

sweep: $(STAMP) ## Hold every causal language model of transformers against the planner (minutes)
	$(BIN)/python -m pytest $(TWICE) -m sweep

faults: $(STAMP) ## Kill, fill, damage and stall: the daemon and its store must survive (minutes)
	$(BIN)/python -m pytest $(TWICE) -m faults

$(ENGINES)/.installed: pyproject.toml tests/engines/requirements.txt tests/engines/bare.txt
	test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check skypilot==0.14.1
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/engines/requirements.txt 'torch<2.14'
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[models,dev]'
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/engines/bare.txt
	$(ENGINES)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(ENGINES)/wheels sglang==0.5.23
	touch $@

engines: $(ENGINES)/.installed ## Hold what emit writes against the engines themselves, in an environment of its own (minutes)
	$(ENGINES)/bin/python -m pytest -n 2 -m engines

limits: $(STAMP) ## Run plans of eight architectures for real, each under its own memory limit (minutes)
	$(BIN)/python -m pytest -m limits

llamacpp: $(STAMP) ## Build llama.cpp (ten minutes, once), hold plans for it against its own dry run
	sh scripts/build_llamacpp.sh build/llama.cpp $(BIN)/python
	MEMPLAN_LLAMA_FIT_PARAMS=$(CURDIR)/build/llama.cpp/bin/llama-fit-params \
	    $(BIN)/python -m pytest -n 2 -m llamacpp

reference: $(STAMP) ## Hold the planner against every published measurement, litgpt's by its own model code (minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/reference/requirements.txt
	$(BIN)/memplan validate --quiet tests/reference/*.jsonl

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

$(PEERS)/.installed: benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	touch $@

peers: $(PEERS)/.installed ## Install what the daemon's cost is measured beside, in an environment of its own

messages: $(STAMP) ## Bring the dashboard's translations up to date and compile them
	$(BIN)/python scripts/messages.py

captures: $(STAMP) ## Drive the dashboard in tmux against a daemon, at two sizes and in three variants
	$(BIN)/python scripts/tui_captures.py

docs: $(STAMP) ## Write the generated parts of README.md and docs/ anew (command list, pictures)
	$(BIN)/python docs/generate.py

clean: ## Remove the environment and all caches
	rm -rf $(VENV) $(ENGINES) $(PEERS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
