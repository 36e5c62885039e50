"""Every kind of file becomes the RGB pixels a person would expect, or a counted reason."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from univip.data.decode import MAX_EDGE_PX, REASONS, decode, read_size
from univip.errors import ImageError

LIMIT = 1_000_000


def noise(shape: tuple[int, ...], dtype: Any = np.uint8) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


RGB = noise((20, 30, 3))


def read(path: Path, **options: Any) -> npt.NDArray[np.uint8]:
    pixels = decode(path, **{"exif": True, "max_pixels": LIMIT, **options})
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    return pixels


def reason(path: Path, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode(path, **{"exif": True, "max_pixels": LIMIT, **options})
    assert str(path) in caught.value.where
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_rgb_pixels_are_kept_exactly(tmp_path: Path, suffix: str) -> None:
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), RGB[:, :, ::-1])

    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), RGB)


def test_jpeg_pixels_agree_with_opencv(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(noise((64, 64, 3)), (0, 0), 4)
    cv2.imwrite(str(tmp_path / "a.jpg"), smooth)

    difference = read(tmp_path / "a.jpg")[:, :, ::-1].astype(int) - cv2.imread(str(tmp_path / "a.jpg"))

    assert np.abs(difference).max() <= 2


def test_gray_is_repeated_in_all_channels(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        cv2.imwrite(str(tmp_path / f"a.{suffix}"), RGB[:, :, 0])

    np.testing.assert_array_equal(read(tmp_path / "a.png"), RGB[:, :, :1].repeat(3, axis=2))
    assert np.ptp(read(tmp_path / "a.jpg"), axis=2).max() == 0


@pytest.mark.parametrize(
    ("suffix", "shape"), [("png", (16, 16)), ("png", (16, 16, 3)), ("tif", (16, 16)), ("pgm", (16, 16))]
)
def test_16_bit_samples_keep_their_upper_byte(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    samples = noise(shape, np.uint16)
    samples.flat[:4] = [0, 255, 256, 65535]
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), samples)

    expected = samples[:, :, None].repeat(3, axis=2) if samples.ndim == 2 else samples[:, :, ::-1]

    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), expected // 256)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    cmyk = np.zeros((2, 4, 4), np.uint8)
    cmyk[:, 0, 0] = cmyk[:, 1, 1] = cmyk[:, 2, 2] = cmyk[:, 3, 3] = 255
    PIL.Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")

    cyan, magenta, yellow, black = (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)

    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], [cyan, magenta, yellow, black])


def test_a_cmyk_jpeg_is_not_a_negative(tmp_path: Path) -> None:
    PIL.Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.jpg")

    np.testing.assert_allclose(read(tmp_path / "a.jpg").mean(axis=(0, 1)), (0, 255, 255), atol=4)


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.full((20, 30), 255, np.uint8)])
    rgba[:10, :, 3] = 0
    PIL.Image.fromarray(rgba).save(tmp_path / "a.png")

    pixels = read(tmp_path / "a.png")

    assert (pixels[:10] == 255).all()
    np.testing.assert_array_equal(pixels[10:], RGB[10:])


def test_a_palette_is_looked_up_and_its_transparency_lies_on_white(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L")
    palette = image.convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "clear.png", transparency=1)

    expected = np.array([[(10, 20, 30), (40, 50, 60)], [(70, 80, 90), (40, 50, 60)]])

    np.testing.assert_array_equal(read(tmp_path / "plain.png"), expected)
    expected[:, 1] = 255
    np.testing.assert_array_equal(read(tmp_path / "clear.png"), expected)


def test_bits_become_black_and_white(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")

    assert read(tmp_path / "a.png").tolist() == [[[255] * 3, [0] * 3]]


def test_gray_with_alpha_lies_on_white(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA").save(tmp_path / "a.png")

    assert read(tmp_path / "a.png").tolist() == [[[7] * 3, [255] * 3]]


UPRIGHT: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),  # the camera was turned: a quarter clockwise sets it right
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_on_request(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    PIL.Image.fromarray(RGB).save(path, exif=exif)
    upright = UPRIGHT[orientation](RGB)

    np.testing.assert_array_equal(read(path), upright)
    np.testing.assert_array_equal(read(path, exif=False), RGB)
    assert read_size(path, exif=True, max_pixels=LIMIT) == upright.shape[1::-1]
    assert read_size(path, exif=False, max_pixels=LIMIT) == (30, 20)


def test_a_turned_tiff_is_turned_once(tmp_path: Path) -> None:
    PIL.Image.fromarray(RGB).save(tmp_path / "a.tif", tiffinfo={0x0112: 6})

    np.testing.assert_array_equal(read(tmp_path / "a.tif"), np.rot90(RGB, -1))
    assert read_size(tmp_path / "a.tif", exif=True, max_pixels=LIMIT) == (20, 30)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's word on the broken tags
def test_broken_tags_do_not_condemn_the_pixels(tmp_path: Path) -> None:
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")

    np.testing.assert_array_equal(read(tmp_path / "a.png"), RGB)


def test_the_expected_size_is_checked_after_orientation(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)

    read(tmp_path / "a.png", size=(20, 30))
    read(tmp_path / "a.png", size=(30, 20), exif=False)
    assert reason(tmp_path / "a.png", size=(30, 20)) == "size_mismatch"


def test_missing_files_and_folders_are_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.jpg").mkdir()

    assert reason(tmp_path / "nowhere.jpg") == "missing"
    assert reason(tmp_path / "folder.jpg") == "missing"
    assert reason(tmp_path / "file" / "a.jpg") == "missing"


def test_what_the_file_system_refuses_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(PIL.Image, "open", fail)

    assert reason(tmp_path / "a.jpg") == "unreadable"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's word on cut tags
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "ppm"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.7])
def test_truncated_files_are_corrupt(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(RGB).save(path)
    os.truncate(path, int(path.stat().st_size * share))

    assert reason(path) == "corrupt"


def test_other_content_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404</html>")

    assert reason(tmp_path / "a.jpg") == "corrupt"


def test_programs_in_image_formats_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )

    assert reason(tmp_path / "a.jpg") == "corrupt"


@pytest.mark.parametrize("samples", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70_000, np.int32)])
def test_measurements_are_unsupported(tmp_path: Path, samples: npt.NDArray[Any]) -> None:
    PIL.Image.fromarray(samples).save(tmp_path / "a.tif")

    assert reason(tmp_path / "a.tif") == "unsupported"


def png_header(width: int, height: int) -> bytes:
    """A PNG without pixels: the header, and a data chunk that must never be looked at."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b"")


def test_size_is_refused_from_the_header_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(1000, 1001))
    (tmp_path / "b.png").write_bytes(png_header(1000, 1000))
    (tmp_path / "c.png").write_bytes(png_header(MAX_EDGE_PX + 1, 1))

    assert reason(tmp_path / "a.png", max_pixels=LIMIT) == "too_large"
    assert reason(tmp_path / "b.png", max_pixels=LIMIT) == "corrupt"
    assert reason(tmp_path / "c.png", max_pixels=LIMIT) == "too_large"


def test_only_our_own_limit_holds(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(20_000, 20_000))

    assert read_size(tmp_path / "a.png", exif=True, max_pixels=400_000_000) == (20_000, 20_000)


def test_threads_decode_the_same_pixels(tmp_path: Path) -> None:
    for number in range(8):
        image = PIL.Image.fromarray(np.roll(noise((64, 64, 3)), number))
        image.save(tmp_path / f"{number}.{'jpg' if number % 2 else 'png'}")
    paths = sorted(tmp_path.iterdir()) * 8
    alone = [read(path).tobytes() for path in paths[:8]] * 8

    with ThreadPoolExecutor(8) as pool:
        together = [pixels.tobytes() for pixels in pool.map(read, paths)]

    assert together == alone


def encoded(suffix: str) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PIL.Image.fromarray(RGB).save(file, suffix, **({"exif": exif} if suffix in ("PNG", "JPEG") else {}))
    return file.getvalue()


ENCODED = {suffix: encoded(suffix) for suffix in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    suffix=st.sampled_from(sorted(ENCODED)),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
    ),
    share=st.sampled_from([1.0, 1.0, 0.5]),
)
def test_damage_of_any_kind_has_a_reason(
    tmp_path: Path, suffix: str, changes: list[tuple[float, int]], share: float
) -> None:
    content = bytearray(ENCODED[suffix])
    for place, value in changes:
        content[int(place**3 * len(content))] = value  # mostly near the start, where the header is
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: int(len(content) * share)])

    found: int | str
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's word on broken tags
        try:
            found = read(path).shape[2]
        except ImageError as error:
            found = error.reason

    assert found in (3, *REASONS)
