# Every target sets itself up: a virtual environment in the checkout with the pinned set of requirements.lock.
# `make simulate` and `make test` are all a newcomer needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export FLWR_TELEMETRY_ENABLED := 0
export PYTHONUNBUFFERED := 1

.PHONY: help simulate simulate-real test test-slow drills bench check format clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): requirements.lock pyproject.toml examples/tabular/pyproject.toml
	@echo "Setting up $(VENV) (about 6.5 GB, some minutes the first time) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; found $$($(PYTHON) --version). Use make PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation \
		--editable . --editable examples/tabular
	@touch $@

simulate: $(STAMP)  ## the main job: a federated study over simulated hospitals, with a report to look at
	@$(BIN)/pm1-sim run

simulate-real: $(STAMP)  ## the same study on real people (needs PM1_REAL_DATA)
	@$(BIN)/pm1-sim run study=real

test: $(STAMP)  ## the test suite, some ten minutes on two cores
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(STAMP)  ## tests of minutes: real deployments, Ray, kills, one at a time; CI runs them too
	@$(BIN)/python -m pytest -m slow

drills: $(STAMP)  ## a consortium killed, cut off and narrowed in every way, two hours; writes docs/reliability.md
	@PYTHONPATH=tests $(BIN)/python -m drills

bench: $(STAMP)  ## ratios against named peers, an hour; writes bench/results.json and docs/benchmarks.md
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation \
		--editable bench/shift
	@OMP_NUM_THREADS=1 PYTHONPATH=tests:tests/federation $(BIN)/python -m bench

check: $(STAMP)  ## lint, types, import floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy examples/tabular/pm1_tabular.py
	@$(BIN)/lint-imports

format: $(STAMP)  ## rewrite files as the linter likes them
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove what was built, not the runs
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
