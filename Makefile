VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: run dev test bench lock clean

run: $(VENV)/.installed ## refresh all five tables on the embedded default
	$(BIN)/pulso-etl run

dev: $(VENV)/.installed ## the embedded default with Dagster's UI, until Ctrl-C
	$(BIN)/pulso-etl dev

test: $(VENV)/.installed ## lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

bench: $(VENV)/.bench ## measure the load path beside other ways; BENCH="--help" shows the options
	$(BIN)/python -m benchmarks $(BENCH)

$(VENV)/.bench: requirements-bench.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-bench.lock
	touch $@

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

COMPILE = $(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --no-annotate --python-version 3.11 build.in pyproject.toml

lock: ## renew the lock files from pyproject.toml
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	$(COMPILE) --extra local --extra dev -o requirements.lock
	$(COMPILE) --extra local --extra dev --extra bench --constraint requirements.lock -o requirements-bench.lock

clean:
	rm -rf $(VENV) .pulso
