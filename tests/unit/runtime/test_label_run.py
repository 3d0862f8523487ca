"""`label_dataset` end to end: on a model of a few numbers and images of a few pixels."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mal.datasets import packing
from mal.errors import ImageError, Interrupted, JournalError, MalError, OutputError, UsageError
from mal.masks import decode
from mal.runtime import label as label_module
from mal.runtime.journal import open_journal
from mal.runtime.label import label_dataset
from mal.runtime.labeler import MaskLabeler
from mal.runtime.session import open_session

BATCH = 4
TROUBLE = {"crowd": 1, "box outside the image": 1}  # the other reasons are whole sentences of the readers


@pytest.fixture
def run(dataset: Path, model: Path, tmp_path: Path) -> Callable[..., Any]:
    """Label the data set of conftest; options can be changed."""

    def run(**changes: Any) -> Any:
        options = {"model": model, "device": "cpu", "output": tmp_path / "out.json", "batch": BATCH, "workers": 2}
        return label_dataset(changes.pop("boxes", dataset), **{**options, **changes})

    return run


class Breaking:
    """A session that does something before its n-th batch."""

    def __init__(self, session: Any, at: int, what: Callable[[], object]) -> None:
        self._session, self._left, self._what = session, at, what

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, crops: np.ndarray) -> Any:
        self._left -= 1
        if self._left == 0:
            self._what()
        return self._session.run(crops)


@pytest.fixture
def break_session(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    def use(at: int, what: Callable[[], object]) -> None:
        def opened(*words, **options) -> Breaking:
            return Breaking(open_session(*words, **options), at, what)

        monkeypatch.setattr(label_module, "open_session", opened)

    return use


def fail() -> None:
    raise RuntimeError("device lost\nsecond line")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"boxes.json", "images", "tiny.onnx"}


def test_masks_are_put_into_the_input_and_nothing_else_changes(run, dataset: Path, model: Path, tmp_path: Path) -> None:
    report = run()
    before, after = json.loads(dataset.read_text()), json.loads((tmp_path / "out.json").read_text())
    skipped = [json.loads(line) for line in (tmp_path / "out.json.skipped.jsonl").read_text().splitlines()]
    without = {line["annotation_id"] for line in skipped}
    assert (report.exit_code, report.objects, report.skipped, report.labelled) == (
        3,
        84,
        len(skipped),
        84 - len(skipped),
    )
    assert list(after) == list(before)
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        if old["id"] in without:
            assert new == old
            continue
        assert {key: value for key, value in new.items() if key not in ("segmentation", "area", "mal")} == {
            key: value for key, value in old.items() if key != "area"
        }
        mask = decode(new["segmentation"]["counts"].encode(), *new["segmentation"]["size"])
        assert mask.sum() == new["area"]
        assert new["mal"]["model"] == report.model_id
        assert ("empty" in new["mal"]["flags"]) == (not mask.any())
        (x, y, w, h), (height, width) = old["bbox"], mask.shape
        assert ("clipped" in new["mal"]["flags"]) == (max(-x, -y, x + w - width, y + h - height) >= 0.5)
        assert 0 <= new["mal"]["score"] <= 1
    assert files(tmp_path) == {"out.json", "out.json.report.json", "out.json.skipped.jsonl"}
    assert json.loads((tmp_path / "out.json.report.json").read_text()) == report.to_json()


def test_every_skipped_object_is_listed_with_its_reason(run, tmp_path: Path) -> None:
    report = run()
    lines = [json.loads(line) for line in (tmp_path / "out.json.skipped.jsonl").read_text().splitlines()]
    assert all(list(line) == ["annotation_id", "image_id", "file_name", "reason"] for line in lines)
    reasons = report.skipped_by_reason
    assert TROUBLE.items() <= reasons.items()
    assert sum(count for reason, count in reasons.items() if reason.startswith("image: ")) == 7
    assert {line["file_name"] for line in lines if line["reason"].startswith("image: ")} == {"5.png"}
    (lost,) = (line for line in lines if line["image_id"] == "nowhere")
    assert lost["file_name"] is None
    assert [line["annotation_id"] for line in lines] == sorted(line["annotation_id"] for line in lines)
    assert len(lines) == 7 + 4  # the broken image, crowd, outside, degenerate, no image


def test_crowds_alone_leave_exit_code_0(run, dataset: Path) -> None:
    document = json.loads(dataset.read_text())
    document["annotations"] = [
        annotation
        for annotation in document["annotations"]
        if annotation.get("iscrowd") or annotation["image_id"] == "image 7"
    ]
    dataset.write_text(json.dumps(document))
    report = run()
    assert (report.exit_code, report.skipped_by_reason) == (0, {"crowd": 1})


def test_the_labeler_and_the_command_give_the_same_masks(run, dataset: Path, model: Path, tmp_path: Path) -> None:
    run()
    document = json.loads((tmp_path / "out.json").read_text())
    labelled = [a for a in document["annotations"] if a["image_id"] == "image 8" and "mal" in a]
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in labelled)])
    masks, scores = MaskLabeler(model, "cpu")(np.asarray(Image.open(dataset.parent / "images" / "8.png")), boxes)
    for annotation, mask, score in zip(labelled, masks, scores, strict=True):
        assert (decode(annotation["segmentation"]["counts"].encode(), *mask.shape) == mask).all()
        assert annotation["mal"]["score"] == pytest.approx(score, abs=1e-4)


def test_polygons_on_request(run, tmp_path: Path) -> None:
    run(format="polygon")
    document = json.loads((tmp_path / "out.json").read_text())
    polygons = [a["segmentation"] for a in document["annotations"] if a.get("mal")]
    assert all(isinstance(parts, list) for parts in polygons)
    assert any(len(part) >= 8 for parts in polygons for part in parts)


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_same_bytes_whatever_the_workers(run, tmp_path: Path, workers: int) -> None:
    run()
    run(workers=workers, output=tmp_path / "other.json", max_memory_gb=1e-6)
    assert (tmp_path / "other.json").read_bytes() == (tmp_path / "out.json").read_bytes()


@pytest.mark.parametrize("batches", [1, 2, 9, 17])
def test_a_failed_run_goes_on_to_the_same_bytes(run, break_session, tmp_path: Path, batches: int) -> None:
    run(output=tmp_path / "whole.json")
    break_session(batches, fail)
    with pytest.raises(MalError, match=r"^onnxruntime .* on cpu failed: device lost$"):
        run()
    assert not (tmp_path / "out.json").exists()
    break_session(0, fail)
    report = run()
    assert report.resumed >= BATCH * (batches - 1)
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert report.skipped == 11


def test_a_cut_journal_goes_on_to_the_same_bytes(run, break_session, tmp_path: Path, rng: np.random.Generator) -> None:
    run(output=tmp_path / "whole.json")
    break_session(15, fail)
    with pytest.raises(MalError):
        run()
    segment = tmp_path / "out.json.journal" / "000000.seg"
    whole = segment.read_bytes()
    for length in rng.integers(0, len(whole), 8):
        (tmp_path / "out.json.journal").mkdir(exist_ok=True)
        segment.write_bytes(whole[:length])
        break_session(3, fail)
        with pytest.raises(MalError):
            run(workers=1)
        break_session(0, fail)
        run()
        assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


KILLED = """
import sys, time
from pathlib import Path
from mal.runtime import label, onnx_session
run = onnx_session.OnnxSession.run
def slow(self, crops):
    time.sleep(0.05)
    return run(self, crops)
onnx_session.OnnxSession.run = slow
folder = Path(sys.argv[1])
label.label_dataset(folder / "boxes.json", model=folder / "tiny.onnx", device="cpu", output=folder / "out.json",
                    batch=4, workers=int(sys.argv[2]))
"""


def test_a_killed_run_goes_on_to_the_same_bytes(run, tmp_path: Path) -> None:
    run(output=tmp_path / "whole.json")
    luck = random.Random(0)
    kills = 0
    for attempt in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(1 + attempt % 3)], stderr=subprocess.DEVNULL
        )
        segment = tmp_path / "out.json.journal" / "000000.seg"
        size = segment.stat().st_size if segment.exists() else 0
        while child.poll() is None and (segment.stat().st_size if segment.exists() else 0) <= size:
            time.sleep(0.002)
        time.sleep(luck.uniform(0, 0.2))
        child.kill()
        kills += child.wait() == -signal.SIGKILL
        if kills == 3:
            break
    assert kills == 3
    assert run().resumed > 0
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_ctrl_c_finishes_the_batch_and_keeps_it(run, break_session, tmp_path: Path) -> None:
    run(output=tmp_path / "whole.json")
    break_session(5, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"stopped after \d+ of 84 boxes; the same command goes on"):
        run()
    break_session(0, fail)
    assert run().resumed >= 5 * BATCH
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once(run, break_session) -> None:
    def twice() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.2)  # the session has a thread of its own: time for the main thread to hear of it

    break_session(5, twice)
    with pytest.raises(KeyboardInterrupt):
        run()
    break_session(0, fail)
    assert run().resumed > 0


def test_other_settings_do_not_go_on(run, break_session) -> None:
    break_session(5, fail)
    with pytest.raises(MalError):
        run()
    break_session(0, fail)
    with pytest.raises(JournalError, match=r"format: 'rle' then, 'polygon' now\).*--fresh"):
        run(format="polygon")
    with pytest.raises(JournalError, match="batch: 4 then, 8 now"):
        run(batch=8)
    assert run(batch=8, fresh=True).resumed == 0


def test_auto_batch_is_what_the_journal_says(run, break_session) -> None:
    break_session(5, fail)
    with pytest.raises(MalError):
        run(batch=5)
    break_session(0, fail)
    report = run(batch="auto")
    assert (report.batch, report.resumed > 0) == (5, True)
    assert run(batch="auto").batch == 16


def test_on_error_fail_stops_and_skip_goes_on_from_there(run, tmp_path: Path) -> None:
    with pytest.raises(
        MalError, match=r"^annotation \d+ \(image '.*'\) cannot be labelled: .*; --on-error skip"
    ) as caught:
        run(on_error="fail")
    assert caught.value.exit_code == 1
    assert not isinstance(caught.value, ImageError)
    assert not (tmp_path / "out.json").exists()
    assert run(on_error="skip").skipped == 11
    assert (tmp_path / "out.json").exists()


def test_a_full_disk_keeps_the_journal(run, tmp_path: Path) -> None:
    run(output=tmp_path / "whole.json")
    folder = tmp_path / "out.json.journal"
    folder.mkdir()
    (folder / "merged.json").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device; what is labelled is kept"):
        run()
    assert run().resumed == 84
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_the_list_of_an_earlier_run_does_not_stay(run, dataset: Path, tmp_path: Path) -> None:
    run()
    document = json.loads(dataset.read_text())
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] == "image 7"]
    dataset.write_text(json.dumps(document))
    assert run().exit_code == 0
    assert not (tmp_path / "out.json.skipped.jsonl").exists()


def test_outputs_that_cannot_be_are_refused_before_any_work(run, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the input itself"):
        run(output=dataset)
    with pytest.raises(OutputError, match="it is a folder"):
        run(output=tmp_path)
    with pytest.raises(OutputError, match="does not exist"):
        run(output=tmp_path / "no" / "out.json")
    (tmp_path / "b.json.skipped.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"skipped\.jsonl: it is a folder"):
        run(output=tmp_path / "b.json")
    os.mkfifo(tmp_path / "pipe")  # as a device would be: replaced by a file
    with pytest.raises(OutputError, match="it is no regular file"):
        run(output=tmp_path / "pipe")
    with pytest.raises(OutputError, match="name too long"):
        run(output=tmp_path / ("x" * 300))
    report = tmp_path / "c.json.report.json"
    report.write_bytes(dataset.read_bytes())
    with pytest.raises(UsageError, match=r"report\.json is the input itself"):
        run(boxes=report, output=tmp_path / "c.json")
    with pytest.raises(UsageError, match="batch 0: expected auto or a number"):
        run(batch=0)
    with (
        closing(open_journal(tmp_path / "out.json.journal")),
        pytest.raises(OutputError, match=f"process {os.getpid()}"),
    ):
        run()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_is_an_output_error(run, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        run(output=tmp_path / "locked" / "out.json")


@pytest.mark.parametrize("key", ["[1]", "{", '"x"'])
def test_a_journal_of_something_else_is_refused(run, tmp_path: Path, key: str) -> None:
    folder = tmp_path / "out.json.journal"
    folder.mkdir()
    (folder / "run.json").write_text(key)
    with pytest.raises(JournalError, match="start over with --fresh"):
        run()
    assert run(fresh=True).labelled


def test_the_output_of_a_folder_keeps_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data.v2"
    folder.mkdir()
    assert label_module.default_output(folder) == tmp_path / "data.v2.masks.json"
    monkeypatch.chdir(folder)
    assert label_module.default_output(Path()) == tmp_path / "data.v2.masks.json"
    assert label_module.default_output(Path("coco.json")) == Path("coco.masks.json")


def test_memory_may_be_unbounded(run) -> None:
    assert run(max_memory_gb=float("inf")).labelled


def test_no_boxes_are_labelled_too(run, dataset: Path, tmp_path: Path) -> None:
    document = json.loads(dataset.read_text())
    dataset.write_text(json.dumps({**document, "annotations": []}))
    report = run()
    assert (report.exit_code, report.objects, report.labelled) == (0, 0, 0)
    assert json.loads((tmp_path / "out.json").read_text()) == {**document, "annotations": []}


def test_log_json_is_json_lines(run, capfd: pytest.CaptureFixture[str]) -> None:
    run(log_json=True)
    out, err = capfd.readouterr()
    assert out == ""
    events = [json.loads(line) for line in err.splitlines()]
    assert events[0]["event"] == "start"
    assert (events[0]["device"], events[0]["objects"]) == ("cpu", 84)


def test_the_report_says_where_the_time_went(run) -> None:
    report = run()
    assert set(report.stages) >= {"scan", "read", "crop", "session", "mask", "journal", "merge", "wait"}
    assert report.bound in report.stages
    assert 0 < report.first_mask_seconds <= report.seconds
    assert report.peak_rss_mb > 10
    assert f"{report.skipped} without a mask" in report.text()
    assert report.model_constants["size"] == 32


def test_labelling_imports_neither_torch_nor_what_only_a_terminal_needs() -> None:
    script = (
        "import sys; import mal.runtime.label, mal.runtime.onnx_session;"
        "print(sorted({'torch', 'rich', 'onnx', 'matplotlib', 'scipy', 'pycocotools'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_in_and_out(dataset: Path, model: Path, suffix: str) -> None:
    """The same masks whatever the packing; the default output is packed like the input."""
    pytest.importorskip("zstandard", reason="needs zstandard, the extra `zstd`")
    plain = label_dataset(dataset, model=model).output.read_bytes()
    boxes = dataset.with_name(f"boxes.json{suffix}")
    with boxes.open("wb") as stream, packing.packed(boxes, stream) as packed:
        packed.write(dataset.read_bytes())
    report = label_dataset(boxes, model=model)
    assert report.output == dataset.with_name(f"boxes.masks.json{suffix}")
    with report.output.open("rb") as stream, packing.unpack(stream, "masks") as unpacked:
        unpacked.seek(0)
        assert unpacked.read() == plain
