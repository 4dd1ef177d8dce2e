# Makes an environment in .venv with pip alone and runs things in it.  Needs Python 3.11 or newer, nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
PIP_ARGS ?=
# processes of pytest: one waits for jobs of SLURM while the others compute
WORKERS ?= 3

.PHONY: quickstart monitor-demo test test-all lint types docs clean bench-gpu bench-cpu bench-check

quickstart: $(VENV)/installed                 # train a small ViT on handwritten digits
	$(BIN)/vitscale train recipes/quickstart.yaml

monitor-demo: $(VENV)/installed               # a small run with its page, and Prometheus beside it where that is installed
	VENV=$(VENV) launch/monitoring/demo.sh

test: $(VENV)/installed-dev                   # what must pass before a change goes in
	$(BIN)/python -m pytest -n $(WORKERS) -m "not all" $(PYTEST_ARGS)

test-all: $(VENV)/installed-dev               # the larger grids and seeds too
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

docs: $(VENV)/installed-dev                   # what is written from the code: the tree, the tables of metrics, Grafana's dashboards
	$(BIN)/python tests/architecture.py
	$(BIN)/python -m vitscale.metrics.guide docs/monitoring.md
	$(BIN)/python -m vitscale.observe.grafana launch/monitoring/grafana

SHARDS ?=
BENCH := $(BIN)/python benchmarks

bench-gpu: $(VENV)/installed                  # a training step against timm, transformers, torchvision on one GPU, within 8 minutes
	$(BENCH)/gpu_step.py
	$(BENCH)/report.py

# SHARDS='PHOTOS-{0..3}.tar': the data's rows are measured on them.  CIFAR=FOLDER with train/*.tar and test/*.tar: distillation too, an hour;
# with LONG=1 also what is learned without labels, four objectives of three seeds with an hour each, which may be stopped and started again.
bench-cpu: $(VENV)/installed-dev              # everything that needs no GPU, half an hour or so
	$(BENCH)/data.py $(if $(SHARDS),--shards '$(SHARDS)')
	$(BENCH)/models.py
	$(BENCH)/overhead.py
	$(BENCH)/self_supervised_step.py
	$(if $(CIFAR),$(BENCH)/distillation.py --train '$(CIFAR)/train/*.tar' --val '$(CIFAR)/test/*.tar')
	$(if $(LONG),$(BENCH)/self_supervised.py --train '$(CIFAR)/train/*.tar' --val '$(CIFAR)/test/*.tar' --curves docs/img/self-supervised.png)
	$(BENCH)/unattended.py
	$(BENCH)/report.py

bench-check: $(VENV)/installed-dev            # fails where a ratio measured anew, twice, is more than a tenth below the stored one
	$(BENCH)/check.py $(if $(SHARDS),--shards '$(SHARDS)')

clean:                                        # keeps runs/ and data/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "vitscale needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Stamps: installing again only when pyproject.toml has changed keeps a second `make` quick.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python $(VENV)/peers
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	touch $(VENV)/installed $@

# timm, and the torchvision that it asks for, where only tests/export/interchange.py looks: beside torch for CPUs torchvision would break
# transformers' import of it.
$(VENV)/peers: | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $@ timm==1.0.31 torchvision==0.28.0
