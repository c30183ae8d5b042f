# Every habit of this repository. `make demo` and `make test` need Python 3.11 and make, no more.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
FOR_DEMO := $(VENV)/.for-demo
# Half of the suite waits for processes that start; a file's tests share what they made.
AT_ONCE ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Installing leaves compiling to the first import, which compiles what is used; that has to be kept.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test slowest chaos lint format docs bench clean

help: ## list these
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)

$(INSTALLED): EXTRA := dev
$(FOR_DEMO): EXTRA := demo
$(INSTALLED) $(FOR_DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python infra/install.py '.[$(EXTRA)]'
	touch $@

demo: $(or $(wildcard $(INSTALLED)),$(FOR_DEMO)) ## make a small corpus, annotate it with the embedded model, show the result
	$(BIN)/python -m emolake.jobs.demo demo

test: lint ## lint, types, and the whole test suite
	$(BIN)/python -m pytest $(AT_ONCE)

slowest: $(INSTALLED) ## the suite, and the twenty tests that take longest
	$(BIN)/python -m pytest $(AT_ONCE) --durations 20 --quiet

chaos: $(INSTALLED) ## every fault of tests/chaos, some minutes
	$(BIN)/python -m pytest tests/chaos --chaos --timeout 1500

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## write docs/configuration.md and docs/cli.md anew
	$(BIN)/python -m emolake.jobs.docs docs

bench: $(INSTALLED) ## the benchmarks of docs/benchmarks.md
	$(BIN)/emolake bench faces
	$(BIN)/emolake bench scenes
	$(BIN)/emolake bench annotate
	$(BIN)/emolake bench pipeline
	$(BIN)/emolake bench plan

clean: ## remove what was built
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
