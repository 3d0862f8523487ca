"""A detector, a tracker and masks on one video, read in Python with DeepStream's pyservicemaker.

    GST_PLUGIN_PATH=nvdsinfer_custom_impl_mal python3 pipeline.py DETECTOR_CONFIG VIDEO

The masks are made in C++ by the element malnvinfer; Python only reads them.
"""

import sys

from pyservicemaker import BatchMetadataOperator, Pipeline, Probe

TRACKER = "/opt/nvidia/deepstream/deepstream/lib/libnvds_nvmultiobjecttracker.so"


class PrintMasks(BatchMetadataOperator):
    """One line a mask."""

    def handle_metadata(self, batch_meta):
        """Called for each batch."""
        for frame in batch_meta.frame_items:
            for item in frame.object_items:
                mask = item.mask_params.mask_array
                if mask is not None and mask.size:
                    share = float((mask > 0).mean())
                    print(f"frame {frame.frame_number}  object {item.object_id}  {share:.2f} of the box is mask")


def main(detector: str, video: str) -> None:
    """Run the pipeline to the video's end."""
    pipeline = Pipeline("mal")
    pipeline.add("nvurisrcbin", "source", {"uri": f"file://{video}"})
    pipeline.add("nvstreammux", "mux", {"batch-size": 1, "width": 1920, "height": 1080})
    pipeline.add("nvinfer", "detector", {"config-file-path": detector})
    pipeline.add("nvtracker", "tracker", {"ll-lib-file": TRACKER})
    pipeline.add("malnvinfer", "masks", {"config-file-path": "config_infer_secondary_mal.txt"})
    pipeline.add("fakesink", "sink", {"sync": 0})
    pipeline.link(("source", "mux"), ("", "sink_%u"))
    pipeline.link("mux", "detector", "tracker", "masks", "sink")
    pipeline.attach("masks", Probe("print_masks", PrintMasks()))
    pipeline.start().wait()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
