# Needs Python 3.11 or newer and make; everything else lands in .venv and build.
# `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
PROTOC := build/protoc
PROTOC_READY := $(PROTOC)/ready
GENERATED := build/generated
GENERATE := protos/generate.sh "$(CURDIR)/$(PROTOC)/bin/python"
PYTEST := $(BIN)/pytest -n 2 --dist worksteal -q

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo lab test test-slow bench check check-code check-types check-protos check-imports check-dockerfile docs format protos lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/a/newer/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	@touch $@

# Code from this generator runs on every protobuf from 6.31 on. It asks for an older protobuf
# than the rest, hence a virtual environment of its own.
$(PROTOC_READY): Makefile
	$(PYTHON) -m venv $(PROTOC)
	$(PROTOC)/bin/pip install --quiet 'grpcio-tools==1.76.0'
	@touch $@

demo: $(READY)  ## Merge trained miniature models through a server, measure what came back, publish to a Hub for tests
	PYTHONPATH=tests/support $(BIN)/python -m safegraft_trainers.lab.demo

test: $(READY)  ## Run the tests, the slow ones left out
	$(PYTEST) -m 'not slow'

test-slow: $(READY)  ## Run the slow tests only
	$(PYTEST) -m slow

lab: $(READY)  ## Run the paper in miniature, 5 seeds (an hour), and rewrite the tables and plots of docs/lab.md
	$(BIN)/safegraft lab --out build/lab --page docs/lab.md

bench: $(READY)  ## Measure against mergekit and the floor: BENCH="--profile full --readme" for all of it
	$(BIN)/python -m bench $(BENCH)

# Parts of their own, so that `make -k check` shows everything that is wrong.
check: check-code check-types check-protos check-imports check-dockerfile  ## Formatting, lint, types, generated code, API style, import rules, Dockerfile

check-code: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check

check-types: $(READY)
	$(BIN)/pyright

check-protos: $(READY) $(PROTOC_READY)
	$(BIN)/buf lint protos
	rm -rf $(GENERATED) && mkdir -p $(GENERATED)
	$(GENERATE) "$(CURDIR)/$(GENERATED)"
	@diff -r -x __init__.py -x __pycache__ $(GENERATED)/safegraft/v1 service/safegraft/v1 || \
		{ echo "service/safegraft/v1 is not what protos/ says: run 'make protos'"; exit 1; }

check-imports: $(READY)
	$(BIN)/lint-imports --no-logo

check-dockerfile: $(READY)
	$(BIN)/hadolint Dockerfile

docs: $(READY)  ## Rewrite docs/parameters.md from the methods' schemas and docs/parity.md from runs of mergekit
	$(BIN)/python docs/generate.py
	$(BIN)/python tests/plugins/test_parity.py

format: $(READY)  ## Format the code and mend what the linter can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(PROTOC_READY)  ## Regenerate service/safegraft/v1 from protos/
	rm -f service/safegraft/v1/*_pb2*
	$(GENERATE)

lock:  ## Take the newest releases that pyproject.toml allows into constraints.txt
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install -e '.[dev]'
	build/lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:  ## Remove everything that make has built
	rm -rf $(VENV) build dist demo-output .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find service plugins trainers tests bench -type d -name __pycache__ -prune -exec rm -rf {} +
