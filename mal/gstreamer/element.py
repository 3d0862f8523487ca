# pyright: reportUntypedBaseClass=false
"""The element: three parts in a bin.

    sink ─► submit ─────────► queue ─► attach ─► src
            regions, pixels            waits for this frame's masks, writes them on
                │                          ▲
                └─► desk (one labeler, all elements) ─┘

The queue is GStreamer's own: it holds the frames under way, and with them carries end of stream, flushes and the thread
border. Frames leave in the order in which they came.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mal.boxes import clip, pixel_window, usable
from mal.errors import MalError
from mal.evaluation.overlay import PALETTE
from mal.gstreamer.binding import GLib, GObject, Gst, GstBase, GstVideo
from mal.gstreamer.desk import BATCHES, Desk, Settings
from mal.gstreamer.regions import RegionMask, add_mask, read_regions, set_ticket, take_ticket
from mal.runtime.pipeline import MAX_BATCH

CAPS = "video/x-raw, format=RGB, width=[1, 2147483647], height=[1, 2147483647]"
BATCH = 16  # small ones stay in a CPU's caches; larger ones take longer to fill
OPACITY = 0.5  # of the overlay

_DROPPED = Gst.FlowReturn.CUSTOM_SUCCESS  # GST_BASE_TRANSFORM_FLOW_DROPPED


class _Ticket(NamedTuple):
    """A frame that the desk has."""

    number: int
    boxes: NDArray[np.float64]
    answer: "Future[Any]"


class _Flight:
    """The frames of one element between `submit` and `attach`. A frame without regions has no ticket."""

    def __init__(self) -> None:
        self.desk: Desk | None = None
        self._tickets: deque[_Ticket] = deque()
        self._lock = Lock()
        self._number = 0

    def begin(self, desk: Desk, frame: NDArray[np.uint8], boxes: NDArray[np.float64]) -> int:
        answer = desk.submit(frame, boxes)  # may wait, while `end` goes on
        with self._lock:
            self._number += 1
            self._tickets.append(_Ticket(self._number, boxes, answer))
            return self._number

    def end(self, number: int) -> _Ticket:
        """The ticket with this number. Older ones belong to frames that a flush threw away."""
        with self._lock:
            while (ticket := self._tickets.popleft()).number != number:
                pass
            return ticket


def _template(name: str, direction: Any) -> Any:
    return Gst.PadTemplate.new(name, direction, Gst.PadPresence.ALWAYS, Gst.Caps.from_string(CAPS))


_TEMPLATES = (_template("sink", Gst.PadDirection.SINK), _template("src", Gst.PadDirection.SRC))


def _told_on_the_bus(process: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A part's `do_transform_ip`: nothing may be raised into GStreamer, so what `process` raises ends the stream."""

    def do_transform_ip(self: Any, buffer: Any) -> Any:
        try:
            return process(self, buffer)
        except Exception as error:
            post_error(self, Gst.StreamError, Gst.StreamError.FAILED, error)
            return Gst.FlowReturn.ERROR

    return do_transform_ip


class _Part(GstBase.BaseTransform):
    """What `submit` and `attach` share: RGB frames, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.set_in_place(True)
        self.flight = _Flight()
        self._info: Any = None

    def do_set_caps(self, incoming: Any, _outgoing: Any) -> bool:
        self._info = GstVideo.VideoInfo.new_from_caps(incoming)
        return True

    def pixels(self, buffer: Any, data: memoryview) -> NDArray[np.uint8]:
        """(H, W, 3) view of a mapped buffer."""
        meta = GstVideo.buffer_get_video_meta(buffer)
        offset, stride = (meta.offset[0], meta.stride[0]) if meta else (self._info.offset[0], self._info.stride[0])
        height, width = self._info.height, self._info.width
        return np.ndarray((height, width, 3), np.uint8, data, offset, (stride, 3, 1))


class _Submit(_Part):
    """Hands pixels and regions to the desk, and the frame on to the queue."""

    __gtype_name__ = "MalMaskSubmit"
    __gstmetadata__ = ("malmask: frames to the desk", "Filter/Effect/Video", "Part of malmask", "mal")
    __gsttemplates__ = _TEMPLATES

    drop = GObject.Property(type=bool, default=False)

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        self.behind: Callable[[], bool] = lambda: False

    @_told_on_the_bus
    def do_transform_ip(self, buffer: Any) -> Any:
        if self.drop and self.behind():
            self.dropped += 1
            return _DROPPED
        boxes = np.array([region.box for region in read_regions(buffer)], np.float64)
        if len(boxes) and self.flight.desk:
            # A copy: whoever keeps a reference to the buffer makes it read-only for everyone downstream.
            with buffer.map(Gst.MapFlags.READ) as mapped:
                frame = self.pixels(buffer, mapped.data).copy()
            set_ticket(buffer, self.flight.begin(self.flight.desk, frame, boxes))
        return Gst.FlowReturn.OK


class _Attach(_Part):
    """Waits for the masks of a frame and writes them on its regions."""

    __gtype_name__ = "MalMaskAttach"
    __gstmetadata__ = ("malmask: masks onto frames", "Filter/Effect/Video", "Part of malmask", "mal")
    __gsttemplates__ = _TEMPLATES

    overlay = GObject.Property(type=bool, default=False)

    def __init__(self) -> None:
        super().__init__()
        self.latency = 0  # nanoseconds
        # The answers to queries pass here (PULL). `do_query` cannot be overridden in Python: two bases have one.
        answers = Gst.PadProbeType.QUERY_UPSTREAM | Gst.PadProbeType.PULL
        self.get_static_pad("src").add_probe(answers, self._add_latency)

    @_told_on_the_bus
    def do_transform_ip(self, buffer: Any) -> Any:
        number = take_ticket(buffer)
        if number is None or self.flight.desk is None:
            return Gst.FlowReturn.OK
        ticket = self.flight.end(number)
        result = ticket.answer.result()
        windows = _windows(ticket.boxes, self._info.width, self._info.height)
        masks: list[RegionMask] = []
        for (x0, y0, x1, y1), mask, score, flags in zip(
            windows, result.masks, result.scores.tolist(), result.flags, strict=True
        ):
            pixels = mask[y0:y1, x0:x1]
            masks.append(RegionMask(x0, y0, pixels, score, ",".join(flags), self.flight.desk.model_id))
        for region, mask in zip(read_regions(buffer), masks, strict=True):
            add_mask(region, mask)
        if self.overlay:
            with buffer.map(Gst.MapFlags.READ | Gst.MapFlags.WRITE) as mapped:
                _paint(self.pixels(buffer, mapped.data), masks)
        return Gst.FlowReturn.OK

    def _add_latency(self, _pad: Any, info: Any) -> Any:
        query = info.get_query()
        if query.type == Gst.QueryType.LATENCY:
            live, least, most = query.parse_latency()
            unbounded = most == Gst.CLOCK_TIME_NONE
            query.set_latency(live, least + self.latency, most if unbounded else most + self.latency)
        return Gst.PadProbeReturn.OK


def _windows(boxes: NDArray[np.float64], width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Windows of the masks in the frame; empty for a box without area in it."""
    clipped = clip(boxes, width, height)
    good = usable(clipped) & usable(boxes)
    return [pixel_window(box) if fine else (0, 0, 0, 0) for box, fine in zip(clipped, good, strict=True)]


def _paint(frame: NDArray[np.uint8], masks: list[RegionMask]) -> None:
    for index, mask in enumerate(masks):
        height, width = mask.pixels.shape
        if not mask.pixels.size:
            continue
        window = frame[mask.y : mask.y + height, mask.x : mask.x + width]
        colour = np.full_like(window, PALETTE[index % len(PALETTE)])
        np.copyto(window, cv2.addWeighted(window, 1 - OPACITY, colour, OPACITY, 0), where=mask.pixels[:, :, None])


def post_error(element: Any, domain: Any, code: Any, error: Exception) -> None:
    """Say on the element's bus what went wrong, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    found = GLib.Error.new_literal(domain.quark(), text, int(code))
    element.post_message(Gst.Message.new_error(element, found, f"{type(error).__name__} in {element.get_name()}"))


class MalMask(Gst.Bin):
    """`malmask`: gives each GstVideoRegionOfInterestMeta of a frame a parameter `mask` (docs/gstreamer.md)."""

    __gtype_name__ = "MalMask"
    __gstmetadata__ = (
        "Masks of regions of interest",
        "Filter/Effect/Video",
        "Adds a mask to each GstVideoRegionOfInterestMeta",
        "mal",
    )
    __gsttemplates__ = _TEMPLATES

    model = GObject.Property(type=str, default="student", nick="model", blurb="Model file or shipped student")
    batch = GObject.Property(
        type=int, default=BATCH, minimum=1, maximum=MAX_BATCH, nick="batch",
        blurb="Objects a batch, of all frames and streams together",
    )  # fmt: skip
    max_wait_ms = GObject.Property(
        type=int, default=20, minimum=0, maximum=10_000, nick="max wait",
        blurb="A batch that is not full leaves when its oldest object has waited this long",
    )  # fmt: skip

    drop = GObject.Property(
        type=bool,
        default=False,
        nick="drop",
        blurb="Drop frames rather than lag: those that find two batches in flight",
    )
    overlay = GObject.Property(type=bool, default=False, nick="overlay", blurb="Paint the masks into the frames")

    def _read_dropped(self) -> int:
        return self._submit.dropped

    dropped = GObject.Property(
        _read_dropped, type=GObject.TYPE_UINT64, nick="dropped", blurb="Frames dropped so far",
        flags=GObject.ParamFlags.READABLE,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._submit, self._attach = _Submit(), _Attach()
        self._attach.flight = self._submit.flight
        self._queue = Gst.ElementFactory.make("queue", None)
        self._queue.set_property("max-size-bytes", 0)
        self._queue.set_property("max-size-time", 0)
        self._submit.behind = self._behind
        self.bind_property("drop", self._submit, "drop")
        self.bind_property("overlay", self._attach, "overlay")
        for part in (self._submit, self._queue, self._attach):
            self.add(part)
        self._submit.link(self._queue)
        self._queue.link(self._attach)
        for part, template in zip((self._submit, self._attach), _TEMPLATES, strict=True):
            name = template.name_template
            self.add_pad(Gst.GhostPad.new_from_template(name, part.get_static_pad(name), template))

    def do_change_state(self, transition: Any) -> Any:
        """The model is open from READY on."""
        if transition == Gst.StateChange.NULL_TO_READY and not self._open():
            return Gst.StateChangeReturn.FAILURE
        changed = Gst.Bin.do_change_state(self, transition)
        if transition == Gst.StateChange.READY_TO_NULL:
            self._close()
        return changed

    def _open(self) -> bool:
        try:
            desk = Desk.open(Settings(self.model, self.batch, self.max_wait_ms))
        except MalError as error:
            post_error(self, Gst.ResourceError, Gst.ResourceError.FAILED, error)
            return False
        # At one object a frame, these many frames fill the batches in flight.
        self._queue.set_property("max-size-buffers", BATCHES * self.batch)
        self._submit.flight.desk = desk
        self._attach.latency = self.max_wait_ms * Gst.MSECOND + round(BATCHES * desk.batch_seconds * Gst.SECOND)
        return True

    def _close(self) -> None:
        if desk := self._submit.flight.desk:
            self._submit.flight.desk = None
            desk.close()

    def _behind(self) -> bool:
        desk = self._submit.flight.desk
        frames = self._queue.get_property("current-level-buffers")
        return frames >= BATCHES * self.batch or (desk is not None and desk.full)
