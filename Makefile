# Two commands do everything: `make demo` and `make test`. The environment is .venv, made here on first use.
PYTHON ?= python3
BIN := .venv/bin
export VOS_SHARED ?= ../shared

.PHONY: demo test test-slow lint clean

.venv/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch .venv/ready

demo: .venv/ready  ## generate data, train, segment, score, report: everything into runs/demo
	$(BIN)/python -m tools.demo --output runs/demo

test: .venv/ready  ## the tests that a change must pass
	$(BIN)/python -m pytest

test-slow: .venv/ready  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: .venv/ready  ## `.venv/bin/pyright` checks types; it still finds what torch's dynamic attributes hide from it
	$(BIN)/ruff check .

clean:  ## undo: the environment, the demo's run and the caches
	rm -rf .venv runs/demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
