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

from mal.boxes import Boxes, usable
from mal.config import ModelConstants
from mal.errors import MalError
from mal.images import Picture
from mal.plugins.pixels import pixels
from mal.runtime.batches import Batch, BatchCutter
from mal.runtime.labeler import NO_AREA
from mal.runtime.objects import Piece, SharedImage, check_arrays, cut_boxes, prepare
from mal.runtime.results import outcomes
from mal.runtime.stages import Stages

BATCHES = 2  # of one request with crops in memory: those of one are cut while those of another are in the network

Answer = tuple[bytes, float, bytes]  # of a box: run lengths, score, flags


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
        try:
            image, boxes = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("image", "boxes"))
            answers = await self._label(image, boxes)
        except Exception as error:  # whatever it is, the other requests of this call get their answers
            words = str(error) if isinstance(error, MalError) else f"{type(error).__name__}: {error}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(words))
        rle, scores, flags = zip(*answers, strict=True) if answers else ((), (), ())
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("rle", np.array(rle, np.object_)),
                pb_utils.Tensor("scores", np.array(scores, np.float32)),
                pb_utils.Tensor("flags", np.array(flags, np.object_)),
            ]
        )

    async def _label(self, image: object, wanted: object) -> list[Answer]:
        array, boxes = check_arrays(image, wanted)
        picture = Picture(array, array.shape[1], array.shape[0])
        reasons: list[str | None] = [None if good else NO_AREA for good in usable(boxes)]
        piece = prepare(Piece((0, 0), SharedImage(lambda: picture), boxes, reasons, 0), Stages())
        room = asyncio.Semaphore(BATCHES)
        parts = (self._label_batch(picture, batch, room) for batch in BatchCutter(self._batch).add(piece))
        return [answer for part in await asyncio.gather(*parts) for answer in part]

    async def _label_batch(self, picture: Picture, batch: Batch, room: asyncio.Semaphore) -> list[Answer]:
        logits = scores = np.empty(0, np.float32)
        if batch.crops:
            async with room:
                logits, scores = await self._run(picture, batch.boxes())
        return [
            (outcome.mask or b"", outcome.score, (outcome.reason or ",".join(outcome.flags.words)).encode())
            for outcome in outcomes(batch, logits, scores, self._constants.expansion, pixels().runs_from_logits)
        ]

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
