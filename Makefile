# Every target is a thin call; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
CONFIG ?= configs/finetune/sales.yaml
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup train train-all test serve bento mlflow check openapi format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and fetch the base model (once)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("neuroweaver needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/neuroweaver setup
	@touch $(STAMP)

train: setup ## validate, fine-tune, evaluate and register the sales model (CONFIG=... for another)
	@$(BIN)/neuroweaver train $(CONFIG)

train-all: setup ## the same for sales, service, parts and finance
	@$(BIN)/neuroweaver train-all

test: setup ## run all tests
	@$(BIN)/python -m pytest

serve: setup ## serve the champions of all trained models
	@$(BIN)/neuroweaver serve

bento: setup ## pack the service as a bento, into BENTOML_HOME (docs/operations.md)
	BENTOML_ENABLE_FEATURES=no_image $(BIN)/bentoml build

mlflow: setup ## open the MLflow pages on the runs made here
	@$(BIN)/neuroweaver mlflow

check: setup ## lint, formatting, types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

openapi: setup ## write docs/api/ anew: the OpenAPI document and its TypeScript (needs npm)
	$(BIN)/neuroweaver openapi --save
	cd tests/typescript && npm ci --no-audit --no-fund --ignore-scripts && npm run --silent generate

format: setup ## apply formatting and safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure and write benchmarks/results/
	$(BIN)/neuroweaver bench validation --save
	$(BIN)/neuroweaver bench training --save
	$(BIN)/neuroweaver bench serving --save

clean: ## remove the environment and caches, keep the data folder
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
