import json
import pickle
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InvalidArgument
from planner.fields import parse_finite, parse_whole
from planner.request import GenerationRequest
from tests.unit.strategies import requests, sides


def test_defaults_are_the_contracts():
    assert GenerationRequest().to_dict() == {
        "task": "img2img",
        "width": 512,
        "height": 512,
        "batch": 1,
        "prompt_tokens": 77,
        "guidance_scale": 7.5,
        "steps": 50,
        "safety_checker": True,
        "vae_tiling": False,
        "vae_slicing": False,
        "attention_slicing": False,
        "channels_last": False,
        "offload": "none",
        "images_per_prompt": 1,
        "dtype": "float16",
        "controlnets": 0,
        "lora_rank": 0,
        "lora_text_encoder": False,
        "ip_adapter": "none",
        "attention": "sdpa",
        "allocator": "default",
        "channels_last_unet": False,
        "hires": 1.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "txt2img", "width": 500}, r"width must be a multiple of 8, got 500 \(nearest: 496 or 504\)"),
        ({"task": "txt2img", "height": 8191}, r"height must be a multiple of 8, got 8191 \(nearest: 8184 or 8192\)"),
        ({"task": "txt2img", "width": 65}, r"width must be a multiple of 8, got 65 \(nearest: 64 or 72\)"),
        ({"width": 63}, r"width must be between 64 and 8192, got 63 \(nearest: 64\)"),
        ({"height": 8193}, r"height must be between 64 and 8192, got 8193 \(nearest: 8192\)"),
        ({"width": True}, "width must be a whole number, got True"),
        ({"width": 512.0}, r"width must be a whole number, got 512\.0"),
        ({"width": "512"}, "width must be a whole number, got '512'"),
        ({"width": None}, "width must be a whole number, got None"),
        ({"batch": 0}, r"batch must be between 1 and 128, got 0 \(nearest: 1\)"),
        ({"batch": 129}, r"batch must be between 1 and 128, got 129 \(nearest: 128\)"),
        ({"steps": 1001}, r"steps must be between 1 and 1000, got 1001 \(nearest: 1000\)"),
        ({"prompt_tokens": 78}, r"prompt_tokens must be between 1 and 77, got 78 \(nearest: 77\)"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"guidance_scale": -1.0}, r"guidance_scale must be between 0 and 100, got -1\.0 \(nearest: 0\)"),
        ({"guidance_scale": 101}, r"guidance_scale must be between 0 and 100, got 101 \(nearest: 100\)"),
        ({"safety_checker": 1}, "safety_checker must be true or false, got 1"),
        (
            {"task": "img2imgg"},
            r"task must be one of img2img, txt2img, inpaint, got 'img2imgg' \(did you mean img2img\?\)",
        ),
        ({"offload": "modle"}, r"offload must be one of none, model, sequential, got 'modle' \(did you mean model\?\)"),
    ],
)
def test_a_broken_rule_names_argument_rule_value_and_way_out(changes, message):
    with pytest.raises(InvalidArgument, match=f"^{message}$"):
        GenerationRequest(**changes)


def test_a_huge_value_is_not_echoed_whole():
    with pytest.raises(InvalidArgument) as caught:
        GenerationRequest(task="x" * 100_000)
    assert len(str(caught.value)) < 200


@given(sides, sides)
def test_img2img_takes_every_size_and_rounds_down(width, height):
    request = GenerationRequest(width=width, height=height)
    assert request.effective_width % 8 == request.effective_height % 8 == 0
    assert 0 <= width - request.effective_width < 8
    assert (request.latent_width, request.latent_height) == (width // 8, height // 8)
    assert request.is_rounded == bool(width % 8 or height % 8)


@pytest.mark.parametrize(("guidance_scale", "factor"), [(0, 1), (1, 1), (1.0, 1), (1.001, 2), (7.5, 2)])
def test_guidance_above_one_doubles_the_unet_batch(guidance_scale, factor):
    assert GenerationRequest(batch=3, guidance_scale=guidance_scale).unet_batch == 3 * factor


@given(requests())
def test_a_request_is_a_value(request):
    again = GenerationRequest.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request == pickle.loads(pickle.dumps(request))
    assert hash(again) == hash(request)
    assert again.request_id == request.request_id


def test_the_same_work_has_the_same_id():
    assert GenerationRequest(width=515).request_id == GenerationRequest(width=512).request_id
    assert GenerationRequest(guidance_scale=-0.0).request_id == GenerationRequest(guidance_scale=0).request_id
    assert GenerationRequest(guidance_scale=7).request_id == GenerationRequest(guidance_scale=7.0).request_id


@given(requests(width=st.just(512), height=st.just(512), images_per_prompt=1))
def test_other_work_has_another_id(request):
    other = replace(request, batch=request.batch % 128 + 1)
    assert other.request_id != request.request_id


def test_an_unknown_field_is_refused():
    with pytest.raises(InvalidArgument, match=r"unknown field, got 'widht' \(did you mean width\?\)"):
        GenerationRequest.from_dict({"widht": 512})


def test_typed_numbers():
    assert parse_whole("width", " 512 ") == 512
    assert parse_finite("guidance_scale", "7.5") == 7.5
    for text in ("", "abc", "5.5", "1e3"):
        with pytest.raises(InvalidArgument, match="width must be a whole number"):
            parse_whole("width", text)
    with pytest.raises(InvalidArgument, match="guidance_scale must be a finite number"):
        parse_finite("guidance_scale", "seven")


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("9" * 23, 8192), ("9" * 5000, 8192), ("9" * 1_000_000, 8192), ("-" + "9" * 5000, 64), ("+" + "1" * 101, 8192)],
    ids=lambda value: str(len(value)) if isinstance(value, str) else None,
)
def test_a_number_of_any_length_is_a_whole_one_out_of_range(text, nearest):
    message = rf"^width must be between 64 and 8192, got {re.escape(text.lstrip('+')[:23])}.*\(nearest: {nearest}\)$"
    with pytest.raises(InvalidArgument, match=message) as caught:
        GenerationRequest(width=parse_whole("width", text))
    assert len(str(caught.value)) < 160


def test_zeros_in_front_do_not_count():
    assert parse_whole("width", "0" * 5000 + "512") == 512
    assert parse_whole("width", "-000") == 0
    with pytest.raises(InvalidArgument, match="must be a whole number"):
        parse_whole("width", "0" * 1_000_000 + "x")


def test_a_number_that_python_does_not_write_out_is_refused_as_any_other():
    with pytest.raises(InvalidArgument, match=r"width must be .* got a whole number of 16610 bits \(nearest: 8192\)"):
        GenerationRequest(width=10**5000)


def test_description_names_what_is_unusual():
    request = GenerationRequest(width=500, batch=2, guidance_scale=1, safety_checker=False, vae_tiling=True)
    assert request.describe() == (
        "img2img 496×512, batch 2, unguided (UNet batch 2), 50 steps, vae tiling, no safety checker"
    )
    assert GenerationRequest(steps=1).describe().endswith("batch 1, guided (UNet batch 2), 1 step")
