# Two commands for a fresh machine: `make demo` and `make test`. Each makes a virtual environment in .venv and
# installs the tested versions there, once.
#
# Settings, as `make test PYTHON=python3.12`:
#   STACK     onedl (the maintained releases of OpenMMLab's libraries) or openmmlab (the original ones, whose MMCV is
#             compiled here: an hour of one core)
#   PYTHON    the interpreter that makes the environment (3.11 or later)
#   VENV      where the environment is made
#   PIP_ARGS  further arguments of `pip install`, say an index that has CPU-only builds of PyTorch
#   WORKERS   processes of the test run
#   PYTEST_ARGS  further arguments of pytest, say "-k process"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
STACK ?= onedl
ifeq ($(STACK),openmmlab)
VENV ?= .venv-openmmlab
else
VENV ?= .venv
endif
PIP_ARGS ?=
WORKERS ?= 2
DEMO_DIR ?= work_dirs/demo

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs
# Processes, not threads, share the cores: a small model on many threads only waits for itself.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Each worker begins with one half of the files, whose fixtures it makes once, and takes over what another leaves.
PYTEST = $(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install venv demo test test-all coverage lint types docs clean

help:
	@echo "make demo      show what the pick is worth, on digits in noise (minutes, CPU)"
	@echo "make test      run the daily tests (minutes)"
	@echo "make test-all  run all tests, those marked thorough included"
	@echo "make coverage  run all tests and say which lines they reach"
	@echo "make lint      check style, formatting and types, as pre-commit does"
	@echo "make types     check types alone (mypy)"
	@echo "make docs      build the documentation in site/; a warning is an error"
	@echo "make clean     remove the environment and what runs left behind"

venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "The tested versions need Python 3.11 or later, not $$($(PYTHON) -V 2>&1): make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)

ifeq ($(STACK),openmmlab)
# In three steps: MMCV's source needs PyTorch, setuptools and wheel in the environment that it is built in, and must be
# there before the package asks for it.
$(INSTALLED): setup.py pyproject.toml requirements/tested-openmmlab.txt | venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements/tested-openmmlab.txt
	MMCV_WITH_OPS=1 $(BIN)/python -m pip install $(PIP_ARGS) --no-build-isolation mmcv==2.1.0
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e ".[openmmlab,det,test]"
	@touch $@
else ifeq ($(STACK),onedl)
$(INSTALLED): setup.py pyproject.toml requirements/tested-onedl.txt | venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements/tested-onedl.txt -e ".[onedl,test]"
	@touch $@
else
$(error STACK=$(STACK): there are onedl and openmmlab)
endif

# The documentation is made from the sources without importing them: no PyTorch is needed.
$(DOCS_INSTALLED): requirements/docs.txt | venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -r requirements/docs.txt
	@touch $@

install: $(INSTALLED)

demo: install
	$(THREADS) $(BIN)/python tools/demo.py --work-dir $(DEMO_DIR)

test: install
	$(PYTEST) -m "not thorough" $(PYTEST_ARGS)

test-all: install
	$(PYTEST) $(PYTEST_ARGS)

coverage: install
	$(PYTEST) --cov --cov-report=term $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/dev/prose.py
	$(BIN)/mypy

types: install
	$(BIN)/mypy

docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tools/dev/check_api.py site
	@echo "site/index.html"

clean:
	rm -rf $(VENV) work_dirs build dist site .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
	rm -rf mmaselect.egg-info mmaselect/.mim
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
