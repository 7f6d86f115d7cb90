PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# One thread per core. Waiting threads must sleep: with another program on the same cores, spinning ones made training
# about ten times slower.
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)
export OMP_WAIT_POLICY ?= PASSIVE
DATA ?=
IMAGES ?=
PRETRAINED ?=
MODELS ?=
# Both models of the quickstart, to compare in the demo.
QUICKSTART := runs/quickstart/ddep-0/final runs/quickstart/random-0/final

.PHONY: help quickstart demo benchmark docs style browser test test-oldest wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

quickstart: $(VENV)/.installed  ## pretrain a decoder, fine-tune on a few labels, compare, draw (DATA=, IMAGES=, PRETRAINED=1)
	$(BIN)/python examples/quickstart.py --output_dir runs/quickstart $(if $(DATA),--data "$(DATA)") $(if $(IMAGES),--images "$(IMAGES)") $(if $(PRETRAINED),--pretrained ddep-efficientnet-lite0)

demo: $(VENV)/.installed $(if $(MODELS),,$(firstword $(QUICKSTART))/config.json)  ## segment and denoise in the browser (MODELS="folder org/name")
	$(BIN)/python examples/space/app.py --models $(or $(MODELS),$(QUICKSTART))

# Replaces an earlier run that was not finished.
$(firstword $(QUICKSTART))/config.json: | $(VENV)/.installed
	@echo "There is no fine-tuned model yet: running the quickstart with the shipped decoder first, which takes minutes."
	$(MAKE) quickstart PRETRAINED=1 DATA= IMAGES=

benchmark: $(VENV)/.installed  ## measure the speed against peers in 10 to 20 minutes, write docs/performance.md
	$(BIN)/python -m pip install --quiet "opencv-python-headless>=4.10"
	for name in ddep_step finetuning_step pretraining_job prediction metrics loading start growth report; do \
	  $(BIN)/python benchmarks/speed/$$name.py || exit 1; \
	done

docs: $(VENV)/.installed  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

style: $(VENV)/.installed  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: style browser  ## check style and types, run all tests
	$(BIN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# The demo's test needs a browser: Debian's Chromium, where apt can install it.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit; done; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	  || echo "No Chromium found: the demo's browser test is skipped, or fails if CI is set."

test-oldest:  ## run the model tests on the oldest supported releases
	$(PYTHON) tests/oldest.py .venv-oldest

wheel: $(VENV)/.installed  ## build the wheel and the source distribution into dist
	$(BIN)/python -m build

# One environment for everything, made again when the requirements change.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ddep_hub needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[quickstart,dev]"
	touch $@

clean:  ## remove everything that the other targets made
	rm -rf $(VENV) .venv-oldest runs build dist .pytest_cache .ruff_cache .mypy_cache
