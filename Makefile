# What a developer types. Every target makes what it needs: on a fresh machine only python3 (>= 3.11, with venv) and make.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DEV := .venv/.dev-installed
BENCH := .venv/.bench-installed
ARGS ?=
CORES ?= $(shell nproc 2>/dev/null || echo 2)
WORKERS ?= $(shell expr $(CORES) + 2)
COUNT ?= 1000000
SEED ?= 1
CLIENTS ?= 50
JOBS ?= 1

.DEFAULT_GOAL := help
.PHONY: help odd demo test quick check format bench fuzz simulate conform flakes crash attack endure homes mutants trace \
	example flap life clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(DEV): pyproject.toml
	@test -n "$(PYTHON)" || { echo "blockproto needs Python 3.11 or newer with venv: on Debian, apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "no virtual environment could be made: on Debian, apt install python3-venv" >&2; exit 1; }
	@echo "setting up .venv: this takes a minute or two, once" >&2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(BENCH): $(DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

demo: $(DEV)  ## a file goes there, the server is killed in the middle, the file arrives all the same
	$(BIN)/blockproto demo

# Two processes more than cores, since some tests wait for others' processes; all have to collect the tests in the same order,
# which a random hash would shuffle.
test: $(DEV)  ## every test; options for pytest in ARGS
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

quick: $(DEV)  ## the tests that start no process and take no time: for the inner loop, within a minute
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m "not slow and not fuzz" $(ARGS)

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

fuzz: $(DEV)  ## a million random and mutated inputs through decode and session, and through the detection of dialects; COUNT and SEED choose others
	$(BIN)/python tests/fuzz.py $(COUNT) $(SEED)
	$(BIN)/python tests/fuzz_detection.py $(COUNT) $(SEED)

simulate: COUNT = 10000
simulate: $(DEV)  ## seeds of the simulation with 50 clients each; SEED, COUNT, CLIENTS, JOBS choose others
	$(BIN)/python -m tests.simulation --seed $(SEED) --count $(COUNT) --clients $(CLIENTS) --jobs $(JOBS)

conform: $(DEV)  ## the whole conformance harness against our own server, shuffled, with one-byte segments too
	$(BIN)/python -m tests.campaigns.flakes --runs 3 --seed $(SEED)

flakes: $(DEV)  ## fifty shuffled conformance runs, half of them beside busy processors: is it judged alike every time?
	$(BIN)/python -m tests.campaigns.flakes --runs 50 --seed $(SEED)

crash: $(DEV)  ## the long crash and power-cut runs (power cuts need root)
	$(BIN)/python -m pytest -m crash $(ARGS)
	$(BIN)/python -m tests.campaigns.kill9 --uploads 20 --what server --seed $(SEED)
	$(BIN)/python -m tests.campaigns.kill9 --uploads 20 --what client --seed $(SEED)

odd: $(DEV)  ## odd folders, and messages pipelined in every order
	cd tests && ../$(BIN)/python -m campaigns.odd --seed $(SEED) $(ARGS)

attack: $(DEV)  ## the long attacks: crowds of strangers, hostile names and links, broken conversations, a greedy principal, what one peer can take
	cd tests && ../$(BIN)/python -m campaigns.attack_crowd --what dribble --seed $(SEED)
	cd tests && ../$(BIN)/python -m campaigns.attack_crowd --what heads --seed $(SEED)
	cd tests && ../$(BIN)/python -m campaigns.attack_names --seed $(SEED)
	cd tests && ../$(BIN)/python -m campaigns.attack_sessions --seed $(SEED)
	cd tests && ../$(BIN)/python -m campaigns.attack_greedy --seed $(SEED)
	cd tests && ../$(BIN)/python -m campaigns.attack_bounds --seed $(SEED)

homes: $(DEV)  ## 5,000 files sent from five homes: one copy of each, and hardly any payload after the first; ARGS for others
	cd tests && ../$(BIN)/python -m campaigns.homes --seed $(SEED) $(ARGS)

endure: $(DEV)  ## half an hour of odd folders, broken and pipelined conversations, floods and lies beside honest clients
	cd tests && ../$(BIN)/python -m campaigns.endure --seed $(SEED) $(ARGS)

mutants: $(DEV)  ## servers and clients with one rule broken: which case notices which; ARGS=RES-006 for some of them
	cd tests && ../$(BIN)/python -m mutants.matrix $(ARGS)

trace: $(DEV)  ## each clause of the spec and what proves it; ARGS=BP1-RES for a part
	$(BIN)/python tests/traceability.py $(ARGS)

example: $(DEV)  ## hold the second implementation (Node) against every case of the spec
	cd spec/examples/node && npm ci --ignore-scripts --no-audit --no-fund && npm test
	$(BIN)/blockproto conform client --jobs 2 -- node spec/examples/node/bin/job.js
	@folder=$$(mktemp -d) && { node spec/examples/node/bin/blockproto.js serve $$folder --port 7979 & } && server=$$! && \
		sleep 1 && { $(BIN)/blockproto conform server 127.0.0.1:7979 --jobs 2; status=$$?; \
		kill $$server; wait $$server; rm -rf $$folder; exit $$status; }

flap: $(DEV)  ## half an hour of fifty files at a time over a line that comes and goes; ARGS="--minutes 5" for less
	$(BIN)/python -m tests.campaigns.flap --seed $(SEED) $(ARGS)

life: $(DEV)  ## sleep for ten minutes, clocks that jump, addresses that change (root), dead and slow peers
	$(BIN)/python -m tests.campaigns.asleep --seed $(SEED) $(ARGS)
	$(BIN)/python -m tests.campaigns.clocks --seed $(SEED)
	$(BIN)/python -m tests.campaigns.clocks --seed $(SEED) --back
	$(BIN)/python -m tests.campaigns.moving --seed $(SEED)
	$(BIN)/python -m tests.campaigns.patience --seed $(SEED)

clean:  ## remove what the other targets made
	rm -rf .venv .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
