import random
import struct
import tracemalloc
import zlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pages.shared.controls.image_size import MAX_PIXELS, MAX_SEGMENTS, fitted, read_size
from planner.alternatives.images import MAX_IMAGES, ImageRow, deciding, images_text, parse_images
from planner.cards.lookup import card_named
from planner.errors import InvalidArgument
from planner.fit import fit
from planner.request import GenerationRequest


def size_of(data: bytes, name: str) -> tuple[int, int]:
    return read_size(BytesIO(data), name)


def picture(form: str, size: tuple[int, int] = (120, 77), mode: str = "RGB", **options) -> bytes:
    out = BytesIO()
    Image.new(mode, size).save(out, form, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture("JPEG", exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        picture("PNG"),
        picture("PNG", mode="P"),
        picture("JPEG"),
        picture("JPEG", progressive=True),
        picture("JPEG", mode="CMYK"),
        picture("WEBP"),
        picture("WEBP", lossless=True),
        picture("WEBP", mode="RGBA", exif=b"Exif\0\0"),
        picture("WEBP", save_all=True, append_images=[Image.new("RGB", (120, 77), "red")]),
        turned(3),
        picture("JPEG", exif=b"Exif\0\0nonsense"),
    ],
)
def test_size_of(data):
    assert size_of(data, "picture") == (120, 77)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_orientation_of_a_photo_counts(orientation):
    assert size_of(turned(orientation), "photo.jpg") == (77, 120)


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a" + bytes(40), b"<svg width='9'/>", b"%PDF-1.7", b"MM\0*" + bytes(40), bytes(100), picture("BMP")],
)
def test_other_files_are_refused(data):
    with pytest.raises(InvalidArgument, match=r"^image must be a PNG, JPEG or WebP image, got 'notes'$"):
        size_of(data, "notes")


@pytest.mark.parametrize("data", [picture("PNG"), picture("JPEG"), picture("WEBP"), picture("WEBP", lossless=True)])
def test_a_truncated_image_is_refused(data):
    for length in range(12, 28):
        with pytest.raises(InvalidArgument, match="image must be a PNG, JPEG or WebP image"):
            size_of(data[:length], "half.png")


STARTS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *(b"RIFF\0\0\0\0WEBP" + kind for kind in (b"VP8 ", b"VP8L", b"VP8X"))]


@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
def test_any_bytes_give_a_size_or_an_error(start, rest):
    try:
        width, height = size_of(start + rest, "any")
    except InvalidArgument as error:
        assert "\n" not in str(error)
    else:
        assert width > 0 and height > 0 and width * height <= MAX_PIXELS


@given(seed=st.integers(0, 10**6), form=st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_damaged_image_gives_a_size_or_an_error(seed, form):
    changed, place = bytearray(picture(form)), random.Random(seed)
    for _ in range(8):
        changed[place.randrange(4, min(len(changed), 300))] = place.randrange(256)
    try:
        assert min(size_of(bytes(changed), "any")) > 0
    except InvalidArgument as error:
        assert error.argument == "image"


def test_a_decompression_bomb_is_not_unpacked():
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(100_000_000)))
    tracemalloc.start()
    try:
        assert size_of(png(20_000, 20_000), "large.png") == (20_000, 20_000)
        with pytest.raises(InvalidArgument, match=r"must have at most 400,000,000 pixels, got '60000×60000'"):
            size_of(png(60_000, 60_000), "bomb.png")
        assert size_of(png(64, 64, profile), "bomb.png") == (64, 64)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


class Counted(BytesIO):
    """A file that counts what is read from it."""

    reads = size = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.reads, self.size = self.reads + 1, self.size + len(data)
        return data


def segments(count: int, size: int = 0) -> bytes:
    """Segments of a JPEG that say nothing, with this many bytes each."""
    return (b"\xff\xe2" + struct.pack(">H", size + 2) + bytes(size)) * count


def test_segments_of_a_jpeg_are_skipped_unread():
    plain = turned(6)
    for count in (1, 40, MAX_SEGMENTS - 40):
        file = Counted(plain[:2] + segments(count, 50_000 if count == 40 else 9) + plain[2:])
        assert read_size(file, "photo.jpg") == (77, 120)
        # Four bytes a segment, and what the plain file has of header.
        assert file.size < 4 * count + len(plain)


@pytest.mark.parametrize("filler", [segments(5_000_000), b"\xff" * 20_000_000, b"\xff\xe1\0\2" * 5_000_000])
def test_a_jpeg_of_empty_segments_is_given_up(filler):
    file = Counted(b"\xff\xd8" + filler + picture("JPEG")[2:])
    with pytest.raises(InvalidArgument, match="its header is damaged"):
        read_size(file, "bomb.jpg")
    assert file.reads < 3 * MAX_SEGMENTS and file.size < 10 * MAX_SEGMENTS


def test_chunks_of_a_png_are_not_read():
    data = png(120, 77, *[chunk(b"tEXt", b"a\0b")] * 1000)
    file = Counted(data)
    assert read_size(file, "many.png") == (120, 77)
    assert file.size < 100


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_no_pixel_is_decoded(form, monkeypatch):
    data = picture(form)

    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    monkeypatch.setattr("PIL.Image.open", decode)
    assert size_of(data, "picture") == (120, 77)


@pytest.mark.parametrize(
    ("size", "planned", "why"),
    [
        ((512, 768), (512, 768), None),
        ((4032, 3024), (4032, 3024), None),
        ((515, 777), (512, 776), "each side is rounded down to a multiple of 8"),
        ((16384, 8192), (8192, 4096), "no side may be longer than 8192"),
        (
            (10000, 7013),
            (8192, 5744),
            "no side may be longer than 8192 and each side is rounded down to a multiple of 8",
        ),
        ((32, 48), (64, 96), "no side may be shorter than 64"),
        ((1, 1), (64, 64), "no side may be shorter than 64"),
    ],
)
def test_fitted_sizes_and_their_reasons(size, planned, why):
    found = fitted(*size)
    assert (found.original, (found.width, found.height), found.why) == (size, planned, why)


@given(width=st.integers(1, 30_000), height=st.integers(1, 30_000))
def test_both_tasks_accept_every_fitted_size(width, height):
    try:
        found = fitted(width, height)
    except InvalidArgument as error:
        assert max(width, height) / min(width, height) > 120
        assert str(error).startswith("image must have sides")
        return
    GenerationRequest(task="txt2img", width=found.width, height=found.height)
    assert (found.why is None) == ((found.width, found.height) == (width, height))
    # In proportion, to within what rounding each side down takes.
    scale = min(1, 8192 / max(width, height)) if max(width, height) > 8192 else max(1, 64 / min(width, height))
    assert 0 <= width * scale - found.width + 1e-6 < 9
    assert 0 <= height * scale - found.height + 1e-6 < 9


@given(rows=st.lists(st.builds(ImageRow, *[st.integers(64, 8192)] * 2, st.integers(1, 128)), max_size=MAX_IMAGES))
def test_a_list_of_images_survives_a_round_trip(rows):
    assert parse_images(images_text(rows)) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("512", "images must be sizes such as 1024x768"),
        ("512x512,", "images must be sizes such as 1024x768"),
        ("512x512*0", "batch must be between 1 and 128, got 0"),
        ("9000x512", "width must be between 64 and 8192, got 9000"),
        ("５12x512", "images must be sizes such as 1024x768"),
        (",".join(["64x64"] * (MAX_IMAGES + 1)), f"images must be at most {MAX_IMAGES}"),
        ("x" * 100_000, "images must be sizes such as 1024x768"),
    ],
)
def test_a_wrong_list_is_refused(text, message):
    with pytest.raises(InvalidArgument, match=message):
        parse_images(text)


def test_the_deciding_image_is_the_worst():
    t4 = card_named("T4")
    small, large, larger = (fit(GenerationRequest(width=side, height=side), t4) for side in (512, 1024, 2048))
    assert [small.verdict, large.verdict, larger.verdict] == ["fits", "fits", "tight"]
    assert deciding([small, large]) == 1
    assert deciding([larger, small, large]) == 0
    unknown = fit(GenerationRequest(), t4, "measured")
    assert deciding([large, unknown, larger]) == 1
