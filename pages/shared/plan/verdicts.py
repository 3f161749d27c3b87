"""Draw verdicts, always as a word, a sign and a colour, and what they rest on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import streamlit as st

from pages.shared.frame.escape import plain, sentence, typeset
from pages.shared.frame.plan_state import LOOK_KEY
from planner.answer import SIGNS, Answer, Verdict
from planner.calibration.calibrate import NOMINAL
from planner.cards.lookup import Card
from planner.fit import fit
from planner.programs.library import Library
from planner.report.summary import deciding_need, summary
from planner.report.text import card_notes
from planner.request import GenerationRequest
from planner.units import gib, gib_value, signed_gib


class Look(NamedTuple):
    """The icon and the colour of a verdict."""

    icon: str
    color: Literal["green", "orange", "red", "gray"]


# This stands in each box, because a warning elsewhere may be scrolled past.
_CAUTION = {"formula": ", likely too low"}

LOOKS: dict[Verdict, Look] = {
    "fits": Look(":material/check_circle:", "green"),
    "tight": Look(":material/warning:", "orange"),
    "no": Look(":material/cancel:", "red"),
    "unknown": Look(":material/help:", "gray"),
}


_BEST_FIRST: tuple[Verdict, ...] = ("fits", "tight", "unknown", "no")
# More boxes than these would push everything else off the screen.
MOST_BOXES = 6


class Answered(NamedTuple):
    """One GPU's answer by the chosen basis, by the dry run and by the formula."""

    answer: Answer
    dry_run: Answer
    formula: Answer

    @property
    def other(self) -> Answer:
        """Return the answer of the other method: of the formula for a dry run, else of the dry run."""
        return self.formula if self.answer.basis == "dry-run" else self.dry_run


def beside(answer: Answer, request: GenerationRequest, library: Library | None) -> Answered:
    """Add the answers of dry run and formula to an answer."""
    dry_run, formula = (fit(request, answer.card, method, library=library) for method in ("dry-run", "formula"))
    return Answered(answer, dry_run, formula)


def verdict_badge(verdict: Verdict) -> None:
    """Draw the verdict's word, sign and colour."""
    look = LOOKS[verdict]
    st.badge(verdict, icon=look.icon, color=look.color)


_MEANING: dict[Verdict, str] = {
    "tight": "**tight**: runs, but more slowly or with allocator retries, or fits only at the lower end of its range",
    "no": "**no**: runs out of memory, whichever kernels are used",
    "unknown": "**unknown**: no data for an answer",
}


def verdict_words(verdicts: Collection[Verdict]) -> None:
    """Draw what these verdicts mean, except ``fits``, in one line."""
    if texts := [text for verdict, text in _MEANING.items() if verdict in verdicts]:
        st.caption(f"{'; '.join(texts)}.")


def minimum_line(answer: Answer) -> str | None:
    """Say whether the request runs on less than its need; None if the headroom says it already."""
    minimum, usable, headroom = answer.minimum_bytes, answer.card.usable_bytes, answer.headroom_bytes
    if answer.verdict not in ("tight", "no") or minimum is None or headroom is None:
        return None
    if answer.verdict == "tight" and headroom >= 0 and answer.worst_need_bytes is not None:
        return f"fits, but not at the upper end of its range, {gib(answer.worst_need_bytes)}"
    if minimum == answer.need_bytes:
        return None
    if answer.verdict == "no":
        return f"cannot run: minimum {gib(minimum)}, {gib(minimum - usable)} short"
    if minimum > usable:
        return f"minimum {gib(minimum)}, which only some of these GPUs have"
    here = answer.less_on_card_bytes
    capped = "" if here is None else f"; allocates {gib(here)} here"
    return f"runs more slowly: minimum {gib(minimum)}{capped}"


def interval_line(answer: Answer) -> str | None:
    """Give the upper end of a calibrated need; None for other answers."""
    if answer.basis != "calibrated" or answer.worst_need_bytes is None:
        return None
    return typeset(f"{NOMINAL:.0%} of runs need at most {gib(answer.worst_need_bytes)}")


def other_line(other: Answer) -> str:
    """Give the other method's verdict in one line."""
    needs = "" if other.need_bytes is None else f", needs {gib(other.need_bytes)}"
    # The caution keeps readers from taking a different verdict of the formula for a second opinion.
    caution = ", without the activations" if other.basis == "formula" else ""
    return f"{other.basis}: {other.verdict}{needs}{caution}"


def answer_view(request: GenerationRequest, answers: Sequence[Answer]) -> None:
    """Draw the answer in a sentence or two, above everything else."""
    best = next(verdict for verdict in _BEST_FIRST if any(answer.verdict == verdict for answer in answers))
    box = {"fits": st.success, "tight": st.warning, "no": st.error, "unknown": st.info}[best]
    first, _, rest = summary(answers).partition(". ")
    text = f"**{plain(first.removesuffix('.'))}.**" + (f" {plain(rest)}" if rest else "")
    box(f"{text}  \n{plain(request.describe())}.", icon=LOOKS[best].icon)


def verdict_boxes(shown: Sequence[Answered]) -> None:
    """Draw a box for each GPU, as many in a row as have room; many GPUs are a table."""
    if len(shown) > MOST_BOXES:
        _verdict_table([one.answer for one in shown])
        return
    with st.container(key="verdicts"):
        for one in shown:
            _verdict_box(one)


def _verdict_box(shown: Answered) -> None:
    """Draw one GPU's verdict, what is left over at worst, what it needs, and what that rests on."""
    answer, look = shown.answer, LOOKS[shown.answer.verdict]
    need = deciding_need(answer)
    with st.container(border=True, height="stretch", gap="small"):
        # The heading alone says which GPU it is about, to those who go from heading to heading.
        st.header(f":small[**{plain(answer.card.name)}**] :{look.color}[{look.icon} {answer.verdict}]", anchor=False)
        if need is None:
            lines = [sentence(answer.reason or "no answer"), f"basis: {answer.basis}"]
        else:
            is_ranged = answer.worst_need_bytes is not None
            st.metric(
                "Headroom at worst" if is_ranged else "Headroom",
                signed_gib(answer.card.usable_bytes - need),
                help="Usable memory minus the need, or the upper end of the need if it is a range. If negative, that "
                "much memory is missing.",
            )
            upper = f", up to {gib(need)}" if is_ranged and need != answer.need_bytes else ""
            lines = [
                f"needs {gib(answer.need_bytes or 0)}{upper} of {gib(answer.card.usable_bytes)} usable",
                minimum_line(answer),
                f"basis: {answer.basis}{_CAUTION.get(answer.basis, '')}",
                "uncertain: see Assumptions under Why" if answer.assumptions else None,
                interval_line(answer),
            ]
        if not answer.card.runs_pinned_torch:
            lines.append("for planning only: too old for the current torch")
        st.caption("  \n".join(line for line in (*lines, other_line(shown.other)) if line))


def _verdict_table(answers: Sequence[Answer]) -> None:
    """Draw a row for each GPU, the best verdict and the most headroom first."""
    # Styled tables need pandas, which takes long to import and which most plans do without.
    from pages.shared.frame.tables import draw_table, with_signed_gib

    def place(answer: Answer) -> tuple[int, int]:
        need = deciding_need(answer)
        return _BEST_FIRST.index(answer.verdict), (need or 0) - answer.card.usable_bytes

    def size(size_bytes: int | None) -> float | None:
        return None if size_bytes is None else gib_value(size_bytes)

    rows = [
        {
            "GPU": answer.card.name,
            "Verdict": f"{SIGNS[answer.verdict]} {answer.verdict}",
            "Headroom": None if (need := deciding_need(answer)) is None else size(answer.card.usable_bytes - need),
            "Need": size(deciding_need(answer)),
            "Usable": size(answer.card.usable_bytes),
            "Basis": answer.basis,
        }
        for answer in sorted(answers, key=place)
    ]
    number = st.column_config.NumberColumn
    draw_table(
        with_signed_gib(rows, ["Headroom"]),
        hide_index=True,
        alt="Each GPU's verdict, headroom at worst, need at worst, and usable memory",
        column_config={
            "GPU": st.column_config.TextColumn("GPU", pinned=True),
            "Headroom": number("Headroom", help="Usable memory minus the need at worst."),
            "Need": number("Need", format="%.2f GiB", help="The upper end of the need."),
            "Usable": number("Usable", format="%.2f GiB"),
        },
    )


def name_of(card: Card) -> str:
    """Return the GPU's name in Accuracy's address; a described GPU is its capability."""
    whole = card.whole
    return f"compute capability {whole.capability}" if whole.origin == "described" else whole.model


def evidence_links(cards: Sequence[Card]) -> None:
    """Draw links to how wrong predictions were on each of these GPUs."""
    # Long names wrap here; inside a box the text of a link would be cut off.
    with st.container(horizontal=True, gap="small"):
        for name in dict.fromkeys(map(name_of, cards)):
            label = f"How wrong on {with_article(name)}?"
            st.page_link("pages/3_Accuracy.py", label=label, query_params={LOOK_KEY: name})


def with_article(name: str) -> str:
    """Put ``a`` or ``an`` before a GPU's name, by its sound; no article before a phrase.

    >>> [with_article(name) for name in ("T4", "A10G", "RTX 4090", "Quadro T1000", "compute capability 7.5")]
    ['a T4', 'an A10G', 'an RTX 4090', 'a Quadro T1000', 'compute capability 7.5']
    """
    if name[:1].islower():
        return name
    # Some names are spelled out (an L4, an RTX 4090), and others are words (a Titan).
    is_spelled = not name[1:2].islower()
    return f"{'an' if name[:1] in ('AEFHILMNORSX8' if is_spelled else 'AEIOU') else 'a'} {name}"


def range_words(low_bytes: int, high_bytes: int, worst_need_bytes: int | None = None) -> str:
    """Give the range of the allocated peak, and the need at its upper end."""
    low, high = gib(low_bytes), gib(high_bytes)
    if low == high:
        return f"{high} allocated at both ends"
    need = "" if worst_need_bytes is None else f", need up to {gib(worst_need_bytes)}"
    return f"between {low} and {high} allocated{need}; it fits only if the upper end fits"


def assumptions_view(answers: Sequence[Answer]) -> None:
    """Draw the assumptions of the answers, each once, and the range of the peak on each GPU."""
    ranged = [answer for answer in answers if answer.assumptions]
    if not ranged:
        return
    cards: dict[str, list[str]] = {}
    for answer in ranged:
        for note in answer.assumptions:
            cards.setdefault(note, []).append(answer.card.name)
    with st.container(border=True, gap="small"):
        st.markdown("**Assumptions** that no measured run has confirmed make the allocated peak a range:")
        notes = [
            f"- {typeset(sentence(note))}" + ("" if len(names) == len(answers) else f" :gray[({', '.join(names)})]")
            for note, names in cards.items()
        ]
        ranges: dict[tuple[int, int, int | None], list[str]] = {}
        for answer in ranged:
            if answer.interval_bytes:
                ranges.setdefault((*answer.interval_bytes, answer.worst_need_bytes), []).append(answer.card.name)
        notes += [f"- {', '.join(names)}: {range_words(*ends)}." for ends, names in ranges.items()]
        st.markdown("\n".join(notes))


def stack_view(answers: Sequence[Answer]) -> None:
    """Draw what the answers assume about the user's software."""
    if assumed := dict.fromkeys(item for answer in answers for item in answer.stack):
        st.caption(plain(f"Assumed software: {'; '.join(assumed)}."))


def card_notes_view(answers: Sequence[Answer]) -> None:
    """Draw the notes on these GPUs, each once."""
    for note in card_notes([answer.card for answer in answers]):
        st.info(plain(f"{note}."), icon=":material/info:")


def evidence_view(answers: Sequence[Answer]) -> None:
    """Draw the measured runs that answers rest on, with a link to their accuracy."""
    with_runs = [answer for answer in answers if answer.evidence and answer.need_bytes is not None]
    if not with_runs:
        return
    with st.container(border=True, gap="small"):
        st.markdown("**Measured runs** behind these answers:")
        st.markdown("\n".join(f"- {typeset(sentence(answer.evidence or ''))}" for answer in with_runs))
        st.page_link("pages/3_Accuracy.py", label="How far off predictions were", icon=":material/query_stats:")


def reasons_view(answers: Sequence[Answer]) -> None:
    """Draw why an answer has another basis than the chosen one, each reason once."""
    for reason in dict.fromkeys(a.reason for a in answers if a.reason and a.need_bytes is not None):
        st.warning(plain(f"{reason[:1].upper()}{reason[1:]}."), icon=":material/warning:")
