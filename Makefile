# jaxserve's everyday commands. `make` alone lists them.
#
#   ARGS    arguments for what runs:       make serve ARGS="--port 8123"
#   PYTHON  the interpreter for .venv:     make setup PYTHON=/opt/python3.13/bin/python3
#   EXTRA   an accelerator's lock:         make serve EXTRA=cuda13    (cuda13, cuda12 or tpu)

VENV := .venv
PY   := $(VENV)/bin/python
ARGS ?=
JOBS ?= 2
EXTRA ?=

RUNTIME_LOCK := requirements$(EXTRA:%=-%).lock
RUNTIME      := $(VENV)/.installed$(EXTRA:%=-%)
DEV          := $(VENV)/.installed-dev
CLIENTS      := .venv-clients
AGENTS       := .agents

# Installing is uv's work where uv can be had (seconds), pip's elsewhere (minutes): the same locks.
install = if [ -x $(VENV)/bin/uv ]; \
	then $(VENV)/bin/uv pip install --quiet --python $(or $(2),$(PY)) --no-build-isolation-package jaxserve $(1); \
	else $(or $(2),$(PY)) -m pip install --quiet $(1); fi
compile = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup serve test lint format docs bench lock clean client-tests agent-tests compile-check compile-tests

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 - /p' $(MAKEFILE_LIST)

setup: $(RUNTIME)  ## make .venv and install the locked packages and jaxserve

serve: $(RUNTIME)  ## serve the embedded model, or ARGS="MODEL --port 8123"
	@$(VENV)/bin/jaxserve serve $(ARGS)

test: lint $(if $(ARGS),,client-tests)  ## lint, check types and run all tests, or ARGS="tests/engine -k preempt"
	@$(VENV)/bin/pytest -n $(JOBS) --dist loadfile $(or $(ARGS),--ignore tests/clients --ignore tests/agents)

# Their packages hold ours back, so they drive the server from an environment of their own.
client-tests: $(RUNTIME) $(CLIENTS)/.installed  ## talk to a running server with OpenAI's, LangChain's and other clients
	@JAXSERVE_PYTHON=$(PY) $(CLIENTS)/bin/pytest tests/clients $(ARGS)

agent-tests: $(DEV) $(AGENTS)/.installed  ## let coding agents of npm (1.2 GB) talk to a running server
	@JAXSERVE_AGENTS=$(AGENTS) $(VENV)/bin/pytest tests/agents $(ARGS)

# The compilers of accelerators are large and chatty: each in an environment of its own. And each
# target in a process of its own: Mosaic GPU assembles every kernel for the GPU it met first.
compile-check:  ## compile steps for TPUs and GPUs, which need not be there
	@$(MAKE) --no-print-directory compile-tests VENV=.venv-tpu EXTRA=tpu TARGETS="v5e v6e v7x"
	@$(MAKE) --no-print-directory compile-tests VENV=.venv-cuda EXTRA=cuda13 TARGETS="h200 b200 a100"

compile-tests: $(DEV)
	@for target in $(TARGETS); do \
	  JAX_PLATFORMS=cpu $(VENV)/bin/pytest tests/compile -k $$target $(ARGS) || exit 1; done

lint: $(DEV)  ## check style, format and types
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

format: $(DEV)  ## rewrite the code in the project's format
	@$(VENV)/bin/ruff check --fix
	@$(VENV)/bin/ruff format

docs: $(RUNTIME)  ## rewrite the generated tables in docs/
	@PYTHONPATH=. $(PY) docs/generate.py

bench: ARGS = throughput
bench: $(DEV)  ## measure throughput, or ARGS="throughput MODEL --num-prompts 100"
	@$(VENV)/bin/jaxserve bench $(ARGS)

lock: $(VENV)/.made  ## rewrite the lock files after pyproject.toml; ARGS="--upgrade-package NAME" to move one
	$(compile) pyproject.toml -o requirements.lock
	$(compile) pyproject.toml -c requirements.lock --extra dev -o requirements-dev.lock
	for extra in cuda13 cuda12 tpu; do \
	  $(compile) pyproject.toml -c requirements.lock --extra $$extra -o requirements-$$extra.lock; done
	$(compile) --group build -o requirements-build.lock
	$(compile) --group clients -o requirements-clients.lock

clean:  ## remove .venv, builds and caches
	rm -rf $(VENV) .venv-tpu .venv-cuda $(CLIENTS) $(AGENTS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Stamps: a finished step is not repeated until what it was made from changes.
$(VENV)/.made: requirements-build.lock
	@python=$$(.ci/find-python.sh) && echo "making $(VENV) with $$python" && "$$python" -m venv $(VENV)
	@$(PY) -m pip install --quiet --require-hashes --only-binary :all: -r requirements-build.lock \
	  || echo "no uv for this machine: pip will install, which takes longer"
	@touch $@

$(RUNTIME): $(VENV)/.made $(RUNTIME_LOCK) pyproject.toml
	@echo "installing $(RUNTIME_LOCK)"
	@$(call install,--require-hashes -r $(RUNTIME_LOCK))
	@$(call install,--no-deps --editable .)
	@touch $@

$(DEV): $(RUNTIME) requirements-dev.lock
	@echo "installing requirements-dev.lock"
	@$(call install,--require-hashes -r requirements-dev.lock)
	@touch $@

$(CLIENTS)/.installed: $(VENV)/.made requirements-clients.lock
	@echo "installing requirements-clients.lock"
	@$(PY) -m venv --clear $(CLIENTS)
	@$(call install,--require-hashes -r requirements-clients.lock,$(CLIENTS)/bin/python)
	@touch $@

# Two of them bring programs, which scripts put in place; npm may be set not to run any.
$(AGENTS)/.installed: tests/agents/package.json
	@echo "installing $<"
	@mkdir -p $(AGENTS) && cp $< $(AGENTS)
	@npm install --prefix $(AGENTS) --ignore-scripts --no-audit --no-fund
	@cd $(AGENTS)/node_modules/@anthropic-ai/claude-code && node install.cjs
	@cd $(AGENTS)/node_modules/opencode-ai && node postinstall.mjs
	@touch $@
