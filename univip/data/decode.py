"""The only decoder: a file becomes 8-bit RGB pixels, or an `ImageError` that says why not.

Index, proposals, training and pictures all read photographs through here, so a box found in one job lies on
the same pixels in the next. Every number of channels, bit depth and alpha becomes uint8 RGB; nothing depends
on what a process decoded before. Sizes are checked in the header, before pixels are decoded. NumPy is
imported with the first pixels: the command line reads the headers of a folder of photographs through
`read_size` and needs none.
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
from PIL.Image import Transpose

from univip.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Why an image cannot be used; labels of metrics and of the proposal store.
REASONS = ("missing", "unreadable", "corrupt", "too_large", "unsupported", "size_mismatch")

# Boxes are stored as int16, so no edge may be longer.
MAX_EDGE_PX = 32767

# Only photographs: Pillow also knows formats that run other programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")

_FIX = "restore the file, or leave it out: the others are used without it"

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

# What Pillow's plugins are seen to raise on damaged bytes, beside OSError.
_DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
)

# `max_pixels` is the limit here. Pillow's own would warn and raise at two others, and warnings cannot be
# silenced per thread.
PIL.Image.MAX_IMAGE_PIXELS = None


def refuses_size(width: int, height: int, *, max_pixels: int) -> bool:
    """Whether an image is too large to be used: more than `max_pixels`, or an edge that boxes cannot hold."""
    return width * height > max_pixels or max(width, height) > MAX_EDGE_PX


def read_size(path: Path, *, exif: bool, max_pixels: int) -> tuple[int, int]:
    """Width and height in pixels from the header alone.

    Args:
        path: The image file.
        exif: Whether the orientation tag is applied.
        max_pixels: Largest width × height that is accepted.

    Raises:
        ImageError: If the header cannot be read or announces too many pixels.
    """
    with _opened(path, max_pixels=max_pixels) as image:
        return _turned_size(image, _orientation(image) if exif else 1)


def decode(
    path: Path, *, exif: bool, max_pixels: int, size: tuple[int, int] | None = None
) -> npt.NDArray[np.uint8]:
    """Decode one photograph.

    16-bit samples keep their upper byte, as Pillow does for 16-bit RGB; transparent pixels lie on white; of
    several frames the first counts; colour profiles are ignored.

    Args:
        path: The image file.
        exif: Whether the orientation tag is applied.
        max_pixels: Largest width × height that is accepted, checked before decoding.
        size: Width and height the image must have (after orientation); None accepts any.

    Returns:
        uint8 [H, W, 3] RGB, contiguous and writable.

    Raises:
        ImageError: With one of `REASONS`.
    """
    import numpy as np

    with _opened(path, max_pixels=max_pixels) as image:
        orientation = _orientation(image) if exif else 1
        found = _turned_size(image, orientation)
        if size is not None and found != size:
            raise ImageError(
                "size_mismatch",
                f"image must be {size[0]} x {size[1]} px as indexed, but is {found[0]} x {found[1]}.",
                where=str(path),
                fix="restore the file, or index the data set again in a new run",
            )
        rgb = _to_rgb(image, path)
        if orientation in _TURNS:
            rgb = rgb.transpose(_TURNS[orientation])
        return np.array(rgb)


@contextmanager
def _opened(path: Path, *, max_pixels: int) -> Iterator[PIL.Image.Image]:
    """Open an image of acceptable size; whatever its file does wrong in the body becomes an ImageError."""
    try:
        with PIL.Image.open(path, formats=_FORMATS) as image:
            if refuses_size(*image.size, max_pixels=max_pixels):
                raise ImageError(
                    "too_large",
                    f"image must have at most {max_pixels} pixels and edges of at most {MAX_EDGE_PX} px, "
                    f"but is {image.width} x {image.height}.",
                    where=str(path),
                    fix="data.max_pixels=N, or scale the image down",
                )
            yield image
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ImageError(
            "missing", "image file must exist, but does not.", where=str(path), fix=_FIX
        ) from error
    except OSError as error:
        # The file system gives its errors a number; complaints about the content have none, or lead to a seek
        # before the start.
        reason = "corrupt" if error.errno in (None, errno.EINVAL) else "unreadable"
        raise ImageError(reason, f"image cannot be read: {error}.", where=str(path), fix=_FIX) from error
    except _DAMAGE as error:
        raise ImageError("corrupt", f"image is damaged: {error!r}.", where=str(path), fix=_FIX) from error


def _orientation(image: PIL.Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF files by itself and reports the turned size.
    try:
        # The base method: PNG's own would decode all pixels to look for tags behind them.
        orientation = PIL.Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except (OSError, *_DAMAGE):
        return 1  # Broken tags say nothing about the pixels; every viewer shows such an image as it lies.
    return orientation if orientation in _TURNS else 1


def _turned_size(image: PIL.Image.Image, orientation: int) -> tuple[int, int]:
    """Width and height after orientation."""
    return (image.height, image.width) if orientation in _SIDEWAYS else (image.width, image.height)


def _to_rgb(image: PIL.Image.Image, path: Path) -> PIL.Image.Image:
    """Pixels as 8-bit RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _upper_byte(image, path).convert("RGB")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        raise _unsupported(f"pixel type `{image.mode}`", path)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _upper_byte(image: PIL.Image.Image, path: Path) -> PIL.Image.Image:
    """16-bit gray to 8-bit gray. Mode `I` is 32 bits wide, but Pillow also uses it for 16-bit PGM."""
    import numpy as np

    samples = np.asarray(image)
    if samples.min() < 0 or samples.max() > 65535:
        raise _unsupported("samples beyond 16 bits", path)
    return PIL.Image.fromarray((samples >> 8).astype(np.uint8))


def _unsupported(what: str, path: Path) -> ImageError:
    """An image that is sound but has no agreed meaning as a photograph."""
    return ImageError("unsupported", f"image has {what}, which is no photograph.", where=str(path), fix=_FIX)
