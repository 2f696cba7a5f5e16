# Two commands on a fresh machine: `make quickstart` trains, `make test` tests. Both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test test-slow test-mutations lint typecheck format setup

quickstart: setup
	$(BIN)/empg train recipes/quickstart.yaml

test: setup
	$(BIN)/python -m pytest

test-slow: setup  ## whole runs: minutes each
	$(BIN)/python -m pytest -m slow

test-mutations: setup  ## known faults, each caught by a named test
	$(BIN)/python tools/test_mutations.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(READY)

# torch first, as a CPU build: from a local wheel folder if pip is configured with one, else from PyTorch's index.
$(READY): requirements-cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed here ($(PYTHON) is not); give one with PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV): about 1 GB to fetch, three minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps $(TORCH) 2>/dev/null || \
	  $(BIN)/pip install --quiet --no-deps --index-url $(TORCH_INDEX) $(TORCH)
	$(BIN)/pip install --quiet --no-deps -r requirements-cpu.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)
