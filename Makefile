# Everything is installed into the virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# An environment of an earlier version contains this project under the name `groqchat`. The old
# distribution would share the command `groqchat` with `groqchat-server`.
REMOVE_OLD_NAME := $(BIN)/python -m pip --disable-pip-version-check uninstall -qq --yes groqchat

# Otherwise each test process compiles every module again.
unexport PYTHONDONTWRITEBYTECODE

COMPILE = $(VENV)-lock/bin/python -m piptools compile --quiet --upgrade --strip-extras \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

# The tests that talk to the service over HTTP, and those of the history store.
HTTP_TESTS := $(addprefix tests/test_, $(addsuffix .py, bad_input chat_api completions conversations \
	cors faults idempotency openai_endpoint openapi resume store streams turns))

.DEFAULT_GOAL := help
.PHONY: help run test compat nginx check fmt lock bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Serve on port 5000; needs no Redis and no API key
	@exec $(BIN)/groqchat serve --local

test: $(VENV)/.dev ## Run the tests in parallel and in random order
	$(BIN)/python -m pytest --numprocesses auto

compat: $(VENV)/.dev ## Run the HTTP tests without the private parts of redis-py and aiohttp
	$(BIN)/python -m pytest -p tests.support.renamed_internals $(HTTP_TESTS)

nginx: $(VENV)/.dev ## Restart two replicas behind a real nginx, which must be installed
	$(BIN)/python -m pytest tests/nginx_rolling_restart.py

check: $(VENV)/.dev ## Check format, lint rules and types, then run the tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(MAKE) test

fmt: $(VENV)/.dev ## Format the code and apply the fixes of the linter
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format

lock: ## Pin the dependencies of the container image, with hashes, and those of the tests
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip --disable-pip-version-check install --quiet pip-tools
# The hashes of all files of each release: one lock serves every platform.
	$(COMPILE) --generate-hashes --output-file requirements.lock pyproject.toml
	$(COMPILE) --generate-hashes --only-build-deps --build-deps-for wheel \
		--output-file requirements-build.lock pyproject.toml
# Versions only: pip installs this project itself, which has no hash.
	$(COMPILE) --extra dev --output-file - pyproject.toml | grep -v '^groqchat-server ' > requirements-dev.lock
	rm -rf $(VENV)-lock

bench: $(VENV)/.bench ## Compare with the floor and the naive service, in about six minutes
	$(BIN)/python -m benchmarks

clean: ## Remove the environment and the caches, but not the messages in .data
	rm -rf $(VENV) $(VENV)-lock .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "groqchat requires Python 3.11 or later, for example: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	@$(REMOVE_OLD_NAME)
	$(PIP) --editable '.[embedded]'
	@touch $@

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml
	@$(REMOVE_OLD_NAME)
	$(PIP) --editable '.[bench]'
	@touch $@

# Without the versions, pip examines 120 releases that do not fit, for 15 s.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml requirements-dev.lock
	@$(REMOVE_OLD_NAME)
	$(PIP) --no-compile --constraint requirements-dev.lock --editable '.[dev]'
# pip compiles on one CPU.
	@$(BIN)/python -m compileall -qq --workers 0 $(VENV)/lib
	@touch $@ $(VENV)/.run
