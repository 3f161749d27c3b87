"""Read the size of an image from its header, without decoding a pixel or storing anything.

A small file can unpack into gigabytes, and a file name can have any ending. So the first bytes decide on the format,
only the reader of that format is used, and the size that it returns is checked.
"""

from __future__ import annotations

from io import BytesIO
from typing import NamedTuple

from PIL import JpegImagePlugin, PngImagePlugin

from planner.errors import InvalidArgument
from planner.request import MAX_SIDE, MIN_SIDE, VAE_SCALE_FACTOR

# No camera takes larger images, but a header can claim any size.
MAX_PIXELS = 400_000_000
TYPES = ("png", "jpg", "jpeg", "webp")

_RULE = "must be a PNG, JPEG or WebP image"
_ORIENTATION = 0x0112
# Values of the tag that mean a quarter turn of the camera.
_TURNED = (5, 6, 7, 8)


class FittedSize(NamedTuple):
    """An image's own size and the size to plan with, in pixels, and why they differ, None if they do not."""

    original: tuple[int, int]
    width: int
    height: int
    why: str | None


def _png(data: bytes) -> tuple[int, int]:
    # Image.open would try other formats, and its warnings depend on the files that it has opened before.
    with PngImagePlugin.PngImageFile(BytesIO(data)) as picture:
        return picture.size


def _jpeg(data: bytes) -> tuple[int, int]:
    with JpegImagePlugin.JpegImageFile(BytesIO(data)) as picture:
        width, height = picture.size
        try:
            turned = picture.getexif().get(_ORIENTATION) in _TURNED
        except Exception:
            # An image with unreadable camera data still has a size.
            turned = False
        # Phones store the rows of the sensor and a note of how they were held; diffusers' load_image turns it upright.
        return (height, width) if turned else (width, height)


def _webp(data: bytes) -> tuple[int, int]:
    # Pillow allocates whole frames as soon as it opens a WebP file, so its three kinds of headers are read here.
    kind, at = data[12:16], data[20:30]
    if len(at) < 10:
        raise ValueError("too short")
    if kind == b"VP8X":
        return int.from_bytes(at[4:7], "little") + 1, int.from_bytes(at[7:10], "little") + 1
    if kind == b"VP8L" and at[0] == 0x2F:
        bits = int.from_bytes(at[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and at[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(at[6:8], "little") & 0x3FFF, int.from_bytes(at[8:10], "little") & 0x3FFF
    raise ValueError("no frame")


def _read(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return None


def read_size(data: bytes, name: str) -> tuple[int, int]:
    """Return width and height in pixels of a PNG, JPEG or WebP image, turned upright.

    `name` is the name of the file in messages.

    Raises:
        InvalidArgument: the file is no such image, is damaged, or claims more than `MAX_PIXELS`.
    """
    try:
        size = _read(data)
    except Exception:
        # A hostile file can make the reader fail in any way, and each means the same to the user.
        raise InvalidArgument("image", _RULE, name, "its header is damaged") from None
    if size is None:
        raise InvalidArgument("image", _RULE, name)
    width, height = size
    if min(size) < 1:
        raise InvalidArgument("image", _RULE, name, "its header is damaged")
    if width * height > MAX_PIXELS:
        raise InvalidArgument("image", f"must have at most {MAX_PIXELS:,} pixels", f"{width}×{height}")
    return width, height


def fitted(width: int, height: int) -> FittedSize:
    """Scale a size into the planner's limits and round each side down to a multiple of 8.

    The proportions are kept. Sizes are in pixels.

    Raises:
        InvalidArgument: the image is too long and thin for any size within the limits.
    """
    reasons = []
    scale = 1.0
    if max(width, height) > MAX_SIDE:
        scale = MAX_SIDE / max(width, height)
        reasons.append(f"no side may be longer than {MAX_SIDE}")
    elif min(width, height) < MIN_SIDE:
        scale = MIN_SIDE / min(width, height)
        reasons.append(f"no side may be shorter than {MIN_SIDE}")
    # The rounding error of a float must not cost a side eight pixels.
    sides = [int(side * scale + 1e-6) for side in (width, height)]
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
        rule = f"must have sides that scale to between {MIN_SIDE} and {MAX_SIDE} pixels"
        raise InvalidArgument("image", rule, f"{width}×{height}")
    rounded = [side // VAE_SCALE_FACTOR * VAE_SCALE_FACTOR for side in sides]
    if rounded != sides:
        reasons.append(f"each side is rounded down to a multiple of {VAE_SCALE_FACTOR}")
    return FittedSize((width, height), rounded[0], rounded[1], " and ".join(reasons) or None)
