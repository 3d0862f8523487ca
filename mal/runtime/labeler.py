"""`mal.MaskLabeler`: masks for boxes in Python, on arrays. The same pipeline as `mal label`."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mal.boxes import usable
from mal.config import ModelConstants
from mal.errors import ShapeError, UsageError
from mal.images import Picture
from mal.masks import BoxMask
from mal.runtime.batches import Batch
from mal.runtime.live import Live
from mal.runtime.machine import cpu_count
from mal.runtime.objects import PIECE, Image, Piece, SharedImage, check_arrays
from mal.runtime.pipeline import Pipeline, batch_size
from mal.runtime.results import Outcome, box_masks, outcomes
from mal.runtime.session import open_session
from mal.runtime.stages import Stages

NO_AREA = "box has no area"
LIVE_AHEAD = 4  # pairs of a live source that are read before they are needed


class LabelResult(NamedTuple):
    """Masks of one image's boxes, in their order."""

    masks: NDArray[np.bool_]
    """(N, H, W) bool."""
    scores: NDArray[np.float32]
    """(N,) float32, 0..1: how good each mask is likely to be; 0 where there is none."""
    flags: list[list[str]]
    """N lists of words: "clipped", "empty", "not-finite"; or why a box has no mask."""


class MaskLabeler:
    """A loaded model: image and boxes in, masks out.

    Args:
        model: model file or name of a shipped student.
        device: "cpu", "cuda:0"; None: the first GPU that the model's backend can use, else the CPU.
        batch: crops a call of the session, or "auto".
        workers: host threads; None: one for each processor.
        trust: run an engine (.plan) whose manifest is missing or wrong.

    Raises:
        UsageError: no such batch, no such number of workers; the rest as `mal.runtime.session.open_session`.

        labeler = MaskLabeler("student")
        masks, scores = labeler(image, boxes)
    """

    def __init__(
        self,
        model: str | Path = "student",
        device: str | None = None,
        *,
        batch: int | str = "auto",
        workers: int | None = None,
        trust: bool = False,
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers={workers}: expected at least 1, or None for one on each processor")
        self._closed = False
        self._session = open_session(model, device, trust=trust)
        self._pipeline = Pipeline(
            self._session,
            batch=batch_size(batch, self._session.auto_batch),
            workers=workers or cpu_count(),
            stages=Stages(),
        )

    @property
    def constants(self) -> ModelConstants:
        """What the model was made with."""
        return self._session.constants

    @property
    def model_id(self) -> str:
        """First 12 hex digits of the model file's SHA-256."""
        return self._session.model_id

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0"."""
        return self._session.device

    @property
    def backend(self) -> str:
        """What runs it: "onnxruntime 1.31.1"."""
        return self._session.backend

    def __call__(self, image: Image, boxes: object) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Label the boxes of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            boxes: (N, 4) x0, y0, x1, y1 in image pixels. They are clipped to the image; a box wholly outside
                or without area gets an empty mask and score 0.

        Returns:
            masks (N, H, W) bool and scores (N,) float32.

        Raises:
            ShapeError: another shape or dtype, NaN or infinity.
        """
        result = next(self.stream([(image, boxes)]))
        return result.masks, result.scores

    def stream(
        self, pairs: Iterable[tuple[Image, object]], *, max_wait_ms: float | None = None
    ) -> Iterator[LabelResult]:
        """Label many images; their crops share batches.

        Args:
            pairs: image and boxes, as for a call; taken lazily, a few batches ahead of what comes out. Images are
                not copied: give each its own array, not one buffer that the next frame overwrites.
            max_wait_ms: for live sources, whose next pair may take a while: a batch leaves when it is full or the
                oldest crop in it has waited so long, in milliseconds. The pairs are then read in a thread of their
                own. None: batches are full, and the pairs are read in the caller's thread.

        Yields:
            One result a pair, in order.

        Raises:
            UsageError: the labeler is closed, or max_wait_ms is negative.
            Exception: what `pairs` raised, and ShapeError for a pair as in a call; behind the results of all
                pairs before it.
        """
        if self._closed:
            raise UsageError("this MaskLabeler is closed; make another one")
        if max_wait_ms is not None and not max_wait_ms >= 0:
            raise UsageError(f"max_wait_ms={max_wait_ms}: expected milliseconds from 0 up, or None")
        return self._results(pairs, max_wait_ms)

    def _results(self, pairs: Iterable[tuple[Image, object]], max_wait_ms: float | None) -> Iterator[LabelResult]:
        waiting: deque[_Pending] = deque()
        live = None if max_wait_ms is None else Live(pairs, self._pipeline.wake, LIVE_AHEAD)
        found = self._pipeline.run(
            self._pieces(pairs if live is None else live, waiting),
            self._finish,
            max_wait=None if max_wait_ms is None else max_wait_ms / 1000,
        )
        try:
            for some in found:
                for outcome in some:
                    waiting[outcome.image - waiting[0].image].found.append(outcome)
                while waiting and waiting[0].complete:
                    yield waiting.popleft().result()
        finally:
            if live:
                live.close()

    def run_on_device(self, crops: object) -> tuple[Any, Any]:
        """The network alone, from GPU memory to GPU memory without a copy, for applications that cut their own crops.

        Args:
            crops: contiguous float32 (B, 3, S, S), RGB 0..255, by DLPack or __cuda_array_interface__: of torch, CuPy,
                Numba, PyCUDA. How a crop is cut: `mal.crops`.

        Returns:
            logits (B, h, w) float32, zero = boundary, and scores (B,) float32, on the same GPU, complete; with
            __cuda_array_interface__ (from a .plan) or as torch tensors (from a .safetensors).

        Raises:
            UsageError: this model's backend has no such door, or B is outside the engine's profile.
            ShapeError: another kind of array.
        """
        run = getattr(self._session, "run_on_device", None)
        if run is None:
            raise UsageError(f"{self.backend} takes arrays of the host; a .plan or a .safetensors takes those of a GPU")
        return run(crops)

    def close(self) -> None:
        """Give memory and device back; nothing can be labelled afterwards."""
        if self._closed:
            return
        self._closed = True
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(
        self, pairs: Iterable[tuple[Image, object] | None], waiting: "deque[_Pending]"
    ) -> Iterator[Piece | None]:
        number = -1
        for pair in pairs:
            if pair is None and isinstance(pairs, Live):
                yield None
                continue
            number += 1
            image, array = _check(pair)
            waiting.append(_Pending(number, image.shape[:2], len(array)))
            shared = SharedImage(partial(Picture, image, image.shape[1], image.shape[0]))
            reasons: list[str | None] = [None if good else NO_AREA for good in usable(array)]
            # At least one: an image without boxes has its turn, too.
            for start in range(0, max(1, len(array)), PIECE):
                some, why = array[start : start + PIECE], reasons[start : start + PIECE]
                yield Piece((number, start), shared, some, why, cost=image.nbytes if start == 0 else 0)

    def _finish(self, batch: Batch, logits: NDArray[np.float32], scores: NDArray[np.float32]) -> list[Outcome[BoxMask]]:
        return list(outcomes(batch, logits, scores, self.constants.expansion, box_masks))


@dataclass
class _Pending:
    """An image whose results are not complete; they come in the order of its boxes."""

    image: int
    size: tuple[int, ...]
    count: int
    found: list[Outcome[BoxMask]] = field(default_factory=list[Outcome[BoxMask]])

    @property
    def complete(self) -> bool:
        return len(self.found) == self.count

    def result(self) -> LabelResult:
        masks = np.zeros((self.count, *self.size), bool)
        for index, outcome in enumerate(self.found):
            if mask := outcome.mask:  # a box without one keeps the empty mask
                height, width = mask.pixels.shape
                masks[index, mask.y0 : mask.y0 + height, mask.x0 : mask.x0 + width] = mask.pixels
        scores = np.array([outcome.score for outcome in self.found], np.float32)
        flags = [outcome.flags.words if outcome.mask else [outcome.reason] for outcome in self.found]
        return LabelResult(masks, scores, flags)


def _check(pair: object) -> tuple[Image, NDArray[np.float64]]:
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise ShapeError(f"expected pairs of an image and its boxes, got {type(pair).__name__}")
    return check_arrays(*pair)
