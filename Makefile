# make help says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# TORCH=system keeps the torch that $(PYTHON) already has; anything else installs the tested one.
TORCH ?= tested
STAMP := $(VENV)/installed-with-torch-$(TORCH)
ARGS ?=
# Ranks of `make flywheel`: two one-thread ranks train faster than one rank of two threads.
RANKS ?= $(shell if nvidia-smi -L >/dev/null 2>&1 || [ $$(nproc) -lt 2 ]; then echo 1; else echo 2; fi)

ifeq ($(TORCH),system)
VENV_OPTIONS := --system-site-packages
CONSTRAINTS := $(VENV)/constraints-without-torch.txt
else
VENV_OPTIONS :=
CONSTRAINTS := constraints.txt
endif

define PREBUILD
from deepspeed.accelerator import get_accelerator
get_accelerator().create_op_builder("ShareMemCommBuilder").load()
endef
export PREBUILD

.PHONY: help install flywheel test test-all lint types check bench gold soak fuzz mutants clean

help:
	@echo "make install    make .venv and install remit with the tested versions (constraints.txt)"
	@echo "                TORCH=system keeps the torch of \$$PYTHON; PYTHON=python3.12 picks a Python"
	@echo "make flywheel   remit flywheel --iterations 3 on the built-in world; ARGS='...' adds options,"
	@echo "                RANKS=1 takes one process, not two"
	@echo "make test       the tests; ARGS='...' adds pytest options"
	@echo "make test-all   these and more cases of each kind, a short soak, and fuzz; over an hour"
	@echo "make lint       ruff: rules and format"
	@echo "make types      mypy"
	@echo "make check      test, lint, types"
	@echo "make bench      speed and memory of packing, losses and stages, as ratios; half an hour"
	@echo "make gold       every benchmark of REMIT_DATA, asked with its own answers: must be 100%"
	@echo "make soak       kill a small flywheel at random instants, KILLS=100 times, and compare what"
	@echo "                comes out with an undisturbed run; SEED=0 and RANKS choose; half an hour"
	@echo "make fuzz       10,000 hostile inputs to each reader and reward; CASES=... for another number"
	@echo "make mutants    breaks objectives and training a line at a time: the tests must notice"
	@echo "make clean      remove caches and build products; keeps .venv and runs"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "remit needs Python 3.11 or later; name one: make install PYTHON=python3.12"; exit 1; }
ifeq ($(TORCH),system)
	@$(PYTHON) -c 'import torch' 2>/dev/null || \
		{ echo "TORCH=system: $(PYTHON) has no torch to keep"; exit 1; }
endif
	$(PYTHON) -m venv $(VENV_OPTIONS) $(VENV)
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints-without-torch.txt
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[dev,eval]'
	@$(MAKE) --no-print-directory prebuild
	@rm -f $(VENV)/installed-with-torch-*
	@touch $@

# DeepSpeed's first start without a GPU compiles a communication op. Done here, so that it is no
# part of the first stage. A failure does not stop the install: the log says what is missing.
.PHONY: prebuild
prebuild:
	@if nvidia-smi -L >/dev/null 2>&1; then exit 0; fi; \
	echo "building DeepSpeed's shared-memory op (a minute or two, once)"; \
	PATH="$(CURDIR)/$(BIN):$$PATH" TORCH_EXTENSIONS_DIR="$(CURDIR)/$(VENV)/torch_extensions" \
	DS_ACCELERATOR=cpu $(BIN)/python -c "$$PREBUILD" \
		> $(VENV)/prebuild.log 2>&1 || \
	echo "It was not built (is there a C++ compiler? see $(VENV)/prebuild.log); without it," \
		"stages on CPU will not start."

flywheel: install
	$(BIN)/remit flywheel --iterations 3 --gpus $(RANKS) $(ARGS)

# tests/conftest.py puts the longest files first, for two processes to end together.
JOBS ?= 2
test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: test
	$(BIN)/python -m pytest -m all $(ARGS)
	$(MAKE) --no-print-directory soak KILLS=20
	$(MAKE) --no-print-directory fuzz

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: test lint types

bench: install
	$(BIN)/python tests/bench_packing.py
	$(BIN)/python tests/bench_objectives.py
	$(BIN)/python tests/bench_stages.py
	PYTHONPATH=. $(BIN)/python tests/bench_rewards.py

gold: install
	PYTHONPATH=. HF_HUB_OFFLINE=1 $(BIN)/python tests/evals/gold_answers.py

soak: install
	$(BIN)/python tests/soak.py --kills $(or $(KILLS),100) --seed $(or $(SEED),0) --ranks $(RANKS) $(ARGS)

# Each test stops at its first failure; the seed is printed, and the case kept in .hypothesis.
CASES ?= 10000
fuzz: install
	REMIT_FUZZ=$(CASES) $(BIN)/python -m pytest tests/fuzz $(ARGS)

mutants: install
	$(BIN)/python tests/mutants.py $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find remit_cli pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +
