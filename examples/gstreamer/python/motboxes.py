"""`motboxes`: stands in for a detector. Puts the boxes of a MOT file on the frames as regions of interest.

A line of the file is `frame, id, x, y, width, height, …`, frames counted from 1, x and y from 0 in pixels.

    GST_PLUGIN_PATH=examples/gstreamer:$GST_PLUGIN_PATH gst-inspect-1.0 motboxes
"""

import csv
from collections import defaultdict

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstBase", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GObject, Gst, GstBase, GstVideo  # noqa: E402

VIDEO = Gst.Caps.from_string("video/x-raw")


class MotBoxes(GstBase.BaseTransform):
    """Adds a GstVideoRegionOfInterestMeta for each box of the frame that passes."""

    __gtype_name__ = "MotBoxes"
    __gstmetadata__ = ("Boxes from a MOT file", "Filter/Effect/Video", "Adds regions of interest to frames", "mal")
    __gsttemplates__ = (
        Gst.PadTemplate.new("sink", Gst.PadDirection.SINK, Gst.PadPresence.ALWAYS, VIDEO),
        Gst.PadTemplate.new("src", Gst.PadDirection.SRC, Gst.PadPresence.ALWAYS, VIDEO),
    )

    location = GObject.Property(type=str, nick="location", blurb="MOT file")

    def __init__(self):
        super().__init__()
        self.set_in_place(True)

    def do_start(self):
        """Read the file."""
        self.frame = 0
        self.boxes = defaultdict(list)
        with open(self.location, newline="") as file:
            for frame, track, *box in csv.reader(file, skipinitialspace=True):
                x, y, width, height = (round(float(value)) for value in box[:4])
                # The meta knows no negative numbers: what lies left of the frame and above it is cut off here.
                left, top = max(x, 0), max(y, 0)
                right, bottom = max(x + width, left), max(y + height, top)
                self.boxes[int(frame)].append((int(track), left, top, right - left, bottom - top))
        return True

    def do_transform_ip(self, buffer):
        """Put this frame's boxes on it."""
        self.frame += 1
        for track, *box in self.boxes[self.frame]:
            meta = GstVideo.buffer_add_video_region_of_interest_meta(buffer, "object", *box)
            meta.id = track
        return Gst.FlowReturn.OK


__gstelementfactory__ = ("motboxes", Gst.Rank.NONE, MotBoxes)
