"""The command line's promises: exit codes, one-line errors, light start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "cv2", "pydantic", "rich", "onnxruntime", "torch", "PIL")


def mal(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mal.cli", *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False
    )


def assert_refused(run: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert run.returncode == code, run.stderr
    assert run.stderr.startswith("mal: ")
    assert run.stderr.count("\n") == 1, f"more than one line: {run.stderr}"
    assert "Traceback" not in run.stderr
    for part in parts:
        assert part in run.stderr


def test_help_names_every_command() -> None:
    run = mal("--help")
    assert run.returncode == 0
    for command in ("train", "export", "label", "eval", "preview", "bench", "demo", "doctor", "plugins"):
        assert f"\n  {command} " in run.stdout


def test_start_loads_nothing_heavy() -> None:
    """What `mal --help` costs is imports; a clock would only measure the machine."""
    code = f"import mal, mal.cli, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["label"], ["COCO.json"]),
        (["nonsense"], ["nonsense"]),
        (["label", "no-such.json"], ["no-such.json"]),
        (["label", "b.json", "--batch", "0"], ["--batch 0", "auto"]),
        (["label", "b.json", "--batch", "many"], ["--batch many"]),
        (["label", "b.json", "--batch", "\u00b2"], ["--batch"]),  # a digit, but no number
        (["label", "b.json", "--format", "png"], ["png"]),
        (["export", "--fp16", "--int8"], ["--fp16", "--int8"]),
        (["eval", "a.json", "b.json"], ["b.json", "No such file"]),
        (["preview", "none.json"], ["none.json"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_exit_2_in_one_line(words: list[str], parts: list[str], tmp_path: Path) -> None:
    assert_refused(mal(*words, cwd=tmp_path), 2, *parts)


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        ("ZeroDivisionError('by\\nzero')", 1, "unexpected ZeroDivisionError: by zero"),
        ("KeyboardInterrupt", 130, "inter"),
    ],
)
def test_whatever_happens_is_one_line(raised: str, code: int, words: str) -> None:
    program = (
        "import sys, mal.cli, mal.runtime.label\n"
        f"def broken(*_, **__): raise {raised}\n"
        "mal.runtime.label.label_dataset = broken\n"
        "sys.argv = ['mal', 'label', 'boxes.json']\n"
        "mal.cli.main()"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert_refused(run, code, words)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    run = mal("label", "no-such.json", "--debug", cwd=tmp_path)
    assert run.returncode == 1
    assert "Traceback" in run.stderr


def test_missing_package_names_the_line_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError(name='onnxruntime')")
    (tmp_path / "boxes.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    run = mal("label", "boxes.json", cwd=tmp_path)
    assert_refused(run, 1, 'pip install "mask-auto-labeler[cpu]"')


@pytest.mark.parametrize("command", ["label", "eval"])
def test_a_misspelt_key_of_a_spec_names_the_right_one(command: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("inference: {ann_pth: boxes.json}")
    assert_refused(mal(command, "-e", "spec.yaml", cwd=tmp_path), 2, "inference.ann_pth", "inference.ann_path")


@pytest.mark.parametrize(
    ("wrong", "right"), [("losses.crv", "losses.crf"), ("crf", "losses.crf"), ("pase", "paste"), ("lr", "lr_head")]
)
def test_a_misspelt_setting_names_the_nearest(wrong: str, right: str, tmp_path: Path) -> None:
    assert_refused(mal("train", "boxes.json", f"{wrong}=1", cwd=tmp_path), 2, repr(wrong), repr(right))


def test_json_is_all_that_stdout_has(tmp_path: Path) -> None:
    run = mal("doctor", "--json", cwd=tmp_path)
    assert isinstance(json.loads(run.stdout), dict)
