# Everything a newcomer, a developer or CI does with this repository. `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

UV_VERSION := 0.13.9
UV := $(shell command -v uv || echo .run/tools/bin/uv)
PYTHON := .venv/bin/python
STACK := $(PYTHON) deploy/local/stack.py
MANIFESTS := pyproject.toml $(wildcard libs/*/pyproject.toml services/*/pyproject.toml simulators/pyproject.toml)
SYNCED := .venv/.synced
# A file stays with one worker: its fixtures start servers. In the order of collection (pyproject.toml: the longest
# first); left to itself, xdist starts with the files of many tests, and the long ones of a single test end alone.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
export UV_LINK_MODE ?= copy

.PHONY: help
help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: up ## Install what is missing, start everything, play the main story, leave it running with a live feed.
	@$(PYTHON) -m simulators.demo

.PHONY: up
up: $(SYNCED) ## Start everything in the background and wait until it is ready: http://localhost:4025
	@$(STACK) up

.PHONY: down
down: $(SYNCED) ## Stop everything; data is kept.
	@$(STACK) down

.PHONY: status
status: $(SYNCED) ## Show what runs, how it is, and how far each consumer is behind.
	@$(STACK) status || true

.PHONY: logs
logs: $(SYNCED) ## Follow the logs (name=wealth for one process).
	@$(STACK) logs $(name)

.PHONY: clean
clean: $(SYNCED) ## Stop everything and delete its data, secrets and logs.
	@$(STACK) clean

.PHONY: check
check: $(SYNCED) ## Format, lint, types, import contracts, deployments, unit tests. Needs no servers.
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	@$(MAKE) -j 2 types judge-and-unit-test

.PHONY: types
types: $(SYNCED)
	@bash deploy/local/check_types.sh

.PHONY: judge-and-unit-test
judge-and-unit-test: $(SYNCED)
	.venv/bin/lint-imports
	@$(PYTHON) -m events.contracts.catalogue
	@$(PYTHON) deploy/checks/verdict.py
	.venv/bin/pytest -q $(WORKERS) -m "not integration and not chaos"

.PHONY: test
test: check ## check, then every test with real PostgreSQL, RabbitMQ and processes that get killed.
	.venv/bin/pytest -q $(WORKERS) --durations=20 --durations-min=5 -m "integration or chaos"

.PHONY: chaos
chaos: $(SYNCED) ## Only the tests that kill processes with SIGKILL.
	.venv/bin/pytest -v -m chaos

.PHONY: bench
bench: $(SYNCED) ## Measure against the raw ceilings of this machine (only=append, pipeline, …).
	@$(UV) sync --frozen --quiet --group bench
	$(PYTHON) bench/run.py $(only)

.PHONY: openapi
openapi: up ## Write the merged OpenAPI document (served at /docs) from the running services.
	@$(PYTHON) deploy/local/api_document.py

.PHONY: clients
clients: $(SYNCED) ## Generate the typed clients for Python and TypeScript into clients/.
	@$(PYTHON) clients/generate_clients.py

.PHONY: load
load: up ## Drive the running stack with months of life (CUSTOMERS=20 RATE=200 MONTHS=1).
	@$(PYTHON) -m simulators.load $(if $(CUSTOMERS),--customers $(CUSTOMERS)) $(if $(RATE),--rate $(RATE)) $(if $(MONTHS),--months $(MONTHS))

.PHONY: rolling
rolling: $(SYNCED) ## Restart every replica of every service under load, on a stack of its own; prints the failed requests.
	@$(PYTHON) deploy/local/rolling.py $(if $(RATE),--rate $(RATE))

.PHONY: guards
guards: $(SYNCED) ## Take guards out one by one and see a test fail (only=openid; minutes for all).
	@$(PYTHON) tests/guards $(only)

.PHONY: fmt
fmt: $(SYNCED) ## Format, and fix what the linter can fix.
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

$(SYNCED): uv.lock $(MANIFESTS) | $(UV)
	@$(UV) sync --frozen --quiet
	@touch $@

# uv itself, where the machine has none. Debian splits venv off from python3.
.run/tools/bin/uv:
	@mkdir -p -m 0700 .run
	@python3 -m venv .run/tools 2>/dev/null || { bash deploy/local/install_venv.sh && python3 -m venv --clear .run/tools; }
	@.run/tools/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
