"""`mal_label`, for the Python backend of Triton: image and boxes in, run lengths and scores out.

`mal export --target triton` copies this file. It cuts crops and decides masks; the network is the model `mal_student`
of the same server, so Triton batches the crops of all requests. Triton's Python needs `mask-auto-labeler`.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray

from mal.boxes import Boxes, as_boxes, usable
from mal.config import ModelConstants
from mal.errors import MalError, ShapeError
from mal.images import Picture
from mal.plugins.pixels import pixels
from mal.runtime.labeler import NO_AREA
from mal.runtime.objects import Piece, SharedImage, cut_boxes, judge, prepare
from mal.runtime.stages import Stages

Answer = tuple[list[bytes], list[float], list[bytes]]  # run lengths, scores, flags: one a box


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the model's constants, which the export wrote into config.pbtxt."""
        parameters = json.loads(args["model_config"])["parameters"]
        values = {key: value["string_value"] for key, value in parameters.items()}
        self._constants = ModelConstants.from_metadata(values, "config.pbtxt of mal_label")
        self._network = values["network"]
        self._batch = int(values["batch"])

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request; what cannot be labelled is an error of its request alone."""
        return list(await asyncio.gather(*map(self._respond, requests)))

    async def _respond(self, request: Any) -> Any:
        image, boxes = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("image", "boxes"))
        try:
            rle, scores, flags = await self._label(image, boxes)
        except MalError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("rle", np.array(rle, np.object_)),
                pb_utils.Tensor("scores", np.array(scores, np.float32)),
                pb_utils.Tensor("flags", np.array(flags, np.object_)),
            ]
        )

    async def _label(self, image: NDArray[np.uint8], wanted: NDArray[np.float32]) -> Answer:
        boxes = as_boxes(wanted)
        if not np.isfinite(boxes).all():
            raise ShapeError("a box is not finite; expected x0, y0, x1, y1 in pixels")
        reasons: list[str | None] = [None if good else NO_AREA for good in usable(boxes)]
        picture = Picture(image, image.shape[1], image.shape[0])
        piece = prepare(Piece((0, 0), SharedImage(lambda: picture), boxes, reasons, 0), Stages())
        starts = range(0, len(piece.boxes), self._batch)
        parts = await asyncio.gather(
            *(self._run(picture, piece.boxes[start : start + self._batch]) for start in starts)
        )
        rle, scores = [b""] * len(boxes), [0.0] * len(boxes)
        flags = [(reason or "").encode() for reason in piece.reasons]
        if parts:
            logits, raw = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            masks = pixels().masks_from_logits(logits, piece.boxes, self._constants.expansion)
            counts = pixels().encode(masks, [piece.size] * len(masks))
            for index, mask, score, text in zip(piece.which.tolist(), masks, raw.tolist(), counts, strict=True):
                scores[index], words = judge(mask, score, int(piece.flags[index]))
                rle[index], flags[index] = text, ",".join(words.words).encode()
        return rle, scores, flags

    async def _run(self, picture: Picture, boxes: Boxes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The crops of (B, 4) boxes through the network: logits (B, h, w) and scores (B,)."""
        size = self._constants.size
        crops = np.empty((len(boxes), 3, size, size), np.float32)
        cut_boxes(picture, boxes, self._constants, crops)
        request = pb_utils.InferenceRequest(
            model_name=self._network,
            requested_output_names=["logits", "score"],
            inputs=[pb_utils.Tensor("crops", crops)],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = await request.async_exec()
        if response.has_error():
            raise MalError(f"{self._network} failed: {response.error().message()}")
        found = (pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in ("logits", "score"))
        logits, score = found
        return logits[:, 0], score.reshape(-1)
