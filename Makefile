# Everything a developer does. `make help` lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
ON_ALL_CORES := -n auto --maxprocesses 4
STOP_HUNG := --max-worker-restart 0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true # a test that hangs is named, with where
FAST := not ray and not s3 and not slow and not faults and not gpu and not long
UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --custom-compile-command "make lock" $(LOCK)
SOURCES := detr pipelines jobs tests scripts deploy
DEMO ?= demo
BENCH ?= bench
S3_DIR ?= /tmp/ray-detr-s3
AXE_DIR ?= /tmp/ray-detr-axe
READERS_DIR ?= /tmp/ray-detr-readers
READERS := "supervision==0.31.2" "pyiceberg[sql-sqlite,pyarrow]==0.12.0" "label-studio-sdk==2.1.2" "megadetector-utils==10.0.28" \
  "datafusion==55.0.0" "chdb==4.4.0" "datasets==5.2.0" "deltalake==1.6.6" "daft==0.7.26" "pyspark==4.3.0"
REVIEWERS_DIR ?= /tmp/ray-detr-reviewers
LABEL_STUDIO := "label-studio==1.23.2"
DATUMARO := "datumaro==1.13.12"
SCHEDULERS_DIR ?= /tmp/ray-detr-schedulers
AIRFLOW := "apache-airflow==3.3.2" "apache-airflow-providers-standard==1.21.0"
DAGSTER := "dagster==1.13.29"

export PYTHONDONTWRITEBYTECODE = # where it is set, each of the tests' many processes would compile all sources again

.DEFAULT_GOAL := help
.PHONY: help demo test lint check audit fix simulate mutate bench docs test-gpu test-browser test-readers test-schedulers test-metrics test-long test-faults test-faults-s3 test-s3 lock clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# made anew when a lock file changes; pip alone, so that nothing but Python 3.11 has to be there
.venv/.ready: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is older. Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: .venv/.ready ## draw scenes, label them through Ray into a table, query it, measure it: no network, under 2 minutes
	@$(BIN)/python -m jobs.demo --out $(DEMO)

test: .venv/.ready ## everything that needs no service, no root and no GPU: a quarter of an hour to half an hour on 2 cores
	$(PYTEST) $(ON_ALL_CORES) --dist worksteal -m "$(FAST)"
	$(PYTEST) $(ON_ALL_CORES) $(STOP_HUNG) --dist loadfile -m "(ray or slow or faults) and not s3 and not gpu and not long"

lint: .venv/.ready ## format, lint and strict types
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

check: lint ## lint, and the fast tests: 5 to 8 minutes on 2 cores
	$(PYTEST) $(ON_ALL_CORES) --dist worksteal -m "$(FAST)"
	@$(MAKE) --no-print-directory audit

audit: .venv/.ready ## ask for known vulnerabilities of the locked packages; says so where nobody answers
	@$(BIN)/python scripts/audit.py

fix: .venv/.ready ## format, and what the linter can mend safely
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

simulate: .venv/.ready ## ten thousand whole runs with crashes, lost answers and several writers, in one process
	SIMULATION_SEEDS=10000 $(PYTEST) tests/simulation

mutate: .venv/.ready ## whether tests notice three thousand small faults in plan, commit, publish, run and lease code: an hour and more
	$(BIN)/mutmut run
	$(BIN)/mutmut results

test-s3: .venv/.ready ## the tests on a real S3 server (Ceph; installs Debian's packages, needs root)
	scripts/s3-server.sh install
	@settings="$$(scripts/s3-server.sh up $(S3_DIR))" || exit 1; eval "$$settings"; \
	$(PYTEST) $(ON_ALL_CORES) $(STOP_HUNG) --dist loadfile -m "s3 and not long"; status=$$?; scripts/s3-server.sh destroy $(S3_DIR); exit $$status

test-gpu: .venv/.ready ## the tests that need a GPU, on one: under 6 minutes; GPU_TESTS_DEVICE=cpu rehearses them without
	$(PYTEST) -m gpu tests/gpu

test-browser: .venv/.ready ## the report's page in Debian's Chromium, headless, with axe-core from npm (installs packages, needs root)
	scripts/browser.sh install
	AXE_CORE="$$(scripts/browser.sh axe $(AXE_DIR))" && AXE_CORE="$$AXE_CORE" $(PYTEST) -m browser tests/browser

test-readers: .venv/.ready ## tables and exports read by other tools, in $(READERS_DIR) and $(REVIEWERS_DIR); Spark needs Debian's Java (root)
	@echo '$(READERS)' | cmp -s - $(READERS_DIR)/packages || { $(PYTHON) -m venv --clear $(READERS_DIR) && \
	  $(READERS_DIR)/bin/python -m pip install --quiet $(READERS) && echo '$(READERS)' > $(READERS_DIR)/packages; }
	@command -v java > /dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends default-jre-headless; }
	@echo '$(LABEL_STUDIO) $(DATUMARO)' | cmp -s - $(REVIEWERS_DIR)/packages || { mkdir -p $(REVIEWERS_DIR) && \
	  $(PYTHON) -m venv --clear $(REVIEWERS_DIR)/label-studio && $(REVIEWERS_DIR)/label-studio/bin/python -m pip install --quiet $(LABEL_STUDIO) && \
	  $(PYTHON) -m venv --clear $(REVIEWERS_DIR)/datumaro && $(REVIEWERS_DIR)/datumaro/bin/python -m pip install --quiet $(DATUMARO) && \
	  echo '$(LABEL_STUDIO) $(DATUMARO)' > $(REVIEWERS_DIR)/packages; }
	READERS_PYTHON=$(READERS_DIR)/bin/python LABEL_STUDIO=$(REVIEWERS_DIR)/label-studio/bin/label-studio \
	  DATUMARO_PYTHON=$(REVIEWERS_DIR)/datumaro/bin/python $(PYTEST) tests/readers

test-schedulers: .venv/.ready ## the examples for Airflow, Dagster and cron and the nightly set, executed; the two are in $(SCHEDULERS_DIR)
	@echo '$(AIRFLOW) $(DAGSTER)' | cmp -s - $(SCHEDULERS_DIR)/packages || { mkdir -p $(SCHEDULERS_DIR) && \
	  $(PYTHON) -m venv --clear $(SCHEDULERS_DIR)/airflow && $(SCHEDULERS_DIR)/airflow/bin/python -m pip install --quiet --only-binary :all: $(AIRFLOW) && \
	  $(PYTHON) -m venv --clear $(SCHEDULERS_DIR)/dagster && $(SCHEDULERS_DIR)/dagster/bin/python -m pip install --quiet --only-binary :all: $(DAGSTER) && \
	  echo '$(AIRFLOW) $(DAGSTER)' > $(SCHEDULERS_DIR)/packages; }
	SCHEDULERS_DIR=$(SCHEDULERS_DIR) $(PYTEST) tests/schedulers tests/deploy/test_nightly.py

test-metrics: .venv/.ready ## metrics, alert rules and dashboard against Debian's Prometheus and a live run (installs it, needs root)
	scripts/prometheus.sh
	$(PYTEST) tests/metrics

test-long: .venv/.ready ## what takes minutes and kills nothing: every family, compilers, memory of exports, the notebook, the GPU check on a CPU: hours
	$(PYTEST) -s -m "long and not faults and not s3"

test-faults: .venv/.ready ## poison, fuzzing, killed processes and (as root) hosts on a real Ray: an hour and more. FAULTS_REPORT=FILE keeps figures
	$(PYTEST) -s -m "long and faults and not s3"

test-faults-s3: .venv/.ready ## whole runs on a real S3 server that misbehaves (Ceph; needs root): 10 minutes. FAULTS_REPORT=FILE keeps figures
	scripts/s3-server.sh install
	@settings="$$(scripts/s3-server.sh up $(S3_DIR))" || exit 1; eval "$$settings"; \
	$(PYTEST) -s -m "long and s3"; status=$$?; scripts/s3-server.sh destroy $(S3_DIR); exit $$status

bench: .venv/.ready ## every mode of jobs.bench with small sizes, beside transformers: minutes. BENCH=DIR keeps the reports
	$(BIN)/python -m jobs.bench model --peers transformers --shapes 320x416 --count 4 --out $(BENCH)
	$(BIN)/python -m jobs.bench train --peers transformers --shapes 256x320 --batch 2 --rounds 2 --out $(BENCH)
	$(BIN)/python -m jobs.bench decode --peers transformers --count 24 --rounds 2 --out $(BENCH)
	$(BIN)/python -m jobs.bench evaluate --count 200 1000 --rounds 2 --out $(BENCH)
	$(BIN)/python -m jobs.bench label --peers pipeline raydata --count 2 6 --rounds 2 --shorter 320 --out $(BENCH)
	$(BIN)/python -m jobs.bench start --rounds 2 --out $(BENCH)

docs: .venv/.ready ## write docs/cli.md from the --help of every command
	$(BIN)/python scripts/cli_reference.py

lock: .venv/.ready ## resolve pyproject.toml into the lock files, for all systems and Pythons. LOCK=--upgrade takes newer releases
	$(UV_COMPILE) pyproject.toml --group dev --output-file requirements-dev.lock
	$(UV_COMPILE) pyproject.toml --constraint requirements-dev.lock --output-file requirements.lock

clean: ## remove what the targets made, but not .venv
	rm -rf $(DEMO) $(BENCH) build .mypy_cache .ruff_cache .pytest_cache .hypothesis mutants
