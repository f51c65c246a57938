# Everything a newcomer needs: `make study` and `make test`. Both set up .venv first, and redo nothing that is done.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Without bytecode, and where PYTHONDONTWRITEBYTECODE is set, each start would compile torch again, for seconds.
export UV_COMPILE_BYTECODE := 1

.PHONY: help env study test test-all test-faults test-slurm test-browser fuzz bench gpu lint lab lock site container release

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

env: $(READY) ## the virtual environment .venv, exactly as requirements.lock says

# flock: two `make`s at once build one environment. uv installs in seconds what its cache already holds.
$(READY): requirements.lock pyproject.toml
	@flock .venv.lock sh -ec ' \
	  if [ $(READY) -nt requirements.lock ] && [ $(READY) -nt pyproject.toml ]; then exit 0; fi; \
	  echo "Setting up $(VENV) from requirements.lock: 5 GB, some minutes the first time"; \
	  $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep ^uv== requirements.lock)"; \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet requirements.lock; \
	  VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .; \
	  touch $(READY)'

study: env ## the two ablations of the paper on embedded data, with figures
	@$(BIN)/gamlib study submodules max_pooling --seeds 0-2 --report

CHECKED := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
PYTEST  := $(BIN)/pytest -n 2 --dist worksteal
test: env ## lint, types and all tests but the long ones (eight minutes)
	@$(CHECKED)
	@$(PYTEST) -m 'not long'

test-all: env ## lint, types and all tests: those too that measure, kill, or start everything anew (sixteen minutes)
	@$(CHECKED)
	@$(PYTEST)

test-faults: env ## 25 runs killed at random moments, and a full disk: all go on bit by bit
	@GAM_KILLS=25 $(PYTEST) tests/faults

test-slurm: env ## studies on a real SLURM of two nodes on this machine, and the faults they survive; as root, on Debian
	@$(BIN)/python tests/debian.py slurm || true
	@GAM_SLURM=1 $(BIN)/pytest -n 3 --dist worksteal -rs tests/slurm

test-browser: env ## the notebooks in JupyterLab in a headless Chromium, with screenshots; installs it as root, on Debian
	@$(BIN)/python tests/debian.py chromium || true
	@GAM_BROWSER=1 $(BIN)/pytest -n 2 --dist loadfile -rs tests/browser

fuzz: env ## 10,000 random blocks and maps: the fast forms of GAM against the plain block in float64 (two minutes)
	@$(BIN)/python tests/kernels/fuzz.py $(FUZZ)

bench: env ## GAM against the plain block and others (10 minutes), then a training step against a plain loop (25 minutes)
	@$(BIN)/gamlib bench
	@$(BIN)/python benchmarks/training.py

# With `make gpu PYTHON=python3.12` that one executes it as it is, and nothing is set up.
ITS_OWN := $(filter file,$(origin PYTHON))
gpu: $(if $(ITS_OWN),env) ## all that needs a GPU, in SECONDS_TO_RUN=1400; TRY=1: small, on a CPU (minutes)
	@$(if $(ITS_OWN),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py $(if $(TRY),--try) $(if $(PARTS),--parts $(PARTS))

lint: env ## correct what ruff can, then show the rest
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/mypy

LAB ?= notebooks# the folder, and options behind it: make lab LAB="notebooks --no-browser --port=8890"
QUIET := --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate# no questions, no calls
lab: env ## JupyterLab in notebooks/
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(QUIET) $(LAB)

# The generator has a small environment of its own: nothing else waits for it, and it changes none of the versions.
SITE := .venv-site
$(SITE)/.ready: requirements-site.lock
	@$(PYTHON) -m venv $(SITE)
	@VIRTUAL_ENV=$(SITE) $(BIN)/uv pip sync --quiet requirements-site.lock
	@touch $@

# All that its pages say: their texts, the published results, and the code that the interface and the cards are made of.
SHOWN = mkdocs.yml $(wildcard *.md) $(shell find docs notebooks figures studies benchmarks gamlib ablation examples \
  -type f -not -name '*.pyc')
site: site/index.html ## all pages, results with their runs, and the interface as a website in site/; trains nothing (two minutes)
site/index.html: $(READY) $(SITE)/.ready $(SHOWN)
	@$(BIN)/python docs/make_site.py
	@PYTHONPATH=docs $(SITE)/bin/zensical build --clean --strict

lock: ## requirements.lock and requirements-site.lock anew from pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --extra lab --extra dev --python-version 3.11 --no-emit-index-url --no-annotate \
	  --no-header --quiet --upgrade --output-file requirements.lock
	@$(BIN)/uv pip compile --group site --constraint requirements.lock --python-version 3.11 --no-emit-index-url \
	  --no-annotate --no-header --quiet --upgrade --output-file requirements-site.lock

container: ## the image of containers/: gam.sif by Apptainer, else `gam` by docker or podman
	@if command -v apptainer >/dev/null; then apptainer build gam.sif containers/gam.def; \
	  elif docker info >/dev/null 2>&1; then docker build -f containers/Dockerfile -t gam .; \
	  elif command -v podman >/dev/null; then podman build --format docker -f containers/Dockerfile -t gam .; \
	  else echo "no image: this machine has neither apptainer, nor podman, nor a docker whose daemon answers" >&2; exit 1; fi

release: env ## dist/: sdist and wheel, which pass the quick tests in a bare environment of each Python there is
	@$(BIN)/python tests/release.py
