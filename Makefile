# Everything a checkout needs, each target with its own set-up. `make` lists them.

PYTHON ?= python3
VENV   := .venv
PIP     = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet --quiet
ARGS   ?=

# What is installed in the environment, redone when the dependencies change. `test` includes `base`.
BASE  := $(VENV)/.installed
TEST  := $(VENV)/.installed-test
BENCH := $(VENV)/.installed-bench

# Each uses the broker that CAROD_BROKER names or one on port 5672, else starts a private one: carod's own, or RabbitMQ.
WITH_BROKER   := $(VENV)/bin/python tests/brokers/embedded.py --
WITH_RABBITMQ := $(VENV)/bin/python tests/brokers/rabbitmq.py --

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint types bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-6s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BASE) ## run jobs on a node on this machine, step by step
	@$(WITH_BROKER) $(VENV)/bin/python clients/demo/demo.py $(ARGS)

test: $(TEST) ## run all tests against a real broker; ARGS="tests/amqp -k name" chooses
	@$(VENV)/bin/python -m pytest $(ARGS)

lint: $(TEST) ## check style and format
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

types: $(TEST) ## check types
	@$(VENV)/bin/mypy

bench: $(BENCH) ## measure latency and throughput against other systems
	@$(WITH_RABBITMQ) $(VENV)/bin/python bench/run.py $(ARGS)

venv: $(TEST) ## make .venv, with everything the tests need

clean: ## remove .venv and what tools left behind
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) .ci/venv $(VENV)

$(BASE): pyproject.toml | $(VENV)/bin/python
	@echo "carod: installing carod into $(VENV), half a minute or so" >&2
	@$(PIP) install --editable '.[amqp10]' >$(VENV)/amqp10.log 2>&1 || { \
		echo "carod: going on without AMQP 1.0: Qpid Proton could not be built ($(VENV)/amqp10.log)" >&2; \
		$(PIP) install --editable .; }
	@touch $@

$(TEST): pyproject.toml | $(VENV)/bin/python
	@echo "carod: installing carod and what its tests need into $(VENV), a minute or so" >&2
	@$(PIP) install --editable '.[test]'
	@touch $(BASE) $@

$(BENCH): $(TEST)
	@echo "carod: installing the systems that the benchmark compares with" >&2
	@$(PIP) install --editable '.[test,bench]'
	@touch $@
