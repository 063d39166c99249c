# The two commands: `make run` and `make test`. Python 3.11+ and make are all they need.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# There is a schema for the kinds of Kubernetes itself, not for those of operators.
MANIFESTS := $(addprefix examples/deployment/kubernetes/, migration.yaml service.yaml worker.yaml)
RULES := examples/deployment/prometheus/rules.yaml

# The tests start the service many times, so let Python keep the bytecode of its modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run test lint test-partitions test-browser test-node fuzz chaos bench bench-cycle bench-scale \
  bench-capacity bench-streams bench-dashboard bench-flow bench-footprint bench-latency bench-logs soak \
  example wheels schema lock clean

help:
	@echo "make run           serve http://localhost:8000 with SQLite and a demo user"
	@echo "make test          lint, types and all tests, on SQLite and on a real Postgres"
	@echo "make test-partitions  the tests of the service on a partitioned table of jobs"
	@echo "make test-browser  the tests that need a Chromium"
	@echo "make test-node     the tests that need Node and npm"
	@echo "make fuzz          requests made from the OpenAPI document, many more than in make test"
	@echo "make chaos         processes killed at random, for longer (CHAOS_SECONDS, CHAOS_SEED)"
	@echo "make bench         speed: beside a bare Flask view, and then make bench-cycle"
	@echo "make bench-cycle   create, claim and report in jobs/s, beside others (BENCH_REDIS_URL)"
	@echo "make bench-scale   5 million jobs beside 5 thousand (SCALE_JOBS, SCALE_ROUNDS)"
	@echo "make bench-capacity    processor time and disk per job, and what CAPACITY_JOBS a day take"
	@echo "make bench-streams how soon a change is known to 500 who listen (BENCH_STREAMS)"
	@echo "make bench-flow    limits, keys and rates beside plain job types"
	@echo "make bench-logs    requests while 20 jobs log 1,000 lines a second; pages of long logs"
	@echo "make bench-footprint memory, start, and the load of what only waits (FOOTPRINT_SECONDS)"
	@echo "make bench-latency how soon a created job starts in a waiting worker"
	@echo "make bench-dashboard its first render with 5 million jobs; needs a Chromium (SCALE_JOBS)"
	@echo "make soak          the whole cycle for ten minutes; does its speed hold? (SOAK_SECONDS)"
	@echo "make example       the guide's data pipeline, while make run serves"
	@echo "make setup         prepare .venv (all others do it by themselves)"
	@echo "make wheels        build dist/: jobapi, and jobapi-client without the service"
	@echo "make schema        write migrations/schema.sql, after a new migration"
	@echo "make lock          resolve the dependencies in setup.cfg into requirements*.txt"

setup: $(READY)

$(READY): requirements-dev.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which one: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation -e .
	@touch $@

run: export JOBAPI_ENV = development
run: $(READY)
	@$(BIN)/jobapi init --demo --quiet
	@exec $(BIN)/jobapi serve

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/deno fmt --check --quiet jobapi/dashboard
	$(BIN)/deno lint --quiet jobapi/dashboard
	$(BIN)/deno check --quiet jobapi/dashboard
	$(BIN)/hadolint Containerfile
	$(BIN)/kubernetes-validate --strict --quiet $(MANIFESTS)
	@if command -v promtool >/dev/null; then promtool check rules --lint=all $(RULES); fi

test: lint
	$(BIN)/pytest --ignore tests/browser --ignore tests/node

# Left out: the tests of migrations; two that read the statistics or the index names of the table; and
# those of kept plans, because no plans are kept for a partitioned table.
test-partitions: export TEST_PARTITIONS ?= 16
test-partitions: $(READY)
	$(BIN)/pytest tests/background tests/services tests/views tests/client/test_survival.py \
	  tests/client/test_worker.py tests/client/test_commands.py \
	  -k "not (sqlite or touches_no_index or index_of_claims_only or kept_plans)"

test-browser: $(READY)
	$(BIN)/pytest tests/browser -n 2

# npm's packages go into build/, which git ignores.
test-node: $(READY)
	npm install --prefix build/node --no-audit --no-fund --ignore-scripts --silent standardwebhooks@1
	$(BIN)/pytest tests/node -n 0

fuzz: export FUZZ_EXAMPLES ?= 300
fuzz: $(READY)
	$(BIN)/pytest tests/views/test_fuzz.py tests/views/test_hostile.py

chaos: export CHAOS_SECONDS ?= 120
chaos: $(READY)
	$(BIN)/pytest tests/client/test_survival.py tests/client/test_celery.py tests/client/test_executors.py -k "kill" -n 0 -s

bench: $(READY)
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/cycle.py

bench-cycle: $(READY)
	$(BIN)/python benchmarks/cycle.py

bench-scale: $(READY)
	$(BIN)/python benchmarks/scale.py

bench-flow: $(READY)
	$(BIN)/python benchmarks/flow.py

bench-logs: $(READY)
	$(BIN)/python benchmarks/logs.py

bench-latency: $(READY)
	$(BIN)/python benchmarks/latency.py

bench-footprint: $(READY)
	$(BIN)/python benchmarks/footprint.py

bench-streams: $(READY)
	$(BIN)/python benchmarks/streams.py

bench-dashboard: $(READY)
	$(BIN)/python benchmarks/dashboard.py

bench-capacity: $(READY)
	$(BIN)/python benchmarks/capacity.py

soak: $(READY)
	$(BIN)/python benchmarks/soak.py

example: $(READY)
	$(BIN)/python examples/data_processing/run.py

schema: $(READY)
	$(BIN)/python -m tests.schema

wheels: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	mkdir -p build/client/jobapi/commands
	cp setup-client.cfg build/client/setup.cfg
	cp pyproject.toml LICENSE README.md build/client
	cp -R jobapi/client jobapi/rules jobapi/__init__.py jobapi/errors.py jobapi/signals.py \
	  jobapi/py.typed build/client/jobapi
	cp jobapi/commands/__init__.py jobapi/commands/main.py build/client/jobapi/commands
	$(BIN)/python -m build --wheel --no-isolation --outdir dist build/client

lock: $(READY)
	$(BIN)/uv pip compile setup.cfg --universal --python-version 3.11 --generate-hashes \
	  --no-header --quiet --output-file requirements.txt
	$(BIN)/uv pip compile setup.cfg --extra dev --constraint requirements.txt --universal \
	  --python-version 3.11 --generate-hashes --no-header --quiet \
	  --output-file requirements-dev.txt

clean:
	rm -rf .venv build dist *.egg-info
