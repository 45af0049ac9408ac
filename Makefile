# `make demo` and `make test` need Python 3.11 or newer, make, and a package index.
PYTHON ?= python3
VENV ?= .venv
DATA ?= runs/data
# Processes that run tests; 0: none beside the main one.
WORKERS ?= 2
UNOPTIMIZED ?= true
ARGS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed
DOCUMENTED := $(VENV)/.documented
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test test-slow check mutants golden readme docs linkcheck clean

demo: $(INSTALLED)  ## Figure 1 of He et al. 2015 on a laptop
	$(BIN)/resnet-jax prepare digits --data-dir $(DATA)
	$(BIN)/resnet-jax study experiments/degradation.py:figure1 --seeds 3 --workdir runs/demo --data-dir $(DATA)

# Quick tests compile for longer than they run, so XLA's optimizations are off.
test: $(DEVELOPED)  ## the quick tests; TFDS_DATA_DIR with a prepared cifar10 adds those on real images
	JAX_DISABLE_MOST_OPTIMIZATIONS=$(UNOPTIMIZED) $(PYTEST) -m "not slow" $(ARGS)

test-slow: $(DEVELOPED)  ## the other tests
	$(PYTEST) -m slow $(ARGS)

check: $(DEVELOPED)  ## linters, formatter, type checker
	$(BIN)/hadolint Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

mutants: $(DEVELOPED)  ## small faults, each of which the named quick tests must catch
	JAX_DISABLE_MOST_OPTIMIZATIONS=$(UNOPTIMIZED) $(BIN)/python tests/mutants.py $(ARGS)

golden: $(DEVELOPED)  ## rewrites tests/golden; read the difference before you commit it
	$(BIN)/python tests/write_golden.py

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --editable '.[train]'
	touch $@

$(DEVELOPED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --upgrade --editable '.[dev]'
	touch $@

$(DOCUMENTED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --upgrade --editable '.[docs]'
	touch $@

readme: $(INSTALLED)  ## fills the README's tables and draws its picture from experiments/results
	$(BIN)/python docs/generate.py

docs: $(DOCUMENTED)  ## the site, docs/_build/html; tutorials run once and are cached
	$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo docs/_build/html/index.html

linkcheck: $(DOCUMENTED)  ## external links of the site; needs a network
	$(BIN)/python -m sphinx -b linkcheck -q -d docs/_build/doctrees docs docs/_build/linkcheck

clean:
	rm -rf $(VENV) runs/demo docs/_build docs/_generated
