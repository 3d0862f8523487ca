"""Settings: one pydantic model a stage, and the constants that travel with a model.

Settings are read from YAML, changed by `key=value` words and written back resolved beside every
output. An unknown key is an error that names the nearest known one.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mal.errors import InputError, ModelFileError, UsageError

Fill = Literal["reflect", "edge", "wrap"]


class Settings(BaseModel):
    """Base of every stage's settings: frozen, nothing unknown accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def load(cls, file: Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read settings from a YAML file, then apply overrides.

        Args:
            file: YAML mapping; None means defaults.
            overrides: words `key=value`; nested keys with dots (`losses.mil=2`), values in YAML.

        Raises:
            InputError: the file is missing or is not a YAML mapping.
            UsageError: an unknown key (the message names the nearest known one) or a bad value.
        """
        values = _read_yaml(file) if file else {}
        for word in overrides:
            key, separator, text = word.partition("=")
            if not separator or not key:
                raise UsageError(f"override {word!r} is not key=value, e.g. {next(iter(cls.keys()), 'key')}=…")
            target = values
            *parents, last = key.split(".")
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise UsageError(f"override {word!r}: {parent!r} is a value, not a group of settings")
            try:
                target[last] = yaml.safe_load(text)
            except yaml.YAMLError:
                raise UsageError(f"override {word!r}: {text!r} is not a YAML value") from None
        return cls.parse(values)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Build settings from a plain mapping; errors as in `load`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(cls._explain(error)) from None

    @classmethod
    def keys(cls, prefix: str = "") -> list[str]:
        """All keys, nested ones with dots, in the order of declaration."""
        found: list[str] = []
        for name, field in cls.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Settings):
                found += kind.keys(f"{prefix}{name}.")
            else:
                found.append(prefix + name)
        return found

    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the resolved settings."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def write(self, file: Path) -> None:
        """Write the resolved settings as YAML; `load` reads them back equal."""
        file.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, cls.keys(), n=1, cutoff=0.0)
            return f"unknown setting {key!r}; the nearest known one is {near[0]!r}"
        return f"setting {key}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(f"cannot read settings {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"settings {file} are not YAML: {str(error).splitlines()[0]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"settings {file} must be a mapping of keys to values, got {type(values).__name__}")
    return values


class ModelConstants(Settings):
    """What everyone downstream of training must agree on; travels in the checkpoint and in the ONNX file.

    The threshold is no decision for readers: the graph subtracts logit(threshold) itself, so that 0 is
    the boundary of every output logit.
    """

    format: Literal["mal/1"] = "mal/1"
    name: str = Field("student", description="Short name of the model.")
    backbone: str = Field(description="timm name of the backbone.")
    size: int = Field(ge=32, description="S: crops are S x S pixels.")
    width: int = Field(64, ge=1, description="Channels of the head.")
    expansion: float = Field(0.3, ge=0, description="Growth of the box's sides; 0.3 makes the crop 1.3 x the box.")
    fill: Fill = Field("reflect", description="What is read outside the image.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Probability that the graph maps to logit 0.")
    crf_iterations: int = Field(0, ge=0, description="Default CRF refinement steps in the exported graph.")
    crf_zeta: float = Field(0.1, gt=0, description="CRF colour scale in units of normalised RGB.")
    licence: str = Field("unknown", description="Licence of the weights.")
    training_data: str = Field("unknown", description="What the weights were trained on.")
    revision: str = Field("unknown", description="git revision that trained them.")
    config_hash: str = Field("unknown", description="Digest of the training settings.")

    def to_metadata(self) -> dict[str, str]:
        """Strings for ONNX `metadata_props` and safetensors metadata, one key a constant, prefix `mal.`."""
        return {f"mal.{key}": json.dumps(value) for key, value in self.model_dump(mode="json").items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], source: str) -> Self:
        """Read the constants back.

        Args:
            metadata: string pairs of a model file; keys of others are passed over.
            source: the file's name, for the message.

        Raises:
            ModelFileError: the file carries no constants of ours, or damaged ones.
        """
        if "mal.format" not in metadata:
            raise ModelFileError(f"{source} is not a model of mal: its metadata has no mal.format; use `mal export`")
        try:
            values = {key[4:]: json.loads(text) for key, text in metadata.items() if key.startswith("mal.")}
            return cls.model_validate({key: value for key, value in values.items() if key in cls.model_fields})
        except (json.JSONDecodeError, ValidationError) as error:
            raise ModelFileError(f"{source}: damaged model constants: {str(error).splitlines()[0]}") from None
