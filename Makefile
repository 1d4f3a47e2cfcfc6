# Two commands that do all the set-up: `make demo` and `make test`. Both also work without make; the README says how.
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= runs/demo
SIZE ?= default
BIN := $(VENV)/bin

.PHONY: demo test install install-dev clean

demo: install
	@$(BIN)/cocomix demo --output $(OUTPUT) --size $(SIZE)

test:
	@PYTHON=$(PYTHON) VENV=$(VENV) bash scripts/test.sh

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .coverage .mypy_cache .pytest_cache .ruff_cache
