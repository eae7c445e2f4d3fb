# dropserve: `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
RECIPE ?= training/recipes/digits.toml
NAME   ?= $(or $(shell sed -n '/^\[/q;s/^name *= *"\([^"]*\)".*/\1/p' $(RECIPE) 2>/dev/null),$(basename $(notdir $(RECIPE))))
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SERVE_FLAGS := $(if $(filter 0,$(MC)),--no-mc) $(if $(VERSION),--version $(VERSION)) $(if $(PORT),--port $(PORT)) $(if $(ENGINE),--engine $(ENGINE))

.DEFAULT_GOAL := help
.PHONY: help setup train export serve stop predict overfit test test-all test-gpu lint format peers bench soak accept clean
.NOTPARALLEL:

help: ## list the targets
	@echo "make train export serve                 train on handwritten digits, prove dropout is off, export, serve"
	@echo "make train export serve RECIPE=FILE     the same with your own recipe"
	@echo
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):.*## (.*)/  \1|\2/' | column -t -s '|'

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.11 to 3.13, or name it: make PYTHON=python3.12"; exit 2; }
	@echo "Setting up $(VENV) (some minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,export,serve,torchserve,ray,dev]'
	@touch $(READY)
	@echo "Ready: $(BIN)/dropserve. Next: make train export serve"

setup: $(READY) ## make .venv with everything in it

train: setup ## train RECIPE and publish a run (default: digits)
	@$(BIN)/dropserve train $(RECIPE)

export: setup ## prove that dropout is off, export, publish a version
	@$(BIN)/dropserve export $(NAME)

serve: setup ## start a server, wait until the models answer (MC=0: without Monte Carlo; ENGINE=asgi: without Java; ENGINE=ray: in replicas)
	@$(BIN)/dropserve serve $(NAME) $(SERVE_FLAGS)

stop: setup ## stop what `make serve` started
	@$(BIN)/dropserve stop

predict: setup ## ask the running server about examples/digit.json
	@$(BIN)/dropserve predict --model $(NAME) --input examples/digit.json --mc

overfit: setup ## train RECIPE's net with and without dropout, several seeds: does dropout help?
	@$(BIN)/dropserve overfit $(RECIPE)

test: setup ## the fast tests, a real TorchServe among them (JOBS=2 at a time)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: setup ## every test, the slow ones too
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not soak and not gpu" --timeout 1200

test-gpu: setup ## what needs a CUDA device; without one it says that it skips
	@$(BIN)/python -m pytest -m gpu tests/test_gpu.py

lint: setup ## ruff, pyright and the import direction
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-cache

format: setup ## let ruff mend what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

PEERS := $(patsubst benchmarks/peers/%/requirements.txt,%,$(wildcard benchmarks/peers/*/requirements.txt))

peers: $(PEERS:%=.venv-peers/%/requirements.txt) ## .venv-peers/NAME for each server and client of others, pinned

.venv-peers/%/requirements.txt: benchmarks/peers/%/requirements.txt
	@echo "Setting up .venv-peers/$*"
	@$(PYTHON) -m venv --clear .venv-peers/$*
	@.venv-peers/$*/bin/python -m pip install --quiet --requirement $<
	@cp $< $@

bench: setup ## every host of ours beside stock TorchServe and the peers: docs/benchmarks.md, in about 12 minutes
	@$(BIN)/python benchmarks/serving_load.py --page docs/benchmarks.md

soak: setup ## ten minutes of steady load: memory of the workers, errors (MINUTES=10)
	@$(BIN)/python benchmarks/serving_soak.py --minutes $(or $(MINUTES),10)

accept: setup ## every promise of the project as a row: figure, bar, PASS, FAIL or NOT RUN
	@$(BIN)/python benchmarks/accept.py

accept-%: setup ## one group of promises: accept-endpoint, accept-heart, ...
	@$(BIN)/python benchmarks/accept.py $*

clean: stop ## remove what a run leaves behind, but not the model store
	@rm -rf .run dist build .pytest_cache .ruff_cache .hypothesis benchmarks/results
