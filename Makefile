# Every target sets the environment up first; done once, that takes a fraction of a second.
.DEFAULT_GOAL := help
.PHONY: help setup repro test test-all ui lint pins clean

# The first Python that is supported and runs: a name on PATH may be a stub that does not. PYTHON=... names another.
PYTHON := $(or $(PYTHON),$(shell \
	for python in python3.11 python3.12 python3; do \
		if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
			echo "$$python"; break; \
		fi; \
	done))
export MLFLOW_DISABLE_TELEMETRY ?= true
ARGS ?=
PORT ?= 5000

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

setup:  ## make .venv with everything in it
	@test -n '$(PYTHON)' || { \
		echo 'set-up: No Python 3.11 or 3.12 is on PATH: install one, or name it with make PYTHON=/path/to/python.' >&2; \
		exit 2; }
	@exec '$(PYTHON)' -E -s tools/make_environment.py

repro: setup  ## run the experiment of params.yaml, as far as anything changed
	@exec .venv/bin/python -m pipelines repro $(ARGS)

# A process a processor, up to four: a single one starts the clusters and experiments, which takes longest.
PYTEST = .venv/bin/python -m pytest -n logical --maxprocesses 4

test: setup  ## run the tests; ARGS='-k name' chooses
	@exec $(PYTEST) -m 'not slow' $(ARGS)

test-all: setup  ## run the slow tests too
	@exec $(PYTEST) $(ARGS)

ui: setup  ## serve MLflow on 127.0.0.1; PORT=5000
	@exec .venv/bin/python -m pipelines ui --port '$(PORT)'

lint: setup  ## check style, types and the direction of imports
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy
	.venv/bin/lint-imports

pins: setup  ## rewrite requirements.txt from pyproject.toml; ARGS=--upgrade takes newer versions
	UV_CUSTOM_COMPILE_COMMAND='make pins' .venv/bin/uv pip compile pyproject.toml --extra dev --universal \
		--python-version 3.11 --no-annotate --no-emit-index-url --no-emit-find-links --quiet \
		--output-file requirements.txt $(ARGS)

clean:  ## remove the environment and the caches of the tools, but no results
	rm -rf .venv .venv.lock .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
