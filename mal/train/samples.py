"""The training crops: every image decoded once, every usable box cut once, kept as uint8 on disk.

A cached crop is wider than what the network sees (1.6 x the box), so that views with a drifting box can be cut
from it without touching the image again. The box is always its central part.
"""

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mal import boxes as geometry
from mal.config import TrainConfig
from mal.crops import cut_crop
from mal.datasets import BoxFile
from mal.errors import ImageError, InputError, OutputError
from mal.images import decode_image

Tick = Callable[[int, int], None]  # done, total
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Samples:
    """All training crops.

    Attributes:
        pixels: (N, C, C, 3) uint8 RGB, a memory map.
        valid: (N, 4) float32 x0, y0, x1, y1: the image's part of the crop, in units of the crop.
        source: (N,) int32, which box file.
        expansion: of the cached crops.
        skipped: lines that say which boxes are not here and why.
        key: digest of what the crops were cut from and how.
        row: (N,) int64, which annotation of its box file.
        rect: (N, 4) float64, the crop in pixels of its image.
        image: (N,) int64, its image, counted over all box files.
    """

    pixels: NDArray[np.uint8]
    valid: NDArray[np.float32]
    source: NDArray[np.int32]
    expansion: float
    skipped: list[str]
    key: str = ""
    row: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    rect: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    image: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the same file instead of getting a copy of all crops."""
        state = dict(self.__dict__)
        if isinstance(self.pixels, np.memmap) and self.pixels.filename is not None:
            state["pixels"] = Path(self.pixels.filename), len(self.pixels)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["pixels"], tuple):
            file, count = state["pixels"]
            state["pixels"] = np.load(file, mmap_mode="r")[:count]
        self.__dict__.update(state)

    @property
    def box(self) -> NDArray[np.float32]:
        """(4,) the box in units of the crop: the same for all."""
        margin = self.expansion / (1 + self.expansion) / 2
        return np.array([margin, margin, 1 - margin, 1 - margin], np.float32)

    @cached_property
    def others(self) -> list[NDArray[np.float32]]:
        """Of each sample (n, 4): the boxes of the image's other samples that touch its crop, in units of the crop."""
        sides = np.tile(self.rect[:, 2:] - self.rect[:, :2], 2)
        corner = np.tile(self.rect[:, :2], 2)
        boxes = corner + sides * self.box
        found: list[NDArray[np.float32]] = [np.zeros((0, 4), np.float32)] * len(self)
        order = np.argsort(self.image, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(self.image[order])) + 1):
            for row in group:
                place = ((boxes[group[group != row]] - corner[row]) / sides[row]).astype(np.float32)
                found[row] = place[(place[:, :2] < 1).all(1) & (place[:, 2:] > 0).all(1)]
        return found

    def central(self, expansion: float) -> NDArray[np.float64]:
        """(4,) rectangle in pixels of the cached crop that is the box grown by `expansion`."""
        share = (1 + expansion) / (1 + self.expansion) / 2
        return np.array([0.5 - share, 0.5 - share, 0.5 + share, 0.5 + share]) * self.pixels.shape[1]


_STORED = ("valid", "source", "row", "rect", "image")


def cut_samples(
    files: Sequence[BoxFile], config: TrainConfig, folder: Path, tick: Tick | None = None, most: int | None = None
) -> Samples:
    """Cut the training crops of some box files, or find them already cut.

    Args:
        files: opened box files; of them boxes, sizes and file names are read, nothing else.
        config: cache_expansion, cache_size, cache_gb, min_side and fill count here.
        folder: where the cache lies; made if missing. Crops of other boxes or settings may lie beside.
        tick: called as images are done.
        most: boxes at most; more are drawn at random, by image.

    Raises:
        InputError: no box can be used, or not even one crop fits into cache_gb.
        OutputError: the cache cannot be written.
    """
    room = int(cache_bytes(config) / (config.cache_size**2 * 3))
    key = _key(files, config, most)
    table, pixels = folder / f"crops-{key}.npz", folder / f"crops-{key}.npy"
    if not table.is_file():
        with renamed(pixels) as part:
            samples = _cut(files, config, part, tick or (lambda done, total: None), min(room, most or room))
        with renamed(table) as part, part.open("wb") as stream:
            lines = np.array(samples.skipped, str)
            np.savez(stream, skipped=lines, **{name: getattr(samples, name) for name in _STORED})
    with np.load(table) as found:
        stored = {name: found[name] for name in _STORED}
        skipped = [str(line) for line in found["skipped"]]
    kept = np.load(pixels, mmap_mode="r")[: len(stored["valid"])]
    return Samples(pixels=kept, expansion=config.cache_expansion, skipped=skipped, key=key, **stored)


@contextmanager
def renamed(path: Path) -> Generator[Path]:
    """A file to write, which becomes `path` at the end: another run may be reading, or making, the same.

    Raises:
        OutputError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def _key(files: Sequence[BoxFile], config: TrainConfig, most: int | None) -> str:
    settings = config.model_dump(
        mode="json", include={"cache_expansion", "cache_size", "cache_gb", "min_side", "areas", "fill", "seed"}
    )
    text = json.dumps([_STORED, [file.sha256 for file in files], settings, most], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cache_bytes(config: TrainConfig) -> float:
    """Bound of the crop cache: cache_gb, else half the memory that is free, so that crops are read from memory.

    Rounded down to 2^28 bytes; on a machine that does not tell, 4 GB.
    """
    if config.cache_gb is not None:
        return config.cache_gb * 2**30
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 4 * 2**30
    return max(1, free // 2 // 2**28) * 2**28


@dataclass(frozen=True)
class _Job:
    """The boxes of one image."""

    file: BoxFile
    source: int
    image: int
    rows: NDArray[np.int64]
    first: int


def usable_rows(file: BoxFile, config: TrainConfig) -> NDArray[np.int64]:
    """Rows of a box file that can be trained on as far as the file tells, by image; min_side and areas count."""
    sides = file.boxes[:, 2:] - file.boxes[:, :2]
    with np.errstate(invalid="ignore", over="ignore"):
        area = sides.prod(1)
        large = (sides.min(1, initial=np.inf) >= config.min_side) & (area > config.areas[0]) & (area < config.areas[1])
    good = large & np.isfinite(file.boxes).all(1) & ~file.crowd & (file.image_row >= 0)
    order = file.order()
    return order[good[order]]


def _jobs(files: Sequence[BoxFile], config: TrainConfig, skipped: list[str]) -> tuple[list[_Job], int]:
    jobs: list[_Job] = []
    total = 0
    for source, file in enumerate(files):
        order = usable_rows(file, config)
        if len(file) - len(order):
            crowd, lost = int(file.crowd.sum()), int((file.image_row < 0).sum())
            skipped.append(
                f"{file.path.name}: {len(file) - len(order)} boxes: {crowd} crowd regions, {lost} without image, "
                f"others unreadable, under {config.min_side:g} px or not of an area within {config.areas}"
            )
        starts = np.flatnonzero(np.diff(file.image_row[order], prepend=-2))
        for rows in np.split(order, starts[1:]) if len(order) else []:
            jobs.append(_Job(file, source, int(file.image_row[rows[0]]), rows, total))
            total += len(rows)
    return jobs, total


def _draw(jobs: list[_Job], room: int, config: TrainConfig, skipped: list[str]) -> tuple[list[_Job], int]:
    """As many images, drawn at random, as there is room for the crops of; in their old order."""
    drawn: list[_Job] = []
    total = 0
    for index in np.random.default_rng((config.seed, 11)).permutation(len(jobs)):
        if total + len(jobs[index].rows) <= room:
            drawn.append(jobs[index])
            total += len(jobs[index].rows)
    if not drawn:
        raise InputError(f"there is room for {room} crops in all, less than one image has; raise cache_gb")
    left = sum(len(job.rows) for job in jobs) - total
    skipped.append(f"{left} boxes: there is room for {room} (cache_gb, adapt.boxes); drawn at random by image")
    ordered: list[_Job] = []
    first = 0
    for job in sorted(drawn, key=lambda job: job.first):
        ordered.append(replace(job, first=first))
        first += len(job.rows)
    return ordered, total


def _cut(files: Sequence[BoxFile], config: TrainConfig, path: Path, tick: Tick, room: int) -> Samples:
    skipped: list[str] = []
    jobs, total = _jobs(files, config, skipped)
    if not total:
        raise InputError(
            f"no usable box in {', '.join(str(file.path) for file in files)}: {'; '.join(skipped) or 'it is empty'}"
        )
    size = config.cache_size
    if room < total:
        jobs, total = _draw(jobs, room, config, skipped)
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (total, size, size, 3))
    valid, source = np.zeros((total, 4), np.float32), np.full(total, -1, np.int32)
    origin, rect, image = np.zeros(total, np.int64), np.zeros((total, 4)), np.zeros(total, np.int64)
    before = np.cumsum([0, *(len(file.images.file_names) for file in files)])  # images of earlier files

    def one(job: _Job) -> str | None:
        table = job.file.images
        name = table.file_names[job.image]
        try:
            known = int(table.widths[job.image]), int(table.heights[job.image])
            data = job.file.source.read(name)
            whole = decode_image(data, *(known if min(known) > 0 else (None, None))).pixels
        except ImageError as error:
            return f"{name}: {error} ({len(job.rows)} boxes)"
        height, width = whole.shape[:2]
        clipped = geometry.clip(job.file.boxes[job.rows], width, height)
        usable = geometry.usable(clipped)
        rects = geometry.expand(clipped, config.cache_expansion)
        for offset in np.flatnonzero(usable):
            row, crop = job.first + int(offset), rects[offset]
            pixels[row] = cut_crop(whole, crop, size, config.fill)
            span = np.tile(crop[2:] - crop[:2], 2)
            edges = np.array([0, 0, width, height]) - np.tile(crop[:2], 2)
            valid[row], source[row], origin[row] = np.clip(edges / span, 0, 1), job.source, job.rows[offset]
            rect[row], image[row] = crop, before[job.source] + job.image
        lost = int((~usable).sum())
        return f"{name}: {lost} boxes outside the image" if lost else None

    for done, problem in enumerate(in_threads(one, jobs), 1):
        if problem:
            skipped.append(problem)
        tick(done, len(jobs))
    kept = np.flatnonzero(source >= 0)
    if not len(kept):
        raise InputError(f"no image of {', '.join(str(file.path) for file in files)} can be read: {skipped[-1]}")
    if len(kept) < total:  # close the gaps; rows only move forward, so order is safe
        for to, row in enumerate(kept):
            pixels[to] = pixels[row]
    pixels.flush()
    return Samples(
        pixels[: len(kept)],
        valid[kept],
        source[kept],
        config.cache_expansion,
        skipped,
        row=origin[kept],
        rect=rect[kept],
        image=image[kept],
    )


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in order, made by threads; when the consumer stops (Ctrl-C), so does the work."""
    pool = ThreadPoolExecutor()
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
