# Everything a newcomer types. A fresh machine needs Python 3.11 or newer, make and git.

UV_VERSION := 0.13.8
UV := .tools/bin/uv
BIN := .venv/bin

# What is checked: our packages, and all that is written around them.
PACKAGES := flight_server ingest storage webui tickflightd client/src/tickflight
AROUND = $(sort $(foreach tree,tests client/tests bench examples,\
	$(if $(shell find $(tree) -name '*.py' 2>/dev/null | head -n 1),$(tree))))

# The machine's certificates, for networks that bring their own; uv and Python look elsewhere.
export UV_SYSTEM_CERTS ?= 1
# The machine's Python, never a downloaded one.
export UV_PYTHON_DOWNLOADS := never
export UV_PYTHON := .tools/bin/python
# Compiled once, here: where Python may not write beside the sources, each process would do it anew.
export UV_COMPILE_BYTECODE := 1
# A directory named "storage" where a program starts must not become our package.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: run
run: setup ## run the service; the demo feed, unless a source is configured
	@exec $(BIN)/tickflightd up

.PHONY: setup
setup: .venv/run.stamp ## make everything ready, start nothing

.PHONY: test
test: .venv/dev.stamp ## run all tests, a process a core
	@scripts/test-tools
	@$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: test-hard
test-hard: .venv/dev.stamp ## crash states, kills, power cuts and mutants by the thousand (root)
	@$(BIN)/pytest -m hard

.PHONY: check
check: .venv/dev.stamp ## formatting, lint, types, direction of imports
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy $(PACKAGES) $(AROUND)
	@$(BIN)/lint-imports

.PHONY: format
format: .venv/dev.stamp ## format the code, fix what can be fixed
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

.PHONY: bench
bench: .venv/dev.stamp ## measure; prints JSON lines and a table, writes docs/benchmarks.md
	@$(BIN)/python -m bench --write docs/benchmarks.md

.PHONY: clean
clean: ## remove what make has made, but never data
	rm -rf .tools .venv dist client/dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# Stamps: a target that has nothing to do takes no time. What a development environment has more
# than one for running stays when `run` refreshes it (--inexact), so that the two don't fight.
UV_STAMP := .tools/uv-$(UV_VERSION).stamp

$(UV_STAMP): scripts/bootstrap
	@scripts/bootstrap $(UV_VERSION)
	@touch $@

LOCKED := pyproject.toml client/pyproject.toml uv.lock

.venv/run.stamp: $(LOCKED) | $(UV_STAMP)
	@$(UV) sync --frozen --quiet --no-dev --inexact
	@touch $@

.venv/dev.stamp: $(LOCKED) | $(UV_STAMP)
	@$(UV) sync --frozen --quiet --group dev
	@touch $@ .venv/run.stamp
