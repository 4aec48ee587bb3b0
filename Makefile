# bertlab: make study | test | lab | notebooks | bench. Each sets up .venv first when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export BERTLAB_CACHE ?= $(CURDIR)/.cache

.PHONY: study test lab notebooks bench help
help:
	@echo "make study      pre-train and fine-tune BERT on text that is already on this machine (about 5 minutes)"
	@echo "make test       prove it all correct (about 10 minutes)"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make bench      measure bertlab beside other ways to train, on an idle machine (about 10 minutes)"
	@echo "make notebooks  export the package, execute all notebooks in place, write README.md"

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
	$(BIN)/jupyter lab nbs

notebooks: $(VENV)/.ready
	$(BIN)/python .ci/notebooks.py

bench: $(VENV)/.ready
	$(BIN)/bertlab bench
