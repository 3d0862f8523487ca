"""Where an image of a name is: in the image folder, and nowhere else."""

from pathlib import Path

import pytest
from PIL import Image

from mal.errors import ImageError
from mal.images import find_image, read_image


def picture(path: Path) -> Path:
    Image.new("RGB", (1, 1)).save(path, "PNG")
    return path


def test_find_image_in_folders(tmp_path: Path) -> None:
    (tmp_path / "train" / "dogs").mkdir(parents=True)
    path = picture(tmp_path / "train" / "dogs" / "a.png")
    assert find_image("train/dogs/a.png", tmp_path) == path
    assert find_image("./train//dogs/../dogs/a.png", tmp_path) == path
    assert find_image("dogs/a.png", tmp_path / "train").samefile(path)


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "..", "{root}/secret.png", "./../images/../secret.png"]
)
def test_a_name_must_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    secret = picture(tmp_path / "secret.png")
    name = name.format(root=tmp_path)

    with pytest.raises(ImageError, match="leaves the image folder; --allow-outside"):
        find_image(name, folder)

    if name != "..":
        assert find_image(name, folder, allow_outside=True).samefile(secret)


def test_dots_do_not_climb_out_through_a_link(tmp_path: Path) -> None:
    """The system would resolve link/.. to the folder above the link's target."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    picture(tmp_path / "elsewhere" / "a.png")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    with pytest.raises(ImageError, match="not found"):
        find_image("link/../a.png", folder)


def test_links_of_the_folders_owner_are_followed(tmp_path: Path) -> None:
    target = picture(tmp_path / "blob")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").symlink_to(target)
    assert find_image("a.png", folder).samefile(target)
    assert read_image(find_image("a.png", folder)).shape == (1, 1, 3)


@pytest.mark.parametrize("name", ["", "a\0.png", "missing.png", "x" * 300, "\udcff\ud800.png", r"train\a.png"])
def test_names_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "train").mkdir()
    picture(tmp_path / "train" / "a.png")
    with pytest.raises(ImageError):
        find_image(name, tmp_path)
