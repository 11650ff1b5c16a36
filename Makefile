# Labelmeter's front door. `make help` lists what there is.
#
# Each target sets up its own virtual environment first, from nothing if need be. pip's own configuration decides
# where packages come from; PIP_ARGS= adds to it and PYTHON= names an interpreter.

VENV ?= .venv
PIP_ARGS ?=
PYTHON ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The NAME=value words of the command line, as one word of the shell; scripts/options.py takes it apart.
WORDS = '$(subst ','\'',$(MAKEOVERRIDES))'

.DEFAULT_GOAL := help
.PHONY: help run study leaderboard verify-records results openapi picture test check lock lint types clean

help: ## List the targets and their variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@$(BIN)/python -m scripts.options 2>/dev/null || \
	  echo "  What make run and make study take, SEED=3 for example, is listed here once the first of them has set up $(VENV)."

$(STAMP): pyproject.toml constraints.txt requirements/development.txt scripts/make_venv.sh
	@PYTHON='$(PYTHON)' PIP_ARGS='$(PIP_ARGS)' scripts/make_venv.sh '$(VENV)'
	@touch $@

run: $(STAMP) ## From nothing to a classifier (90.5% in the mean) and a checked count of its labels
	@$(BIN)/python -m scripts.run --from-make $(WORDS)

study: $(STAMP) ## Many runs and their record
	@$(BIN)/python -m scripts.study --from-make $(WORDS)

leaderboard: $(STAMP) ## Compare query strategies, your own included: STRATEGIES="uncertain-clusters ./mine.py"
	@$(BIN)/python -m scripts.study.leaderboard --from-make $(WORDS)

verify-records: $(STAMP) ## Check the evidence and the tables of everything in records/
	@$(BIN)/python -m scripts.study.verify_records

results: $(STAMP) ## Write the tables of docs/results.md from the records
	@$(BIN)/python -m scripts.results_page

openapi: $(STAMP) ## Write docs/openapi.json, the description of the service's calls
	@$(BIN)/python -m label_service openapi >docs/openapi.json

picture: $(STAMP) ## A picture of a run's report for the README: OUT= names the run (needs Chromium)
	@$(BIN)/python -m scripts.picture '$(OUT)'

test: $(STAMP) ## Every test that this machine can run; what is skipped is named (PYTEST_ARGS= adds options)
# A module's tests stay together, because they share what is costly to make. They begin in the order of the folders:
# docs, e2e and integration take long, and would otherwise come last, since their modules have the fewest tests.
	@$(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

check: lint types test ## What CI runs: lint, types, tests

lock: $(STAMP) ## Write requirements/ anew, after a change of pyproject.toml or constraints.txt
	@UV='$(BIN)/uv' scripts/lock.sh

lint: $(STAMP) ## Python, Dockerfiles, compose file, Kubernetes example, shell scripts
	@echo "lint: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@echo "lint: hadolint"
	@$(BIN)/hadolint Dockerfile.service Dockerfile.trainer
	@echo "lint: compose schema"
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	@echo "lint: Kubernetes schema"
	@$(BIN)/kubernetes-validate --strict --quiet examples/kubernetes/labelmeter.yaml
	@echo "lint: shellcheck"
	@$(BIN)/shellcheck .ci/run scripts/*.sh

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

clean: ## Remove the environment and caches; data and runs stay
	rm -rf '$(VENV)' .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
