# `make` lists what there is. CONFIG=... serves another file, PYTEST_ARGS=... narrows the tests,
# VERBOSE=1 shows all that a service prints.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv/bin
CONFIG ?= configs/serve.yaml
TEST_MINUTES ?= 75
TEST_WORKERS ?= 3
PYTEST_ARGS ?=
VERBOSE ?=
COVERAGE ?=

.PHONY: audit bench-training help install serve stop status test test-unit coverage check format lock docs bench-router bench-batching clean

help: ## List these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: ## Make .venv and install for this machine (CPU or NVIDIA); quick when it is done already
	@$(PYTHON) -m scripts.install

serve: install ## Serve configs/serve.yaml at http://127.0.0.1:8000 until Ctrl-C; VERBOSE=1 shows all
	@$(VENV)/python scripts/serve.py start --config $(CONFIG) $(if $(VERBOSE),--verbose)

stop: ## End all that `make serve` started, from any shell
	@if [ -x $(VENV)/python ]; then $(VENV)/python scripts/serve.py stop; else echo "nothing is installed"; fi

status: ## List the processes that `make serve` started
	@$(VENV)/python scripts/serve.py status

test: install ## Run the tests, three files at a time, and then those that need the machine for themselves
	@echo "[test] at most $(TEST_MINUTES) minutes"
	@HF_HUB_OFFLINE=1 timeout --foreground --kill-after=30 $(TEST_MINUTES)m $(VENV)/python -m scripts.run_tests \
		--workers $(TEST_WORKERS) $(if $(COVERAGE),--coverage) -- $(PYTEST_ARGS)

test-unit: install ## Run the tests without Ray but those marked `long`, three files at a time
	@HF_HUB_OFFLINE=1 $(VENV)/python -m scripts.run_tests --only unit --short --workers $(TEST_WORKERS) -- $(PYTEST_ARGS)

coverage: install ## Run the tests without Ray, and say how much of the code they run
	@HF_HUB_OFFLINE=1 $(VENV)/python -m scripts.run_tests --only unit --coverage --workers $(TEST_WORKERS) \
		-- $(PYTEST_ARGS)
	@echo "[test] each file's lines: .pytest_cache/unit/coverage.json"

check: install ## Format, lint, types and import rules, as in CI; changes nothing
	@$(VENV)/ruff format --check .
	@$(VENV)/ruff check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports

audit: install ## Look up known holes of what is installed, by pip-audit in a venv of its own; asks PyPI
	@$(PYTHON) -m venv build/audit && build/audit/bin/pip -q install --upgrade pip-audit
	@build/audit/bin/pip-audit --progress-spinner off --path $$($(VENV)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

format: install ## Format the code and fix what can be fixed by a program
	@$(VENV)/ruff format .
	@$(VENV)/ruff check --fix .

lock: ## Write constraints-cpu.txt from what .venv holds now (`install` would undo an upgrade)
	@$(VENV)/python scripts/lock.py

docs: install ## Build the documentation as a site into site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs build --quiet
	@echo "[docs] site/index.html"

bench-router: install ## Compare with vLLM's own server; writes benchmarks/results/ (needs wrk)
	@command -v wrk >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y -qq wrk; } \
		|| { echo "wrk is missing: sudo apt-get install wrk"; exit 1; }
	@$(VENV)/python -m benchmarks.router_tax

bench-training: install ## Compare training with the bare Trainer; writes benchmarks/results/
	@$(VENV)/python -m benchmarks.training

bench-batching: install ## Compare dynamic batching with LitServe's; writes benchmarks/results/ (needs wrk)
	@command -v wrk >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y -qq wrk; } \
		|| { echo "wrk is missing: sudo apt-get install wrk"; exit 1; }
	@$(VENV)/pip install -q -c constraints-cpu.txt onnx onnxruntime
	@$(VENV)/python -m benchmarks.batching

clean: stop ## Remove caches, what benchmarks made, and .venv
	@rm -rf .venv .models .run .bench .coverage* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
