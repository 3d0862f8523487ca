"""A Triton model repository: the network for Triton's batcher, and `mal_label` around it in Python.

DIR/mal_student/1/model.onnx | model.plan     crops -> logits, score
DIR/mal_label/1/model.py                      image, boxes -> run lengths, scores, flags
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mal
from mal.config import ModelConstants
from mal.errors import ModelFileError, UsageError
from mal.export.engine_options import Profile
from mal.export.files import write_all
from mal.export.folder import check_new, new_folder
from mal.export.make import make_model
from mal.export.manifest import dump
from mal.export.request import ExportReport, ExportRequest
from mal.export.source import find_source
from mal.runtime.onnx_file import read_metadata
from mal.runtime.plan_file import EngineFacts, Plan, manifest_path, read_plan

if TYPE_CHECKING:
    from onnx import ValueInfoProto

NETWORK, LABEL = "mal_student", "mal_label"

MAX_BATCH = 64  # of an ONNX file, which has no limit of its own
QUEUE_DELAY = 2000  # microseconds that a batch waits for crops of other requests
LABEL_INSTANCES = 2  # processes: one cuts crops while another one's wait for the network

_TYPES = {1: "TYPE_FP32", 10: "TYPE_FP16"}  # of onnx.TensorProto


class Word(str):
    """A value of an enumeration: stands in a configuration without quotes."""

    __slots__ = ()


def export_triton(request: ExportRequest) -> ExportReport:
    """Export a student, or an engine that was built from one, as a model repository for Triton.

    Raises: as `export_model`, and
        UsageError: the folder is not empty; precision or refine for an engine.
        ModelFileError: an engine that Triton cannot serve.
    """
    path = request.output or Path("triton")
    check_new(path)
    if request.source is not None and Path(request.source).suffix.lower() == ".plan":
        plan = _read_plan(Path(request.source), request)
        source, lines, pictures, content = plan.path, (), [], _beside(plan.path, plan.facts.onnx).read_bytes()
        manifest = json.loads(manifest_path(plan.path).read_bytes()) | {"target": "triton"}
    else:
        plan = None
        made = make_model(request, find_source(request.source), for_tensorrt=False)
        source, lines, pictures, content = made.source, made.lines, made.pictures(path), made.content
        manifest = made.manifest("triton")
    with new_folder(path) as folder:
        write_repository(folder, content, plan, manifest["precision"])
        write_all([(manifest_path(path), dump(manifest)), *pictures])
    return ExportReport(source, path, manifest, lines, f"where Triton is, start it as {path / 'README.md'} says")


def write_repository(folder: Path, onnx: bytes, plan: Plan | None = None, precision: str = "fp32") -> None:
    """Fill a folder with both models.

    Args:
        folder: existing, empty.
        onnx: file of ours: the network, or what `plan` was built from.
        plan: the engine that is the network, with its plugin beside it.
        precision: of the network.

    Raises:
        ModelFileError: something that the engine needs is missing.
    """
    constants, inputs, outputs = _read_onnx(onnx)
    engine = plan.facts if plan else None
    profile = Profile.parse(engine.profile) if engine else None
    _write_model(folder / NETWORK, _network_config(_tensors(inputs), _tensors(outputs), profile, precision))
    model = folder / NETWORK / "1" / ("model.plan" if plan else "model.onnx")
    model.write_bytes(plan.content if plan else onnx)
    if plan and plan.facts.plugin:
        shutil.copyfile(_beside(plan.path, plan.facts.plugin), folder / NETWORK / plan.facts.plugin)
    _write_model(folder / LABEL, _label_config(constants, profile.maximum if profile else MAX_BATCH))
    code = resources.files("mal.export") / "triton_model.py"
    (folder / LABEL / "1" / "model.py").write_bytes(code.read_bytes())
    (folder / "README.md").write_text(_readme(constants, engine, precision))


def pbtxt(message: Mapping[str, Any], indent: str = "") -> str:
    """Text form of a protobuf message: mappings are messages, sequences repeated fields, `Word`s enumerations."""
    lines: list[str] = []
    for name, value in message.items():
        for each in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
            if isinstance(each, Mapping):
                lines.append(f"{indent}{name} {{\n{pbtxt(each, indent + '  ')}{indent}}}\n")
            elif isinstance(each, str) and not isinstance(each, Word):
                # JSON's escapes within ASCII are C's, which protobuf reads.
                lines.append(f"{indent}{name}: {json.dumps(each)}\n")
            else:
                lines.append(f"{indent}{name}: {str(each).lower() if isinstance(each, bool) else each}\n")
    return "".join(lines)


def _network_config(
    inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]], profile: Profile | None, precision: str
) -> dict[str, Any]:
    (crops,) = inputs
    # The integer kernels of an INT8 ONNX file are those of ONNX Runtime's CPU; on a GPU it would be slower than FP32.
    kind = "KIND_GPU" if profile else "KIND_CPU" if precision == "int8" else "KIND_AUTO"
    most = profile.maximum if profile else MAX_BATCH
    return {
        "name": NETWORK,
        "backend": "tensorrt" if profile else "onnxruntime",
        "max_batch_size": most,
        "input": inputs,
        "output": outputs,
        # A size is preferred only where an engine was tuned for it; ONNX Runtime has none.
        "dynamic_batching": {
            **({"preferred_batch_size": [profile.best]} if profile else {}),
            "max_queue_delay_microseconds": QUEUE_DELAY,
        },
        "instance_group": [{"count": 1, "kind": Word(kind)}],
        # The smallest and the largest call: the first requests find memory allocated and kernels chosen.
        "model_warmup": [
            {
                "name": f"{size} crops",
                "batch_size": size,
                "inputs": {
                    "key": crops["name"],
                    "value": {"data_type": crops["data_type"], "dims": crops["dims"], "zero_data": True},
                },
            }
            for size in (1, most)
        ],
    }


def _label_config(constants: ModelConstants, most: int) -> dict[str, Any]:
    def tensor(name: str, kind: str, *dims: int) -> dict[str, Any]:
        return {"name": name, "data_type": Word(kind), "dims": dims}

    parameters = {"network": NETWORK, "batch": str(most), **constants.to_metadata()}
    return {
        "name": LABEL,
        "backend": "python",
        "max_batch_size": 0,  # images differ in size; it is their crops that share batches, in the network
        "input": [tensor("image", "TYPE_UINT8", -1, -1, 3), tensor("boxes", "TYPE_FP32", -1, 4)],
        "output": [
            tensor("rle", "TYPE_STRING", -1), tensor("scores", "TYPE_FP32", -1), tensor("flags", "TYPE_STRING", -1),
        ],
        "instance_group": [{"count": LABEL_INSTANCES, "kind": Word("KIND_CPU")}],
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
    }  # fmt: skip


def _tensors(values: "Sequence[ValueInfoProto]") -> list[dict[str, Any]]:
    """Inputs or outputs as Triton describes them: without the batch."""
    found: list[dict[str, Any]] = []
    for value in values:
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim][1:]
        about = {"name": value.name, "data_type": Word(_TYPES[kind.elem_type]), "dims": dims or [1]}
        # Triton has no tensors of no dimension; it sees (B, 1) where the model gives (B,).
        found.append(about if dims else {**about, "reshape": {}})
    return found


def _read_onnx(content: bytes) -> "tuple[ModelConstants, Sequence[ValueInfoProto], Sequence[ValueInfoProto]]":
    import onnx

    constants = ModelConstants.from_metadata(read_metadata(content, "the model"), "the model")
    graph = onnx.load_from_string(content).graph
    return constants, graph.input, graph.output


def _read_plan(path: Path, request: ExportRequest) -> Plan:
    if request.precision != "fp32" or request.refine is not None:
        raise UsageError(
            f"{path} is built already; --fp16, --int8, --calibrate and --refine are for the model before that"
        )
    if not path.is_file():
        raise ModelFileError(f"no engine {path}; expected a .plan of `mal export --target tensorrt`")
    plan = read_plan(path)
    if plan.facts.package == "tensorrt_rtx":
        raise ModelFileError(
            f"{path} was built by {plan.facts.tensorrt}, which Triton does not run; build it with --target tensorrt, "
            "or give Triton the ONNX file"
        )
    return plan


def _beside(model: Path, name: str) -> Path:
    found = model.with_name(name)
    if not found.is_file():
        raise ModelFileError(f"{model} needs {name} beside it, which is not there; copy it too, or export again")
    return found


def _write_model(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(pbtxt(config))


def _readme(constants: ModelConstants, engine: EngineFacts | None, precision: str) -> str:
    side, plugin = constants.size, engine.plugin if engine else None
    where = ", on the CPU: for a GPU serve an engine" if precision == "int8" else ""
    served = f"an engine of {engine.tensorrt}: Triton's must be the same" if engine else f"ONNX{where}"
    load = f"LD_PRELOAD=$PWD/{NETWORK}/{plugin} " if plugin else ""
    why = (
        f"\n`{NETWORK}` holds an operation of ours, CRF refinement; `LD_PRELOAD` loads its library.\n" if plugin else ""
    )
    return f"""\
# {constants.name} for Triton

Made by `mal export --target triton` of mal {mal.__version__}. Licence of the weights: {constants.licence}.

* `{NETWORK}` ({precision.upper()}, {served}):
  `crops` (B, 3, {side}, {side}) float32 RGB, 0..255, to `logits`, zero is the boundary, and `score`.
* `{LABEL}` (Python): `image` (H, W, 3) uint8 RGB and `boxes` (N, 4) float32 x0, y0, x1, y1 in pixels, to N each of
  `rle`, COCO's compressed run lengths of an (H, W) mask; `scores`, 0..1; and `flags`: "clipped", "empty", or why a box
  has no mask. Its `rle` is "" then.

Triton's Python needs `pip install mask-auto-labeler=={mal.__version__}`. In this folder:

```
{load}tritonserver --model-repository=$PWD
```
{why}"""
