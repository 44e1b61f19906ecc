# One way to run things; the README and .ci/run use these targets. `make PYTHON=python3.12 train` picks the interpreter,
# ARGS='--epochs 5' passes options on.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
CASES ?= 2000
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

.PHONY: help train test soak test-all test-accelerator fuzz mutants peers lint types format page page-browser docs experiments measurements bench bench-full build clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 22

train: $(VENV)/.installed-plots,durable  ## train a network on real handwritten digits
	@$(BIN)/jbp train $(ARGS)

test: $(VENV)/.installed-test  ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

soak: $(VENV)/.installed-test  ## run what adds cases to the suite: the planted mistakes, more random networks, every claim
	$(BIN)/python -m pytest -n 2 --dist loadfile -m soak $(ARGS)

test-all: test fuzz mutants soak  ## all of it, with 2,000 random networks and one change at a time (half an hour)

test-accelerator: $(VENV)/.installed-test  ## run the suite on the accelerator that is present
	@$(BIN)/python -c 'import jax, sys; d = jax.devices()[0]; print(d.device_kind); sys.exit(d.platform == "cpu" and "no accelerator here (with its own JAX plugin installed?); make test runs the suite on the CPU")'
	$(BIN)/python -m pytest $(ARGS)

fuzz: $(VENV)/.installed-test  ## compare random networks with autodiff (CASES=2000)
	$(BIN)/python tests/fuzz.py --cases $(CASES)

mutants: $(VENV)/.installed-test  ## change the derivatives one sign or term at a time, and see each caught
	$(BIN)/python tests/mutation/mutate.py $(ARGS)

peers: $(VENV)/.installed-test  ## compare with PyTorch, if it is installed in the environment
	$(BIN)/python -m pytest -rs $(ARGS) tests/peers/peer_*.py

lint: $(VENV)/.installed-dev  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev  ## check types
	$(BIN)/pyright --pythonpath $(BIN)/python

page: inspector/node_modules/.installed  ## build the δ page and compare its engine with jbp (Node 20)
	cd inspector && npm run build && npm test

page-browser: page $(VENV)/.installed-test  ## drive the δ page in chromium too, some minutes
	PYTHONPATH=. $(BIN)/python inspector/pages.py inspector/dist/pages
	cd inspector && PAGES=dist/pages CHROMIUM=$$(command -v chromium-headless-shell || command -v chromium) npm run browser

inspector/node_modules/.installed: inspector/package-lock.json
	cd inspector && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --no-audit --no-fund
	@touch $@

format: $(VENV)/.installed-dev  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-docs  ## build the site into site/
	@# Not --quiet, with which --strict sees no warning.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

experiments: $(VENV)/.installed-plots  ## run every claim of the lectures (ARGS=--quick: in seconds)
	$(BIN)/python experiments/claims/all.py $(ARGS)

measurements: $(VENV)/.installed-plots  ## the other runs behind the numbers (ARGS=--quick: in seconds)
	@for script in digits mnist what_to_save one_backward_pass learning_rules private_mnist calibrate_tolerance \
	  check_grads_blindness same_bits conv_accuracy conv_routes window_routes larger_than_memory survive meshes \
	  lost_hosts gpt per_example_optimizers; do echo "$$script"; $(BIN)/python experiments/measurements/$$script.py $(ARGS) || exit 1; done

bench: $(VENV)/.installed-bench  ## time jbp beside what one would use instead (ARGS=--quick: in two minutes)
	$(BIN)/python experiments/bench/suite.py $(ARGS)

bench-full: $(VENV)/.installed-bench  ## the same with every batch size and data set, an hour
	$(BIN)/python experiments/bench/suite.py --full $(ARGS)

build: $(VENV)/.installed-dev  ## make a wheel in dist/
	$(BIN)/python -m build --wheel

clean:  ## remove what make made, but not runs/
	rm -rf $(VENV) dist site

# The environment is made anew when another interpreter is asked for.
$(VENV)/.python-$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "jbp needs Python 3.11 or later, but $(PYTHON) is $${VERSION:-$(VERSION)}: try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-%: $(VENV)/.python-$(VERSION) pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@
