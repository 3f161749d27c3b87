import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.answer import BASES, EXIT_CODES, MINIMUM_STEP, worst
from planner.cards.lookup import CATALOGUE, Card, card_named
from planner.components import STAGES
from planner.errors import InvalidArgument
from planner.fit import fit
from planner.formula import estimate
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.request import GenerationRequest
from planner.units import GIB, MIB
from tests.bench.planning import forget
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


# A dry run that was not asked for before takes a tenth of a second.
few = settings(max_examples=40, deadline=None)


@given(requests(), cards)
def test_the_formula_answers_with_its_total(request, card):
    answer = fit(request, card, "formula")
    total = estimate(request).total_bytes
    assert answer.basis == "formula"
    assert answer.need_bytes == answer.minimum_bytes == total
    assert answer.headroom_bytes == card.usable_bytes - total
    assert answer.verdict == ("fits" if answer.headroom_bytes >= 0 else "no")


@few
@given(requests(), cards, st.sampled_from(["best", "formula", "dry-run"]))
def test_the_laws_between_the_sizes(request, card, basis):
    answer = fit(request, card, basis)
    assert answer.basis == ("dry-run" if basis == "best" else basis)
    if request.dtype == "bfloat16" and card.compute_capability < (8, 0) and basis != "formula":
        # No rule says what these kernels take.
        assert (answer.verdict, answer.need_bytes) == ("unknown", None) and "bfloat16" in answer.reason
        return
    assert answer.minimum_bytes <= answer.need_bytes
    assert answer.minimum_allocated_bytes <= answer.peak_allocated_bytes <= answer.peak_reserved_bytes
    assert answer.need_bytes == answer.peak_reserved_bytes + answer.context_bytes
    assert answer.interval_bytes[0] <= answer.peak_allocated_bytes <= answer.interval_bytes[1]
    assert set(answer.stages) == set(STAGES)
    assert answer.stages[answer.peak_stage] == max(answer.stages.values()) == answer.peak_allocated_bytes
    sizes = [answer.need_bytes, answer.headroom_bytes, answer.context_bytes, *answer.stages.values()]
    assert all(type(size) is int for size in sizes)
    # Verdicts follow from the two thresholds.
    if answer.verdict == "fits":
        assert answer.headroom_bytes >= 0
    if answer.verdict == "no":
        assert answer.minimum_bytes > card.usable_bytes
    if answer.minimum_bytes <= card.usable_bytes:
        assert answer.verdict in ("fits", "tight")
    if not answer.assumptions:
        assert (answer.verdict == "fits") == (answer.headroom_bytes >= 0)
        # A run differs from its repetition: 3.184 and 3.192 GiB were measured of one request on one A10G.
        low, high = answer.interval_bytes
        if basis != "formula":
            assert high - low == pytest.approx(0.005 * answer.peak_allocated_bytes, rel=0.01)


def test_the_verdict_turns_at_the_byte():
    request = GenerationRequest(width=2048, height=2048)
    total = estimate(request).total_bytes
    assert fit(request, a_card(total), "formula").verdict == "fits"
    missed = fit(request, a_card(total - 1), "formula")
    assert (missed.verdict, missed.headroom_bytes) == ("no", -1)
    answer = fit(request, a_card(total))
    for usable_bytes, verdict in (
        (answer.worst_need_bytes, "fits"),
        (answer.worst_need_bytes - 1, "tight"),
        (answer.minimum_bytes, "tight"),
        # No memory is known to better than the step in which the least is searched.
        (answer.minimum_bytes - MINIMUM_STEP, "tight"),
        (answer.minimum_bytes - MINIMUM_STEP - 1, "no"),
    ):
        assert fit(request, a_card(usable_bytes)).verdict == verdict


def test_hope_is_given_up_only_where_the_best_of_such_cards_has_too_little():
    request = GenerationRequest(width=2048, height=2048)
    least = fit(request, a_card(GIB)).minimum_bytes
    low_end = replace(a_card(least - 100 * MIB), usable_high_bytes=least)
    assert fit(request, low_end).verdict == "tight"
    assert fit(request, replace(low_end, usable_high_bytes=least - MINIMUM_STEP - 2 * MIB)).verdict == "no"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("options", [{"vae_slicing": True}, {"vae_slicing": True, "vae_tiling": True}])
def test_the_largest_request_is_answered_too(options):
    """Its images pile up far beyond what a sketch with one of them needs."""
    request = GenerationRequest(width=8192, height=8192, batch=128, **options)
    answer = fit(request, card_named("H200"))
    assert answer.verdict == "no"
    assert answer.minimum_bytes <= answer.need_bytes


def test_an_answer_does_not_depend_on_what_was_asked_before():
    request = GenerationRequest(width=832, height=1192)
    alone = fit(request, card_named("H100"))
    for name in ("T4", "A10", "RTX 4060"):
        fit(request, card_named(name))
    forget()
    fit(request, card_named("T4"))
    assert fit(request, card_named("H100")) == alone


def test_a_range_that_straddles_the_capacity_is_tight():
    request = GenerationRequest(batch=4, width=1024, height=1024, channels_last=True)
    answer = fit(request, card_named("A100-80GB"))
    assert answer.verdict == "fits" and answer.assumptions
    assert answer.interval_bytes[0] < answer.peak_allocated_bytes < answer.interval_bytes[1]
    just = replace(a_card(answer.need_bytes), compute_capability=(8, 0), context_bytes=answer.context_bytes)
    assert (fit(request, just).verdict, fit(request, just).headroom_bytes) == ("tight", 0)


@pytest.mark.parametrize("basis", ["calibrated", "measured"])
def test_a_basis_with_nothing_to_say_is_unknown_and_says_why(basis):
    answer = fit(GenerationRequest(), card_named("T4"), basis)
    assert (answer.verdict, answer.basis, answer.need_bytes, answer.headroom_bytes) == ("unknown", basis, None, None)
    assert "no run on Turing GPUs was measured yet" in answer.reason


def test_without_a_program_the_best_is_the_formula_and_says_so():
    nothing = Library({}, {}, (), {name: shipped().weights[name][:0] for name in shipped().weights})
    best = fit(GenerationRequest(), card_named("T4"), library=nothing)
    assert (best.basis, best.verdict) == ("formula", "fits")
    assert "no memory program" in best.reason and "the formula answers instead" in best.reason
    only = fit(GenerationRequest(), card_named("T4"), "dry-run", library=nothing)
    assert (only.basis, only.verdict, only.need_bytes) == ("dry-run", "unknown", None)


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
