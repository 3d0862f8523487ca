"""The long proofs of `make soak`, in a small size."""

import json
import subprocess
import sys

import pytest

from benchmarks.kills import prove
from benchmarks.soak import soak


def test_killed_runs_end_in_the_same_bytes() -> None:
    counts = prove(runs=2)
    assert (counts["different"], counts["failed"]) == (0, 0)


def test_memory_does_not_grow_with_the_batches(monkeypatch) -> None:
    from mal.runtime import labeler

    monkeypatch.setattr(labeler, "open_session", labeler.open_session)  # put back what `soak` replaces
    found = soak(batches=1500)
    assert found["verdict"] == "flat", found


def test_fuzzing_finds_nothing() -> None:
    pytest.importorskip("atheris")
    words = [sys.executable, "-m", "benchmarks.fuzz", "--runs", "4000"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(target["inputs"] >= 4000 for target in json.loads(done.stdout)["fuzz"])
