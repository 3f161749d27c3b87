"""Test the canonical forms of a request, which caches and stored curves have for keys."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.programs.assemble import events_of
from planner.programs.files import shipped
from planner.replay.dry_run import dry_run
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest
from tests.unit.strategies import requests

sides = st.integers(64, 1200)


def test_the_form_under_which_curves_are_stored_stays():
    """Histories have a hash of these values for the key of a curve; with others, every curve is made again."""
    request = GenerationRequest(width=519, height=776, guidance_scale=12.0, steps=50, prompt_tokens=3)
    assert request.allocation_form().to_record() == {
        "task": "img2img",
        "width": 512,
        "height": 776,
        "batch": 1,
        "prompt_tokens": 77,
        "guidance_scale": 7.5,
        "steps": 6,
        "safety_checker": True,
        "vae_tiling": False,
        "vae_slicing": False,
        "attention_slicing": False,
        "channels_last": False,
        "offload": "none",
    }
    assert replace(request, guidance_scale=0.5, steps=2).allocation_form().guidance_scale == 1.0
    assert replace(request, steps=2).allocation_form().steps == 2


@settings(deadline=None)
@given(requests())
def test_a_form_is_its_own_form(request_):
    form, replayed = request_.allocation_form(), request_.replay_form()
    assert form.allocation_form() == form and form.is_tiled == request_.is_tiled
    assert replayed.replay_form() == replayed == form.replay_form()
    assert form.unet_batch == request_.unet_batch


def test_only_tiles_tell_portrait_from_landscape():
    portrait = GenerationRequest(width=512, height=776)
    assert portrait.replay_form() == replace(portrait, width=776, height=512).replay_form()
    tiled = replace(portrait, vae_tiling=True)
    assert tiled.is_tiled and tiled.replay_form() != replace(tiled, width=776, height=512).replay_form()
    one_tile = replace(tiled, height=512)
    assert not one_tile.is_tiled


@settings(max_examples=10, deadline=None)
@given(requests(width=sides, height=sides, batch=st.integers(1, 3), task=st.just("img2img")))
def test_a_replay_of_the_form_gives_the_same_peaks(request_):
    runs = [
        dry_run(events_of(shipped(), one), KernelPolicy.of((7, 5)))
        for one in (request_, request_.allocation_form(), request_.replay_form())
    ]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("field", ["batch", "safety_checker", "vae_slicing", "attention_slicing", "channels_last"])
def test_a_form_keeps_what_moves_allocations(field):
    request = GenerationRequest(batch=2)
    other = replace(request, **{field: 3 if field == "batch" else not getattr(request, field)})
    assert request.replay_form() != other.replay_form()
