# Every target does the set-up that it needs. `make run` and `make test` are all that a new user has to know.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint bench clean

run: $(VENV)/run.stamp
	$(BIN)/tstack up --data-dir var --certs-dir certs

test: $(VENV)/dev.stamp services lint
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
