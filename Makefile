# `make` lists the targets. PYTHON and TORCH may be set: make run TORCH="torch==2.13.0 --index-url ..."
PYTHON ?= python3
TORCH  ?= torch==2.13.0
PLAN   ?= plans/default.toml
NAME   ?= all
BOARD  ?= ecpix5

BIN        := .venv/bin
INSTALLED  := .venv/installed
FPGA_TOOLS := .venv/fpga-tools

.DEFAULT_GOAL := help
.PHONY: help install run test kernels check prove bench sim gateware load clean

help:      ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

$(INSTALLED): requirements.txt requirements-dev.txt requirements-data.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.txt
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

test: $(INSTALLED)     ## check, then every test that CI runs
	$(MAKE) --jobs=2 --output-sync check sim kernels
	$(BIN)/pytest -n 2 --dist worksteal

kernels: $(INSTALLED)  ## compile the mock board ahead, once for all of the tests' processes
	$(BIN)/eden board test --board mock:A

prove: $(INSTALLED)    ## what takes longer: thousands of injected faults, hundreds of planted models
	$(BIN)/pytest -m prove

bench: $(INSTALLED)    ## benchmarks as JSON lines, kept under build/bench (NAME=mock, injection, gateware, profiles, fits, links, inference, all)
	$(BIN)/python -m tests.bench $(NAME)

sim: $(INSTALLED)      ## build the simulated boards (--board sim:...): the gateware in Verilator
	$(BIN)/python -m gateware.sim.build

$(FPGA_TOOLS): requirements-gateware.txt $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-gateware.txt
	touch $@

gateware: $(FPGA_TOOLS)  ## build a board's gateware: a bitstream with open tools, or what Vivado needs (BOARD=, SYS_CLK_MHZ=)
	$(BIN)/python -m gateware.build $(BOARD) $(if $(SYS_CLK_MHZ),--sys-clk-mhz $(SYS_CLK_MHZ))

load: $(FPGA_TOOLS)    ## load that bitstream onto the board (BOARD=...)
	$(BIN)/python -m gateware.build $(BOARD) --load

clean:                 ## remove build products (not .venv)
	rm -rf build *.egg-info
