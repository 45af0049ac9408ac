# `make demo` and `make test` need Python 3.11 or newer, make, and a network path to packages.
PYTHON ?= python3
VENV ?= .venv
DATA ?= runs/data
# Each worker runs files of tests in a process of its own.
WORKERS ?= 2
UNOPTIMIZED ?= true
BIN := $(VENV)/bin
# The demo needs less than the tests.
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed

.PHONY: demo test test-slow test-exhaustive check golden readme clean

demo: $(INSTALLED)  ## Figure 1 of He et al. 2015 on your laptop
	$(BIN)/resnet-jax prepare digits --data-dir $(DATA)
	$(BIN)/resnet-jax study experiments/degradation.py:figure1 --seeds 3 --workdir runs/demo --data-dir $(DATA)

# The many tiny programs of the quick tests run for milliseconds and compile for seconds; the slow tests are compiled as runs are.
test: $(DEVELOPED)  ## all tests but the slow ones; TFDS_DATA_DIR with a prepared cifar10 adds those on real photographs
	JAX_DISABLE_MOST_OPTIMIZATIONS=$(UNOPTIMIZED) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not exhaustive" $(ARGS)

test-slow: $(DEVELOPED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow $(ARGS)

test-exhaustive: $(DEVELOPED)  ## an hour and more
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m exhaustive $(ARGS)

check: $(DEVELOPED)  ## what pre-commit and CI run
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

golden: $(DEVELOPED)  ## writes tests/golden anew; read the difference before you commit it
	$(BIN)/python tests/write_golden.py

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --editable .
	touch $@

$(DEVELOPED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --upgrade --editable '.[dev,s3]'
	touch $@

readme: $(INSTALLED)  ## fills the README's tables from experiments/results
	$(BIN)/resnet-jax report --fill README.md

clean:
	rm -rf $(VENV) runs/demo
