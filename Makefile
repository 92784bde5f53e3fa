# Two commands do all the set-up: `make run` and `make test`.
VENV ?= .venv
PYTHON ?=
RUN := $(VENV)/bin/python
export PYTHONDONTWRITEBYTECODE := # every process that the tests start would compile the package anew

.PHONY: help setup run test lint storm mutation bench overview schema site pack restyle

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup:
	@PYTHON="$(PYTHON)" sh tools/setup.sh $(VENV)

run: setup ## install what is needed, then the main job on 120 scenes by each of three vendors
	$(RUN) run.py -m task=tta crop=random_k16 dataset.vendor=fluent-3d,noto-v1,streamline limit=120

test: setup ## install what is needed, then all tests
	$(RUN) -m pytest -n auto --dist worksteal

lint: setup ## style, types, and the direction of imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright --pythonpath $(RUN)

FAULTS ?= 200
SEED ?= 1

storm: setup ## kills, damaged files, changed inputs, bad disks, several writers: no wrong result (FAULTS=2000 SEED=2 for more)
	PYTHONPATH=tests $(RUN) -m storm --faults $(FAULTS) --seed $(SEED)

mutation: setup ## change one thing at a time and count the changes that no test notices (MUTANTS="multicrop.transport.*" for some)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[mutation]'
	$(VENV)/bin/mutmut run $(MUTANTS)
	$(VENV)/bin/mutmut results

bench: setup ## speed as ratios measured in one run, about ten minutes (BENCH="bank.embedded scale" for some, or for long ones)
	$(RUN) benchmarks/run.py $(BENCH)

overview: setup ## the grid of experiments/overview: three sweeps, their tables and the page
	$(RUN) run.py -m sweep=overview trainer.threads=1 logger=none paths.output=outputs/overview/zero_shot
	$(RUN) run.py -m sweep=overview_tta trainer.threads=1 logger=none paths.output=outputs/overview/tta
	$(RUN) run.py -m sweep=overview_few_shot trainer.threads=1 logger=none paths.output=outputs/overview/few_shot
	$(VENV)/bin/multicrop compare outputs/overview/zero_shot --figures outputs/overview/figures
	$(VENV)/bin/multicrop compare outputs/overview/zero_shot outputs/overview/tta outputs/overview/few_shot -o outputs/overview/results.csv
	$(VENV)/bin/multicrop report outputs/overview/zero_shot outputs/overview/tta outputs/overview/few_shot -o outputs/overview/report.html

schema: setup ## write what each knob may be, from the signatures of the configured functions, to src/multicrop/config/knobs.json
	$(RUN) -m multicrop.runs.schema

site: setup ## build the site from README.md, docs/, the studies and docstrings into site/ (no warning is let pass)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

pack: setup ## rebuild the embedded artwork from the package registries (needs npm)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[pack]'
	$(RUN) -m multicrop.data.embedded.pack

restyle: setup ## make the restyled training drawings that task=pretrain reads (needs npm; FOLDER=outputs/restyled)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[pack]'
	$(RUN) -m multicrop.pretrain.restyle --output $(or $(FOLDER),outputs/restyled)
