"""A plan is the same value as arguments, as an address and as the values of a page's controls."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.alternatives.images import answer_images, parse_images
from planner.answer import BASES
from planner.cards.lookup import CATALOGUE, SLICES, card_named, shared_card
from planner.errors import InvalidArgument, UnknownCard
from planner.fit import fit
from planner.formula import estimate
from planner.plan import (
    ATTACHED,
    DEFAULT_GPUS,
    GPU_KEY,
    PLAN_FIELDS,
    PLAN_KEYS,
    Plan,
    answer_plan,
    default_of,
    plan_field,
    read_query,
)
from planner.request import FIELDS, GenerationRequest
from tests.unit.asked import plan_asked
from tests.unit.strategies import requests

NAMES = [card.name for card in (*CATALOGUE, *SLICES)]


@st.composite
def plans(draw) -> Plan:
    described = draw(st.booleans())
    return Plan(
        request=draw(requests()),
        gpus=draw(st.none() | st.lists(st.sampled_from([*NAMES, ATTACHED]), max_size=3, unique=True).map(tuple)),
        basis=draw(st.sampled_from(BASES)),
        published=draw(st.booleans()),
        gpu_memory="16GiB" if described else "",
        compute_capability="7.5" if described else "",
        attached=draw(st.booleans()),
        workers=draw(st.integers(1, 64)),
        images=draw(st.sampled_from(["", "512x512", "1024x768*2,512x512"])),
    )


@given(plans())
def test_an_address_holds_a_plan(plan):
    assert Plan.from_query(plan.to_query()) == plan
    assert Plan.from_values(plan.to_values()) == plan
    assert {name for name, _ in plan.to_query()} <= set(PLAN_KEYS)


def test_the_default_plan_has_an_empty_address():
    assert Plan().to_query() == []
    assert Plan.from_query([]) == Plan()


@given(plans())
def test_the_command_asks_for_the_same(plan):
    try:
        cards = plan.cards(lambda: [])
    except InvalidArgument:
        assert not plan.gpus or set(plan.gpus) == {ATTACHED}
        return
    again = plan_asked(shlex.split(plan.command(cards))[4:])
    assert (again.request, again.basis, again.published) == (plan.request, plan.basis, plan.published)
    assert [card.name for card in again.cards(lambda: [])] == [card.name for card in cards]


def test_gpus_are_those_chosen_or_the_default_ones():
    def gpus(**given) -> list[str]:
        return [card.name for card in Plan(**given).cards(lambda: [card_named("L4")])]

    assert gpus() == list(DEFAULT_GPUS) == default_of(GPU_KEY)
    assert gpus(gpus=("t4", "Tesla T4", "A10")) == ["T4", "A10"]
    assert gpus(gpus=("A10", ATTACHED, "T4")) == ["A10", "L4", "T4"]
    assert gpus(attached=True) == ["L4"]
    assert gpus(gpus=(ATTACHED,), attached=True) == ["L4"]
    [described] = Plan(gpu_memory="6GiB", compute_capability="8.6").cards(list)
    assert described.capability == "8.6"
    assert gpus(gpus=("T4",), workers=3) == [shared_card(card_named("T4"), 3).name]


def test_the_machine_is_not_asked_for_a_plan_without_its_gpus():
    def attached():
        raise AssertionError("nobody asked for them")

    assert Plan(gpus=("T4",)).cards(attached) and Plan().cards(attached)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"basis": "guess"}, "basis must be one of best, measured, calibrated, dry-run, formula, got 'guess'"),
        ({"workers": 0}, "workers must be between 1 and 64, got 0"),
        ({"workers": True}, "workers must be a whole number, got True"),
        ({"published": 1}, "published must be true or false, got 1"),
        ({"gpu_memory": "16GiB"}, "compute_capability must be given with gpu_memory, got None"),
        ({"compute_capability": "7.5"}, "gpu_memory must be given with compute_capability, got None"),
        ({"gpu_memory": 16, "compute_capability": "7.5"}, "gpu_memory must be text, got 16"),
    ],
)
def test_a_plan_keeps_its_rules(given, message):
    with pytest.raises(InvalidArgument) as caught:
        Plan(**given)
    assert str(caught.value).startswith(message)


def test_a_plan_of_no_gpu_says_so_where_they_are_asked_for():
    with pytest.raises(InvalidArgument, match="gpu must name a GPU"):
        Plan(gpus=()).cards(list)
    with pytest.raises(UnknownCard):
        Plan(gpus=("T5",))


def test_an_address_is_read_as_far_as_it_can_be():
    pairs = [("width", "wide"), ("height", "768"), ("height", "640"), (GPU_KEY, "T5"), (GPU_KEY, "t4"), ("map", "x")]
    values, errors = read_query(pairs)
    assert values == {"height": 640, GPU_KEY: ["T4"]}
    assert [type(error) for error in errors] == [InvalidArgument, UnknownCard]
    assert read_query([(GPU_KEY, "")]) == ({GPU_KEY: []}, [])
    assert read_query([]) == ({}, [])


def test_what_an_address_may_say_twice_and_what_not():
    with pytest.raises(InvalidArgument, match="height must be given once"):
        Plan.from_query([("height", "768"), ("height", "640")])
    with pytest.raises(InvalidArgument, match=r"unknown name, got 'heigth' \(did you mean height\?\)"):
        Plan.from_query([("heigth", "768")])
    assert Plan.from_query([("embed", "true"), (GPU_KEY, "T4"), (GPU_KEY, "A10")], ignored=["embed"]).gpus == (
        "T4",
        "A10",
    )


def test_every_field_has_its_words():
    for field in (*FIELDS, *PLAN_FIELDS):
        assert plan_field(field.name) is field or field in PLAN_FIELDS
        assert field.label and field.help.endswith(".") and field.name
        assert field.checked(field.default) == field.default


@given(requests())
def test_each_field_reads_what_it_writes(request):
    for field in FIELDS:
        value = getattr(request, field.name)
        assert field.checked(field.parse(field.text(value))) == value
        assert bool(field.arguments(value)) == (value != field.default)


def test_an_answer_is_that_of_each_part():
    plan = Plan(request=GenerationRequest(width=1024, height=1024), gpus=("T4", "A10"), images="4096x4096,512x512")
    cards = plan.cards(list)
    found = answer_plan(plan, cards)
    assert found.answers == tuple(fit(plan.request, card) for card in cards) and found.cards == cards
    assert found.formula == estimate(plan.request)
    assert found.images == answer_images(parse_images(plan.images), plan.request, cards)
    assert found.verdict == "no" and answer_plan(Plan(), [card_named("A100")]).verdict == "fits"


def test_what_an_answer_rests_on():
    assert not Plan(basis="formula").uses_library and not Plan(basis="formula").uses_evidence
    assert Plan(basis="dry-run").uses_library and not Plan(basis="dry-run").uses_evidence
    assert all(Plan(basis=basis).uses_evidence for basis in ("best", "calibrated", "measured"))
