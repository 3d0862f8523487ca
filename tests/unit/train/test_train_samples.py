import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mal.config import TrainConfig
from mal.datasets import open_boxes
from mal.errors import InputError
from mal.train.labels import Labels
from mal.train.samples import Samples, cache_bytes, cut_samples
from mal.train.views import Draw, Views


def edit(path: Path, **changes: object) -> Path:
    document = json.loads(path.read_text())
    document["annotations"][0] |= changes
    path.write_text(json.dumps(document))
    return path


def test_each_usable_box_is_cut_once_and_centred(make_data, quick: TrainConfig, tmp_path: Path) -> None:
    samples = cut_samples([open_boxes(make_data(3))], quick, tmp_path / "cache")
    assert samples.pixels.shape == (3, 96, 96, 3)
    assert len(samples) == 3
    assert samples.skipped == []
    x0, y0, x1, y1 = (samples.box * 96).round().astype(int)
    assert samples.pixels[0, y0 + 25 : y1 - 25, x0 + 25 : x1 - 25].min() > 140  # the ellipse
    assert samples.pixels[0, :y0, :].max() < 80


def test_what_cannot_be_trained_on_is_said(make_data, quick: TrainConfig, tmp_path: Path) -> None:
    crowd = edit(make_data(3, "crowd"), iscrowd=1)
    outside = edit(make_data(2, "outside"), bbox=[500, 500, 50, 50])
    broken = make_data(2, "broken")
    (broken.parent / "images" / "0.png").write_bytes(b"no image")
    files = [open_boxes(path) for path in (crowd, outside, broken)]
    samples = cut_samples(files, quick, tmp_path / "cache")
    assert samples.source.tolist() == [0, 0, 1, 2]
    assert samples.pixels[:, 48, 48].min() > 140  # the gaps are closed
    assert len(cut_samples(files, quick, tmp_path / "cache")) == 4  # found again
    text = "\n".join(samples.skipped)
    assert "1 crowd" in text
    assert "1 boxes outside the image" in text
    assert "0.png" in text


def test_no_usable_box_is_an_error_that_says_why(make_data, quick: TrainConfig, tmp_path: Path) -> None:
    path = edit(make_data(1), bbox=[10, 10, 2, 2])
    with pytest.raises(InputError, match="under 8 px"):
        cut_samples([open_boxes(path)], quick, tmp_path / "cache")


def test_the_cache_is_bounded_and_what_has_no_room_is_said(make_data, quick: TrainConfig, tmp_path: Path) -> None:
    files, crop = [open_boxes(make_data(5))], 96 * 96 * 3 / 2**30
    whole = cut_samples(files, quick, tmp_path / "whole")
    part = cut_samples(files, quick.model_copy(update={"cache_gb": 2.5 * crop}), tmp_path / "part")
    assert len(part) == 2
    assert all(any(np.array_equal(crop, other) for other in whole.pixels) for crop in part.pixels)
    assert "3 boxes: there is room for 2" in part.skipped[0]
    most = cut_samples(files, quick, tmp_path / "most", most=3)
    assert len(most) == 3
    assert most.row.tolist() == sorted(set(most.row.tolist()))
    assert np.array_equal(most.pixels[0], whole.pixels[most.row[0]])
    with pytest.raises(InputError, match="room for 0"):
        cut_samples(files, quick.model_copy(update={"cache_gb": 1e-9}), tmp_path / "none")


def test_the_cache_takes_half_the_free_memory_unless_told(quick: TrainConfig) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    whole = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < cache_bytes(quick) <= whole / 2
    assert cache_bytes(quick.model_copy(update={"cache_gb": 3.0})) == 3 * 2**30


def test_another_process_maps_the_same_crops(make_data, quick: TrainConfig, tmp_path: Path) -> None:
    samples = cut_samples([open_boxes(make_data(3))], quick, tmp_path / "cache")
    sent = pickle.dumps(samples)
    assert len(sent) < samples.pixels[0].nbytes
    again = pickle.loads(sent)
    assert np.array_equal(again.pixels, samples.pixels)
    assert np.array_equal(again.row, samples.row)


def test_a_second_run_finds_the_crops_cut_unless_the_boxes_changed(
    make_data, quick: TrainConfig, tmp_path: Path
) -> None:
    path, cache = make_data(2), tmp_path / "cache"
    first = cut_samples([open_boxes(path)], quick, cache).pixels
    before = np.array(first)
    (path.parent / "images" / "0.png").unlink()
    again = cut_samples([open_boxes(path)], quick, cache)
    assert np.array_equal(first, again.pixels)
    assert len(cut_samples([open_boxes(edit(path, extra=1))], quick, cache)) == 1
    assert np.array_equal(first, before)  # what a run reads is left alone by one that cuts others
    assert not list(cache.glob("*.part"))


@pytest.fixture
def views(make_data, quick: TrainConfig, tmp_path: Path) -> Views:
    samples = cut_samples([open_boxes(make_data(2))], quick, tmp_path / "cache")
    labels = Labels.none(2, 64)
    labels.maps[0], labels.trust[0] = 0, 0.5
    labels.maps[0, 12:52, 12:52] = 255
    return Views(samples, labels, quick.model_copy(update={"paste": 0}), 0)


def test_a_view_keeps_pixels_box_and_label_together(views: Views) -> None:
    """Where the label says object, the box is; the mirror image is no exception."""
    cell = (torch.arange(16) + 0.5) / 16
    for number in range(12):
        view = views[0, number]
        x0, y0, x1, y1 = view["box"]
        assert 0 < x0 < x1 < 1
        inside = ((cell > x0) & (cell < x1))[None, :] & ((cell > y0) & (cell < y1))[:, None]
        labelled = (view["target"][0] > 0.5) & (view["known"][0] > 0)
        assert (inside & labelled).sum() / (inside | labelled).sum() > 0.85
        rows, columns = torch.where(view["teacher"].mean(0) > 120)
        assert abs(columns.float().mean() / 64 - (x0 + x1) / 2) < 0.05
        assert abs(rows.float().mean() / 64 - (y0 + y1) / 2) < 0.05
        assert view["trust"] == 0.5


def test_views_depend_on_their_number_alone(views: Views) -> None:
    again, other = (Views(views.samples, views.labels, views.config, round_)[0, 5] for round_ in (0, 1))
    assert torch.equal(views[0, 5]["student"], again["student"])
    assert not torch.equal(views[0, 5]["student"], other["student"])
    assert not torch.equal(views[0, 5]["student"], views[0, 6]["student"])


def test_student_and_teacher_see_one_window_in_two_colours(views: Views) -> None:
    view = views[0, 3]
    assert 1 < (view["student"] - view["teacher"]).abs().mean() < 80


def test_an_epoch_is_drawn_by_weight_and_number() -> None:
    draw = Draw(np.array([0.0, 1.0, 3.0]), 400, seed=0, round_=0)
    first = list(draw)
    assert list(draw) == first
    draw.set_epoch(1)
    second = list(draw)
    rows = np.array([row for row, _ in first])
    assert set(rows) == {1, 2}
    assert 0.65 < (rows == 2).mean() < 0.85
    assert [number for _, number in first + second] == list(range(800))
    assert [row for row, _ in second] != [row for row, _ in first]


def test_the_box_is_the_same_part_of_every_cached_crop() -> None:
    samples = Samples(
        np.zeros((1, 160, 160, 3), np.uint8), np.zeros((1, 4), np.float32), np.zeros(1, np.int32), 0.6, []
    )
    assert samples.box.tolist() == [0.1875, 0.1875, 0.8125, 0.8125]
    assert samples.central(0.3).tolist() == pytest.approx([15, 15, 145, 145])
    assert samples.central(0.6).tolist() == pytest.approx([0, 0, 160, 160])
