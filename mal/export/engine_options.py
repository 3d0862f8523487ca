"""What can be chosen about an engine, and the trtexec line that says the same."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from mal.errors import UsageError

RTX_CHIPS = (75, 80, 86, 89, 120)
"""Compute capabilities x 10 of RTX 20, A100, RTX 30, RTX 40 and RTX 50. TensorRT-RTX has none for 90 (H100, H200)."""


@dataclass(frozen=True)
class Profile:
    """Crops per call that an engine takes, and for how many it is made fastest."""

    minimum: int = 1
    best: int = 32
    maximum: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.best <= self.maximum:
            raise UsageError(f"profile {self} must satisfy 1 <= min <= opt <= max, e.g. 1:32:64")

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """Read min:opt:max.

        Raises:
            UsageError: not three whole numbers, or not in order.

        >>> Profile.parse("1:32:64")
        Profile(minimum=1, best=32, maximum=64)
        """
        words = text.split(":")
        if len(words) != 3 or not all(word.isascii() and word.isdecimal() for word in words):
            raise UsageError(f"profile {text!r} must be min:opt:max, e.g. 1:32:64")
        return cls(*map(int, words))

    def __str__(self) -> str:
        return f"{self.minimum}:{self.best}:{self.maximum}"


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built.

    Attributes:
        profile: crops per call.
        compute_capabilities: chips to build for, x 10, such as (86, 120); None: `RTX_CHIPS` with TensorRT-RTX, for a
            FP32 model without 75. Any other TensorRT builds for the GPU it sees and takes None alone.
        workspace_gb: most memory for one layer while it runs, in 10^9 bytes; None: all of the GPU's.
        hardware_compatible: for TensorRT: every chip from Ampere (80) on, somewhat slower.
    """

    profile: Profile = Profile()
    compute_capabilities: tuple[int, ...] | None = None
    workspace_gb: float | None = None
    hardware_compatible: bool = False


def parse_chips(text: str) -> tuple[int, ...]:
    """Read compute capabilities: "86,120" or "8.6,12.0".

    Raises:
        UsageError: no numbers.

    >>> parse_chips("8.6,120")
    (86, 120)
    """
    words = [word.strip().replace(".", "") for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UsageError(f"compute capabilities {text!r}: expected numbers with commas between them, e.g. 86,120")
    return tuple(map(int, words))


def trtexec_line(
    onnx: Path,
    plan: Path,
    size: int,
    options: EngineOptions,
    plugin: Path | None,
    registers_itself: bool = False,
) -> str:
    """The command that builds this engine where TensorRT 10.9 or later is, in DeepStream's container too.

    Args:
        onnx: model; its precision is in the file, so no flag names one.
        plan: engine to write.
        size: of the crops, pixels.
        options: as for `build_engine`.
        plugin: library with our plugin; None: the model needs none.
        registers_itself: that library does so when it is loaded, and lists no creators.
    """
    profile = options.profile
    way = "static" if registers_itself else "dynamic"
    counts = (("min", profile.minimum), ("opt", profile.best), ("max", profile.maximum))
    words = [
        "trtexec", f"--onnx={onnx}", "--stronglyTyped",
        *(f"--{name}Shapes=crops:{count}x3x{size}x{size}" for name, count in counts),
        *([f"--{way}Plugins={plugin}"] if plugin else []),
        *([f"--memPoolSize=workspace:{options.workspace_gb * 1e9 / 2**20:.0f}M"] if options.workspace_gb else []),
        *(["--hardwareCompatibilityLevel=ampere+"] if options.hardware_compatible else []),
        f"--saveEngine={plan}",
    ]  # fmt: skip
    return shlex.join(words)
