# Two commands on a fresh machine: `make demo` and `make test`. Each creates .venv when it is missing.
PY ?= python3.11
BIN := .venv/bin
DEMO_OUT ?= demo_output
BENCHMARKS_OUT ?= runs/benchmarks

# glibc returns large blocks to the kernel after every operation; keeping them is several times faster
# (docs/explanation/performance.md).
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 100000000000
export MALLOC_TOP_PAD_ := 268435456
export TOKENIZERS_PARALLELISM := false
# Tests start Python about forty times: compile modules once, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: fuzz notebooks demo demo-record test test-machines kill lint docs install benchmarks clean

demo: $(BIN)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/hf-sane demo --output $(DEMO_OUT)

# For maintainers: copy the record and the overview of the demo in $(DEMO_OUT) into the repository, and update cards
# and README.
demo-record: $(BIN)/.installed
	cp $(DEMO_OUT)/report.json runs/demo/report.json
	cp $(DEMO_OUT)/overview.png docs/results/overview.png
	$(BIN)/python experiments/update_cards.py --demo $(DEMO_OUT)
	$(BIN)/python experiments/update_results.py

# Use both cores from the start: mypy runs on one while packages are compiled on the other.
test: $(BIN)/.installed
	$(MAKE) --no-print-directory -j 2 --output-sync=target lint docs $(BIN)/.compiled
	HF_HUB_DISABLE_TELEMETRY=1 $(BIN)/python -m pytest -q -n 2

# Waiting threads give up their core, because tests with two threads run beside other tests.
test test-machines: export OMP_WAIT_POLICY := passive

# Tests whose numbers could depend on the processor, repeated with the instructions of other processors, in separate
# processes. A test that passes with only one of them would depend on the machine.
MACHINE_TESTS := analysis architectures core merging models networks probing sampling symmetry training zoo
MACHINE_TESTS := $(addprefix tests/,$(MACHINE_TESTS))

test-machines: $(BIN)/.installed
	ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest -q -n 2 $(MACHINE_TESTS)
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -q -n 2 $(MACHINE_TESTS)
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -q -n 2 $(MACHINE_TESTS)
	$(BIN)/python -m pytest -q -n 2 --no-onednn $(MACHINE_TESTS)
	$(BIN)/python -m pytest -q --threads 2 $(MACHINE_TESTS)

# 200,000 mutated files for all readers; about an hour on one core. A few hundred are part of `make test`.
fuzz: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --inputs 200000 --record runs/robustness/fuzz.json

# Kill and interrupt every verb that writes at every event of its files, and run it again; `make test` tries some of
# the events. Repeat every verb from its run file. Half an hour on two idle cores; KILL_ARGS="-k pull" selects a part.
# The record counts the events and keeps those of earlier runs.
kill: $(BIN)/.installed
	KILL_POINTS=all KILL_RECORD=runs/robustness/kill_points.json OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -q -n 2 tests/robustness/test_kill_points.py \
		tests/robustness/test_repeated_runs.py $(KILL_ARGS)

# Run the notebooks, which `make test` only reads; two minutes, and half a minute to install what runs them.
notebooks: $(BIN)/.installed
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[notebooks]'
	HF_HUB_OFFLINE=1 $(BIN)/python notebooks/run.py

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Build the documentation in site/; warnings are errors.
docs: $(BIN)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt --upgrade pip  # the one of Python 3.11 takes half a minute longer
	$(BIN)/pip install -q --no-compile -c constraints.txt -e '.[dev]'
	touch $@

# Some packages contain files that are not valid Python.
$(BIN)/.compiled: $(BIN)/.installed
	$(BIN)/python -m compileall -qq .venv/lib || true
	touch $@

BENCHMARKS := tokenization pretraining_step kde_sampling alignment zoo_training zoo_loader zoo_columns zoo_import
BENCHMARKS += tutorials

# The figures of docs/results/performance.md, one benchmark after the other; about twenty minutes on two idle cores.
# Each kind of processor has its own folder: BENCHMARKS_OUT=runs/benchmarks/avx2.
benchmarks: $(BIN)/.installed
	mkdir -p $(BENCHMARKS_OUT)
	for name in $(BENCHMARKS); do \
		$(BIN)/python benchmarks/$$name.py --output $(BENCHMARKS_OUT)/$$name.json || exit 1; done
	$(BIN)/python experiments/update_results.py

clean:
	rm -rf .venv $(DEMO_OUT) site
