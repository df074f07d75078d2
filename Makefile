# Every target sets up its own environment first: `make demo` and `make test` work on a fresh clone.
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
EXTRAS ?= dev
# The tokenizer's threads and forked processes do not go together.
export TOKENIZERS_PARALLELISM := false

.PHONY: setup quick test demo bench docs clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -U pip
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

quick: setup
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy
	$(PY) -m pytest -m "not slow and not gpu"

test: setup
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy
	$(PY) -m pytest

demo: setup
	$(VENV)/bin/pocket demo --out out/demo

bench: setup
	$(VENV)/bin/pocket bench

# The sample pictures that README and docs show, made anew from the shipped pipeline.
docs: setup
	$(VENV)/bin/pocket generate --prompts docs/prompts.txt --num-images 4 --grid -o docs/grid.png

clean:
	rm -rf out .pytest_cache .ruff_cache .mypy_cache
