import numpy as np
import pytest

from mal.evaluation.overlay import GREY, LONGEST, PALETTE, SHORTEST, Drawn, choose_colours, draw


def grey_image(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, np.uint8)


def square(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> Drawn:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return Drawn(np.array([x0, y0, x1, y1], float), mask, "thing", 0.5)


@pytest.mark.parametrize(
    ("size", "longest"),
    [((300, 451), SHORTEST), ((100, 60), 300), ((1400, 900), 1400), ((3000, 4000), LONGEST), ((1, 1), 3)],
)
def test_picture_has_a_readable_size(size: tuple[int, int], longest: int) -> None:
    picture, _ = draw(grey_image(*size), [])
    assert max(picture.shape[:2]) == longest
    assert picture.dtype == np.uint8


def test_mask_is_tinted_and_the_rest_left_alone() -> None:
    image = grey_image(600, 1300)
    before = image.copy()

    picture, (colour,) = draw(image, [square(600, 1300, 400, 200, 700, 500)])

    inside, elsewhere = picture[350, 550].astype(int), picture[550, 1250]
    assert np.array_equal(image, before)
    assert elsewhere.tolist() == [90, 90, 90]
    assert np.abs(inside - 90).max() > 10
    # Tinted towards the colour: never beyond it.
    assert all(min(90, c) - 1 <= v <= max(90, c) + 1 for v, c in zip(inside, colour, strict=True))


def test_outline_follows_the_mask() -> None:
    picture, (colour,) = draw(grey_image(600, 1300), [square(600, 1300, 400, 200, 700, 500)])
    assert np.abs(picture[200, 550].astype(int) - colour).max() < 12
    assert np.abs(picture[350, 400].astype(int) - colour).max() < 12


def test_single_pixel_stays_visible() -> None:
    picture, _ = draw(grey_image(40, 40), [square(40, 40, 20, 20, 21, 21)])
    assert (picture[57:66, 57:66] != 90).any()


def test_every_object_has_its_own_colour_while_the_palette_lasts() -> None:
    objects = [square(50, 60, 3 * at, 0, 3 * at + 2, 40) for at in range(len(PALETTE) + 3)]
    colours = choose_colours(grey_image(50, 60), objects)
    assert set(colours[: len(PALETTE)]) == set(PALETTE)
    assert all(colour in PALETTE for colour in colours)


def test_colour_is_unlike_the_object() -> None:
    for own in PALETTE:
        image = np.empty((20, 20, 3), np.uint8)
        image[:] = own
        assert choose_colours(image, [square(20, 20, 2, 2, 18, 18)]) != [own]


def test_objects_without_mask_are_grey_boxes() -> None:
    bare = Drawn(np.array([5.0, 5, 30, 30]), None, "bare", None)
    empty = Drawn(np.array([5.0, 5, 30, 30]), np.zeros((40, 40), bool), "empty", 0.1)
    picture, colours = draw(grey_image(40, 40), [bare, empty])
    assert colours == [GREY, GREY]
    assert picture[60, 60].tolist() == [90, 90, 90]
    assert (picture[40, 15] != 90).any()


@pytest.mark.parametrize("box", [(0, 0, 40, 30), (39.4, 29.4, 39.6, 29.6), (0, 0, 0.2, 30), (39.9, 0, 40, 30)])
def test_boxes_at_the_border_and_of_no_pixel(box: tuple[float, float, float, float]) -> None:
    mask = np.ones((30, 40), bool)
    draw(
        grey_image(30, 40), [Drawn(np.array(box), mask, "a very long name that no picture of this size can hold", 1.0)]
    )
    draw(grey_image(3000, 4000), [Drawn(np.array(box), None, "x", None)])


def test_names_in_any_script() -> None:
    draw(grey_image(30, 40), [Drawn(np.array([1.0, 1, 20, 20]), None, name, None) for name in ("", "猫\n犬", "ñ🙂")])
