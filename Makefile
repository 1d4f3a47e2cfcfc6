# Commands that do all the set-up: `make demo`, `make studio` (opens the demo's models), `make test`, and `make docs` (the pages, in build/docs).
# `make test-all` adds the tests marked slow: every family with every mixer, every stage of the demo interrupted.
# `make gpu` is for a machine with an H100 or H200 and installs nothing: at most eight minutes, one JSON file.
PYTHON ?= python3
VENV ?= .venv
SIZE ?= default
OUTPUT ?= runs/demo$(if $(filter default,$(SIZE)),,-$(SIZE))
BIN := $(VENV)/bin

.PHONY: demo studio test test-all docs gpu install clean

demo: install
	@$(BIN)/cocomix run demo$(if $(filter default,$(SIZE)),,-$(SIZE)) --output $(OUTPUT)

studio: install
	@$(BIN)/python -c 'import nicegui' 2>/dev/null || $(BIN)/python -m pip install --constraint constraints.txt --editable '.[studio]'
	@$(BIN)/cocomix studio $(OUTPUT)

test:
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/test.sh

test-all:
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/test.sh -m "" --cov --cov-report=term

docs:
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/docs.sh

gpu:
	@PYTHONPATH=src:$$PYTHONPATH $(PYTHON) -m benchmarks.gpu

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist .coverage .mypy_cache .pytest_cache .ruff_cache
