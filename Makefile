# Every target works from a clean clone: it makes .venv, installs what it needs there and builds.
# VENV=dir uses another environment; ARGS='...' is handed on to pytest, or to the module that a target runs.

VENV ?= .venv
PYTHON ?= python3
ARGS ?=

bin := $(VENV)/bin
export PATH := $(abspath $(bin)):$(PATH)
pip := $(bin)/python -m pip --disable-pip-version-check -q
sources := $(shell find csrc cmake pynlm -name '*.h' -o -name '*.cpp' -o -name '*.cmake' -o -name '*.pyx')
# Tests in as many processes as there are CPUs.
side_by_side := -n $(or $(JOBS),$(shell getconf _NPROCESSORS_ONLN))
# Tests that run compiled code.
compiled := -m 'not oracle'
sanitizer_lib = $(shell $(or $(CXX),c++) -print-file-name=lib$(1).so)

.DEFAULT_GOAL := help
.PHONY: help build demo test bench bench-quick bench-smoke recipes heads costs parity isa fuzz asan tsan neon cuda-check gpu lint wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# --- environment ------------------------------------------------------------------------------

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(pip) install --upgrade 'pip>=25.1'
	touch $@

$(VENV)/.built: $(VENV)/.made pyproject.toml CMakeLists.txt $(sources)
	$(pip) install --group build
	$(pip) install --no-build-isolation -e '.[plot]'
	touch $@

$(VENV)/.test-tools $(VENV)/.lint-tools: $(VENV)/.%-tools: $(VENV)/.built
	$(pip) install --no-build-isolation -e '.[$*]'
	touch $@

build: $(VENV)/.built  ## environment and editable build (again after changing csrc/ or a .pyx)

# --- what a user runs -------------------------------------------------------------------------

demo: build  ## train the default language model, print its perplexity and a sample
	rm -rf runs/demo
	$(bin)/pynlm train --out runs/demo
	$(bin)/pynlm generate runs/demo

test: $(VENV)/.test-tools  ## all tests
	$(bin)/pytest $(side_by_side) $(ARGS)

bench: $(VENV)/.test-tools  ## all benchmarks, and the page of this machine in bench/results/
	$(bin)/python -m bench.report $(ARGS)

bench-quick: $(VENV)/.test-tools  ## small benchmarks of each family in two minutes, and their page
	$(bin)/python -m bench.report --quick $(ARGS)

bench-smoke: $(VENV)/.test-tools  ## each benchmark once, results compared, nothing timed
	$(bin)/pytest $(side_by_side) bench --benchmark-disable $(ARGS)

# RECIPE-SEED
recipe_runs := $(foreach recipe,zaremba-small gal-variational-small lstm-layernorm-small,$(addprefix $(recipe)-,1 2 3)) \
  gru-small-1 rnn-small-1 char-lstm-1
# Two hours on two cores; the corpora are looked for in PYNLM_DATA.
recipes: build  ## train the small recipes, and report them in bench/results/recipes.md
	for run in $(recipe_runs); do \
	  $(bin)/pynlm train --recipe $${run%-*} --seed $${run##*-} --out runs/$$run || exit 1; done
	$(bin)/python -m bench.runs $(addprefix runs/,$(recipe_runs))

# Hours on two cores; the novels are looked for in PYNLM_DATA.
heads: build  ## train one model with each head on the novels, and report them in bench/results/heads.md
	$(bin)/python -m bench.heads $(ARGS)

costs: build  ## measure the table of costs by which adaptive softmax chooses cutoffs (idle machine)
	$(bin)/python -m bench.costs

parity: $(VENV)/.test-tools  ## training loss of every recipe beside torch's, 300 steps
	$(bin)/python bench/parity.py $(ARGS)

# --- checks -----------------------------------------------------------------------------------

LEVELS ?= $$($(bin)/python -c 'from pynlm._kernels import available_isas as a; print(*a())')
isa: $(VENV)/.test-tools  ## kernel tests at every instruction-set level of this machine
	@for isa in $(LEVELS); do \
	  echo "PYNLM_ISA=$$isa"; PYNLM_ISA=$$isa $(bin)/pytest -q $(side_by_side) $(compiled) tests/kernels $(ARGS) || exit 1; done

EXAMPLES ?= 1000
fuzz: $(VENV)/.test-tools  ## kernels and layers on random shapes and faulty arguments (EXAMPLES=1000 a test)
	PYNLM_FUZZ=$(EXAMPLES) $(bin)/pytest -q tests/*/test_random_*.py $(ARGS)

# A sanitised build lives in an environment of its own under build/, which borrows the packages of
# $(VENV) through a .pth file (but not its editable pynlm: .pth files there are not followed). It has
# only the level that the tests run at.
define sanitised_build
	$(PYTHON) -m venv --without-pip build/$(1)/venv
	$(bin)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$(build/$(1)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth
	$(pip) --python build/$(1)/venv/bin/python install \
	  --no-build-isolation --no-deps --force-reinstall \
	  -Cbuild-dir=build/$(1)/cmake -Ccmake.define.NLM_SANITIZE="$(2)" \
	  -Ccmake.define.NLM_ISAS="$$($(bin)/python -c 'from pynlm._kernels import isa_name as n; print(n())');scalar" .
endef

# Which cases, and of CUDA kernels in their emulation, as pytest's -k.
CASES ?=
CUDA_CASES ?= float32
asan: $(VENV)/.test-tools  ## kernel tests under the address and undefined-behaviour sanitisers
	$(call sanitised_build,asan,address;undefined)
	export LD_PRELOAD="$(call sanitizer_lib,asan) $(call sanitizer_lib,stdc++)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  PYNLM_EMULATION_FLAGS=-fsanitize=address,undefined \
	  run="build/asan/venv/bin/python $(bin)/pytest -q -p no:cacheprovider $(side_by_side)"; \
	  $$run $(compiled) -k "$(CASES)" tests/kernels $(ARGS) && $$run tests/test_cuda_kernels.py -k "$(CUDA_CASES)" $(ARGS)

# One thread in torch and in NumPy's BLAS, whose teams the sanitiser cannot see into.
tsan: $(VENV)/.test-tools  ## kernel tests under the thread sanitiser
	$(call sanitised_build,tsan,thread)
	LD_PRELOAD="$(call sanitizer_lib,tsan)" \
	  OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYNLM_NUM_THREADS=2 \
	  setarch -R build/tsan/venv/bin/python $(bin)/pytest -q -p no:cacheprovider $(compiled) tests/kernels $(ARGS)

# Needs a cross compiler and an emulator: apt-get install g++-aarch64-linux-gnu qemu-user
neon: $(VENV)/.test-tools  ## all kernel cases on NEON, cross-built and run in an emulator
	cmake -S tests/neon -B build/neon -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	cmake --build build/neon
	$(bin)/python tests/neon/check.py qemu-aarch64 build/neon/server

cuda-check: $(VENV)/.test-tools  ## compile every CUDA kernel for cards from sm_75 to sm_100 (needs none)
	$(pip) install --no-build-isolation -e '.[cuda-check]'
	PYNLM_CUDA_ARCHITECTURES="sm_75 sm_80 sm_86 sm_89 sm_90 sm_100" \
	  $(bin)/pytest -q $(side_by_side) tests/test_cuda_compiles.py $(ARGS)

gpu: $(VENV)/.test-tools  ## on a machine with a GPU: the catalogue of cases on the card, under the sanitisers, too, then the bench beside cuDNN
	$(bin)/pytest -q -m gpu tests $(ARGS)
	for tool in memcheck racecheck synccheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 9 $(bin)/python -m pytest -q -m gpu -k 'primes and float32' tests || exit 1; done
	$(bin)/python -m bench.gpu

lint: $(VENV)/.lint-tools  ## formatting, style and types
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(bin)/clang-format --dry-run --Werror
	$(bin)/cython-lint pynlm
	$(bin)/mypy
	$(bin)/stubtest pynlm._kernels

wheel: $(VENV)/.made  ## a wheel in dist/
	$(pip) wheel --no-deps -Cbuild-dir=build/wheel -w dist $(ARGS) .

clean:  ## remove what the build made (not $(VENV))
	rm -rf build dist
