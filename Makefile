# make demo: the main job, from nothing to a validated surrogate and a report.
# make test: all tests.   make lint: style and types of imports.   make bench: every benchmark, quick.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -qq -c constraints.txt
# The site's own MPI where there is one, otherwise MPICH as a wheel.
MPI := $(if $(shell command -v mpirun),,,mpich)
PACKAGING := pyproject.toml setup.cfg constraints.txt
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: setup demo test lint bench clean

setup: $(VENV)/.all

demo: $(VENV)/.demo
	$(BIN)/headrace train heat2d --model mlp --shape 32x32 --simulations 100 --held-out 20 --learning-rate 3e-3 --run-dir $(RUN)

# Three runs side by side: tests of studies, which share a Ray, wait for other processes much of the time. What failed is
# said again at the end.
test: SHELL := bash
test: export COLUMNS = 250
test: $(VENV)/.all
	@set -o pipefail; code=0; \
	$(BIN)/python -m pytest tests/online_training tests/surrogates -m "not ray" > $(VENV)/engine.log 2>&1 & engine=$$!; \
	$(BIN)/python -m pytest tests --ignore tests/online_training --ignore tests/surrogates > $(VENV)/others.log 2>&1 & others=$$!; \
	$(BIN)/python -m pytest tests/online_training -m ray 2>&1 | tee $(VENV)/studies.log || code=1; \
	echo "The other tests run beside these; their ends:"; \
	wait $$engine || code=1; cat $(VENV)/engine.log; \
	wait $$others || code=1; cat $(VENV)/others.log; \
	cd $(VENV) && grep -hE '^(E  |FAILED|ERROR|=+ .* in [0-9.]+s)' studies.log engine.log others.log | tail -n 40; \
	exit $$code

lint: $(VENV)/.all
	$(BIN)/ruff check .

bench: $(VENV)/.all
	for script in $$(grep -l __main__ benchmarks/*.py); do $(BIN)/python $$script --quick || exit 1; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No python3.11 found; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python $(PACKAGING)
	@echo "Installing headrace and what the demo needs into $(VENV); a minute or two ..."
	$(PIP) -e ".[train$(MPI)]"
	@touch $@

$(VENV)/.all: $(VENV)/.demo
	@echo "Installing what the tests need into $(VENV); a minute or two ..."
	$(PIP) -e ".[train,test$(MPI)]"
	@touch $@
