"""Test that the cost of a question is known before its work, and is about what the work does."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pages.shared.guard.cost import REPLAYS_OF_GPU, REPLAYS_OF_KERNELS, TooMuch, check_cost, cost_of, events_count
from pages.shared.guard.settings import MOST_EVENTS
from planner.cards.catalogue import CATALOGUE
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.plan import Plan
from planner.programs.assemble import events_of
from planner.programs.files import shipped
from planner.request import GenerationRequest

SIDES = st.integers(8, 1024).map(lambda latents: latents * 8)
REQUESTS = st.builds(
    GenerationRequest,
    task=st.sampled_from(["txt2img", "img2img"]),
    width=SIDES,
    height=SIDES,
    batch=st.sampled_from([1, 2, 3, 8, 33, 128]),
    vae_tiling=st.booleans(),
    vae_slicing=st.booleans(),
    channels_last=st.booleans(),
    safety_checker=st.booleans(),
)
EVERY_GPU = tuple(row.name for row in CATALOGUE)


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
def test_events_are_counted_as_they_are_assembled(request):
    assembled = len(events_of(shipped(), request.replay_form()).kinds)
    counted = events_count(shipped(), request)
    assert assembled <= counted <= assembled * 4 / 3
    if not request.vae_tiling:
        assert counted == assembled


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 4096, "height": 4096},
        {"width": 2048, "height": 2048, "vae_tiling": True},
        {"width": 1024, "height": 1024, "batch": 16},
        {"width": 1600, "height": 1608, "batch": 3, "vae_tiling": True, "vae_slicing": True},
    ],
)
def test_no_answer_replays_more_often_than_is_counted(options, monkeypatch):
    from planner.replay import fast_replay

    original, replays = fast_replay._engine.play, []
    monkeypatch.setattr(fast_replay._engine, "play", lambda *given: replays.append(1) or original(*given))
    # Answers of other tests must not be ready: these steps are nobody else's.
    request = GenerationRequest(steps=3, guidance_scale=1.0, **options)
    seen = set()
    for name in ("T4", "A10", "V100-16GB", "H100-80GB", "A100-40GB", "RTX 4090"):
        card = card_named(name)
        replays.clear()
        fit(request, card, "dry-run", library=shipped())
        is_new = card.compute_capability not in seen
        seen.add(card.compute_capability)
        assert len(replays) <= REPLAYS_OF_KERNELS * is_new + REPLAYS_OF_GPU


def test_more_gpus_images_and_tiles_cost_more():
    library, plans = shipped(), {}
    for gpus, images, tiling in itertools.product(
        (("T4",), ("T4", "A100", "V100-16GB")), ("", "1024x1024,2048x2048"), (0, 1)
    ):
        request = GenerationRequest(width=4096, height=4096, vae_tiling=bool(tiling))
        plan = Plan(request=request, gpus=gpus, images=images)
        plans[len(gpus), bool(images), tiling] = cost_of(plan, plan.cards(list), library)
    for (gpus, images, tiling), cost in plans.items():
        assert plans[3, images, tiling] >= cost and plans[gpus, True, tiling] >= cost and plans[gpus, images, 1] >= cost
    assert plans[3, True, 1] > plans[1, True, 1] > plans[1, False, 1] > plans[1, False, 0]


def test_equal_images_cost_once():
    once, often = (Plan(images=",".join(["1024x768"] * count)) for count in (1, 24))
    assert cost_of(once, once.cards(list), shipped()) == cost_of(often, often.cards(list), shipped())


def test_the_formula_costs_nothing():
    plan = Plan(basis="formula", gpus=EVERY_GPU)
    assert cost_of(plan, plan.cards(list), shipped()) == cost_of(Plan(), [], None) == 0


def test_what_people_ask_is_answered():
    for gpus, images, request in (
        (EVERY_GPU, "", GenerationRequest()),
        (EVERY_GPU, "", GenerationRequest(width=8192, height=8192, vae_tiling=True)),
        (None, ",".join(f"{size}x768" for size in range(512, 896, 16)), GenerationRequest()),
    ):
        plan = Plan(request=request, gpus=gpus, images=images)
        assert check_cost(plan, plan.cards(list), shipped(), MOST_EVENTS) > 0


def test_too_large_a_question_says_what_to_reduce():
    images = ",".join(f"8192x{side}" for side in range(8192, 8192 - 24 * 8, -8))
    request = GenerationRequest(width=8192, height=8192, vae_tiling=True, vae_slicing=True)
    plan = Plan(request=request, gpus=EVERY_GPU, images=images)
    with pytest.raises(TooMuch) as refused:
        check_cost(plan, plan.cards(list), shipped(), MOST_EVENTS)
    assert str(refused.value).startswith(f"the question must replay at most {MOST_EVENTS:,} allocator events in all")
    for way in ("fewer GPUs (", "fewer images (24 are listed)", "smaller images, which have fewer tiles"):
        assert way in str(refused.value)
