# make quickstart   set up, pretrain a decoder, fine-tune on a few labels, compare, draw      (DATA=folder for yours)
# make test         set up, check the style and the types, run the tests
# make test-oldest  run the model tests on the oldest supported releases
# make clean        remove what the others made

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Threads of one process; without it `accelerate launch` uses a single core on a machine without a GPU.
THREADS ?= $(shell getconf _NPROCESSORS_ONLN)

DATA ?=

.PHONY: quickstart test test-oldest clean

quickstart: $(VENV)/.installed
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python examples/quickstart.py $(if $(DATA),--data $(DATA)) --output_dir runs/quickstart

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest

test-oldest:
	$(PYTHON) tests/oldest.py .venv-oldest

# One environment for everything, made again when the requirements change.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ddep_hub needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[quickstart,dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest runs build dist .pytest_cache .ruff_cache .mypy_cache
