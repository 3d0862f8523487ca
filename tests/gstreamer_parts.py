"""What the tests of `malmask` share: a clip with boxes, a pipeline that runs to its end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FRAMES, WIDTH, HEIGHT = 30, 322, 240  # rows of 966 bytes: GStreamer pads them to 968


@dataclass
class Clip:
    """A video file and boxes for it."""

    video: Path
    boxes: Path
    rows: list[tuple[int, ...]] = field(default_factory=list)  # frame, id, x, y, width, height

    @property
    def source(self) -> str:
        """A pipeline's beginning: RGB frames with regions."""
        return f"filesrc location={self.video} ! decodebin ! videoconvert ! motboxes location={self.boxes}"


Seen = Callable[[Any], None]


def run(
    gst: Any,
    text: str,
    see: dict[str, Seen] | None = None,
    during: Callable[[Any], None] | None = None,
    seconds: int = 60,
) -> Any:
    """Run a pipeline until its end.

    Args:
        text: as for gst-launch-1.0.
        see: by the name of a fakesink: called with each buffer that comes there.
        during: called with the pipeline once it plays.
        seconds: it must end within.

    Returns:
        The element `mask` of the pipeline, if there is one.

    Raises:
        RuntimeError: an element reported an error; its message.
    """
    pipeline = gst.parse_launch(text)
    for name, call in (see or {}).items():
        sink = pipeline.get_by_name(name)
        sink.set_property("signal-handoffs", True)
        sink.connect("handoff", lambda _sink, buffer, _pad, call=call: call(buffer))
    bus = pipeline.get_bus()
    pipeline.set_state(gst.State.PLAYING)
    try:
        if during:
            pipeline.get_state(10 * gst.SECOND)
            during(pipeline)
        message = bus.timed_pop_filtered(seconds * gst.SECOND, gst.MessageType.EOS | gst.MessageType.ERROR)
        assert message, f"the pipeline did not end within {seconds} s"
        if message.type == gst.MessageType.ERROR:
            raise RuntimeError(message.parse_error()[0].message)
    finally:
        pipeline.set_state(gst.State.NULL)
    return pipeline.get_by_name("mask")


def pixels(gst: Any, buffer: Any, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(H, W, 3) copy of an RGB buffer with padded rows."""
    with buffer.map(gst.MapFlags.READ) as mapped:
        rows = np.frombuffer(mapped.data, np.uint8).reshape(height, -1)
    return rows[:, : 3 * width].reshape(height, width, 3).copy()
