# SPDX-License-Identifier: MIT
# One door to the project. `make` alone lists what can be done.

PYTHON ?= python3
FUZZ_SECONDS ?= 30
FUZZ_STREAMS ?= 1000000
TESTS ?= tests
# Tests of one file run in one process, as some share a guest or a limit of it. Files come in their
# order: by default those of few tests come last, and some of these take a minute.
PARALLEL ?= -n 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:

# ---- the private environment ----

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# Part of a stamp's name, so that another PYTHON makes the environment anew.
TAG := $(shell $(PYTHON) -c 'import sys; print(sys.implementation.cache_tag)' 2>/dev/null)
BUILD := pyproject.toml setup.py $(wildcard csrc/*.[ch] csrc/*.py)

$(VENV)/.made-$(TAG):
	@.ci/system-packages $(PYTHON)
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# CORE is what a user has, DEV what a developer has.
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
PACKAGE := $(VENV)/.package
$(CORE): EXTRAS =
$(DEV): EXTRAS = [plot,validate,compression,completion,test,lint,fuzz]
$(BENCH): EXTRAS = [bench]
$(PACKAGE): EXTRAS = [package]
$(CORE) $(DEV) $(BENCH) $(PACKAGE): $(VENV)/.made-$(TAG) $(BUILD)
	$(PIP) --editable '.$(EXTRAS)'
	@touch $@

# ---- what people type ----

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(CORE) ## sample an emulated guest for 10 s, predict its migration, and do it
	@$(BIN)/python -m pysampler.demo

.PHONY: test
test: $(DEV) ## run all tests (those that need a real QEMU are skipped where there is none)
	$(BIN)/pytest $(PARALLEL)

.PHONY: integration
integration: $(DEV) ## run only the tests against a real QEMU
	$(BIN)/pytest -m integration

.PHONY: lint
lint: $(DEV) ## check style and format, of Python, C and Markdown
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.[ch]
	$(BIN)/python .ci/wrapped.py *.md docs/*.md $(wildcard docs/*/*.md tests/*/*.md)

# -O3 as in csrc/ffi_build.py: some warnings come of what the optimizer finds.
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wstrict-prototypes \
	-Wmissing-prototypes -Wold-style-definition -Wcast-qual -Wpointer-arith -Wwrite-strings \
	-Wformat=2 -Wundef -Wvla
.PHONY: warnings
warnings: ## compile the C core with gcc and with clang, where a warning is an error
	@for cc in gcc clang; do \
		command -v $$cc >/dev/null || { echo "There is no $$cc: apt-get install $$cc" >&2; exit 1; }; \
		for file in csrc/*.c; do \
			$$cc -std=gnu11 -O3 $(WARNINGS) -Werror -c -o /dev/null $$file || exit; \
		done; \
	done

.PHONY: type
type: $(DEV) ## check types
	$(BIN)/mypy

# A sanitized build lies before the ordinary one on the path; nothing but C differs.
ADDRESS := $(CURDIR)/build/address-sanitizer
THREAD := $(CURDIR)/build/thread-sanitizer
$(ADDRESS)/.made: SANITIZERS = address,undefined
$(THREAD)/.made: SANITIZERS = thread
$(ADDRESS)/.made $(THREAD)/.made: $(DEV) $(shell find pysampler -name '*.py')
	rm -rf build/lib* build/temp* $(@D)
	CC=gcc PYSAMPLER_SANITIZE=$(SANITIZERS) $(PIP) --no-deps --target $(@D) .
	@rm -rf build/lib* build/temp* # `pip install .` would take these objects for its own
	@touch $@

# libstdc++: ASan must find __cxa_throw before an extension in C++ throws.
# Leaks are not looked for: an interpreter keeps memory to its end. A small quarantine: tests
# look at how much memory is taken.
.PHONY: sanitize
sanitize: $(ADDRESS)/.made ## run the tests under AddressSanitizer and UBSan, TESTS=tests
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:quarantine_size_mb=8 \
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	PYTHONSAFEPATH=1 PYTHONPATH=$(ADDRESS) \
	$(BIN)/pytest $(PARALLEL) -m "not integration and not statistics" $(TESTS)

# TSan sees the C core and the locks of Python, not Python's own reads and writes. A process that
# races writes a report; the tests go on. Signals are the tests' business. TSan needs its addresses
# free, which a kernel that places mappings at random does not promise.
RACES := $(THREAD)/races
# numpy copies pages there that vCPUs write meanwhile, which is what a migration does, too.
RACING := tests/guest/test_dirty_log.py::test_pages_copied_after_their_bit_was_taken_end_as_the_guests_are \
	tests/guest/test_shared_log.py::test_pages_copied_after_they_were_taken_end_as_the_guests_are
THREADED := $(addprefix tests/guest/test_,dirty_log.py guest_process.py run_states.py shared_log.py throttle.py \
	truth.py vcpu_failure.py) \
	$(addprefix tests/tracking/test_,cleanup.py dirty_bitmap.py dirty_ring.py from_outside.py guest_log.py \
	tracking.py) \
	$(addprefix tests/sampling/test_,sampler.py workers.py)
.PHONY: tsan
tsan: $(THREAD)/.made ## run the tests of guest, tracking and cleanup under ThreadSanitizer
	@rm -rf $(RACES) && mkdir -m 1777 $(RACES)
	TSAN_OPTIONS="exitcode=0 log_path=$(RACES)/process suppressions=$(CURDIR)/csrc/tsan.supp \
		handle_segv=0 handle_sigbus=0 handle_abort=0 handle_sigfpe=0 handle_sigill=0" \
	PYTHONSAFEPATH=1 PYTHONPATH=$(THREAD) \
	$$(setarch -R true 2>/dev/null && echo setarch -R) \
		env LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" \
		$(BIN)/pytest $(PARALLEL) $(THREADED) $(addprefix --deselect ,$(RACING))
	@! cat $(RACES)/* 2>/dev/null

.PHONY: man
man: $(DEV) ## write the man page and the completions of shells into share/
	$(BIN)/python .ci/share.py share

.PHONY: wheel
wheel: $(PACKAGE) ## build sdist and wheel into dist/, check both with every Python of this machine
	@.ci/wheel $(BIN)

.PHONY: fuzz
fuzz: $(DEV) ## feed what nobody would send to the JSON reader and to a migration's destination, FUZZ_SECONDS=30 FUZZ_STREAMS=1000000
	@mkdir -p fuzz-corpus
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
		$(BIN)/python tests/fuzz/fuzz_vector.py -max_total_time=$(FUZZ_SECONDS) -timeout=5 \
			-max_len=65536 -verbosity=0 -print_final_stats=1 -artifact_prefix=fuzz-corpus/ \
			fuzz-corpus tests/fuzz/corpus; \
	else \
		echo "There is no Atheris for this Python; Hypothesis alone:"; \
		$(BIN)/pytest tests/fuzz; \
	fi
	$(BIN)/python tests/fuzz/migration_stream.py --streams $(FUZZ_STREAMS)

.PHONY: bench
bench: $(BENCH) ## what passes, late starts, predictions, tracking, the guest and sending its RAM cost, how good predictions are; 4 GiB, minutes
	@mkdir -p bench/results
	$(BIN)/python bench/pass.py
	$(BIN)/python bench/lateness.py
	$(BIN)/python bench/predict.py
	$(BIN)/python bench/accuracy.py
	$(BIN)/python bench/tracking.py
	$(BIN)/python bench/guest.py
	$(BIN)/python bench/migrate.py

WORKLOADS := uniform hotcold zipf sweep
.PHONY: validate
validate: $(DEV) ## sampling against theory and truth on small guests; reports in build/validation
	@for workload in $(WORKLOADS); do \
		$(BIN)/pysampler validate --sizes 256M,512M --wps 200000 --calc-times 100ms,500ms,1s \
			--workload $$workload --store build/validation/results.sqlite \
			--output build/validation/$$workload || exit; \
	done

.PHONY: clean
clean: ## remove everything that was made here
	rm -rf $(VENV) build dist share *.egg-info fuzz-corpus .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f pysampler/_native*
	find . -name __pycache__ -type d -prune -exec rm -r {} +
