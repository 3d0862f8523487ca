"""Both probes over many objects under the sanitizers, and under valgrind. MAL_SOAK_OBJECTS is the size: `make soak`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sdk import CORE, FAKE, HERE, SANITIZERS, build_program

OBJECTS = int(os.environ.get("MAL_SOAK_OBJECTS", "3000"))
SOURCES = [*CORE, FAKE, HERE / "soak.cpp"]


def _run(*command: str) -> dict[str, int]:
    environment = {**os.environ, "G_SLICE": "always-malloc"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    return {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return build_program("soak", SOURCES, *SANITIZERS)


@pytest.mark.parametrize("results", ["objects", "rois"])
def test_nothing_leaks_and_every_object_is_accounted_for(sanitized: Path, results: str) -> None:
    counts = _run(str(sanitized), str(OBJECTS), results)
    print(counts)
    assert counts["objects"] >= OBJECTS
    for kind in ("masks", "reused", "misses", "unusable", "foreign"):
        assert counts[kind] > 0, kind
    assert counts["wanted"] == counts["objects"] - counts["foreign"]
    done = sum(counts[kind] for kind in ("masks", "reused", "misses", "unusable"))
    if counts["dropped_buffers"]:
        assert done < counts["wanted"]
    else:
        assert done == counts["wanted"]


@pytest.mark.skipif(OBJECTS < 10_000, reason="a long proof: make soak")
def test_the_two_threads_do_not_race() -> None:
    program = build_program("soak", SOURCES, "-fsanitize=thread")
    counts = _run(str(program), str(OBJECTS))
    assert counts["masks"] > 0


@pytest.mark.slow
def test_valgrind_finds_nothing() -> None:
    if not shutil.which("valgrind"):
        pytest.skip("needs valgrind: apt install valgrind")
    program = build_program("soak", SOURCES)
    counts = _run("valgrind", "-q", "--error-exitcode=9", "--leak-check=full", str(program), str(OBJECTS // 10))
    assert counts["masks"] > 0
