import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InvalidArgument
from planner.units import GIB, MIB, exact_size, gib, gib_to_bytes, parse_bytes, short_gib, signed_gib


def test_a_gib_is_two_to_the_thirtieth():
    assert gib(2**30) == "1.00 GiB"
    assert gib_to_bytes(14.56) == 15_633_680_957


def test_the_sign_of_a_headroom_is_always_shown():
    assert signed_gib(GIB) == "+1.00 GiB"
    assert signed_gib(-GIB) == "−1.00 GiB"


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("16GiB", 16 * GIB), ("0.5 GiB", GIB // 2), ("512MiB", 512 * MIB), ("134217728B", 2**27)]
)
def test_sizes_are_read(text, size_bytes):
    assert parse_bytes("gpu_memory", text) == size_bytes


@pytest.mark.parametrize("text", ["16GB", "16", "16gib", "-1GiB", "", "1e3GiB", "nan GiB", "9" * 400 + "GiB"])
def test_an_ambiguous_size_is_refused(text):
    with pytest.raises(InvalidArgument, match="gpu_memory must be a number with B, KiB, MiB or GiB, got"):
        parse_bytes("gpu_memory", text)


@pytest.mark.parametrize("text", ["1MiB", "5000GiB", "0GiB"])
def test_an_impossible_card_is_refused(text):
    with pytest.raises(InvalidArgument, match="must be between 64MiB and 4096GiB"):
        parse_bytes("gpu_memory", text)


@given(st.integers(64 * MIB, 4096 * GIB))
def test_bytes_survive_being_written_and_read(size_bytes):
    assert parse_bytes("gpu_memory", f"{size_bytes}B") == size_bytes
    assert parse_bytes("gpu_memory", exact_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "short", "exact"),
    [
        (16 * GIB, "16 GiB", "16GiB"),
        (100 * GIB, "100 GiB", "100GiB"),
        (3 * GIB // 2, "1.5 GiB", "1536MiB"),
        (15_634_661_376, "14.56 GiB", "15268224KiB"),
        (GIB + 1, "1 GiB", "1073741825B"),
    ],
)
def test_a_chosen_size_is_shown_short_and_written_exactly(size_bytes, short, exact):
    assert (short_gib(size_bytes), exact_size(size_bytes)) == (short, exact)
