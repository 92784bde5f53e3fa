# Two commands do all the set-up: `make run` and `make test`.
VENV ?= .venv
PYTHON ?=
RUN := $(VENV)/bin/python

.PHONY: help setup run test lint bench pack

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup:
	@PYTHON="$(PYTHON)" sh tools/setup.sh $(VENV)

run: setup ## install what is needed, then the main job on the embedded default
	$(RUN) run.py task=tta crop=random_k16

test: setup ## install what is needed, then all tests
	$(RUN) -m pytest -n auto

lint: setup ## style, and the direction of imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports

bench: setup ## speed as ratios measured in one run (BENCH="bank aggregators" for some)
	$(RUN) benchmarks/run.py $(BENCH)

pack: setup ## rebuild the embedded artwork from the package registries (needs npm)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[pack]'
	$(RUN) -m multicrop.datasets.pack
