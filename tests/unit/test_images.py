"""The only reader: formats, orientations, and files that are no good."""

import struct
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mal import images
from mal.errors import ImageError
from mal.images import decode_image, read_image

WIDTH, HEIGHT = 48, 32


def scene(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Smooth and without any symmetry, so that JPEG changes little and a wrong turn shows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) * 255 // (width + 2 * height)], 2).astype(
        np.uint8
    )


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def jpeg_bytes(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    buffer = BytesIO()
    Image.fromarray(scene(width, height)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


# Formats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "orientation", "wanted", "expected"), [
    ((160, 107), 1, 1.99, 1), ((160, 107), 1, 2.0, 2), ((161, 107), 1, 7.9, 4), ((161, 107), 1, 99, 8),
    ((17, 9), 1, 8, 8), ((160, 112), 6, 8, 8), ((160, 112), 3, 8, 8), ((160, 108), 6, 8, 4), ((161, 107), 8, 8, 1),
    ((161, 107), 2, 8, 1),
])  # fmt: skip
def test_a_smaller_jpeg_is_the_mean_of_its_pixels(
    size: tuple[int, int], orientation: int, wanted: float, expected: int
) -> None:
    """Where the geometry is off by half a pixel of the small picture, a gradient shows it."""
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(scene(*size)).save(buffer, "JPEG", quality=98, subsampling=0, exif=exif)
    asked: list[tuple[int, int]] = []
    picture = decode_image(buffer.getvalue(), enough=lambda *size: asked.append(size) or wanted)
    full = decode_image(buffer.getvalue()).pixels

    height, width = full.shape[:2]
    assert (picture.width, picture.height, picture.shrink) == (width, height, expected)
    assert asked == [(width, height)]
    assert picture.pixels.shape[:2] == (-(-height // expected), -(-width // expected))
    rows, columns = height // expected, width // expected
    blocks = full[: rows * expected, : columns * expected].reshape(rows, expected, columns, expected, 3)
    assert np.abs(blocks.mean((1, 3)) - picture.pixels[:rows, :columns]).max() < 3


def test_only_jpeg_comes_smaller(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()))
    picture = decode_image(path.read_bytes(), enough=lambda width, height: 8)
    assert (picture.pixels.shape, picture.shrink) == ((HEIGHT, WIDTH, 3), 1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(scene()), **options)

    pixels = read_image(path, WIDTH, HEIGHT)

    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, scene())


def test_jpeg_is_decoded_as_by_pillow(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_bytes())
    expected = np.asarray(Image.open(path).convert("RGB"))

    pixels = read_image(path)

    difference = np.abs(pixels.astype(int) - expected).max()
    print(f"simplejpeg against Pillow: largest difference {difference} grey levels")
    assert difference <= 1


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()))
    named_jpg = path.rename(tmp_path / "a.jpg")
    assert np.array_equal(read_image(named_jpg), scene())


GREY = np.linspace(0, 255, WIDTH * HEIGHT).astype(np.uint8).reshape(HEIGHT, WIDTH)
MODES = {
    "grey": (Image.fromarray(GREY), GREY),
    "grey-alpha": (Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (WIDTH, HEIGHT), 7)]), GREY),
    "one-bit": (Image.fromarray(GREY > 99), np.where(GREY > 99, 255, 0)),
    "sixteen-bit": (Image.fromarray(GREY.astype(np.uint16) * 257), GREY),
    "alpha": (Image.fromarray(np.dstack([scene(), GREY])), scene()),
}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("image", "expected"), MODES.values(), ids=MODES.keys())
def test_colour_modes(tmp_path: Path, image: Image.Image, expected: NDArray[np.uint8], suffix: str) -> None:
    pixels = read_image(save(tmp_path / f"a.{suffix}", image), WIDTH, HEIGHT)
    expected = expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, axis=2)
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))], ids=["opaque", "one-colour", "table"])
def test_palette_with_and_without_transparency(tmp_path: Path, transparency: object) -> None:
    image = Image.fromarray(scene()).quantize(64)
    expected = np.asarray(image.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(read_image(save(tmp_path / "a.png", image, **options)), expected)


def test_cmyk_jpeg_goes_through_the_second_reader(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(scene()).convert("CMYK"), quality=98)
    difference = np.abs(read_image(path, WIDTH, HEIGHT).astype(int) - scene())
    assert difference.mean() < 4


FLOATS = {
    "unit": (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
    "bytes": (np.array([[0.0, 100.0, 255.0]]), [0, 100, 255]),
    "sixteen-bit": (np.array([[0.0, 257.0, 65535.0]]), [0, 1, 255]),
    "own-range": (np.array([[-1000.0, 0.0, 1000.0]]), [0, 128, 255]),
    "not-a-number": (np.array([[np.nan, 0.5, np.inf]]), [0, 128, 0]),
    "flat": (np.array([[-3.0, -3.0, -3.0]]), [0, 0, 0]),
    "far-apart": (np.array([[-3.4e38, 0.0, 3.4e38]]), [0, 128, 255]),
}


@pytest.mark.parametrize(("values", "expected"), FLOATS.values(), ids=FLOATS.keys())
def test_float_tiff_is_scaled_not_clipped(tmp_path: Path, values: NDArray[np.float64], expected: list[int]) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(values.astype(np.float32)))
    assert read_image(path)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_keep_their_high_byte(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    deep = rng.integers(0, 2**16, (HEIGHT, WIDTH, 3), np.uint16)
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep[:, :, ::-1])
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), deep >> 8)


def test_the_other_byte_order(tmp_path: Path) -> None:
    deep = GREY.astype(">u2") * 257
    path = save(tmp_path / "a.tif", Image.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes()))
    assert np.array_equal(read_image(path)[:, :, 0], GREY)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_the_first_picture_counts(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    first, second = Image.fromarray(scene()), Image.new("RGB", (WIDTH, HEIGHT), "red")
    path = save(tmp_path / f"a.{suffix}", first, save_all=True, append_images=[second], **options)
    assert np.array_equal(read_image(path), scene())


def test_integers_of_32_bits_are_scaled_by_their_range(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.array([[0, 257, 65535]], np.int32)))
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 255]


# Orientation ---------------------------------------------------------------------------------------------


def with_orientation(path: Path, image: Image.Image, orientation: int, **options: object) -> NDArray[np.uint8]:
    """Save with an EXIF orientation; what a viewer shows (Pillow's own turning is the judge)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_stated_size_decides_the_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(suffix, {})
    upright = with_orientation(path, Image.fromarray(scene()), orientation, **options)
    height, width = upright.shape[:2]
    swaps = orientation >= 5
    assert (width, height) == ((HEIGHT, WIDTH) if swaps else (WIDTH, HEIGHT))

    for stated in [(None, None), (0, 0), (width, height), (width, None)]:
        assert np.abs(read_image(path, *stated).astype(int) - upright).max() <= 1
    if swaps:
        assert np.abs(read_image(path, WIDTH, HEIGHT).astype(int) - scene()).mean() < 2


def test_a_square_image_comes_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    upright = with_orientation(path, Image.fromarray(scene(40, 40)), 6)
    assert np.array_equal(read_image(path, 40, 40), upright)


def test_a_size_that_fits_no_orientation_names_both(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()))
    with pytest.raises(ImageError, match=r"image is 48 x 32 pixels, the box file says 32 x 48"):
        read_image(path, HEIGHT, WIDTH)


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_behind_other_segments_and_fill_bytes(tmp_path: Path, order: str) -> None:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order]
    exif = head + struct.pack(order + "IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    body = b"Exif\0\0" + exif
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 5) + b"hello"
    app1 = b"\xff" + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body
    data = jpeg_bytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + comment + app1 + data[2:])
    assert read_image(path).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize(
    "exif", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff\x01\x12", b"junk" * 9]
)
def test_a_broken_exif_block_is_passed_over(tmp_path: Path, exif: bytes) -> None:
    body = b"Exif\0\0" + exif
    data = jpeg_bytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + data[2:])
    assert read_image(path, WIDTH, HEIGHT).shape == (HEIGHT, WIDTH, 3)


# Bad files -----------------------------------------------------------------------------------------------


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_not_a_file(tmp_path: Path) -> None:
    assert_refused(tmp_path, "folder")
    assert_refused(tmp_path / "missing.jpg", "No such file")
    (tmp_path / "empty.jpg").touch()
    assert_refused(tmp_path / "empty.jpg", "empty")
    (tmp_path / "text.jpg").write_text("not an image")
    assert_refused(tmp_path / "text.jpg", "not a JPEG, PNG")
    assert_refused(Path("/dev/zero"), "not a regular file")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(scene()))

    def refuse(_: Path) -> bytes:  # chmod would not stop a test that runs as root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert_refused(path, "Permission denied")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_truncated_files_are_broken(tmp_path: Path, rng: np.random.Generator, suffix: str, share: float) -> None:
    noise = rng.integers(0, 255, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: max(int(len(data) * share), 12)])
    assert_refused(path, "damaged")


def test_a_truncated_jpeg_with_an_end_marker_is_still_broken(tmp_path: Path) -> None:
    """Pillow would fill the rest with grey and say nothing."""
    data = jpeg_bytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")
    assert_refused(path, "damaged")


def test_stray_bytes_between_the_markers_do_no_harm(tmp_path: Path) -> None:
    data = jpeg_bytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:-2] + b"\0\0\0\0" + data[-2:])
    plain = tmp_path / "plain.jpg"
    plain.write_bytes(data)
    assert np.array_equal(read_image(path, WIDTH, HEIGHT), read_image(plain))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(jpeg_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff_header(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("L", (1, 1)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    for tag, value in ((256, width), (257, height)):
        at = data.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in data else None
        at = at if at is not None else data.index(struct.pack("<HHI", tag, 3, 1))
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(data)


@pytest.mark.parametrize("header", [png_header, jpeg_header, tiff_header])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, header: object) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(header(50000, 40000))
    assert_refused(path, "50000 x 40000 pixels, more than the limit")


def test_a_side_too_long_for_a_crop_is_refused(tmp_path: Path) -> None:
    """One such image would otherwise end the whole run, in `cut_crop`."""
    path = tmp_path / "long.png"
    path.write_bytes(png_header(images.MAX_SIDE + 1, 1))
    assert_refused(path, f"{images.MAX_SIDE + 1} x 1 pixels; a side may have {images.MAX_SIDE}")


def test_no_warning_below_the_limit_in_any_thread(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Pillow's own limit lies lower and warns; warnings cannot be caught safely in threads, so none may arise."""
    path = tmp_path / "a.png"
    path.write_bytes(png_header(12000, 9000))
    failures: list[str] = []

    def read() -> None:
        with pytest.raises(ImageError) as caught:
            read_image(path)
        failures.append(str(caught.value))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert "truncated" in failures[0] or "damaged" in failures[0]
    assert not recwarn.list


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_damaged_bytes_give_pixels_or_a_reason(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    original = save(tmp_path / f"a.{suffix}", Image.fromarray(scene()), **({} if suffix == "bmp" else {"exif": exif}))
    data = original.read_bytes()
    path = tmp_path / "damaged"
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        for at in rng.integers(4, min(len(data), 400), rng.integers(1, 8)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on odd TIFF tags
            try:
                pixels = read_image(path)
            except ImageError:
                refused += 1
            else:
                assert pixels.ndim == 3
                assert pixels.shape[2] == 3
    print(f"{suffix}: {refused} of 200 damaged files refused")


def test_many_threads_read_the_same_pixels(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / f"a{k}.{s}", Image.fromarray(scene())) for k, s in enumerate(["jpg", "png", "tif", "webp"])
    ]
    expected = [read_image(path) for path in paths]
    wrong: list[Path] = []

    def work() -> None:
        for _ in range(20):
            wrong.extend(
                path
                for path, pixels in zip(paths, expected, strict=True)
                if not np.array_equal(read_image(path), pixels)
            )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.shared
def test_real_photographs_equal_pillow(shared: Path) -> None:
    worst = 0
    for path in sorted((shared / "data/coco-val/images").iterdir())[:20]:
        expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
        worst = max(worst, int(np.abs(read_image(path) - expected).max()))
    print(f"largest difference to Pillow {worst} grey levels")
    assert worst <= 1


def test_limits_are_those_documented() -> None:
    assert images.MAX_PIXELS == 16384**2
    assert images.MAX_TIFF_PIXELS <= Image.MAX_IMAGE_PIXELS
