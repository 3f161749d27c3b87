"""A verdict is a word, a sign and a colour, the same everywhere; never the colour alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import streamlit as st

from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import LOOK_KEY
from planner.answer import Answer, Verdict
from planner.calibration.calibrate import NOMINAL
from planner.cards.lookup import Card
from planner.fit import fit
from planner.programs.library import Library
from planner.report.text import card_notes
from planner.request import GenerationRequest
from planner.units import gib, signed_gib


class Look(NamedTuple):
    """How a verdict is shown."""

    icon: str
    color: Literal["green", "orange", "red", "gray"]


# Said in each card, above anything that may be scrolled past.
_CAUTION = {"formula": ", likely too low"}

LOOKS: dict[Verdict, Look] = {
    "fits": Look(":material/check_circle:", "green"),
    "tight": Look(":material/warning:", "orange"),
    "no": Look(":material/cancel:", "red"),
    "unknown": Look(":material/help:", "gray"),
}


class Answered(NamedTuple):
    """One card's answer by the chosen basis, and by each method, so that a card can show one beside the other."""

    answer: Answer
    dry_run: Answer
    formula: Answer

    @property
    def other(self) -> Answer:
        """The answer of the method next in trust, for an answer to be seen beside."""
        return self.formula if self.answer.basis == "dry-run" else self.dry_run


def beside(answer: Answer, request: GenerationRequest, library: Library | None) -> Answered:
    """Put the answers of both methods beside an answer."""
    dry_run, formula = (fit(request, answer.card, method, library=library) for method in ("dry-run", "formula"))
    return Answered(answer, dry_run, formula)


def verdict_badge(verdict: Verdict) -> None:
    """The verdict's word, sign and colour."""
    look = LOOKS[verdict]
    st.badge(verdict, icon=look.icon, color=look.color)


_MEANING: dict[Verdict, str] = {
    "tight": "**tight**: it runs, but only with slower kernels, allocator retries, or at the better end of what is "
    "uncertain",
    "no": "**no**: out of memory, whatever the kernels",
    "unknown": "**unknown**: nothing to base an answer on",
}


def verdict_words(verdicts: Collection[Verdict]) -> None:
    """What each verdict here but ``fits`` means, in one line."""
    if told := [text for verdict, text in _MEANING.items() if verdict in verdicts]:
        st.caption(f"{'; '.join(told)}.")


def least_line(answer: Answer) -> str | None:
    """What the least memory at which the request runs says of this card, where it says more than the headroom."""
    least, usable, headroom = answer.minimum_bytes, answer.card.usable_bytes, answer.headroom_bytes
    if answer.verdict not in ("tight", "no") or least is None or headroom is None:
        return None
    if answer.verdict == "tight" and headroom >= 0:
        upper = f", {gib(answer.worst_need_bytes)}" if answer.worst_need_bytes is not None else ""
        return f"would fit, but not at the upper end of its range{upper}"
    if least == answer.need_bytes:
        return None
    if answer.verdict == "no":
        return f"even the least, {gib(least)}, misses by {gib(least - usable)}"
    if least > usable:
        return f"runs from {gib(least)}, which only some of these cards have"
    here = answer.less_on_card_bytes
    capped = "" if here is None else f"; allocates {gib(here)} here"
    return f"runs from {gib(least)}, more slowly{capped}"


def interval_line(answer: Answer) -> str | None:
    """Up to what need nine of ten such runs come, where the answer has an interval from measured runs."""
    if answer.basis != "calibrated" or answer.worst_need_bytes is None:
        return None
    return f"{NOMINAL:.0%} of runs: up to {gib(answer.worst_need_bytes)}"


def other_line(other: Answer) -> str:
    """The other method's own verdict, in one line."""
    needs = "" if other.need_bytes is None else f", needs {gib(other.need_bytes)}"
    # A reader who meets it beside a verdict that says otherwise must not take it for a second opinion.
    caution = ", without the activations" if other.basis == "formula" else ""
    return f"{other.basis}: {other.verdict}{needs}{caution}"


def verdict_card(shown: Answered) -> None:
    """One card's verdict: signed headroom, need against usable, basis, and what the other method says."""
    answer = shown.answer
    with st.container(border=True, height="stretch"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{answer.card.name}**", width="content")
            verdict_badge(answer.verdict)
        if answer.need_bytes is None or answer.headroom_bytes is None:
            lines = [sentence(answer.reason or "no answer"), f"basis: {answer.basis}"]
        else:
            st.metric(
                "Headroom",
                signed_gib(answer.headroom_bytes),
                help="Usable memory minus need. Negative is by how much it misses.",
            )
            lines = [
                f"needs {gib(answer.need_bytes)} of {gib(answer.card.usable_bytes)} usable",
                least_line(answer),
                f"basis: {answer.basis}{_CAUTION.get(answer.basis, '')}",
                "a range: see assumptions" if answer.assumptions else None,
                interval_line(answer),
            ]
        if not answer.card.runs_pinned_torch:
            lines.append("to plan for, not to verify: too old for today's torch")
        st.caption("  \n".join(line for line in (*lines, other_line(shown.other)) if line))


def name_of(card: Card) -> str:
    """Give the name that Accuracy's address has for this card; a described one is its compute capability."""
    whole = card.whole
    return f"compute capability {whole.capability}" if whole.origin == "described" else whole.model


def evidence_links(cards: Sequence[Card]) -> None:
    """Link to how wrong predictions were on each of these GPUs; the plan stays as it is."""
    # Below the cards, where long names wrap: inside one a link's words are cut off.
    with st.container(horizontal=True, gap="small"):
        for name in dict.fromkeys(map(name_of, cards)):
            label = f"How wrong on {with_article(name)}?"
            st.page_link("pages/3_Accuracy.py", label=label, query_params={LOOK_KEY: name})


def with_article(name: str) -> str:
    """Put ``a`` or ``an`` before a GPU's name, by how its first letter or number is said; none before a phrase.

    >>> [with_article(name) for name in ("T4", "A10G", "RTX 4090", "Quadro T1000", "compute capability 7.5")]
    ['a T4', 'an A10G', 'an RTX 4090', 'a Quadro T1000', 'compute capability 7.5']
    """
    if name[:1].islower():
        return name
    # Letters that are said one by one: an L4, an RTX 4090; a Titan is a word.
    is_spelled = not name[1:2].islower()
    return f"{'an' if name[:1] in ('AEFHILMNORSX8' if is_spelled else 'AEIOU') else 'a'} {name}"


def range_words(low_bytes: int, high_bytes: int, worst_need_bytes: int | None = None) -> str:
    """The allocated peak as a range, the need at its upper end, and what the verdict makes of it."""
    low, high = gib(low_bytes), gib(high_bytes)
    if low == high:
        return f"{high} allocated at both ends"
    need = "" if worst_need_bytes is None else f", a need of up to {gib(worst_need_bytes)}"
    return f"between {low} and {high} allocated{need}; it fits only where the upper end does"


def assumptions_view(answers: Sequence[Answer]) -> None:
    """What the answers take for granted, each sentence once, and between which peaks it leaves each card."""
    ranged = [answer for answer in answers if answer.assumptions]
    if not ranged:
        return
    cards: dict[str, list[str]] = {}
    for answer in ranged:
        for note in answer.assumptions:
            cards.setdefault(note, []).append(answer.card.name)
    with st.container(border=True, gap="small"):
        st.markdown("**Assumptions** not checked against measured runs make the allocated peak a range:")
        notes = [
            f"- {sentence(note)}" + ("" if len(names) == len(answers) else f" :gray[({', '.join(names)})]")
            for note, names in cards.items()
        ]
        ranges: dict[tuple[int, int, int | None], list[str]] = {}
        for answer in ranged:
            if answer.interval_bytes:
                ranges.setdefault((*answer.interval_bytes, answer.worst_need_bytes), []).append(answer.card.name)
        notes += [f"- {', '.join(names)}: {range_words(*ends)}." for ends, names in ranges.items()]
        st.markdown("\n".join(notes))


def stack_view(answers: Sequence[Answer]) -> None:
    """Draw what the answers take for granted of the user's software, once."""
    if granted := dict.fromkeys(item for answer in answers for item in answer.stack):
        st.caption(plain(f"Taken for granted: {'; '.join(granted)}."))


def card_notes_view(answers: Sequence[Answer]) -> None:
    """Draw what is to be said with every answer about these cards, each note once."""
    for note in card_notes([answer.card for answer in answers]):
        st.info(plain(f"{note}."), icon=":material/info:")


def evidence_view(answers: Sequence[Answer]) -> None:
    """The measured runs that answers rest on, a line for each card, with the way to them."""
    told = [answer for answer in answers if answer.evidence and answer.need_bytes is not None]
    if not told:
        return
    with st.container(border=True, gap="small"):
        st.markdown("**Measured runs** behind these answers:")
        st.markdown("\n".join(f"- {sentence(answer.evidence or '')}" for answer in told))
        st.page_link("pages/3_Accuracy.py", label="How far off each was", icon=":material/query_stats:")


def reasons_view(answers: Sequence[Answer]) -> None:
    """Why an answer is not the one that was asked for, each reason once."""
    for reason in dict.fromkeys(a.reason for a in answers if a.reason and a.need_bytes is not None):
        st.warning(plain(f"{reason[:1].upper()}{reason[1:]}."), icon=":material/warning:")
