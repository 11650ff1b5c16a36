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

.DEFAULT_GOAL := help
.PHONY: help run study verify-records results picture test check lint types clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make run takes SEED= BUDGET= PROFILE= DATA= OUT= PORT= DEVICE= STRATEGY= PRETRAINED= TARGET=; what each means: $(BIN)/python -m scripts.run --help"

$(STAMP): pyproject.toml constraints.txt scripts/make_venv.sh
	@PYTHON='$(PYTHON)' PIP_ARGS='$(PIP_ARGS)' scripts/make_venv.sh '$(VENV)'
	@touch $@

run: $(STAMP) ## From nothing to a classifier above 90% and a checked count of labels
	@$(BIN)/python -m scripts.run \
	  $(if $(DATA),--data '$(DATA)') $(if $(OUT),--out '$(OUT)') $(if $(PROFILE),--profile '$(PROFILE)') \
	  $(if $(SEED),--seed '$(SEED)') $(if $(BUDGET),--budget '$(BUDGET)') \
	  $(if $(PORT),--port '$(PORT)') $(if $(DEVICE),--device '$(DEVICE)') \
	  $(if $(STRATEGY),--strategy '$(STRATEGY)') $(if $(PRETRAINED),--pretrained '$(PRETRAINED)') \
	  $(if $(TARGET),--target '$(TARGET)')

study: $(STAMP) ## Many runs and their record: STUDY=learning-curve, ablations or strategies; SEEDS= DATA= RECORD= TAKE_FROM= JOBS=
	@$(BIN)/python -m scripts.study '$(or $(STUDY),learning-curve)' $(if $(SEEDS),--seeds $(SEEDS)) \
	  $(if $(DATA),--data '$(DATA)') $(if $(RUNS),--runs '$(RUNS)') $(if $(RECORD),--record '$(RECORD)') \
	  $(if $(TAKE_FROM),--take-from '$(TAKE_FROM)') $(if $(JOBS),--jobs '$(JOBS)')

verify-records: $(STAMP) ## Check the evidence and the tables of everything in records/
	@$(BIN)/python -m scripts.study.verify_records

results: $(STAMP) ## Write the tables of docs/results.md from the records
	@$(BIN)/python -m scripts.results_page

picture: $(STAMP) ## A picture of a run's report for the README: OUT= names the run (needs Chromium)
	@$(BIN)/python -m scripts.picture '$(OUT)'

test: $(STAMP) ## Every test that this machine can run; what is skipped is named (PYTEST_ARGS= adds options)
# A module's tests stay together, because they share what is costly to make.
	@$(BIN)/python -m pytest -n auto --dist loadscope $(PYTEST_ARGS)

check: lint types test ## What CI runs: lint, types, tests

lint: $(STAMP) ## Python, Dockerfiles, compose file, shell scripts
	@echo "lint: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@echo "lint: hadolint"
	@$(BIN)/hadolint Dockerfile.service Dockerfile.trainer
	@echo "lint: compose schema"
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	@echo "lint: shellcheck"
	@$(BIN)/shellcheck .ci/run scripts/*.sh

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

clean: ## Remove the environment and caches; data and runs stay
	rm -rf '$(VENV)' .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
