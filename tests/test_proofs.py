"""The long proofs of `make soak`, in a small size."""

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
