# Two commands: `make book` and `make test`. Each target is one visible command.
PYTHON ?= python3
VENV ?= .venv
# Chapters executed at once.
JOBS ?= 2
# What `make test` executes again and compares with its stored outputs.
NOTEBOOKS ?= notebooks
TESTS ?= tests
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.losslandscape-installed

# One thread for each process: on a small machine more threads are slower, and sums keep their order.
export OMP_NUM_THREADS ?= 1

# A misspelt variable would do nothing, and nobody would notice.
KNOWN := CHAPTERS DATASET FORCE JOBS NOTEBOOKS OMP_NUM_THREADS PYTHON SEEDS TESTS VENV
GIVEN := $(foreach word,$(MAKEOVERRIDES),$(if $(findstring =,$(word)),$(firstword $(subst =, ,$(word)))))
UNKNOWN := $(filter-out $(KNOWN),$(GIVEN))
$(if $(UNKNOWN),$(error no variable is called $(UNKNOWN); there are $(KNOWN)))

.DEFAULT_GOAL := help
.PHONY: help doctor setup book pdf notebooks test lint bench clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12
	@echo
	@echo "make book CHAPTERS=none           its pages from the stored notebooks, in a few minutes"
	@echo "make book DATASET=mnist SEEDS=3   the same book with other parameters, in _build/ only"
	@echo "make test TESTS= NOTEBOOKS=notebooks/02_*.ipynb   one notebook against its stored outputs"
	@echo "make test TESTS=tests/test_eigen.py NOTEBOOKS=    the tests of one file"

doctor:  ## Tell what this computer lacks, and what to do about it
	@$(PYTHON) src/losslandscape/doctor.py --venv $(VENV)

setup: $(INSTALLED)  ## Create .venv with the pinned packages (PYTHON=python3.12 picks the interpreter)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is not Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[book,dev]"
	@touch $@

book: $(INSTALLED)  ## Execute what changed, build the HTML book, print the page to open
	$(BIN)/doit -n $(JOBS) book $(if $(CHAPTERS),chapters="$(CHAPTERS)") $(if $(DATASET),dataset=$(DATASET)) $(if $(SEEDS),seeds=$(SEEDS))

pdf: $(INSTALLED)  ## Build the book and print it to one PDF, with Chromium or Chrome
	$(BIN)/doit -n $(JOBS) book pdf

notebooks: $(INSTALLED)  ## Execute stale chapters again and store their notebooks (FORCE=1: all)
	$(BIN)/doit -n $(JOBS) notebooks $(if $(FORCE),force=$(FORCE))

test: $(INSTALLED)  ## Run the tests, the notebooks against their stored outputs, the built pages
	$(BIN)/python -m pytest $(TESTS) $(NOTEBOOKS) -n logical --maxprocesses 4 --dist loadfile --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg

lint: $(INSTALLED)  ## Style, types and the direction of imports
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(INSTALLED)  ## Compare with public tools (20 minutes); writes book/records/benchmarks
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[book,dev,bench]"
	$(BIN)/python benchmarks/run.py

clean:  ## Remove what was built (.venv stays)
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache
