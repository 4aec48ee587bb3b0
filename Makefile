# bertlab: make study | test | lab | docs | notebooks | lint | bench. Each sets up .venv first when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export BERTLAB_CACHE ?= $(CURDIR)/.cache

.PHONY: study test lab docs notebooks lint bench help
help:
	@echo "make study      pre-train and fine-tune BERT on text that is already on this machine (about 5 minutes)"
	@echo "make test       run every check: notebooks, tests, lint, site (about 12 minutes)"
	@echo "make lab        open the course in JupyterLab"
	@echo "make docs       build the site into _docs/html"
	@echo "make notebooks  export the package, execute all notebooks in place, write README.md"
	@echo "make lint       format and check notebooks, tests and scripts with ruff"
	@echo "make bench      measure bertlab beside other ways to train, on an idle machine (about 10 minutes)"

$(VENV)/.ready: constraints.txt settings.ini setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,sweeps]'
	@touch $@

study: $(VENV)/.ready
	$(BIN)/bertlab study

test: $(VENV)/.ready
	$(BIN)/python .ci/checks.py

lab: $(VENV)/.ready
	$(BIN)/jupyter lab --ServerApp.root_dir=$(CURDIR) --LabApp.default_url=/lab/tree/nbs/index.ipynb

docs: $(VENV)/.ready
	$(BIN)/python docs/build.py

notebooks: $(VENV)/.ready
	$(BIN)/python .ci/notebooks.py

lint: $(VENV)/.ready
	$(BIN)/ruff format nbs tests docs .ci setup.py
	$(BIN)/ruff check --fix nbs tests docs .ci setup.py

bench: $(VENV)/.ready
	$(BIN)/bertlab bench
