# `make demo` and `make test` work on a fresh machine; the rest is for working on the code.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FITS := -c "import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))"

.PHONY: demo test test-slow lint typed format docs clean

demo: $(VENV)/installed
	$(BIN)/tql-offline demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Type checkers do not follow the package-dir mapping; they see a tree of links that does.
typed: $(VENV)/installed
	rm -rf build/typed && mkdir -p build/typed/tql_offline
	ln -s $(CURDIR)/tql_offline/* build/typed/tql_offline/
	ln -s $(CURDIR)/datasets $(CURDIR)/eval build/typed/tql_offline/
	ln -s $(CURDIR)/tests $(CURDIR)/benchmarks $(CURDIR)/cli.py build/typed/
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --explicit-package-bases tql_offline tests benchmarks cli.py

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed
	$(BIN)/python -c "from tql_offline.settings_page import reference; print(reference(), end='')" > docs/config.md

clean:
	rm -rf build dist *.egg-info

# constraints.txt pins the versions that were tested. An environment of another Python is made anew.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(BIN)/python $(FITS) 2>/dev/null || $(PYTHON) $(FITS) || { echo \
		"Python 3.11 or 3.12 is needed, and $(PYTHON) is not one; run make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python $(FITS) 2>/dev/null || \
		$(PYTHON) -m venv $(if $(wildcard $(VENV)/pyvenv.cfg),--clear) $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
