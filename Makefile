# Everything happens in one virtual environment; stamp files in it make a second call do nothing.
PYTHON ?= python3.11
VENV ?= .venv
SCALEOUT ?= .venv-scaleout
BIN := $(VENV)/bin
# --no-compile: Python compiles what it imports when it does; compiling all of torch and its like takes a minute more.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo demo-recone test test-scaleout install check lock clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*##/  make \1 -/p' $(MAKEFILE_LIST)

demo: $(VENV)/.base  ## fetch data and model, train, compare, write runs/demo/report.html
	$(BIN)/reczero train quickstart --out runs/demo --resume

demo-recone: $(VENV)/.base  ## a cold start on a teacher's traces, then the same: runs/demo-recone/report.html
	$(BIN)/reczero train recone --out runs/demo-recone --resume

# A process for each core (at most four: some load the real model), each with one thread; a file's tests stay in one, and share what they made.
test: $(VENV)/.all  ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# verl wants other versions than reczero, so its tests run in an environment of their own and ask reczero by its command.
test-scaleout: $(VENV)/.base $(SCALEOUT)/.made  ## check what `reczero launch` writes by verl itself, and Ray
	PYTHONPATH=src RECZERO_BIN=$(BIN)/reczero OMP_NUM_THREADS=1 $(SCALEOUT)/bin/python -m pytest tests/scaleout_env

install: $(VENV)/.all  ## make the environment with every extra

check: $(VENV)/.all  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/.all  ## write constraints.txt anew from the environment as it is
	{ echo "# Every version the tests run with; 'make lock' writes this file."; \
	  $(BIN)/python -m pip freeze --all --exclude pip --exclude wheel --exclude-editable | sed 's/+[a-z0-9.]*$$//' | grep '=='; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## remove the environment, caches and build products (runs/ and the download cache stay)
	rm -rf $(VENV) $(SCALEOUT) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here; name a Python 3.11 or later: make PYTHON=python3 ..." >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# What the demo needs and no more.
$(VENV)/.base: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing reczero and what it needs into $(VENV) (a few minutes the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.all: $(VENV)/.base
	@echo "installing all extras into $(VENV)"
	$(PIP) --editable '.[all]'
	@touch $@

# verl's extras with vLLM need a GPU; without them it lacks some of what it imports.
$(SCALEOUT)/.made: constraints-scaleout.txt
	@echo "installing verl into $(SCALEOUT)"
	$(PYTHON) -m venv --clear $(SCALEOUT)
	$(SCALEOUT)/bin/python -m pip install --disable-pip-version-check --no-compile --constraint constraints-scaleout.txt \
	  torch verl transformers TransferQueue cachetools uvicorn fastapi polars msgspec pytest pytest-timeout hypothesis
	@touch $@
