# `make` lists the targets. PYTHON and TORCH may be set: make run TORCH="torch==2.13.0 --index-url ..."
PYTHON ?= python3
TORCH  ?= torch==2.13.0
PLAN   ?= plans/default.toml
NAME   ?= all

BIN       := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install run test check prove bench clean

help:      ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

install: $(INSTALLED)  ## set up .venv with everything pinned

run: $(INSTALLED)      ## the main job: characterise, fit, boost, map, infer, report (PLAN=...)
	$(BIN)/eden run $(PLAN)

check: $(INSTALLED)    ## format, lint, types, import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check            ## check, then every test that CI runs
	$(BIN)/pytest -n 2 --dist worksteal

prove: $(INSTALLED)    ## what takes longer: thousands of injected faults
	$(BIN)/pytest -m prove

bench: $(INSTALLED)    ## benchmarks as JSON lines, kept under build/bench (NAME=mock, injection, all)
	$(BIN)/python -m tests.bench $(NAME)

clean:                 ## remove build products (not .venv)
	rm -rf build *.egg-info
