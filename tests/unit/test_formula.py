import re

from hypothesis import given
from hypothesis import strategies as st

from planner.components import SD_V15
from planner.formula import estimate, get_base_vram, not_in_the_formula, total_vram, unet_memory
from planner.request import GenerationRequest
from tests.unit.strategies import requests


def transcription(height: int, width: int, prompt_length: int) -> dict[str, int]:
    """The published formula, typed in again from its text, in one block and with nothing shared."""
    base = (859_520_964 + 83_653_863 + 123_060_480) * 2
    encoder = height * width * 3 * 2 + 3 * (height * width * 3 * 2) + (height // 8) * (width // 8) * 4 * 2
    latent = (height // 8) * (width // 8)
    unet = latent * 745 * 2 * 3 + latent * prompt_length * 2
    decoder = (height // 8) * (width // 8) * 4 * 2 + height * width * 3 * 2 + 3 * (height * width * 3 * 2)
    total = int((base + max(encoder, unet, decoder)) * 1.2)
    return {
        "base_bytes": base,
        "vae_encoder_bytes": encoder,
        "unet_bytes": unet,
        "vae_decoder_bytes": decoder,
        "total_bytes": total,
    }


@given(requests())
def test_the_formula_equals_an_independent_transcription(request):
    breakdown = estimate(request)
    expected = transcription(request.height, request.width, request.prompt_tokens)
    assert {name: getattr(breakdown, name) for name in expected} == expected


def test_512_by_512_by_hand():
    breakdown = estimate(GenerationRequest())
    assert breakdown.base_bytes == 2_132_470_614
    assert breakdown.unet_bytes == 4096 * 745 * 6 + 4096 * 77 * 2 == 18_939_904
    assert breakdown.total_bytes == 2_581_692_621


@given(requests())
def test_bytes_are_whole_and_never_negative(request):
    breakdown = estimate(request)
    sizes = [size for _, _, size in breakdown.terms()] + [breakdown.activation_bytes]
    assert all(type(size) is int and size >= 0 for size in sizes)


@given(requests(width=st.integers(8, 1023).map(lambda x: x * 8), height=st.just(512), hires=1.0))
def test_wider_never_takes_less(request):
    wider = GenerationRequest.from_dict(request.to_dict() | {"width": request.width + 8})
    taller = GenerationRequest.from_dict(request.to_dict() | {"height": request.height + 8})
    for name in ("vae_encoder_bytes", "unet_bytes", "vae_decoder_bytes", "total_bytes"):
        assert getattr(estimate(wider), name) >= getattr(estimate(request), name)
        assert getattr(estimate(taller), name) >= getattr(estimate(request), name)


@given(requests(images_per_prompt=1), st.integers(1, 128))
def test_batch_is_not_in_the_formula_and_the_notes_say_so(request, batch):
    other = GenerationRequest.from_dict(request.to_dict() | {"batch": batch})
    assert estimate(other).total_bytes == estimate(request).total_bytes
    assert any(note.startswith(f"batch {batch}:") for note in not_in_the_formula(other)) == (batch > 1)


@given(requests())
def test_steps_do_not_move_the_peak(request):
    other = GenerationRequest.from_dict(request.to_dict() | {"steps": 1})
    assert estimate(other).total_bytes == estimate(request).total_bytes


@given(requests())
def test_the_parts_add_up(request):
    breakdown = estimate(request)
    parts = breakdown.base_bytes + breakdown.activation_bytes
    assert breakdown.total_bytes == parts + parts // 5
    assert breakdown.stages[breakdown.peak_stage] == breakdown.activation_bytes
    assert breakdown.base_bytes == get_base_vram(SD_V15)


@given(requests())
def test_the_numbers_put_in_give_the_bytes_beside_them(request):
    for name, expression, size in estimate(request).terms():
        # A comma between digits is a thousands separator; one before a space parts arguments.
        assert int(eval(re.sub(r"(?<=\d),(?=\d)", "", expression))) == size, name


def test_total_by_hand():
    assert total_vram(100, 5, 20, 10) == 144
    assert total_vram(101, 5, 20, 10) == 145


@given(st.integers(1, 77))
def test_only_the_unet_reads_the_prompt(tokens):
    assert unet_memory(512, 512, tokens) - unet_memory(512, 512, 1) == 4096 * 2 * (tokens - 1)


def test_every_option_without_a_term_is_named():
    request = GenerationRequest(
        batch=2,
        vae_tiling=True,
        vae_slicing=True,
        attention_slicing=True,
        channels_last=True,
        offload="model",
    )
    assert len(not_in_the_formula(request)) == 9
    (always,) = not_in_the_formula(GenerationRequest(guidance_scale=1, safety_checker=False))
    assert always.startswith("feature maps")
