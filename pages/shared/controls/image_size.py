"""Read the size of an image from its header, without decoding a pixel or storing anything.

A small file can unpack into gigabytes, and a file name can have any ending. So the first bytes decide on the format,
only the reader of that format is used, and the size that it returns is checked.
"""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from typing import BinaryIO, NamedTuple

from PIL import JpegImagePlugin

from planner.errors import InvalidArgument
from planner.request import MAX_SIDE, MIN_SIDE, VAE_SCALE_FACTOR

# No camera takes larger images, but a header can claim any size.
MAX_PIXELS = 400_000_000
TYPES = ("png", "jpg", "jpeg", "webp")

# Cameras write some hundred segments at most: a colour profile has up to 255, a depth map some dozens.
MAX_SEGMENTS = 1024

# Markers of JPEG: where the pixels begin, frame headers, and the segment with camera data.
_SCAN, _FRAMES, _CAMERA = 0xDA, {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, 0xE1
_CAMERA_KINDS = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")

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


def _png(file: BinaryIO) -> tuple[int, int]:
    # The header is the first chunk. Pillow would also read all the others before the pixels, however many there are.
    header = file.read(33)[8:]
    length, kind, fields, check = struct.unpack(">I4s13sI", header)
    if (length, kind) != (13, b"IHDR") or zlib.crc32(kind + fields) != check:
        raise ValueError("no header")
    width, height = struct.unpack(">II", fields[:8])
    return width, height


def _jpeg(file: BinaryIO) -> tuple[int, int]:
    with JpegImagePlugin.JpegImageFile(BytesIO(_jpeg_header(file))) as picture:
        width, height = picture.size
        try:
            turned = picture.getexif().get(_ORIENTATION) in _TURNED
        except Exception:
            # An image with unreadable camera data still has a size.
            turned = False
        # Phones store the rows of the sensor and a note of how they were held; diffusers' load_image turns it upright.
        return (height, width) if turned else (width, height)


def _jpeg_header(file: BinaryIO) -> bytes:
    """Copy a JPEG's frame header and the first of each kind of camera data.

    All other segments are skipped unread. Pillow keeps every segment, so that a file of empty ones costs it seconds and
    hundreds of megabytes.

    Raises:
        ValueError: there is no frame header within the first `MAX_SEGMENTS` segments.
    """
    kept: dict[bytes, bytes] = {}
    file.seek(2)
    for _ in range(MAX_SEGMENTS):
        start = file.read(4)
        if start[:2] == b"\xff\xff":
            # A marker may have fill bytes before it.
            file.seek(-3, os.SEEK_CUR)
            continue
        if len(start) < 4 or start[0] != 0xFF:
            break
        marker, size = start[1], int.from_bytes(start[2:], "big") - 2
        if marker == _SCAN or size < 0:
            break
        if marker in _FRAMES and b"frame" not in kept:
            kept[b"frame"] = start + file.read(size)
        elif marker == _CAMERA:
            kind = file.read(min(size, 29))
            known = next((one for one in _CAMERA_KINDS if kind.startswith(one)), None)
            if known and known not in kept:
                kept[known] = start + kind + file.read(size - len(kind))
            else:
                file.seek(size - len(kind), os.SEEK_CUR)
        else:
            file.seek(size, os.SEEK_CUR)
    if b"frame" not in kept:
        raise ValueError("no frame header")
    # An empty scan ends the header for Pillow.
    return b"\xff\xd8" + b"".join(kept.values()) + b"\xff\xda\0\2"


def _webp(file: BinaryIO) -> tuple[int, int]:
    # Pillow allocates whole frames as soon as it opens a WebP file, so its three kinds of headers are read here.
    data = file.read(30)
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


def _read(file: BinaryIO) -> tuple[int, int] | None:
    file.seek(0)
    start = file.read(12)
    file.seek(0)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(file)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(file)
    return None


def read_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """Return width and height in pixels of a PNG, JPEG or WebP image, turned upright.

    Only its header is read from `file`. `name` is the name of the file in messages.

    Raises:
        InvalidArgument: the file is no such image, is damaged, or claims more than `MAX_PIXELS`.
    """
    try:
        size = _read(file)
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
