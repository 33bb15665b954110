# Every target does the set-up that it needs: `make run` and `make test` are all that a new user has to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
PROJECT := pyproject.toml setup.py
# Tests wait more than they work, so that three at once take half the time on two cores; a module's tests stay together.
WORKERS ?= 3
SOURCES := $(shell find tstack -name '*.py')

.PHONY: run test test-compiled services lint bench fuzz chaos clean

run: $(VENV)/run.stamp
	$(BIN)/tstack up --data-dir var --certs-dir certs

test: $(VENV)/dev.stamp services lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The real services that tests are run against; what cannot be installed is named, and its tests are skipped.
services:
	@.ci/services

# The same tests on the compiled rooms, in a copy of the tree.
test-compiled: $(VENV)/dev.stamp
	@.ci/compiled $(VENV)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.stamp services
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.fleet
	$(BIN)/python -m tests.bench.mail_smtp
	$(BIN)/python -m tests.bench.mail_watch

# Long runs of everything that `make test` fuzzes for a moment: FUZZ_SECONDS for each of the TARGETS.
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m tests.fuzz -seconds $(FUZZ_SECONDS) $(TARGETS)

# The whole product on a mail server that misbehaves, with everything of ours killed now and then.
chaos: $(VENV)/dev.stamp services
	$(BIN)/python -m tests.mail.chaos $(CHAOS)

# What can be made again. State (var) and certificates (certs) stay.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made.stamp:
	@.ci/venv "$(PYTHON)" $(VENV)
	@touch $@

# What is run is the installed package: compiled where there is a C compiler. What is tested is the tree as it is.
$(VENV)/run.stamp: $(VENV)/made.stamp $(PROJECT) $(SOURCES)
	@echo "Installing tstack and what it needs into $(VENV), compiled if there is a C compiler: a minute or two."
	@$(PIP) uninstall --yes tstack && $(PIP) install .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/made.stamp $(PROJECT)
	@echo "Installing tstack, what it needs and what its tests need into $(VENV); the first time this takes a few minutes."
	@TSTACK_PURE=1 $(PIP) install -e '.[dev]'
	@rm -f $(VENV)/run.stamp
	@touch $@
