"""libnvdsinfer_mal.so by its own Makefile, against the SDK's headers or ours: it links, and shows what it should."""

import subprocess
from pathlib import Path

import pytest
from sdk import PLUGIN, gstreamer, headers

from mal.errors import MissingPackageError
from mal.plugins.compile import find_nvcc
from mal.plugins.crf_refine.tensorrt_library import find_headers

EXPORTS = {
    "gst_plugin_nvdsinfer_mal_get_desc", "gst_plugin_nvdsinfer_mal_register",
    "mal_masks_attach", "mal_masks_metrics", "mal_mask_meta_type",
    "initLib", "deInitLib", "MalTransformation", "MalTensorPreparation",
}  # fmt: skip


@pytest.mark.slow
def test_the_makefile_builds_a_library_that_shows_what_others_look_for(tmp_path: Path) -> None:
    try:
        nvcc, tensorrt = Path(find_nvcc()), find_headers()
    except MissingPackageError as error:
        pytest.skip(str(error))
    # The layout that the Makefile expects of the SDK and of TensorRT, from wherever the headers are.
    (tmp_path / "sdk" / "sources").mkdir(parents=True)
    (tmp_path / "sdk" / "sources" / "includes").symlink_to(headers())
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "include").symlink_to(tensorrt)
    built = tmp_path / "built"
    built.mkdir()
    for file in [*PLUGIN.iterdir(), *((PLUGIN.parents[1] / "crf_refine").glob("*.cu*"))]:
        if not file.name.endswith((".o", ".so")):
            (built / file.name).write_bytes(file.read_bytes())
    toolkits = [Path("/usr/local/cuda"), nvcc.resolve().parents[1]]
    cuda = next((root for root in toolkits if (root / "include" / "cuda_runtime.h").is_file()), None)
    if cuda is None:
        pytest.skip("needs the CUDA toolkit's headers")
    done = subprocess.run(
        [
            "make", "-C", str(built), f"DEEPSTREAM_ROOT={tmp_path / 'sdk'}", f"TENSORRT_ROOT={tmp_path / 'tensorrt'}",
            f"NVCC={nvcc}", f"CUDA_ROOT={cuda}", "NVCC_ARCH=-arch=sm_90",
            # A library may leave the SDK's functions open until it is loaded.
            f"LIBRARIES=-L{cuda}/lib64 -lcudart {' '.join(gstreamer('--libs'))}",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    table = subprocess.run(
        ["nm", "-D", "--defined-only", str(built / "libnvdsinfer_mal.so")], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[-1] for line in table.splitlines()} == EXPORTS
