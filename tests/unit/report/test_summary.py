"""Test the answer in a sentence: what it says of one GPU and of several, and which GPUs it always names."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.answer import Answer, Verdict
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.report.summary import deciding_need, is_uncertain, summary
from planner.request import GenerationRequest
from planner.units import GIB

T4 = card_named("T4")


def answer(
    name: str, verdict: Verdict, usable: int = 16, need: int | None = 8, at_worst: int | None = None, **more
) -> Answer:
    """Make an answer with these sizes in GiB."""
    card = replace(T4, name=name, usable_bytes=usable * GIB, usable_high_bytes=usable * GIB)
    return Answer(
        card=card,
        verdict=verdict,
        basis="dry-run",
        need_bytes=None if need is None else need * GIB,
        worst_need_bytes=None if at_worst is None else at_worst * GIB,
        **more,
    )


SMALL, MIDDLE, LARGE = (answer(name, "fits", usable) for name, usable in (("S", 12), ("M", 16), ("L", 24)))
SLOWER, UNSURE = answer("Slow", "tight", 6), answer("Unsure", "tight", 10, at_worst=12)
NO, UNKNOWN = answer("Tiny", "no", 4), answer("Dark", "unknown", need=None)
SLOWLY, MAYBE = (
    "can run {} more slowly, with smaller workspaces or allocator retries.",
    "may run {}: the need fits, the upper end of its range does not.",
)


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (SMALL, "S runs this: it takes 8.00 GiB of 12.00 GiB."),
        (answer("S", "fits", 12, at_worst=11), "S runs this: it takes 11.00 GiB of 12.00 GiB at worst."),
        (SLOWER, f"Slow {SLOWLY.format('this')}"),
        (UNSURE, f"Unsure {MAYBE.format('this')}"),
        (NO, "Tiny cannot run this."),
        (UNKNOWN, "There is no answer for Dark."),
    ],
)
def test_one_gpu(one, sentence):
    assert summary([one]) == sentence


def test_all_fit():
    assert summary([LARGE, SMALL, MIDDLE]) == (
        "All of your GPUs run this: on S, the smallest, it takes 8.00 GiB of 12.00 GiB."
    )


@pytest.mark.parametrize(
    ("others", "rest"),
    [
        ([NO], "Tiny cannot run it."),
        ([SLOWER], f"Slow {SLOWLY.format('it')}"),
        ([UNSURE], f"Unsure {MAYBE.format('it')}"),
        ([UNKNOWN], "There is no answer for Dark."),
        ([NO, answer("Mini", "no", 3), answer("Micro", "no", 2)], "Tiny, Mini and Micro cannot run it."),
        (
            [UNKNOWN, NO, UNSURE, SLOWER],
            f"Slow {SLOWLY.format('it')} Unsure {MAYBE.format('it')} Tiny cannot run it. There is no answer for Dark.",
        ),
    ],
)
def test_some_fit(others, rest):
    is_close = any(one.verdict != "no" for one in others)
    takes = f"that runs this{' comfortably' if is_close else ''}: it takes 8.00 GiB of"
    assert summary([*others, LARGE, MIDDLE]) == f"M is the smallest of your GPUs {takes} 16.00 GiB. {rest}"
    assert summary([LARGE, *others]) == f"L is the only one of your GPUs {takes} 24.00 GiB. {rest}"


@pytest.mark.parametrize(
    ("answers", "sentences"),
    [
        ([SLOWER, NO], f"None of your GPUs runs this comfortably. Slow {SLOWLY.format('it')} Tiny cannot run it."),
        (
            [UNSURE, UNKNOWN],
            f"None of your GPUs runs this comfortably. Unsure {MAYBE.format('it')} There is no answer for Dark.",
        ),
        ([NO, answer("Mini", "no", 3)], "Tiny and Mini cannot run this."),
        ([UNKNOWN, NO], "Tiny cannot run this. There is no answer for Dark."),
        ([UNKNOWN, answer("Night", "unknown", need=None)], "There is no answer for Dark and Night."),
    ],
)
def test_none_fits(answers, sentences):
    assert summary(answers) == sentences


def test_no_answers_is_an_error():
    with pytest.raises(ValueError, match="no answers"):
        summary([])


def test_the_upper_end_of_a_range_decides():
    assert deciding_need(UNSURE) == 12 * GIB
    assert deciding_need(SMALL) == 8 * GIB
    assert deciding_need(UNKNOWN) is None


def test_retries_are_no_range():
    # Runs with allocator retries are tight, though what they took fits, and a measured need has no upper end.
    retried = replace(answer("T4", "tight"), basis="measured")
    assert not is_uncertain(retried)
    assert summary([retried]) == f"T4 {SLOWLY.format('this')}"


VERDICTS = ("fits", "tight", "no", "unknown")
sizes = st.integers(1, 200)


@st.composite
def any_answers(draw) -> list[Answer]:
    """Draw answers whose names are no parts of one another."""
    count = draw(st.integers(1, 8))
    return [
        answer(
            f"<{place}>",
            verdict := draw(st.sampled_from(VERDICTS)),
            draw(sizes),
            None if verdict == "unknown" else draw(sizes),
            None if verdict == "unknown" else draw(st.none() | sizes),
        )
        for place in range(count)
    ]


@given(any_answers())
def test_the_sentence_names_the_smallest_that_fits_and_all_that_do_not(answers):
    text = summary(answers)
    fitting = [one for one in answers if one.verdict == "fits"]
    named = [one for one in answers if one.card.name in text]
    assert all(text.count(one.card.name) == 1 for one in named)
    assert [one for one in answers if one.verdict != "fits"] == [one for one in named if one.verdict != "fits"]
    assert text.endswith(".")
    if fitting:
        [smallest] = [one for one in named if one.verdict == "fits"]
        assert smallest.card.usable_bytes == min(one.card.usable_bytes for one in fitting)
        # It comes first, before anything is said about the others.
        assert smallest.card.name in text.partition(". ")[0]
        assert ("at worst" in text) == (smallest.worst_need_bytes is not None)


@given(st.permutations([SMALL, LARGE, SLOWER, UNSURE, NO, UNKNOWN]))
def test_the_order_of_choosing_changes_no_sentence(answers):
    assert summary(answers) == summary([SMALL, LARGE, SLOWER, UNSURE, NO, UNKNOWN])


def test_real_answers_are_summed_up():
    big = GenerationRequest(width=2048, height=2048)
    text = summary([fit(big, card_named(name), "dry-run") for name in ("RTX 4060", "T4", "A100-40GB")])
    assert text.startswith(
        "A100-40GB is the only one of your GPUs that runs this comfortably: it takes 16.22 GiB of 39.38 GiB. "
    )
    assert text.endswith("RTX 4060 cannot run it.") and "T4 can run it more slowly" in text
