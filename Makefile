# The README's commands. Both install what they need into .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := ./shared[database] services/gateway services/thumbnailer services/embedder services/scheduler cli[local]
EDITABLE := $(foreach package,$(PACKAGES),-e $(package))
SOURCES := $(wildcard shared/pyproject.toml services/*/pyproject.toml cli/pyproject.toml) constraints.txt
PROTO := shared/src/darkroom/rpc/v1/darkroom.proto
OUT := shared/src

BENCHMARKS := thumbnails embeddings acknowledgement flow search
PEERS := build/peers

.PHONY: demo up test chaos check bench bench-large bench-peers servers proto fuzz clean

demo: $(VENV)/.installed  ## Start everything on this machine, upload samples, search them. ARGS=--exit ends by itself.
	$(BIN)/darkroom demo $(ARGS)

up: $(VENV)/.installed  ## Start everything on this machine and serve.
	$(BIN)/darkroom up $(ARGS)

# Side by side, each with servers of its own: most of a test's time is waiting for a process to start or to come back.
test: $(VENV)/.installed-dev servers  ## Everything that must hold. ARGS goes to pytest.
	$(MAKE) --no-print-directory check
	$(BIN)/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: $(VENV)/.installed-dev servers  ## A storm over a Darkroom of its own; docs/chaos.md. ARGS=--long: half an hour.
	$(BIN)/python tests/chaos/run_storm.py $(ARGS)

check: $(VENV)/.installed-dev  ## Style, types and walls, in seconds.
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench  ## What it costs, beside others: tables, benchmarks/results, the README's table. Minutes.
	set -e; for each in $(BENCHMARKS); do $(BIN)/python benchmarks/$$each.py $(ARGS); done
	$(BIN)/python benchmarks/summary.py $(ARGS)

bench-large: $(VENV)/.installed-bench  ## Search among 1,000,000 vectors: 8 GB of memory, a quarter of an hour.
	$(BIN)/python benchmarks/search.py --vectors 1000000 $(ARGS)

# An environment for each: what they need is not what Darkroom needs. 2 GB with torch's CPU build.
bench-peers: $(VENV)/.installed-bench $(PEERS)/open_clip/.installed $(PEERS)/infinity/.installed  ## Embeddings beside open_clip and infinity.
	$(BIN)/python benchmarks/embeddings.py --peers $(PEERS) $(ARGS)

$(PEERS)/%/.installed: benchmarks/peers/%.txt | $(VENV)/.python
	$(BIN)/python -m venv $(PEERS)/$*
	$(PEERS)/$*/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

proto: $(VENV)/.installed-dev  ## The code that is generated from darkroom.proto, again. OUT=folder writes it elsewhere.
	$(BIN)/python -m grpc_tools.protoc -I shared/src --python_out=$(OUT) --pyi_out=$(OUT) --grpc_python_out=$(OUT) $(PROTO)

fuzz: $(VENV)/.installed-dev  ## Mutated files against the decoders, for ARGS="--minutes 10 --seed 1"; docs/hostile-input.md.
	$(BIN)/python tests/fuzz_prepare.py $(ARGS)

servers:  ## RabbitMQ and Chromium for the tests: found, installed on Debian as root, or the command to run is printed.
	@sh tests/install-rabbitmq.sh
	@sh tests/install-chromium.sh

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "Darkroom's local mode needs Python 3.11 or 3.12; say which with: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(EDITABLE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement requirements-dev.txt
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev requirements-bench.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement requirements-bench.txt
	@touch $@

clean:  ## Remove the environment and the local mode's data.
	rm -rf $(VENV) .darkroom
