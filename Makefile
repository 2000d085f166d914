# Each target sets up what it needs: a fresh clone, make and Python 3.11 or newer are enough.

PYTHON ?= python3
WORKERS ?= 2
# Which tests `make unit` runs, as pytest's -m takes it; by default all that need no peer.
MARKS ?=

VENV := .venv
PEERS := .venv-peers
# The marks name the Python, so that another one gets an environment of its own.
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2> /dev/null)
READY := $(VENV)/.ready-$(VERSION)
PEERS_READY := $(PEERS)/.ready-$(VERSION)

# Distributions of their own, installed as a user would: they show that built-ins have no privilege.
THIRD_PARTY_FILES := $(wildcard tests/plugins/*_distribution/pyproject.toml)
INSTALL_THIRD_PARTY := $(patsubst %/pyproject.toml,-e %,$(THIRD_PARTY_FILES))

PIP_INSTALL := bin/python -m pip install --quiet --quiet --disable-pip-version-check

# Test workers share the cores; each with BLAS threads of its own would only get in the way.
PYTEST := OPENBLAS_NUM_THREADS=1 $(VENV)/bin/pytest
# Some machines select slower kernels in their environment, which no measurement should use.
MEASURE := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE

.DEFAULT_GOAL := help
.PHONY: help demo test format-check lint types imports unit interop bench fuzz reliability \
	wheel-test pictures format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## compare the methods on a real model and real data, in under five minutes
	@$(MEASURE) $(VENV)/bin/python -m tinygrad_peft.cli.demo

test: format-check lint types imports unit ## run everything that a change must pass

format-check: $(READY)
	$(VENV)/bin/ruff format --check

lint: $(READY)
	$(VENV)/bin/ruff check

types: $(READY)
	$(VENV)/bin/mypy

imports: $(READY)
	$(VENV)/bin/lint-imports --no-logo

unit: $(READY) ## run the tests alone
	$(PYTEST) -n $(WORKERS) $(if $(MARKS),-m "$(MARKS)")

interop: $(PEERS_READY) ## compare numbers with torch, transformers and PEFT
	OPENBLAS_NUM_THREADS=1 $(PEERS)/bin/pytest tests/interop -m interop

bench: $(PEERS_READY) ## compare speed and memory with torch
	$(MEASURE) $(PEERS)/bin/pytest tests/benchmarks -m bench -s

fuzz: $(READY) ## try COUNT broken files on every reader, 20,000 by default, from number FIRST on
	$(VENV)/bin/python -m tests.fuzz.long_run $(or $(COUNT),20000) $(or $(FIRST),0)

reliability: $(READY) ## kill a real run 100 times, and compare its bits with an unbroken one's
	OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m tests.train.killed_runs

wheel-test: ## test the built wheel, without the extras
	@$(CHECK_PYTHON)
	PYTHON="$(PYTHON)" .ci/wheel-test

pictures: $(READY) ## redraw the documents' pictures from computed figures
	@$(VENV)/bin/python -m docs.pictures

format: $(READY) ## format the code and apply ruff's fixes
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean: ## remove everything that make created
	rm -rf .venv* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml $(THIRD_PARTY_FILES)
	@$(CHECK_PYTHON)
	@echo "Installing tinygrad_peft and its tools into $(VENV)"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(VENV)/$(PIP_INSTALL) -e '.[dev,text,gguf,cli,hub,plot]' $(INSTALL_THIRD_PARTY)
	@touch $@

$(PEERS_READY): pyproject.toml $(THIRD_PARTY_FILES)
	@$(CHECK_PYTHON)
	@echo "Installing tinygrad_peft, torch, transformers and PEFT into $(PEERS)"
	@"$(PYTHON)" -m venv --clear $(PEERS)
	@$(PEERS)/$(PIP_INSTALL) -e '.[peers,test,text,gguf,cli]' $(INSTALL_THIRD_PARTY)
	@touch $@

NEEDS_PYTHON := "tinygrad_peft needs Python 3.11 or newer, for example: make PYTHON=python3.12"
IF_A_SHIM := "name an interpreter that is installed, for example:" \
	"make PYTHON=~/.pyenv/versions/3.12.1/bin/python3"

# A version manager's shim is found and does not run. ensurepip is what Debian splits off from venv.
define CHECK_PYTHON
fail() { echo "$$*" >&2; exit 1; }; \
command -v "$(PYTHON)" > /dev/null || fail "'$(PYTHON)' was not found;" $(NEEDS_PYTHON); \
said=$$("$(PYTHON)" -c '' 2>&1) || \
	fail "'$(PYTHON)' does not run: $$(echo "$$said" | head -n 1);" $(IF_A_SHIM); \
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	fail "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1);" $(NEEDS_PYTHON); \
"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || \
	fail "'$(PYTHON)' cannot make virtual environments: install its venv module" \
		"(on Debian and Ubuntu: apt install python3-venv)"
endef
