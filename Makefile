# make quickstart   set up, pretrain a decoder, fine-tune on a few labels, compare, draw      (DATA=folder, IMAGES=folder for yours; PRETRAINED=1: the shipped decoder)
# make demo         set up, segment and denoise images in the browser, with the models of the quickstart (MODELS="folder org/name" for yours)
# make test         set up, check the style and the types, run the tests
# make test-oldest  run the model tests on the oldest supported releases
# make clean        remove what the others made

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# A thread a core. Threads that wait must sleep: where another program needs the cores too, spinning ones made
# training about ten times slower.
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
export OMP_WAIT_POLICY ?= PASSIVE
DATA ?=
IMAGES ?=
PRETRAINED ?=
MODELS ?=
SHIPPED := model_cards/ddep-efficientnet-lite0
# Both arms of the quickstart, to compare.
ARMS := runs/quickstart/ddep-0/final runs/quickstart/random-0/final

.PHONY: quickstart demo test test-oldest clean

quickstart: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py --output_dir runs/quickstart $(if $(DATA),--data "$(DATA)") $(if $(IMAGES),--images "$(IMAGES)") $(if $(PRETRAINED),--pretrained $(SHIPPED))

demo: $(VENV)/.installed $(if $(MODELS),,$(firstword $(ARMS))/config.json)
	$(BIN)/python examples/space/app.py --models $(or $(MODELS),$(ARMS))

# The quickstart makes the other arm first. It replaces an earlier run that was not finished.
$(firstword $(ARMS))/config.json: | $(VENV)/.installed
	@echo "There is no fine-tuned model yet: running the quickstart with the shipped decoder first, some minutes."
	$(MAKE) quickstart PRETRAINED=1 DATA= IMAGES=

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

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
