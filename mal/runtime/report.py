"""What a labelling run says about itself, as JSON beside the output and as a few lines on the terminal."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mal.runtime.stages import stage_lines


@dataclass
class LabelReport:
    """Report of one finished run of `label_dataset`.

    Seconds and speeds are those of this process: a run that went on with an earlier one's journal did
    `resumed` objects before. Seconds of a stage are summed over threads.
    """

    output: Path
    exit_code: int  # 0, or 3: some object that should have a mask has none
    objects: int
    labelled: int
    empty: int  # of the labelled ones
    clipped: int  # of the labelled ones
    skipped: int
    skipped_by_reason: dict[str, int]
    duplicate_ids: int
    resumed: int  # objects that an earlier, unfinished run had done
    images: int
    seconds: float
    first_mask_seconds: float | None  # from the start of the call
    boxes_per_s: float  # objects of this process / seconds from the first image to the last mask
    stages: dict[str, dict[str, float]]  # seconds and cpu_seconds of each
    bound: str  # the stage that held everything up
    call_limit: int  # crops that a call of the session took in the end: below `batch` if memory ran out
    worker_deaths: int  # workers that died and were replaced
    peak_rss_mb: float
    model: str
    model_id: str
    model_constants: dict[str, Any]
    backend: str
    device: str
    threads: int
    pixels: str  # body of crops and masks: compiled or numpy
    workers: int
    batch: int
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    versions: dict[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json.dumps."""
        return {**asdict(self), "output": str(self.output)}

    def text(self) -> str:
        """What the command prints."""
        lines = [
            f"{self.output}: {self.labelled:,} masks for {self.objects:,} boxes on {self.images:,} images, "
            f"{self.boxes_per_s:,.0f} boxes/s on {self.device} ({self.backend}), {self.seconds:.1f} s"
        ]
        if self.empty:
            lines.append(f"  {self.empty:,} masks are empty (flag `empty`)")
        if self.duplicate_ids:
            lines.append(
                f"  {self.duplicate_ids:,} annotations bear the id of an earlier one; each is labelled by itself"
            )
        if self.skipped:
            lines.append(f"  {self.skipped:,} without a mask, listed in {self.output}.skipped.jsonl:")
            most = sorted(self.skipped_by_reason.items(), key=lambda item: -item[1])
            lines += [f"    {count:>7,}  {reason}" for reason, count in most[:5]]
            if len(most) > 5:
                lines.append(f"    {sum(count for _, count in most[5:]):>7,}  for {len(most) - 5} other reasons")
        if self.call_limit < self.batch:
            lines.append(
                f"  the device ran out of memory: calls of {self.call_limit} instead of {self.batch} crops; "
                "rare pixels may differ from a run without"
            )
        if self.worker_deaths:
            lines.append(f"  {self.worker_deaths:,} workers died; others did their work")
        lines += stage_lines(self.stages, self.objects - self.resumed, self.bound)
        return "\n".join(lines)
