VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
PORT ?= 3000
API_PORT ?= 8000
# Each server and each run is a Python of its own. Without bytecode on disk each of them would compile every module anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: run dev servers check lint quick test docs hooks audit test-postgres15 test-frontend test-package page pictures lighthouse alerts cost bench chaos runtime lock clean

ifneq ($(words $(CURDIR)),1)
$(error PostgreSQL cannot run in a folder with a space in its path; move "$(CURDIR)")
endif

run: $(VENV)/.local ## refresh all five tables on embedded servers; about 25 s on two cores
	@$(BIN)/pulso-etl run

dev: $(VENV)/.local ## keep the embedded default up with Dagster's UI (PORT=3000) and the page (API_PORT=8000), until Ctrl-C
	@$(BIN)/pulso-etl dev --port $(PORT) --api-port $(API_PORT)

servers: $(VENV)/.local ## keep only the embedded servers up, for commands of your own, until Ctrl-C
	@$(BIN)/pulso-etl servers

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir $(VENV)/imports > $(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }

check: $(VENV)/.installed ## the fast loop, about a minute: lint, types, imports, and the tests that start no process
	@$(MAKE) --no-print-directory -j 2 lint quick

quick: $(VENV)/.installed
	$(BIN)/pytest -n 2 -m "not processes"

test: lint ## lint, types, storeys and all tests; about 11 min on two cores
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/.installed ## write the parts of README, docs and the TypeScript client that follow from the declarations
	$(BIN)/python -m pulso_etl_tests.generated

hooks: ## run `make check` before each commit of this checkout
	printf '#!/bin/sh\nexec make check\n' > "$$(git rev-parse --git-path hooks)/pre-commit"
	chmod +x "$$(git rev-parse --git-path hooks)/pre-commit"

audit: $(VENV)/.installed ## look for known weaknesses: in our code by lint, in the lock files by the package index
	$(BIN)/ruff check --select S --ignore S101 pulso_etl
	@test -x $(VENV)/audit/bin/uv || { $(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/pip install --quiet --require-hashes -r installer.lock; }
	$(BIN)/python -m pulso_etl_tests.lock_audit $(VENV)/audit/bin/uv $(LOCKS)

test-postgres15: $(VENV)/.installed ## run the tests of the library and the API on PostgreSQL 15, the oldest supported version; needs Debian's postgresql-15
	$(BIN)/python -m pulso_etl_tests.oldest_postgres $(BIN)/pytest pulso_etl_tests/sync pulso_etl_tests/api

page: ## build the status page into pulso_etl/api/page; needs Node 20.19 or newer
	cd frontend && npm ci && npm run page

test-frontend: page ## check types, lint and tests of the TypeScript client, the package as packed, and that the built page matches its source; needs Node
	cd frontend && npm run check && npm run --silent test:package
	@test -z "$$(git status --porcelain pulso_etl/api/page)" || { git status --short pulso_etl/api/page; echo "commit the page that was built" >&2; exit 1; }

test-package: ## pack the TypeScript client in a clean clone, and build Vite and Next with it, each on React 18 and 19; needs Node
	cd frontend && node package-tests/run.mjs --all

alerts: ## test the alert rules of Prometheus; needs promtool (Debian's prometheus)
	promtool check rules deploy/prometheus/pulso-etl.rules.yml
	promtool test rules deploy/prometheus/pulso-etl.test.yml

pictures: $(VENV)/.installed ## take the pictures of the page in docs/images anew, and check each state with axe in four looks; needs Chromium
	PULSO_PICTURES=docs/images $(BIN)/pytest pulso_etl_tests/api/test_page.py

cost: $(VENV)/.installed ## run 30 simulated days against the double and write what refreshes bill into docs/cost.md; about 20 min
	$(BIN)/python -m benchmarks.cost --write

lighthouse: $(VENV)/.installed ## measure the page with Lighthouse on its phone profile; fails below 95 in a category; needs Chromium and Node
	cd frontend/lighthouse && npm ci --silent
	$(BIN)/pytest pulso_etl_tests/api/lighthouse.py

bench: $(VENV)/bench/.installed ## measure the load path beside other ways; BENCH="--help" shows the options
	$(VENV)/bench/bin/python -m benchmarks $(BENCH)

chaos: $(VENV)/.installed ## run refreshes with faults at random points, then a live soak, 20 minutes each; CHAOS or SOAK="--help" shows the options
	$(BIN)/python -m chaos --minutes 20 $(CHAOS)
	$(BIN)/python -m chaos.soak --minutes 20 $(SOAK)

# The tools that are compared have an environment of their own, so that nothing else runs beside their packages.
$(VENV)/bench/.installed: BIN = $(VENV)/bench/bin
$(VENV)/bench/.installed: requirements-bench.lock installer.lock pyproject.toml
	@$(PYTHON) -m venv $(VENV)/bench
	@$(PIP) --require-hashes -r installer.lock 2>/dev/null || true
	@$(INSTALL) --require-hashes -r requirements-bench.lock
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

# uv installs the locked packages in seconds. If uv cannot be had, pip installs the same packages.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
INSTALL = $$(if [ -x $(BIN)/uv ]; then echo "$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python"; else echo "$(PIP)"; fi)

# This is what run and dev need. The first make check or make test installs the tools for tests.
$(VENV)/.local: requirements-local.lock installer.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is older; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) can't make virtual environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "installing $$(grep -c '^[a-z]' requirements-local.lock) packages into $(VENV)"
	@$(PIP) --require-hashes -r installer.lock 2>/dev/null || echo "uv cannot be installed here: pip installs the packages, which takes a minute or two"
	@$(INSTALL) --require-hashes -r requirements-local.lock
	@$(INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/.installed: requirements.lock $(VENV)/.local
	@echo "installing the tools for tests"
	@$(INSTALL) --require-hashes -r requirements.lock
	@touch $@

COMPILE = $(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --no-annotate --python-version 3.11

INTO_IMAGE = $(VENV)/image/build/bin/pip --python $(VENV)/image/pulso-etl/bin/python

runtime: $(VENV)/.installed ## install the packages of the container image in a folder, say how large they are, and run a deployment with them
	rm -rf $(VENV)/image && mkdir -p $(VENV)/image
	$(PYTHON) -m venv $(VENV)/image/build && $(PYTHON) -m venv --without-pip $(VENV)/image/pulso-etl
	$(VENV)/image/build/bin/pip install --quiet --no-deps --require-hashes -r deploy/build.lock
	$(VENV)/image/build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(VENV)/image .
	$(INTO_IMAGE) install --quiet --no-compile --no-deps --require-hashes -r deploy/requirements.lock
	$(INTO_IMAGE) install --quiet --no-compile --no-deps --no-index $(VENV)/image/*.whl
	$(INTO_IMAGE) check
	$(PYTHON) deploy/slim.py $(VENV)/image/pulso-etl
	PULSO_IMAGE=$(VENV)/image/pulso-etl $(BIN)/pytest pulso_etl_tests/deploy/test_image.py

EXTRAS = --extra local --extra celery --extra kubernetes --extra googlesql --extra mcp --extra dev

LOCKS = installer.lock requirements.lock requirements-local.lock requirements-bench.lock deploy/build.lock deploy/requirements.lock
# `make lock UPGRADE=` keeps every version that still fits pyproject.toml.
UPGRADE = --upgrade

lock: ## renew the lock files from pyproject.toml, with the newest versions that fit together, and say what moved
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	$(COMPILE) $(UPGRADE) installer.in -o installer.lock
	$(COMPILE) $(UPGRADE) build.in pyproject.toml $(EXTRAS) -o requirements.lock
	$(COMPILE) $(UPGRADE) build.in pyproject.toml --extra local --constraint requirements.lock -o requirements-local.lock
	$(COMPILE) $(UPGRADE) build.in pyproject.toml $(EXTRAS) --extra bench --constraint requirements.lock -o requirements-bench.lock
	$(COMPILE) $(UPGRADE) build.in --constraint requirements.lock -o deploy/build.lock
	$(COMPILE) $(UPGRADE) pyproject.toml --extra celery --extra kubernetes --constraint requirements.lock -o deploy/requirements.lock
	@$(PYTHON) -m pulso_etl_tests.lock_moves $(LOCKS)

clean:
	rm -rf $(VENV) .pulso
