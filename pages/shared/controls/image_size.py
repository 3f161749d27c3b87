"""The size of a picture, read from its header: no pixel is ever decoded, and nothing is stored.

A small file can unpack into gigabytes, and one with a false ending can be anything. So the format is told by the
first bytes alone, the reader of that format alone is asked, and what it takes for a size must be one.
"""

from __future__ import annotations

from io import BytesIO
from typing import NamedTuple

from PIL import JpegImagePlugin, PngImagePlugin

from planner.errors import InvalidArgument
from planner.request import MAX_SIDE, MIN_SIDE, VAE_SCALE_FACTOR

# No camera takes more, and a header may say anything.
MAX_PIXELS = 400_000_000
TYPES = ("png", "jpg", "jpeg", "webp")

_RULE = "must be a PNG, JPEG or WebP picture"
_ORIENTATION = 0x0112
# Values of the tag under which the camera was turned by a quarter.
_TURNED = (5, 6, 7, 8)


class FittedSize(NamedTuple):
    """A picture's own size, the one to plan with, and why the two differ, in words; None where they do not. Pixels."""

    original: tuple[int, int]
    width: int
    height: int
    why: str | None


def _png(data: bytes) -> tuple[int, int]:
    # The class itself and not Image.open, which tries other formats and warns by what it has seen before.
    with PngImagePlugin.PngImageFile(BytesIO(data)) as picture:
        return picture.size


def _jpeg(data: bytes) -> tuple[int, int]:
    with JpegImagePlugin.JpegImageFile(BytesIO(data)) as picture:
        width, height = picture.size
        try:
            turned = picture.getexif().get(_ORIENTATION) in _TURNED
        except Exception:
            # A note of the camera that cannot be read makes no worse picture.
            turned = False
        # Phones keep the sensor's rows and note how they were held; diffusers' load_image turns it upright.
        return (height, width) if turned else (width, height)


def _webp(data: bytes) -> tuple[int, int]:
    # Pillow makes room for whole frames as soon as it opens one, so that the three headers are read here.
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
    """Width and height in pixels of a PNG, JPEG or WebP picture, as a person sees it upright.

    `name` is what messages call it.

    Raises:
        InvalidArgument: it is no such picture, is damaged, or says that it has more than `MAX_PIXELS`.
    """
    try:
        size = _read(data)
    except Exception:
        # Readers of hostile files fail in many ways, none of which is the planner's.
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
    """The nearest size that the planner takes: within its limits, in proportion, each side down to a multiple of 8.

    Raises:
        InvalidArgument: the picture is too long and thin for any.
    """
    reasons = []
    scale = 1.0
    if max(width, height) > MAX_SIDE:
        scale = MAX_SIDE / max(width, height)
        reasons.append(f"no side may be longer than {MAX_SIDE}")
    elif min(width, height) < MIN_SIDE:
        scale = MIN_SIDE / min(width, height)
        reasons.append(f"no side may be shorter than {MIN_SIDE}")
    # A whole multiple must not lose eight pixels to the last bit of a fraction.
    sides = [int(side * scale + 1e-6) for side in (width, height)]
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
        rule = f"must have sides that {MIN_SIDE} to {MAX_SIDE} pixels can stand for"
        raise InvalidArgument("image", rule, f"{width}×{height}")
    rounded = [side // VAE_SCALE_FACTOR * VAE_SCALE_FACTOR for side in sides]
    if rounded != sides:
        reasons.append(f"each is rounded down to a multiple of {VAE_SCALE_FACTOR}")
    return FittedSize((width, height), rounded[0], rounded[1], " and ".join(reasons) or None)
