# make demo   sets everything up and runs the whole pipeline on two CPU cores
# make test   sets everything up and runs every check
# make servers, make servers-stop   PostgreSQL, and on it a Prefect and an MLflow server, on 127.0.0.1

# Of the Pythons found, the first that is supported, else any: uv then fetches one. PYTHON=/path/to/python takes another.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11; do \
    $$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),python3)
EXTRAS ?= dev,bench,servers
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# uv reads no pip configuration; a folder of wheels that pip was told about is handed on. Empty is fine.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Idle OpenMP threads sleep instead of spinning: several one-thread workers share few cores.
export OMP_WAIT_POLICY ?= PASSIVE
export DO_NOT_TRACK ?= 1
# Images often set this; then each of the dozens of processes compiles torch and all else anew, 10 seconds every time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo smoke test lint format unit slow doctor servers servers-stop clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make smoke | lint | format | unit | slow | doctor | clean"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(BIN)/python -c 'import pip; $(SUPPORTED)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -c '$(SUPPORTED)' || { echo 'no Python 3.11 to 3.13 found here: uv fetches one' && \
	    $(BIN)/uv venv --clear --seed --python '>=3.11,<3.14' $(VENV) && \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: $(READY)
	$(BIN)/magic141 run configs/demo.yaml

smoke: $(READY)
	$(BIN)/magic141 run configs/smoke.yaml

doctor: $(READY)
	$(BIN)/magic141 doctor

servers: $(READY)
	@infra/servers.sh up

servers-stop:
	@infra/servers.sh down

test: lint unit slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One thread a process: the tests start several. The slow ones wait for Ray and servers half of the time.
unit slow: export OMP_NUM_THREADS ?= 1

unit: $(READY)
	$(BIN)/pytest -m "not slow" -n logical --maxprocesses 8 --dist loadfile --durations 10

slow: $(READY)
	$(BIN)/pytest -m slow -n logical --maxprocesses 2 --max-worker-restart 0 --dist loadfile --durations 10

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
