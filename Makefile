# Two commands on a fresh machine: `make demo` and `make test`. Each creates .venv when it is missing.
PY ?= python3.11
BIN := .venv/bin
DEMO_OUT ?= demo_output

# glibc returns large blocks to the kernel after every operation; keeping them is worth up to 15x (docs/performance.md).
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 100000000000
export MALLOC_TOP_PAD_ := 268435456
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint install benchmarks clean

demo: $(BIN)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/hf-sane demo --output $(DEMO_OUT) --record-path runs/demo/report.json

test: lint
	HF_HUB_DISABLE_TELEMETRY=1 $(BIN)/python -m pytest -q -n 2

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# The figures of docs/performance.md, one benchmark after the other; about fifteen minutes on two quiet cores.
benchmarks: $(BIN)/.installed
	mkdir -p runs/benchmarks
	for name in tokenization pretraining_step kde_sampling alignment zoo_training zoo_loader zoo_columns; do \
		$(BIN)/python benchmarks/$$name.py --output runs/benchmarks/$$name.json || exit 1; done
	$(BIN)/python experiments/update_results.py

clean:
	rm -rf .venv $(DEMO_OUT)
