# Every target installs what it needs: make demo, make test, make lint, make help.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PINS ?= requirements.txt
# SIZE=smoke takes seconds instead of minutes.
SIZE ?= full
RUNS := runs/$(if $(filter-out full,$(SIZE)),$(SIZE)-)
# Where `make smoke` tries studies out; `make smoke-cracks` tries one.
TRIED := runs/smoke-studies
STUDIES := $(patsubst configs/sweeps/%.py,%,$(wildcard configs/sweeps/*.py))
export TFDS_DATA_DIR ?= $(CURDIR)/runs/datasets
# The file's name has the Python version and a checksum of the pinned versions, so that
# `make setup` installs again if either changes.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
STAMP := $(VENV)/installed-$(VERSION)-$(shell cksum < $(PINS) | cut -d' ' -f1)

COMPILE := uv pip compile --universal --python-version=3.11 --upgrade --no-annotate \
	--no-emit-package=segloss --custom-compile-command="make requirements"

.PHONY: help setup demo demo-compare test check smoke test-slow test-beam bench-compiled docs lint format audit \
	requirements clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install what requirements.txt pins

$(STAMP): $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "segloss needs Python 3.11, 3.12 or 3.13, $(PYTHON) is $(VERSION): make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(PINS)
	@touch $@

demo: setup  ## train the embedded default, evaluate it, show table and pictures
	@# A finished demo starts over, an interrupted one resumes from its checkpoint.
	@if [ -f $(RUNS)demo/results.json ]; then rm -rf $(RUNS)demo; fi
	$(BIN)/python run.py --config=configs/demo.py:$(SIZE) --workdir=$(RUNS)demo

demo-compare: setup  ## random and Balance-batch on equal steps, both tables
	$(BIN)/python -m experiments.run --config=configs/sweeps/demo_samplers.py:$(SIZE) --workdir=$(RUNS)demo-compare

test: setup  ## run the tests, or those that ARGS picks
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal $(ARGS)

check: setup  ## the same with shapes checked as they run and branch coverage: half as long again
	$(MAKE) test ARGS="--jaxtyping-packages=segloss,beartype.beartype --cov --cov-fail-under=90"

smoke: setup  ## try every study out on embedded data, or those in STUDIES, from its sweep to its page
	rm -rf $(TRIED)
	$(MAKE) --jobs=2 --keep-going --output-sync $(STUDIES:%=smoke-%)

# Each study has its own data sets: two processes cannot prepare one at the same time.
smoke-%: export TFDS_DATA_DIR = $(CURDIR)/$(TRIED)/$*/.data
smoke-%: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/$(TRIED)/.compiled
smoke-%: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
smoke-%: setup
	$(BIN)/python -m experiments.run --config=configs/sweeps/$*.py --workdir=$(TRIED)/$* --smoke
	$(BIN)/python -m experiments.collect $* --workdir=$(TRIED)/$* --smoke
	$(BIN)/python -m experiments.report $* --workdir=$(TRIED)/$* --smoke

test-slow:  ## run the tests of networks at their real size, which take minutes
	$(MAKE) test ARGS="-m slow"

test-beam:  ## run the tests of Apache Beam, which has pins of its own, in .venv-beam
	$(MAKE) test VENV=.venv-beam PINS=requirements-beam.txt ARGS=tests/data/test_beam.py

bench-compiled:  ## compile every loss for TPUs and a GPU that are not there, and compare (ARGS="--only=dice")
	$(MAKE) setup VENV=.venv-tpu PINS=benchmarks/requirements-tpu.txt
	$(MAKE) setup VENV=.venv-gpu PINS=benchmarks/requirements-gpu.txt
	.venv-tpu/bin/python -m benchmarks.compiled --results=runs/compiled $(ARGS)
	.venv-gpu/bin/python -m benchmarks.compiled --results=runs/compiled --output=runs/compiled.md $(ARGS)

docs:  ## build these pages as a site, in build/docs; runs the notebooks
	$(MAKE) setup VENV=.venv-docs PINS=docs/requirements.txt
	rm -rf build/docs
	@# In one process: jobs of sphinx are forks, and a fork of JAX, which has threads, can hang.
	.venv-docs/bin/python -m sphinx --builder=html --fail-on-warning --keep-going --quiet \
		--fresh-env --doctree-dir=build/doctrees docs build/docs

lint: setup  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## rewrite to the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit:  ## look for known vulnerabilities of the pins, and for unsafe code, in .venv-audit
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check bandit pip-audit
	.venv-audit/bin/bandit --quiet --recursive --configfile pyproject.toml segloss experiments run.py
	@# Without --strict, packages that cannot be looked up would pass.
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.txt

requirements:  ## pin anew what pyproject.toml asks for (needs uv)
	$(COMPILE) --extra=dev --output-file=requirements.txt pyproject.toml
	$(COMPILE) --extra=dev --extra=beam --output-file=requirements-beam.txt pyproject.toml
	$(COMPILE) --extra=docs --output-file=docs/requirements.txt pyproject.toml
	for compiler in tpu gpu; do $(COMPILE) --extra=train \
		--output-file=benchmarks/requirements-$$compiler.txt \
		pyproject.toml benchmarks/requirements-$$compiler.in || exit 1; done

clean:  ## remove runs and the environment
	rm -rf runs build $(VENV)
