"""The element malnvinfer in a real GStreamer pipeline: which elements it makes, its counts, its errors."""

import os
import subprocess
from pathlib import Path

import pytest
from sdk import CORE, FAKE, HERE, PLUGIN, SANITIZERS, build_program

SOURCES = [*CORE, *(PLUGIN / f"{name}.cpp" for name in ("config", "pads", "element")), FAKE, HERE / "pipeline.cpp"]
PROPERTY = "[property]\ngie-unique-id=17\noperate-on-gie-id=1\n"
CLIPPED = "[mal]\nexpansion=0.3\n"
EXACT = f"{CLIPPED}preprocess-config=preprocess.txt\n"


@pytest.fixture(scope="module")
def program() -> Path:
    return build_program("pipeline", SOURCES, *SANITIZERS)


def _run(program: Path, config: str, tmp_path: Path, *words: str, **environment: str):
    path = tmp_path / "config.txt"
    path.write_text(config)
    (tmp_path / "preprocess.txt").write_text("[property]\nnetwork-input-shape=8;3;4;4\n")
    # What GLib and GStreamer keep for the process is no leak of ours; metadata and buffers are counted by the program.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "GST_REGISTRY_FORK": "no", **environment}
    return subprocess.run(
        [str(program), str(path), "50", *words], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize(
    ("config", "masks", "reused"),
    [(CLIPPED, 100, 0), (EXACT, 100, 0), (EXACT + "every=5\n", 20, 80)],
    ids=["nvinfer crops", "nvdspreprocess crops", "every fifth frame"],
)
def test_masks_of_every_object_of_the_detector(program, tmp_path, config, masks, reused) -> None:
    done = _run(program, PROPERTY + config, tmp_path)
    expected = f"flow ok seen 100 wrong 0 wanted 100 masks {masks} reused {reused} misses 0 unusable 0\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


@pytest.mark.parametrize("event", ["deleted", "eos", "reset", "flush"])
def test_a_stream_that_begins_anew_reuses_no_mask(program, tmp_path, event) -> None:
    done = _run(program, PROPERTY + EXACT + "every=5\n", tmp_path, event)
    # Two objects, asked for at frames 0, 5 … 25 and, after the event, 27, 32 … 47.
    assert "masks 22 reused 78 misses 0" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PROPERTY, "no [mal] group"),
        (CLIPPED, "needs a gie-unique-id"),
        (PROPERTY + "[mal]\nevery=2\n", "needs expansion"),
        (PROPERTY + CLIPPED + "evry=2\n", "no key evry"),
        (PROPERTY + CLIPPED + "every=0\n", "[mal] every is 0; expected 1 to 10000"),
        (PROPERTY + CLIPPED + "every=1.5\n", "whole number"),
        (PROPERTY + CLIPPED + "longest-side=much\n", "longest-side"),
        ("no config", "config.txt"),
    ],
)
def test_a_config_that_is_none(program, tmp_path, config, words) -> None:
    done = _run(program, config, tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("error ")
    assert words in done.stdout


def test_without_deepstream(program, tmp_path) -> None:
    done = _run(program, PROPERTY + CLIPPED, tmp_path, WITHOUT_NVINFER="1")
    assert done.returncode == 1
    assert "no element nvinfer here" in done.stdout
