import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.components import STAGES
from planner.errors import InvalidArgument
from planner.fit import BASES, EXIT_CODES, fit, worst
from planner.formula import estimate
from planner.gpus import CATALOGUE, Card, card_named
from planner.request import GenerationRequest
from tests.unit.strategies import requests

cards = st.sampled_from(CATALOGUE)


def a_card(usable_bytes: int) -> Card:
    return Card(
        name="any",
        usable_bytes=usable_bytes,
        usable_high_bytes=usable_bytes,
        context_bytes=1,
        context_low_bytes=1,
        compute_capability=(7, 5),
    )


@given(requests(), cards)
def test_the_formula_answers_with_its_total(request, card):
    answer = fit(request, card)
    total = estimate(request).total_bytes
    assert answer.basis == "formula"
    assert answer.need_bytes == answer.minimum_bytes == total
    assert answer.headroom_bytes == card.usable_bytes - total
    assert answer.verdict == ("fits" if answer.headroom_bytes >= 0 else "no")


@given(requests(), cards)
def test_the_laws_between_the_sizes(request, card):
    answer = fit(request, card)
    assert answer.minimum_bytes <= answer.need_bytes
    assert answer.minimum_allocated_bytes <= answer.peak_allocated_bytes <= answer.peak_reserved_bytes
    assert answer.need_bytes == answer.peak_reserved_bytes + answer.context_bytes
    assert answer.interval_bytes[0] <= answer.peak_allocated_bytes <= answer.interval_bytes[1]
    assert set(answer.stages) == set(STAGES)
    assert answer.stages[answer.peak_stage] == max(answer.stages.values()) == answer.peak_allocated_bytes
    sizes = [answer.need_bytes, answer.headroom_bytes, answer.context_bytes, *answer.stages.values()]
    assert all(type(size) is int for size in sizes)


def test_the_verdict_turns_at_the_byte():
    request = GenerationRequest(width=2048, height=2048)
    total = estimate(request).total_bytes
    assert fit(request, a_card(total)).verdict == "fits"
    missed = fit(request, a_card(total - 1))
    assert (missed.verdict, missed.headroom_bytes) == ("no", -1)


@pytest.mark.parametrize("basis", ["dry-run", "calibrated", "measured"])
def test_a_basis_with_nothing_to_say_is_unknown_and_says_why(basis):
    answer = fit(GenerationRequest(), card_named("T4"), basis)
    assert (answer.verdict, answer.basis, answer.need_bytes, answer.headroom_bytes) == ("unknown", basis, None, None)
    assert basis in answer.reason


def test_an_unknown_basis_is_refused():
    with pytest.raises(InvalidArgument, match=f"basis must be one of {', '.join(BASES)}, got 'guess'"):
        fit(GenerationRequest(), card_named("T4"), "guess")


def test_exit_codes_are_the_contracts():
    assert EXIT_CODES == {"fits": 0, "tight": 11, "no": 10, "unknown": 12}


def test_over_several_cards_the_worst_decides():
    order = ["no", "unknown", "tight", "fits"]
    for length in (1, 2, 3):
        for verdicts in itertools.product(order, repeat=length):
            assert worst(verdicts) == min(verdicts, key=order.index)
