"""GStreamer for the tests, from the system's packages: Python bindings of it are not to be had by pip."""

import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import pytest
from gstreamer_parts import FRAMES, HEIGHT, WIDTH, Clip, run

ROOT = Path(__file__).resolve().parents[3]
SYSTEM = Path("/usr/lib/python3/dist-packages/gi")
ELEMENTS = ("vp8enc", "vp8dec", "webmmux", "decodebin", "videoconvert", "multifilesrc", "jpegdec")


@pytest.fixture(scope="session")
def gst(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """GStreamer's Python binding, with `malmask` and `motboxes` registered."""
    if not importlib.util.find_spec("gi") and SYSTEM.is_dir():
        # This one package of the system's and no other.
        folder = tmp_path_factory.mktemp("gi")
        (folder / "gi").symlink_to(SYSTEM)
        sys.path.append(str(folder))
    os.environ["GST_REGISTRY"] = str(tmp_path_factory.mktemp("registry") / "registry.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the binding's own
        try:
            from mal.gstreamer.binding import Gst, GstVideo

            assert GstVideo
        except (ImportError, ValueError) as error:
            pytest.skip(f"needs GStreamer's Python binding (docs/gstreamer.md names the packages): {error}")
        missing = [name for name in ELEMENTS if not Gst.ElementFactory.find(name)]
        if missing or not hasattr(Gst, "MapInfo") or not hasattr(Gst.Buffer, "map_range"):
            pytest.skip(f"needs gstreamer1.0-plugins-good and python3-gst-1.0; missing: {missing or 'overrides'}")
        from mal.gstreamer.element import MalMask

        sys.path.append(str(ROOT / "examples" / "gstreamer" / "python"))
        motboxes = importlib.import_module("motboxes")
        Gst.Element.register(None, "malmask", Gst.Rank.NONE, MalMask)
        Gst.Element.register(None, "motboxes", Gst.Rank.NONE, motboxes.MotBoxes)
    return Gst


@pytest.fixture(scope="session")
def clip(gst: Any, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """A photograph that moves; 0 to 4 boxes a frame, some of them over the edge, outside or without area."""
    folder = tmp_path_factory.mktemp("clip")
    photo = cv2.imread(str(ROOT / "mal" / "models" / "photos" / "astronaut.jpg"))
    found = Clip(folder / "clip.webm", folder / "boxes.txt")
    for frame in range(FRAMES):
        part = photo[2 * frame : 2 * frame + HEIGHT, 60 + 4 * frame : 60 + 4 * frame + WIDTH]
        cv2.imwrite(str(folder / f"{frame:03d}.jpg"), part)
        boxes = [(80 - 2 * frame, 5, 130, 190), (250, 100, 120, 200), (330, 10, 20, 20), (40, 40, 0, 30)]
        for track, (x, y, width, height) in enumerate(boxes[: frame % 5], start=1):
            found.rows.append((frame + 1, track, x, y, width, height))
    found.boxes.write_text("".join(", ".join(map(str, row)) + ", 1\n" for row in found.rows))
    run(
        gst,
        f"multifilesrc location={folder}/%03d.jpg caps=image/jpeg,framerate=30/1 ! jpegdec ! videoconvert "
        f"! vp8enc deadline=1 ! webmmux ! filesink location={found.video}",
    )
    return found
