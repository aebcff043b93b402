# Two commands for a newcomer, `make quickstart` and `make test`; both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help quickstart test test-slow test-jax test-torch lint format docs clean

help:
	@echo "make quickstart  fine-tune the built-in network on handwritten digits, offline"
	@echo "make test        the test suite"
	@echo "make test-jax    the test suite on the JAX backend"
	@echo "make test-torch  the test suite on the PyTorch backend"
	@echo "make test-slow   every architecture, rather than one of each family"
	@echo "make lint        ruff;   make format lets it mend"
	@echo "make docs        the documentation, into site/"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 to 3.13 is needed; choose one by: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.jax: $(VENV)/.installed
	$(PIP) --editable '.[jax]'
	@touch $@

# The plain `torch` of the registry brings CUDA along; constraints.txt names a version, and the
# build is the one that pip finds first for it.
$(VENV)/.torch: $(VENV)/.installed
	$(PIP) --editable '.[torch]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	@touch $@

quickstart: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --durations=40 -m 'not slow and not network and not gpu'

test-jax: $(VENV)/.jax
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 --durations=40 -m 'not slow and not network and not gpu'

test-torch: $(VENV)/.torch
	KERAS_BACKEND=torch $(BIN)/python -m pytest -n 2 --durations=40 -m 'not slow and not network and not gpu'

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site build dist *.egg-info
