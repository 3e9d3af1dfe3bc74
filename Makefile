# `make demo` and `make test` work from a fresh clone: each installs what it needs into .venv first.
# Without make (Windows), README.md has the plain `python -m` lines for every target.

PY ?= python3
BIN := .venv/bin
# Touched after a successful installation, so that it happens once and again when the requirements change.
INSTALLED := .venv/installed

.PHONY: setup demo test check clean
.DEFAULT_GOAL := setup

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PY) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev,medical]"
	touch $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python -m anomaly_ae demo --out demo --overwrite
	@echo "The report: $(CURDIR)/demo/report.html"

# One process per core, each with one thread: threads of several processes would wait for each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(INSTALLED)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf .venv demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
