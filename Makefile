# What a developer types. Every target makes what it needs: on a fresh machine only python3 (>= 3.11, with venv) and make.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DEV := .venv/.dev-installed
BENCH := .venv/.bench-installed
ARGS ?=
COUNT ?= 1000000
SEED ?= 1
CLIENTS ?= 50
JOBS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench fuzz simulate crash trace clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(DEV): pyproject.toml
	@test -n "$(PYTHON)" || { echo "blockproto needs Python 3.11 or newer with venv: on Debian, apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "no virtual environment could be made: on Debian, apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(BENCH): $(DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

demo: $(DEV)  ## a file goes there, the server is killed in the middle, the file arrives all the same
	$(BIN)/blockproto demo

test: $(DEV)  ## every test; options for pytest in ARGS
	$(BIN)/python -m pytest $(ARGS)

format: $(DEV)  ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(DEV)  ## format, lint, types, tests, tidy, coverage: what must be green before a merge
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(BENCH)  ## side by side with what is installed of rsync, nginx, vsftpd, scp, and with the bare floor
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(DEV)  ## a million random and mutated inputs through decode and session, and through routing; COUNT and SEED choose others
	$(BIN)/python tests/fuzz.py $(COUNT) $(SEED)
	$(BIN)/python tests/fuzz_routing.py $(COUNT) $(SEED)

simulate: COUNT = 10000
simulate: $(DEV)  ## seeds of the simulation with 50 clients each; SEED, COUNT, CLIENTS, JOBS choose others
	$(BIN)/python -m tests.simulation --seed $(SEED) --count $(COUNT) --clients $(CLIENTS) --jobs $(JOBS)

crash: $(DEV)  ## the long crash and power-cut runs (power cuts need root)
	$(BIN)/python -m pytest -m crash $(ARGS)
	$(BIN)/python -m tests.campaigns.kill9 --uploads 20 --what server --seed $(SEED)
	$(BIN)/python -m tests.campaigns.kill9 --uploads 20 --what client --seed $(SEED)

trace: $(DEV)  ## each clause of the spec and what proves it; ARGS=BP1-RES for a part
	$(BIN)/python tests/traceability.py $(ARGS)

clean:  ## remove what the other targets made
	rm -rf .venv .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
