"""Which requests one resident pipeline serves."""

from dataclasses import replace

import pytest
from hypothesis import given

from cache.jobs.resident import pipeline_key
from planner.request import OPTIONS, GenerationRequest
from tests.unit.strategies import requests

BASE = GenerationRequest(task="txt2img", lora_rank=4)
OTHER = {
    "safety_checker": False,
    "attention_slicing": True,
    "channels_last": True,
    "channels_last_unet": True,
    "offload": "model",
    "dtype": "bfloat16",
    "controlnets": 1,
    "lora_rank": 8,
    "lora_text_encoder": True,
    "ip_adapter": "base",
    "attention": "eager",
    "allocator": "expandable",
}
SAME = {"vae_tiling": True, "vae_slicing": True, "images_per_prompt": 2, "hires": 2.0}


def test_every_option_is_tested():
    assert OTHER.keys() | SAME.keys() == {field.name for field in OPTIONS}


@pytest.mark.parametrize("name", OTHER)
def test_an_option_that_is_built_in_needs_another_pipeline(name):
    assert pipeline_key(replace(BASE, **{name: OTHER[name]})) != pipeline_key(BASE)


@pytest.mark.parametrize("changes", [*({name: value} for name, value in SAME.items()), {"width": 64, "batch": 3}])
def test_a_run_of_another_size_shares_the_pipeline(changes):
    assert pipeline_key(replace(BASE, **changes)) == pipeline_key(BASE)


def test_inpainting_has_a_unet_of_its_own():
    assert pipeline_key(replace(BASE, task="img2img")) == pipeline_key(BASE)
    assert pipeline_key(replace(BASE, task="inpaint")) != pipeline_key(BASE)


def test_channels_last_for_all_covers_that_of_the_unet():
    both = replace(BASE, channels_last=True)
    assert pipeline_key(replace(both, channels_last_unet=True)) == pipeline_key(both)


@given(requests(), requests())
def test_keys_sort_with_defaults_first(one, other):
    assert pipeline_key(GenerationRequest()) <= min(pipeline_key(one), pipeline_key(other))
