# `make setup` once, `make check` before every commit: the same command CI runs.
PY := .venv/bin/python
.PHONY: setup check format lint types contracts test docs lock slow bench clean

setup: ## a virtual environment with every pinned dependency, then the package itself
	python3 -m venv .venv
	$(PY) -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .

check: format lint types contracts test docs ## everything CI runs

format:
	$(PY) -m ruff format --check .
lint:
	$(PY) -m ruff check .
	.venv/bin/codespell
	.venv/bin/deptry .
	.venv/bin/vulture
types:
	$(PY) -m mypy
contracts:
	.venv/bin/lint-imports
test:
	$(PY) -m pytest -n 2 --cov --cov-report=term:skip-covered
docs:
	$(PY) -m pytest --no-cov -q tests/contracts/test_words.py

slow: ## longer proofs
	$(PY) -m pytest -m slow
bench: ## timings, printed, never asserted
	$(PY) -m pytest -m benchmark tests/benchmarks
lock: ## renew the pinned dependencies
	.venv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes -q -o requirements.lock
clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
