# make demo | test | test-all | quick | test-oldest | check | fix | bench | bench-report | docs | wheel | gpu | clean.
# Needs Python >= 3.10 with venv, and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

DEMO := fixtures/tf.keras-2.15.0/mask_stack_bi_dense
DEMO_OUT := build/demo.pt

# The largest model of this folder is what `make bench` converts.
MODELS ?= build/fixtures
BENCH_OPTIONS ?=
GPU_OPTIONS ?=

# What the native kernel is built from: a change makes it anew.
NATIVE := setup.py $(wildcard $(addprefix keras2torch_birnn/rnn/native/,*.h *.cpp processors.py))

# Processes that run the tests, file by file, in the order of the folders: ordered by the number of tests,
# the few that take longest would come last, one process alone with them.
WORKERS ?= 2

QUICK := $(addprefix tests/,package/test_imports.py package/test_pages.py package/test_security.py \
	layers/test_layers.py reference/test_reference.py reference/test_reference_cells.py \
	reference/test_reference_masks.py readers/test_archive.py \
	readers/test_containers.py readers/test_weight_paths.py readers/test_graph_checks.py \
	rnn/test_bidirectional.py rnn/test_engines.py rnn/test_torch_surface.py saving/test_saving.py)

# The oldest Python, and the folder where the oldest dependencies are installed.
OLDEST_PYTHON ?= python3.10
OLDEST := .venv-oldest

# What `make test` leaves to `make test-all`: all cases of tests with many, and what takes long.
SELECT := -m "not thorough"

.PHONY: demo test test-all quick test-oldest check fix bench bench-report docs wheel gpu clean

# What real Keras wrote and computed, against what the converted model computes.
demo: $(VENV)/installed
	@mkdir -p build
	$(BIN)/k2t inspect $(DEMO).h5
	$(BIN)/k2t convert $(DEMO).h5 $(DEMO_OUT) --force
	$(BIN)/k2t verify $(DEMO).h5 $(DEMO_OUT) --per-layer
	$(BIN)/k2t verify $(DEMO_OUT)
	$(BIN)/python examples/demo.py $(DEMO_OUT) $(DEMO).npz

test: $(VENV)/installed-test
	@$(MAKE) --no-print-directory check

# Everything: what continuous integration runs. It compiles the kernel for other systems, too, by ziglang (100 MB).
test-all: $(VENV)/installed-test $(VENV)/installed-platforms
	@$(MAKE) --no-print-directory check SELECT=

# Under a minute: linters, types, and unit tests without fixtures of real Keras, mutations and fuzz.
quick: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --quiet $(QUICK)

# The tests on the oldest version of everything that pyproject.toml allows.
test-oldest: export PIP_CONSTRAINT := $(CURDIR)/constraints-oldest.txt
test-oldest:
	@$(MAKE) --no-print-directory VENV=$(OLDEST) PYTHON=$(OLDEST_PYTHON) $(OLDEST)/installed-test
	$(OLDEST)/bin/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# The same without setting anything up first: in .venv, or BIN=FOLDER of another environment.
# Compiled first: hundreds of processes of the tests import the package, and where Python is told to
# write no bytecode each of them would compile it. For the tests themselves it is told to: with their
# assertions rewritten they take seconds to compile.
check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(BIN)/python -m compileall -q keras2torch_birnn
	@{ $(BIN)/mypy --platform linux && for system in darwin win32; do \
		$(BIN)/mypy --platform $$system --cache-dir .mypy_cache/$$system keras2torch_birnn || exit; \
	done; } & types=$$!; \
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder \
		$(SELECT); tests=$$?; \
	wait $$types && exit $$tests

fix: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed
	$(BIN)/python tools/fixture_archives.py unpack
	$(BIN)/python -m benchmarks convert $(MODELS) $(BENCH_OPTIONS)

# Record this processor's times in benchmarks/results: float32 and reduced precision, and whole models. Take a quiet
# machine: about 40 minutes. BENCH_OPTIONS="--real FOLDER".
bench-report: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks precision --record --threads 1 2
	$(BIN)/python -m benchmarks models --record $(BENCH_OPTIONS)
	$(BIN)/python tools/write_docs.py

# The documentation as a site, in build/site.
docs: $(VENV)/installed-docs
	rm -rf build/site-source && mkdir -p build/site-source
	cp -R README.md SECURITY.md CHANGELOG.md CONTRIBUTING.md docs build/site-source
	cp tools/site.css build/site-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

# The wheel of this platform, tested in an environment of its own, in dist.
wheel:
	PYTHON=$(PYTHON) tools/build_wheels.sh dist

# Everything that needs a CUDA device: parity of every layer, times of layers, training and models
# without and with TF32, in build/gpu.json. GPU_OPTIONS="--models FOLDER": your own models;
# GPU_OPTIONS="--device cpu --dry-run": what would run, in a minute and without a device.
gpu: $(VENV)/installed-test
	$(BIN)/python -m benchmarks gpu $(GPU_OPTIONS)

clean:
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

# The same with an extra: test, platforms, bench or docs.
$(VENV)/installed-%: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@ $(VENV)/installed
