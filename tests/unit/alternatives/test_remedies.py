"""Remedies: each is what fit() says of the changed request, none is on already, and its code exists."""

import ast
import inspect
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.alternatives.changes import settings_for, why_inert
from planner.alternatives.remedies import Remedies, remedies
from planner.alternatives.sizes import (
    RATIOS,
    fits,
    largest_size,
    ratio_of,
    size_at,
    sizes,
    smaller_batch,
    smaller_size,
    steps_of,
)
from planner.answer import Answer
from planner.cards.lookup import CATALOGUE, SLICES, card_named, described_card, shared_card
from planner.errors import NoProgram
from planner.fit import fit
from planner.programs.files import shipped
from planner.request import TASKS, GenerationRequest
from tests.unit.strategies import requests

BIG = GenerationRequest(width=2048, height=2048)
# Small enough to be tried in a second.
SIDES = st.integers(8, 160).map(lambda latent: latent * 8)
REQUESTS = requests(
    width=SIDES,
    height=SIDES,
    batch=st.integers(1, 12),
    # These make a replay several times as long.
    controlnets=st.just(0),
    ip_adapter=st.just("none"),
    images_per_prompt=st.integers(1, 2),
    hires=st.just(1.0),
    # Of bfloat16 half the GPUs have no dry run that a change could be compared with.
    dtype=st.sampled_from(["float16", "float32"]),
)


def by_key(found: Remedies) -> dict:
    return {remedy.keys: remedy for remedy in found.found}


def decisive(answer: Answer, base: Answer) -> int | None:
    return answer.minimum_bytes if base.verdict == "no" else answer.worst_need_bytes or answer.need_bytes


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=REQUESTS, card=st.sampled_from(CATALOGUE))
def test_every_remedy_is_what_fit_says_of_the_changed_request(request, card):
    found = remedies(request, card)
    assert found.base == fit(request, card, "dry-run")
    for remedy in found.found:
        changed = replace(request, **dict(remedy.changes))
        assert remedy.request == changed
        again = fit(changed, remedy.answer.card, "dry-run")
        assert remedy.answer == again
        assert remedy.need_change_bytes == again.need_bytes - found.base.need_bytes
        assert remedy.minimum_change_bytes == again.minimum_bytes - found.base.minimum_bytes
        # Not on already, and named on one card or another.
        assert changed != request or remedy.answer.card != card
        assert remedy.cost and remedy.remark
        if remedy.effect in ("fits", "tight"):
            assert remedy.answer.verdict == remedy.effect != found.base.verdict
        if remedy.effect == "saves":
            assert decisive(again, found.base) < decisive(found.base, found.base)
    places = [("fits", "tight", "saves", "nothing").index(remedy.effect) for remedy in found.found]
    assert places == sorted(places)
    assert found.useful + found.useless == found.found
    assert len({remedy.title for remedy in found.found}) == len(found.found)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=REQUESTS, card=st.sampled_from(CATALOGUE))
def test_combinations_are_only_where_no_setting_alone_is_enough(request, card):
    found = remedies(request, card)
    alone = {change.key for change in settings_for(request)}
    enough = any(
        remedy.effect == "fits" and set(remedy.keys) <= alone and len(remedy.keys) == 1 for remedy in found.found
    )
    together = [remedy for remedy in found.found if len(remedy.keys) > 1]
    if enough or found.base.verdict == "fits":
        assert not together
    assert len({len(remedy.keys) for remedy in together}) <= 1
    assert all(remedy.effect in ("fits", "tight") for remedy in together)


def test_where_a_setting_alone_is_too_little_two_together_are_found():
    request = GenerationRequest(width=4096, height=4096, vae_tiling=True)
    found = by_key(remedies(request, card_named("RTX 4060")))
    both = found[("offload", "guidance_scale")]
    assert (both.effect, both.title) == ("fits", "Model offload and no guidance")
    assert found[("offload",)].answer.verdict == "no" and found[("guidance_scale",)].answer.verdict == "tight"
    assert both.request == replace(request, offload="model", guidance_scale=1.0)


@settings(max_examples=25, deadline=None)
@given(request=requests(), data=st.data())
def test_what_is_said_to_move_nothing_moves_nothing(request, data):
    small = replace(request, width=min(request.width, 512), height=min(request.height, 512), batch=1)
    small = replace(small, vae_slicing=False, vae_tiling=False, images_per_prompt=1, hires=1.0)
    inert = [change for change in settings_for(small) if why_inert(change, small)]
    assert {change.key for change in inert} == {"vae_slicing", "vae_tiling"}
    change = data.draw(st.sampled_from(inert))
    assert fit(change.of(small), card_named("T4"), "dry-run") == fit(small, card_named("T4"), "dry-run")


@settings(max_examples=40, deadline=None)
@given(request=REQUESTS, card=st.sampled_from(CATALOGUE))
def test_the_quick_question_has_the_answer_of_the_long_one(request, card):
    assert fits(request, card, shipped()) == (fit(request, card, "dry-run").verdict == "fits")


def test_the_batch_and_the_size_are_the_largest_that_fit():
    request, card = GenerationRequest(width=1024, height=768, batch=8), card_named("T4")
    found = by_key(remedies(request, card))
    batch, size = found[("batch",)].request, found[("size",)].request
    assert found[("batch",)].effect == found[("size",)].effect == "fits"
    assert fit(replace(request, batch=batch.batch + 1), card, "dry-run").verdict != "fits"
    assert size.width % 8 == size.height % 8 == 0 and size.batch == 8
    # Of the same shape, the longer side rounded down.
    assert 0 <= size.height * 1024 / 768 - size.width < 8
    larger = replace(request, width=size.width + 8, height=size.height + 8)
    assert fit(larger, card, "dry-run").verdict != "fits"


def test_the_size_and_the_batch_are_those_of_the_table_of_sizes():
    request, card = GenerationRequest(width=1024, height=1024, batch=4), card_named("T4")
    found, table = by_key(remedies(request, card)), sizes(request, card)
    assert str(table.sizes["square"]) == found[("size",)].title == "840×840"
    assert found[("batch",)].request.batch == table.batch.images


def test_a_larger_size_that_fits_is_named_beside_the_smaller_one():
    # 600 pixels need 70 MiB more than 640, as blocks happen to be cut.
    request = GenerationRequest(width=600, height=600, offload="model")
    need = fit(replace(request, width=640, height=640), card_named("A10")).need_bytes
    card = replace(card_named("A10"), usable_bytes=need, usable_high_bytes=need)
    size = by_key(remedies(request, card))[("size",)]
    assert size.request.width < 600 < sizes(request, card).sizes["square"].width
    assert f"{sizes(request, card).sizes['square']}, larger than asked for, fits too." in size.cost


@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_size_or_batch_is_the_tables_and_one_step_more_does_not_fit(seed):
    rng, library, looked = random.Random(seed), shipped(), 0
    while looked < 5:
        card, ratio = rng.choice(CATALOGUE), rng.choice(list(RATIOS.values()))
        width, height = size_at(ratio, rng.randint(60, 130))
        request = GenerationRequest(
            width=width,
            height=height,
            batch=rng.choice([1, 2, 3, 4, 6]),
            guidance_scale=rng.choice([1.0, 7.5]),
            vae_slicing=rng.random() < 0.3,
            channels_last=rng.random() < 0.3,
            offload=rng.choice(["none", "model"]),
        )
        if fits(request, card, library):
            continue
        looked += 1
        size, batch = smaller_size(request, card, library), smaller_batch(request, card, library)
        most = largest_size(request, card, ratio, library)
        assert ratio_of(request) == ratio
        own, step = min(width, height) // 8, min(size.width, size.height) // 8 if size else steps_of(ratio)[0] - 1
        if most is None or min(most.width, most.height) // 8 < own:
            assert size == most
        assert step < own and batch < request.batch
        assert size is None or fits(replace(request, width=size.width, height=size.height), card, library)
        wider, higher = size_at(ratio, step + 1)
        assert not fits(replace(request, width=wider, height=higher), card, library)
        assert not batch or fits(replace(request, batch=batch), card, library)
        assert not fits(replace(request, batch=batch + 1), card, library)


def test_the_next_card_is_the_smallest_that_is_enough():
    card = card_named("RTX 4060")
    other = by_key(remedies(BIG, card))[("card",)].answer.card
    assert fit(BIG, other, "dry-run").verdict == "fits"
    between = [c for c in CATALOGUE if card.usable_bytes < c.usable_bytes < other.usable_bytes]
    assert between and all(fit(BIG, c, "dry-run").verdict != "fits" for c in between)


def test_a_share_of_a_card_is_followed_by_a_share_of_a_larger_one():
    share = shared_card(card_named("A100"), 4)
    other = by_key(remedies(BIG, share))[("card",)].answer.card
    assert other.name == "A100-80GB, 1 of 4 workers"
    assert fit(BIG, other, "dry-run").verdict == "fits"


def test_a_shared_card_is_shared_by_fewer():
    request, card = GenerationRequest(width=1024, height=1024, batch=4), card_named("A10")
    found = by_key(remedies(request, shared_card(card, 3)))[("workers",)]
    assert (found.title, found.effect, found.code) == ("1 worker per GPU", "fits", ())
    assert found.request == request and found.answer == fit(request, card, "dry-run")
    assert found.remark == "Makes it fit: each has 22.03 GiB usable in place of 7.34 GiB."
    assert "one process has the GPU alone in place of 3" in found.cost


@settings(max_examples=10, deadline=None)
@given(
    side=st.integers(40, 128).map(lambda latent: latent * 8),
    card=st.sampled_from([*CATALOGUE, *SLICES, described_card("20GiB", "8.6")]),
    workers=st.integers(1, 12),
)
def test_as_many_workers_are_left_as_fit_or_else_as_run(side, card, workers):
    request = GenerationRequest(width=side, height=side)
    share = shared_card(card, workers)
    found = by_key(remedies(request, share)).get(("workers",))
    verdicts = [fit(request, shared_card(card, n), "dry-run").verdict for n in range(1, workers)]
    wanted = "fits" if "fits" in verdicts else "tight" if "tight" in verdicts else None
    verdict = fit(request, share, "dry-run").verdict
    if wanted is None or verdict == "fits" or verdict == wanted:
        assert found is None
    else:
        most = max(n + 1 for n, verdict in enumerate(verdicts) if verdict == wanted)
        assert found is not None and (found.effect, found.answer.verdict) == (wanted, wanted)
        assert (found.answer.card.whole, found.answer.card.workers) == (card, most)


def test_another_share_is_of_the_same_card():
    for card in (*CATALOGUE, *SLICES):
        for workers in (1, 2, 7):
            assert shared_card(shared_card(card, 3), workers) == shared_card(card, workers)
    described = described_card("16GiB", "7.5")
    assert shared_card(shared_card(described, 3), 1) is described


def test_what_does_not_help_says_so():
    found = by_key(remedies(BIG, card_named("T4")))
    slicing, attention, tiling = found[("vae_slicing",)], found[("attention_slicing",)], found[("vae_tiling",)]
    assert slicing.remark.startswith("Does nothing at batch 1") and not slicing.touches_peak
    assert slicing.effect == "nothing" and slicing.need_change_bytes == 0
    assert attention.effect == "nothing" and attention.answer.verdict == "no"
    assert attention.remark.startswith("Raises the need by 57.99 GiB: without the fused kernels")
    assert tiling.touches_peak and tiling.remark == "Makes it fit: the peak moves to the UNet."
    assert "seam" not in tiling.cost and "overlap" in tiling.cost
    unguided = found[("guidance_scale",)]
    assert unguided.remark == "Does not touch the VAE decoder, where the memory peaks."


def test_a_request_that_fits_is_left_as_it_is():
    found = remedies(GenerationRequest(), card_named("T4"))
    assert found.base.verdict == "fits"
    assert not {"batch", "size", "card"} & {key for remedy in found.found for key in remedy.keys}
    assert {remedy.effect for remedy in found.found} == {"saves", "nothing"}


def test_what_takes_the_memory_is_taken_back():
    request = GenerationRequest(width=2048, height=2048, attention_slicing=True)
    first = remedies(request, card_named("A100")).found[0]
    assert (first.keys, first.effect) == (("attention_slicing",), "fits")
    assert first.code == ("pipe.disable_attention_slicing()",)


def test_the_first_to_try_costs_least():
    found = remedies(GenerationRequest(width=1024, height=1024, batch=4), card_named("T4"))
    fitting = [remedy.title for remedy in found.found if remedy.effect == "fits"]
    assert fitting == ["VAE slicing", "VAE tiling", "Batch 2", "L4", fitting[-1]]
    assert fitting[-1].endswith("×840")


def test_without_programs_there_are_none():
    with pytest.raises(NoProgram):
        remedies(GenerationRequest(), card_named("T4"), replace(shipped(), routines={}))


CODE_CASES = [
    ({}, {}),
    ({"attention_slicing": True, "channels_last": True, "offload": "model"}, {}),
    ({"attention": "eager", "dtype": "float32", "lora_rank": 8, "channels_last_unet": True}, {}),
    ({"controlnets": 2, "ip_adapter": "base", "offload": "sequential"}, {"images_per_prompt": 2}),
]


@pytest.mark.parametrize("task", TASKS)
def test_every_line_of_code_names_what_the_real_pipeline_has(task):
    import os

    import diffusers
    import torch
    from diffusers.models.attention_processor import AttnProcessor2_0
    from PIL import Image

    from planner.tracing.pipeline import assemble, component_modules

    pipeline = assemble(component_modules(GenerationRequest(task=task)), GenerationRequest(task=task))
    names = {"pipe": pipeline, "torch": torch, "image": Image.Image, "os": os, "AttnProcessor2_0": AttnProcessor2_0}
    changes, checked = [], 0
    for options, more in CODE_CASES:
        changes += settings_for(GenerationRequest(task=task, **options, **more))
    request = GenerationRequest(task=task, width=2048, height=2048, batch=4)
    sized = [remedy for remedy in remedies(request, card_named("T4")).found if remedy.keys in (("batch",), ("size",))]
    assert len(sized) == 2
    keys = {change.key for change in changes}
    assert keys >= {"allocator", "offload_sequential", "dtype", "attention", "lora_rank", "images_per_prompt"}
    assert keys >= {"ip_adapter", "controlnets", "channels_last_unet"}
    for line in {line for change in [*changes, *sized] for line in change.code}:
        for node in ast.walk(ast.parse(line)):
            if isinstance(node, ast.Attribute):
                checked += 1
                owner = eval(ast.unparse(node.value), vars(diffusers) | names)
                assert hasattr(owner, node.attr), line
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pipe":
                accepted = inspect.signature(type(pipeline).__call__).parameters
                assert {keyword.arg for keyword in node.keywords} <= set(accepted), line
                checked += 1
    assert checked >= 20


EVERYTHING = {
    "dtype": "float32",
    "attention": "eager",
    "lora_rank": 64,
    "lora_text_encoder": True,
    "ip_adapter": "plus",
    "controlnets": 2,
    "images_per_prompt": 2,
}


def test_options_that_cost_memory_are_taken_back_and_the_picture_is_touched_last():
    found = remedies(GenerationRequest(width=768, height=768, **EVERYTHING), card_named("T4"))
    by = by_key(found)
    assert by[("lora_rank",)].changes == (("lora_rank", 0), ("lora_text_encoder", False))
    assert by[("lora_rank",)].need_change_bytes < 0 and by[("dtype",)].need_change_bytes < 0
    assert by[("attention",)].request.attention == "sdpa"
    assert by[("images_per_prompt",)].need_change_bytes < 0
    assert by[("controlnets",)].title == "1 ControlNet" and by[("controlnets",)].need_change_bytes < -(2**29)
    assert by[("offload_sequential",)].need_change_bytes < min(0, by[("offload",)].need_change_bytes)
    # Attention slicing would replace the IP-Adapter's processors.
    assert ("attention_slicing",) not in by
    last = max((change for change in settings_for(found.request)), key=lambda change: change.rank)
    assert last.key == "ip_adapter" and "last resort" in last.cost
    assert all(not {"ip_adapter", "controlnets"} & set(keys) for keys in by if len(keys) > 1)


def test_the_last_controlnet_gives_way_to_the_plain_pipeline():
    changes = {change.key: change for change in settings_for(GenerationRequest(task="inpaint", controlnets=1))}
    assert changes["controlnets"].title == "No ControlNet"
    assert changes["controlnets"].code == ("pipe = StableDiffusionInpaintPipeline.from_pretrained(...)",)


def test_expandable_segments_are_suggested_with_their_variable_and_what_they_save():
    found = by_key(remedies(GenerationRequest(width=600, height=600), card_named("T4")))
    allocator = found[("allocator",)]
    assert allocator.code == ('os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"',)
    assert (allocator.effect, allocator.request.allocator) == ("saves", "expandable")


@pytest.mark.parametrize("side", [600, 776, 1048])
def test_a_size_one_or_two_steps_away_is_named_where_it_needs_less_than_its_pixels_explain(side):
    request, card = GenerationRequest(width=side, height=side), card_named("A10")
    base = fit(request, card, "dry-run")
    needs = {step: fit(request_at(request, step), card, "dry-run").need_bytes for step in (-2, -1, 1, 2)}
    saved = {step: base.need_bytes - need for step, need in needs.items()}
    share = {step: 1 - (side + 8 * step) ** 2 / side**2 for step in needs}
    named = [
        step
        for step, bytes_ in saved.items()
        if bytes_ >= 16 * 2**20 and (step > 0 or bytes_ > 2 * share[step] * base.need_bytes)
    ]
    found = by_key(remedies(request, card)).get(("near_size",))
    assert (found is not None) == bool(named)
    if found:
        step = (found.request.width - side) // 8
        assert step in named and found.need_change_bytes == -saved[step]
        assert found.title == f"{side + 8 * step}×{side + 8 * step}, {8 * abs(step)} pixels " + (
            "larger" if step > 0 else "smaller"
        )


def request_at(request: GenerationRequest, step: int) -> GenerationRequest:
    return replace(request, width=request.width + 8 * step, height=request.height + 8 * step)
