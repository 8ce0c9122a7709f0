# Everything a reader, a writer or a CI machine needs. `make help` lists the targets.
# Works with GNU make 3.81 and later on Linux, macOS and Windows (Git Bash).
SHELL := bash

VENV ?= .venv
REQUIREMENTS ?= requirements.txt
BOOK_FLAGS ?= -W -n --keep-going
PORT ?= 8000

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
export PYTHONUTF8 := 1
else
BIN := $(VENV)/bin
endif
PY := $(BIN)/python
READY := $(VENV)/.ready

# The first interpreter that the course supports. Override with `make PYTHON=... test`.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3 python python3.12 python3.13; do \
  if $$p -c '$(SUPPORTED)' >/dev/null 2>&1; then echo $$p; break; fi; done)

.DEFAULT_GOAL := help
.PHONY: help book test lint notebooks lab serve bench lock clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

$(READY): $(REQUIREMENTS) pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "No Python 3.11, 3.12 or 3.13 was found. Install one, or name it: make PYTHON=/path/to/python3.11"; exit 1; fi
	[ -x "$(PY)" ] || "$(PYTHON)" -m venv "$(VENV)"
	"$(PY)" -m pip install -q --disable-pip-version-check -r $(REQUIREMENTS)
	"$(PY)" -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $(READY)

book: $(READY) ## build the book into _build/html
	COURSE_PROGRESS=off OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$(BIN)/jupyter-book" build book --toc "$(CURDIR)/_toc.yml" $(BOOK_FLAGS) || { rm -rf _build/.doctrees; exit 1; }

test: $(READY) ## run every check; prints the time of each stage
	"$(PY)" tools/stages.py

lint: $(READY) ## run the quick checks only: style, types, layers, notebooks
	"$(PY)" tools/stages.py lint format types layers notebooks

notebooks: $(READY) ## write the notebooks again from their sources
	"$(PY)" tools/notebooks.py

lab: $(READY) ## open the notebooks in JupyterLab
	"$(PY)" -m jupyterlab --notebook-dir=.

serve: book ## build the book and serve it on this machine
	@echo "Open http://127.0.0.1:$(PORT) (stop with Ctrl-C)"
	"$(PY)" -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

bench: $(READY) ## measure speed; prints a table, writes benchmarks/results.json
	"$(PY)" -m benchmarks

lock: $(READY) ## resolve requirements.txt again from pyproject.toml
	"$(PY)" tools/lock.py

clean: ## remove what was built (.venv stays: delete that folder to start anew)
	rm -rf _build .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache benchmarks/results.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
