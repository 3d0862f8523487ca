"""The command line: parse, call one function, print. No logic, and no heavy import before a command runs."""

import re
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from mal.exits import run  # first: it holds Ctrl-C while the others load

# isort: split

import typer

from mal.errors import ParityError, UsageError

_RAY_ADDRESS = re.compile(r"auto|local|(ray://)?[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+")

app = typer.Typer(
    name="mal",
    help="Mask Auto-Labeler: boxes in, masks out. Learns from boxes alone.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich alone would triple the start-up time
)
plugins_app = typer.Typer(help="The compiled parts.", rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins")


class MaskFormat(StrEnum):
    """How masks are written."""

    rle = "rle"
    polygon = "polygon"


class OnError(StrEnum):
    """What a box that cannot be labelled does to the run."""

    skip = "skip"
    fail = "fail"


class Target(StrEnum):
    """What `mal export` makes."""

    onnx = "onnx"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"
    deepstream = "deepstream"
    triton = "triton"


Images = Annotated[
    str | None,
    typer.Option(
        "--images",
        help="Image folder, tar files ('shards/*.tar') or address (s3://…); default: images/ beside the JSON, else its "
        "folder.",
    ),
]
_MODEL = "Model: .onnx, .plan, .safetensors, or a shipped one: student, student-int8."
Engine = Annotated[str, typer.Option("--engine", help=_MODEL)]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda:0, cuda:0,1 (label only), …; default: the first usable GPU, else cpu."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Spec = Annotated[
    Path | None, typer.Option("--experiment", "-e", help="TAO MAL experiment spec; KEY=VALUE then are its keys.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Host threads; default: one a core.")]


def _version(wanted: bool) -> None:
    if wanted:
        from mal import __version__

        print(f"mal {__version__}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction]  typer calls it
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Mask Auto-Labeler: boxes in, masks out. Learns from boxes alone."""


@app.command()
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="BOXES… [KEY=VALUE…]", help="Files of boxes, and overrides of settings."),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Image folder, once for each file of boxes.")
    ] = None,
    start: Annotated[
        str, typer.Option("--from", help="'student' (the shipped one), a .safetensors file, or 'none'.")
    ] = "student",
    config: Annotated[Path | None, typer.Option("--config", help="Settings in YAML.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="RUN folder; default runs/<date-time>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted RUN.")] = False,
    spec: Spec = None,
) -> None:
    """Train from boxes alone: adapt the shipped student to yours, or start from a backbone."""
    from mal.train.run import train_from_spec, train_from_words

    boxes, overrides = _paths_and_overrides(words)
    if spec:
        given = boxes or images or config or output or resume or start != "student"
        if given:
            raise UsageError("-e SPEC says all of it: beside it go KEY=VALUE overrides only, e.g. train.num_epochs=3")
        print(train_from_spec(spec, overrides))
        return
    student = train_from_words(
        boxes, images=images or [], start=start, config=config, overrides=overrides, run=output, resume=resume
    )
    print(student)


@app.command()
def export(
    source: Annotated[
        str | None, typer.Argument(help="Checkpoint, ONNX of ours or RUN folder; default: the shipped student.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers; needs --calibrate.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", metavar="BOXES.json", help="Boxes to calibrate on, like your own.")
    ] = None,
    images: Images = None,
    accept: Annotated[
        str | None, typer.Option("--accept", metavar="REASON", help="Write it though it costs more than its budget.")
    ] = None,
    refine: Annotated[
        int | None, typer.Option("--refine", min=0, help="CRF iterations in the graph; default: the model's.")
    ] = None,
    target: Annotated[
        Target | None, typer.Option("--target", help="Default: tensorrt if it sees a GPU, else onnx.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File or folder to write.")] = None,
    profile: Annotated[str, typer.Option("--profile", help="Engine: crops a call, min:opt:max.")] = "1:32:64",
    chips: Annotated[
        str | None, typer.Option("--chips", help="Engine, TensorRT-RTX: compute capabilities, such as 86,120.")
    ] = None,
    workspace: Annotated[
        float | None, typer.Option("--workspace", min=0.01, help="Engine: most GB for one layer's scratch memory.")
    ] = None,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Engine, TensorRT: for every chip from Ampere on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export a student: one ONNX file or an engine, checked against torch before it is written."""
    from mal.export.engine_options import EngineOptions, Profile, parse_chips
    from mal.export.export import export_model
    from mal.export.request import ExportRequest

    if fp16 and int8:
        raise UsageError("--fp16 and --int8 contradict each other; choose one")
    request = ExportRequest(
        source=source,
        precision="fp16" if fp16 else "int8" if int8 else "fp32",
        refine=refine,
        target=target.value if target else None,
        output=output,
        engine=EngineOptions(
            Profile.parse(profile), parse_chips(chips) if chips else None, workspace, hardware_compatible
        ),
        calibrate=calibrate,
        images=images,
        accept=accept,
    )
    try:
        report = export_model(request)
    except ParityError as error:
        if error.table:
            print(error.table, file=sys.stderr if as_json else sys.stdout)
        raise
    _show(report.to_json(), report.text, as_json)


@app.command()
def label(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="COCO.json", help="Boxes: COCO, LVIS, YOLO or VOC; - for lines. With -e: KEY=VALUE."),
    ] = None,
    engine: Annotated[str | None, typer.Option("--engine", help=f"{_MODEL} Default: student.")] = None,
    images: Images = None,
    images_json: Annotated[
        Path | None, typer.Option("--images-json", help="COCO file of the images, for boxes that are a detection list.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: COCO.masks.json; .gz and .zst are packed.")
    ] = None,
    device: Device = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Crops a call: auto (the default) or a number.")] = None,
    workers: Workers = None,
    mask_format: Annotated[MaskFormat, typer.Option("--format", help="How masks are written.")] = MaskFormat.rle,
    on_error: Annotated[
        OnError, typer.Option("--on-error", help="A box that cannot be labelled is listed, or ends the run.")
    ] = OnError.skip,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Let file names leave the image folder.")
    ] = False,
    max_memory: Annotated[
        float | None, typer.Option("--max-memory", min=0.1, help="GB for images and crops in flight.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: forget an unfinished run.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log as JSON lines on stderr.")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a .plan whose manifest is missing or wrong; it is code.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First build the .plan again, for this machine, from its .onnx.")
    ] = False,
    spec: Spec = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="[ADDRESS]", help="Label on a Ray cluster; default: the one that is found."),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option("--video", metavar="FILE", help="Video whose tracks, YouTube-VIS, COCO-video or MOT, are given."),
    ] = None,
) -> None:
    """Turn boxes into masks: COCO JSON in, the same JSON with masks out. `-`: JSON lines from stdin to stdout."""
    from mal.runtime.label import label_dataset

    paths, overrides = _paths_and_overrides(words) if spec else ([Path(word) for word in words or []], [])
    if len(paths) > 1 or not (paths or spec):
        raise UsageError(f"expected one file of boxes, COCO.json, got {len(paths)}")
    asked: dict[str, Any] = {"boxes": paths[0] if paths else None, "images": images, "output": output}
    asked |= {"model": engine, "device": device, "batch": _batch(batch) if batch else None}
    found: dict[str, Any] = {"model": "student", "batch": "auto"}
    if spec:  # what the command line says goes before the spec
        from mal.train.tao import label_task

        found = label_task(spec, overrides).arguments()
    arguments = found | {key: value for key, value in asked.items() if value is not None}
    common: dict[str, Any] = {
        "model": arguments["model"], "device": arguments.get("device"), "batch": arguments["batch"],
        "workers": workers, "on_error": on_error.value, "max_memory_gb": max_memory, "trust": trust,
    }  # fmt: skip
    boxes_only = {
        "--images-json": images_json,
        "--fresh": fresh,
        "--rebuild": rebuild,
        "--ray": ray is not None,
        "-e": spec,
    }
    if video:
        from mal.runtime.video import label_video

        unfit = {"--images": images, "--format": mask_format is not MaskFormat.rle, "--allow-outside": allow_outside}
        _refuse(boxes_only | unfit, "does not go with --video")
        masks = label_video(paths[0], video, output=output, log_json=log_json, **common)
        print(masks.text())
        raise typer.Exit(masks.exit_code)
    if str(arguments.get("boxes")) == "-":
        from mal.runtime.lines import label_lines

        unfit = boxes_only | {"-o": output, "--log-json": log_json}
        _refuse(unfit, "does not go with -, which reads stdin and writes stdout")
        lines = label_lines(
            sys.stdin.buffer, sys.stdout.buffer, sys.stderr, images=images, format=mask_format.value,
            allow_outside=allow_outside, **common,
        )  # fmt: skip
        print(lines.text(), file=sys.stderr)
        raise typer.Exit(lines.exit_code)
    if rebuild:
        from mal.export.rebuild import rebuild_engine

        rebuild_engine(Path(arguments["model"]))
    report = label_dataset(
        **arguments | common, images_json=images_json, format=mask_format.value, allow_outside=allow_outside,
        fresh=fresh, log_json=log_json, ray=ray,
    )  # fmt: skip
    print(report.text())
    raise typer.Exit(report.exit_code)


@app.command(name="eval")
def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PREDICTED.json TRUTH.json",
            help="Labelled COCO JSON, and one with true masks. With -e: KEY=VALUE overrides.",
        ),
    ] = None,
    as_json: AsJson = False,
    spec: Spec = None,
) -> None:
    """Judge masks against true ones, beside the box and the ellipse on the same objects."""
    paths, overrides = _paths_and_overrides(words) if spec else ([Path(word) for word in words or []], [])
    if len(paths) != 2 and (paths or not spec):
        raise UsageError(f"expected two files, PREDICTED.json and TRUTH.json, got {len(paths)}")
    if spec:
        from mal.evaluation.spec import evaluate_spec

        evaluation = evaluate_spec(spec, overrides, *paths)
    else:
        from mal.evaluation.metrics import evaluate as judge

        evaluation = judge(*paths)
    _show(evaluation.to_json(), evaluation.text, as_json)


@app.command()
def preview(
    masks: Annotated[Path, typer.Argument(metavar="MASKS.json", help="Labelled COCO JSON.")],
    images: Images = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("preview"),
) -> None:
    """Draw masks over their images, with a page to browse them."""
    from mal.evaluation.preview import write_preview

    print(write_preview(masks, images, output))


@app.command()
def bench(
    boxes: Annotated[
        Path | None, typer.Argument(metavar="BOXES.json", help="Default: the built-in photographs.")
    ] = None,
    engine: Engine = "student",
    images: Images = None,
    device: Device = None,
    batch: Annotated[str, typer.Option("--batch", help="Crops a call: auto or a number.")] = "auto",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Measure the bare session, each stage and the whole pipeline in one run."""
    from mal.runtime.bench import run_bench

    report = run_bench(boxes, model=engine, images=images, device=device, batch=_batch(batch), workers=workers)
    _show(report.to_json(), report.text, as_json)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("demo"),
    device: Device = None,
) -> None:
    """Label the built-in photographs and draw what came out."""
    from mal.evaluation.demo import run_demo

    print(f"look at {run_demo(output, device=device)}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Tell what is installed, what works, and what to install for the rest."""
    from mal.runtime.doctor import diagnose

    diagnosis = diagnose()
    _show(diagnosis.to_json(), diagnosis.text, as_json)


@plugins_app.callback()
def _plugins() -> None:  # pyright: ignore[reportUnusedFunction]  keeps `plugins` a group of commands
    """The compiled parts."""


@plugins_app.command()
def build() -> None:
    """Compile crops, masks and the CRF for this machine's CPU and, with nvcc, the CRF for GPUs."""
    from mal.plugins.crf_refine.compiled import build_all

    for line in build_all():
        print(line)


def _paths_and_overrides(words: list[str] | None) -> tuple[list[Path], list[str]]:
    """Words with an = are overrides of settings, all others are files."""
    words = words or []
    return [Path(word) for word in words if "=" not in word], [word for word in words if "=" in word]


def _refuse(flags: Mapping[str, object], why: str) -> None:
    """Raise for the first flag that was given."""
    for name, value in flags.items():
        if value:
            raise UsageError(f"{name} {why}")


def _batch(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch {text}: expected auto or a number of at least 1")
    return int(text)


def _with_ray_address(words: list[str]) -> list[str]:
    """`--ray` alone stands for `--ray=`: typer's options have a value always or never."""
    return [
        "--ray=" if word == "--ray" and not _RAY_ADDRESS.fullmatch(following) else word
        for word, following in zip(words, [*words[1:], ""], strict=True)
    ]


def _show(values: dict[str, Any], text: Callable[[], str], as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps(values))
    else:
        print(text())


def main() -> None:
    """Entry point of the `mal` command."""
    words = [word for word in sys.argv if word != "--debug"]
    debug = len(words) < len(sys.argv)
    sys.argv = _with_ray_address(words)
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    run(app, debug=debug)


if __name__ == "__main__":
    main()
