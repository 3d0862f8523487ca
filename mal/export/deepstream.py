"""A folder that a DeepStream application takes as it is: model, configs, the plugin's sources, pipelines, README.

DIR/model.onnx                          crops -> logits, score
DIR/config_infer_secondary_mal.txt      nvinfer and, in [mal], the probes
DIR/config_preprocess_mal.txt           nvdspreprocess
DIR/nvdsinfer_custom_impl_mal/          libnvdsinfer_mal.so, to be built by `make` in DIR on the target
DIR/pipeline.cpp, pipeline.py, Makefile, README.md
"""

from importlib import resources
from pathlib import Path
from string import Template

from mal.config import ModelConstants
from mal.export.engine_options import EngineOptions, Profile, trtexec_line
from mal.export.files import write_all
from mal.export.folder import check_new, new_folder
from mal.export.make import make_model
from mal.export.manifest import dump
from mal.export.nvinfer_config import check_config
from mal.export.request import ExportReport, ExportRequest
from mal.export.source import find_source
from mal.runtime.plan_file import manifest_path

CONFIG = "config_infer_secondary_mal.txt"
LIBRARY = Path("nvdsinfer_custom_impl_mal", "libnvdsinfer_mal.so")
BATCH = 32

_CRF_SOURCES = ("tensorrt_plugin.cu", "cuda.cu", "crf_refine.cuh")
_SOURCE_SUFFIXES = (".cpp", ".cu", ".h", ".cuh", ".map")


def export_deepstream(request: ExportRequest) -> ExportReport:
    """Export a student as a folder for DeepStream 9.x. Needs no software of NVIDIA.

    Raises: as `export_model`, and
        UsageError: the folder is not empty.
    """
    path = request.output or Path("deepstream")
    check_new(path)
    made = make_model(request, find_source(request.source), for_tensorrt=True)
    manifest = made.manifest("deepstream")
    with new_folder(path) as folder:
        (folder / "model.onnx").write_bytes(made.content)
        write_folder(folder, made.constants, made.precision)
        check_config(folder / CONFIG)
        write_all([(manifest_path(path), dump(manifest)), *made.pictures(path)])
    return ExportReport(made.source, path, manifest, made.lines, f"on the machine with DeepStream: make -C {path}")


def write_folder(folder: Path, constants: ModelConstants, precision: str) -> None:
    """Fill a folder that holds model.onnx with everything else.

    Args:
        folder: existing.
        constants: the model's.
        precision: the model's, for names.
    """
    # nvinfer's own name for the engine that it would build.
    engine = f"model.onnx_b{BATCH}_gpu0_{precision}.engine"
    options = EngineOptions(profile=Profile(1, BATCH, BATCH))
    line = trtexec_line(Path("model.onnx"), Path(engine), constants.size, options, LIBRARY, registers_itself=True)
    values = {
        **constants.model_dump(),
        "precision": precision.upper(),
        "engine": engine,
        "batch": BATCH,
        "trtexec": line,
    }
    plugins = resources.files("mal.plugins")
    for file in (plugins / "deepstream" / "folder").iterdir():
        text = file.read_text()
        # Code is copied: what looks like a placeholder there is its own.
        whole = text if file.name.startswith("pipeline") else Template(text).substitute(values)
        (folder / file.name).write_text(whole)

    library = folder / LIBRARY.parent
    library.mkdir()
    for file in (plugins / "deepstream" / LIBRARY.parent.name).iterdir():
        if file.name == "Makefile" or file.name.endswith(_SOURCE_SUFFIXES):
            (library / file.name).write_bytes(file.read_bytes())
    for name in _CRF_SOURCES:
        (library / name).write_bytes((plugins / "crf_refine" / name).read_bytes())
