# Two commands for a newcomer: `make demo` looks at masks, `make test` proves the code. Both need Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.PHONY: demo test check gpu format clean

demo: .venv/labelling
	$(BIN)/mal demo

test: .venv/everything
	$(BIN)/pytest

# What CI runs beside the tests; everything here is also an editor's warning.
check: .venv/everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# What only a GPU can show (docs/gpu-checks.md); without one it stops at once.
gpu: .venv/everything
	$(BIN)/mal plugins build
	$(BIN)/python benchmarks/crf_gpu.py --json benchmarks/results/crf_gpu.json
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json
	MAL_REQUIRE_GPU=1 $(BIN)/pytest -m gpu

format: .venv/everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What labelling on a CPU needs: no torch, no compiler.
.venv/labelling: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --editable '.[cpu]'
	touch $@

# The rest: training, export, evaluation, tests.
.venv/everything: .venv/labelling
	$(UV) --editable '.[cpu,train,export,tensorrt-rtx,dev]'
	touch $@

clean:
	rm -rf .venv demo dist
