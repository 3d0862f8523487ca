"""Crops a second of every body of CRF refinement, beside each other, on one core: python benchmarks/crf.py

`onnx` is the function as exported, a Loop; `unrolled` the same operations without the Loop.
The scene is smooth noise: the speed does not depend on the pixels.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

# One core for everyone, before anything reads it.
os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from crf_bodies import find_body, smooth_scene  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from mal.plugins.crf_refine.onnx_function import crf_function, crf_node  # noqa: E402

SECONDS = 1.0  # of measuring for each figure; the best call counts


def unrolled_body(iterations: int):
    """The ONNX function with the Loop's body written out `iterations` times."""
    function = crf_function()
    loop = next(node for node in function.node if node.op_type == "Loop")
    body = helper.get_attribute_value(loop.attribute[0])
    state_in = body.input[2].name
    go_on_out, state_out = (value.name for value in body.output)
    inner = [node for node in body.node if node.output[0] != go_on_out]
    made = {value for node in inner for value in node.output}
    nodes, state = [], loop.input[2]
    for step in range(iterations):
        for node in inner:
            copy = type(node)()
            copy.CopyFrom(node)
            names = {name: f"{name}_{step}" for name in made} | {state_in: state}
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names[name] for name in node.output]
            nodes.append(copy)
        state = f"{state_out}_{step}"
    at = list(function.node).index(loop)
    kept = [*function.node[:at], *nodes, *function.node[at + 1 :]]
    for node in kept:
        node.input[:] = [state if name == loop.output[0] else name for name in node.input]
    del function.node[:]
    function.node.extend(kept)

    def value(name: str, channels: int, batch: str = "B"):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, "h", "w"])

    node = crf_node("logits", "guide", "inside", "refined", iterations, 0.1)
    inputs = [value("logits", 1), value("guide", 3), value("inside", 1, "I")]
    graph = helper.make_graph([node], "crf", inputs, [value("refined", 1)])
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("mal", 1)]
    model = helper.make_model(graph, opset_imports=domains, functions=[function], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda logits, guide, inside, iterations, zeta: session.run(
        None, {"logits": logits, "guide": guide, "inside": inside}
    )[0]


def crops_per_s(body, scene, iterations: int) -> float:
    body(*scene, iterations, 0.1)
    best, until = float("inf"), time.monotonic() + SECONDS
    while time.monotonic() < until:
        begin = time.process_time()  # of this process: other work on the machine does not count
        body(*scene, iterations, 0.1)
        best = min(best, time.process_time() - begin)
    return len(scene.logits) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the figures here too.")
    to = parser.parse_args().json
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    rows = []
    for size, batch in ((48, 16), (128, 8)):
        scene = smooth_scene(rng, batch, size, size)
        for iterations in (3, 10, 100):
            bodies = {name: find_body(name) for name in ("judge", "torch", "onnx", "kernel")}
            bodies["unrolled"] = unrolled_body(iterations)
            assert np.allclose(bodies["unrolled"](*scene, iterations, 0.1), bodies["onnx"](*scene, iterations, 0.1))
            figures = {name: crops_per_s(body, scene, iterations) for name, body in bodies.items()}
            rows.append({"size": size, "iterations": iterations, "crops_per_s": figures})
            line = "  ".join(f"{name} {figure:8.0f}" for name, figure in figures.items())
            to_onnx, to_judge = (figures["kernel"] / figures[name] for name in ("onnx", "judge"))
            ratios = f"kernel = {to_onnx:.1f} x onnx, {to_judge:.0f} x judge"
            print(f"{size:4} x {size:<4} {iterations:3} iterations   {line}   {ratios}", flush=True)
    if to:
        versions = {"numpy": np.__version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        cpu = next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            "?",
        )
        head = {
            "cpu": cpu,
            "cores_used": 1,
            "python": platform.python_version(),
            "versions": versions,
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["python", "benchmarks/crf.py", *sys.argv[1:]]),
        }
        to.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
