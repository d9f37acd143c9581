# `make` alone lists what there is to do. Everything is installed into .venv, from locks with hashes.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
CODE := $(wildcard proxy tools tests benchmarks)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Serving needs a third of what testing needs, so there is a stamp for each: `make run` is to be quick.
SERVING := .venv/.serving
TESTING := .venv/.testing

# Clients that are heavy, or want other versions than those locked, are kept apart.
CLIENTS := .venv-clients
NODE_CLIENTS := tests/data/node

# Modules that neither wait nor reach out can be tested in full, so they are.
SANS_IO := proxy/events.py,proxy/choices.py,proxy/sse.py,proxy/chunks.py,proxy/pieces.py,proxy/refusals.py,proxy/stops.py,proxy/cost.py,proxy/limits.py,proxy/review.py,proxy/rounds.py,proxy/strings.py,proxy/usage.py,proxy/validation.py,proxy/wire.py,proxy/errors.py,proxy/formats/*.py,proxy/doctor/*.py

.PHONY: help run test check fix lint types floors coverage bench bench-kernels soak test-clients test-vllm lock image

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Read from make's own command line only: a shell may have a HOST or a PORT for reasons of its own.
flag = $(if $(findstring command line,$(origin $(1))),$(2) '$($(1))')

run: $(SERVING) ## Serve on http://127.0.0.1:8080/v1; UPSTREAM=http://host:8000/v1 CONFIG=file HOST= PORT=
	@$(BIN)/florette serve $(call flag,UPSTREAM,--upstream) $(call flag,CONFIG,--config) \
		$(call flag,HOST,--host) $(call flag,PORT,--port)

# Each process of the tests takes neighbouring tests, which share what is costly to start; hundreds of processes are
# started, and each would compile all anew.
test: $(TESTING) ## Run the tests; ARGS='-k name' picks some, COVERAGE=1 measures what they reach
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n auto --dist worksteal $(if $(COVERAGE),--cov --cov-report= --cov-fail-under=0) $(ARGS)

check: ## All that continuous integration asks: lint, types, floors, tests and their coverage
	@bash .ci/run

fix: $(TESTING) ## Repair what lint can repair, and format
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

lint: $(TESTING) ## Look for mistakes and for unformatted files
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

types: $(TESTING) ## Check the types
	@$(BIN)/mypy $(CODE)

floors: $(TESTING) ## Check that imports point down only
	@$(BIN)/lint-imports --no-logo

coverage: $(TESTING) ## Hold what `make test COVERAGE=1` measured against the thresholds
	@$(BIN)/coverage report
	@$(BIN)/coverage report --include='$(SANS_IO)' --fail-under=100

bench: $(TESTING) ## Run the benchmarks; ARGS= are passed on
	@$(BIN)/python -m benchmarks.run $(ARGS)

bench-kernels: $(TESTING) ## Run the benchmarks of kernels; ARGS=--quick runs a part
	@$(BIN)/python -m benchmarks.kernels $(ARGS)

# pytest-asyncio comes with langchain-tests and would run what anyio runs; pytest-socket keeps all on loopback.
test-clients: $(CLIENTS)/.ready ## Run the tests of the clients that are too heavy for `make test`
	@FLORETTE_TEST_CLIENTS=1 $(CLIENTS)/bin/pytest -m clients -p no:asyncio --benchmark-disable --allow-hosts=127.0.0.1 \
		tests/test_clients_*.py $(ARGS)

soak: $(TESTING) ## Read a million broken answers, on all processors; FLORETTE_SOAK= sets another number
	@FLORETTE_SOAK=$${FLORETTE_SOAK:-1000000} $(BIN)/pytest -m soak -rP $(ARGS)

test-vllm: $(TESTING) ## Run the tests that need a real vLLM; FLORETTE_TEST_VLLM=http://host:8000/v1
	@test -n "$$FLORETTE_TEST_VLLM" || { \
		echo "Say where the vLLM is: make test-vllm FLORETTE_TEST_VLLM=http://host:8000/v1" >&2; exit 2; }
	@$(BIN)/pytest -m vllm $(ARGS)

# Everything is solved at once first, so that serving and testing agree on every version.
UV_VERSION := 0.13.8
COMPILE = $(BIN)/uv pip compile --quiet --no-config --no-emit-index-url --no-emit-find-links \
	--override .ci/overrides.txt --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' \
	$(if $(UPGRADE),--upgrade) --group build

lock: $(BIN)/python ## Write the locks anew from pyproject.toml; UPGRADE=1 takes the newest versions
	@$(PIP) install uv==$(UV_VERSION)
	@$(COMPILE) --extra dev --extra kernels --extra gateway pyproject.toml --output-file .ci/requirements.lock
	@$(COMPILE) --constraint .ci/requirements.lock --extra kernels pyproject.toml --output-file requirements.lock
	@$(COMPILE) --constraint .ci/requirements.lock --extra kernels --extra gateway pyproject.toml \
		--output-file .ci/gateway.lock
	@$(COMPILE) --no-generate-hashes --group clients pyproject.toml --output-file tests/clients.txt

image: ## Build the container image
	docker build --tag florette .

# A .venv whose Python has gone, by an upgrade or a move, is none. (Here, as make looks at a stamp only once.)
$(shell test -x $(BIN)/python || rm -rf .venv)

USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

$(BIN)/python:
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		if "$$python" -c '$(USABLE)' 2>/dev/null; then exec "$$python" -m venv .venv; fi; \
	done; \
	echo "Florette needs Python 3.11 or newer with its venv module (on Debian and Ubuntu:" \
		"apt-get install python3 python3-venv), or say which: make PYTHON=/path/to/python3" >&2; exit 2

# Our own package is built by the locked setuptools, not by one that pip would fetch aside.
$(SERVING): requirements.lock pyproject.toml | $(BIN)/python
	@echo "Setting up .venv for serving ..."
	@$(PIP) install --no-deps --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(TESTING): .ci/requirements.lock $(SERVING)
	@echo "Setting up .venv for testing ..."
	@$(PIP) install --no-deps --require-hashes --requirement .ci/requirements.lock
	@touch $@

# npm would record in a lock where it fetched each package from, so the versions in package.json are all that is pinned.
$(CLIENTS)/.ready: tests/clients.txt $(NODE_CLIENTS)/package.json | $(BIN)/python
	@command -v npm >/dev/null || { echo "The clients for Node need npm, which comes with Node.js 20 or newer" >&2; exit 2; }
	@echo "Setting up $(CLIENTS) and $(NODE_CLIENTS)/node_modules ..."
	@$(BIN)/python -m venv --clear $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip --disable-pip-version-check --quiet install --requirement tests/clients.txt
	@npm --prefix $(NODE_CLIENTS) install --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel error >/dev/null
	@touch $@
