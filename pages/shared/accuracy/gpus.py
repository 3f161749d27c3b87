"""Answer how wrong predictions are on a GPU: the choice of GPUs, a sentence for each, and the runs behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import streamlit as st

from cache.history.reference import sources
from pages.shared.frame import session
from pages.shared.frame.escape import plain, sentence, typeset
from pages.shared.frame.plan_state import ATTACHED_KEY, CAPABILITY_KEY, CARDS_KEY, DEFAULT_CARD_NAMES, MEMORY_KEY, plan
from pages.shared.frame.tables import draw_table, with_signs
from pages.shared.plan.verdicts import name_of
from planner.accuracy.by_gpu import (
    GRADED_BASIS,
    Gpu,
    GpuAccuracy,
    by_gpu,
    circumstances,
    gpu_of,
    versions_words,
    work_of,
)
from planner.accuracy.grading import Graded
from planner.calibration.runs import Observation
from planner.cards.lookup import CATALOGUE, SLICES, card_named, described_card
from planner.errors import InvalidArgument, UnknownCard
from planner.units import gib_value

# The control has a key of its own, so that the choice made here does not change the GPUs of the plan.
_KEY = "accuracy-gpus"
# The memory of a described GPU plays no part here: its compute capability decides which kernels run.
_DESCRIBED = re.compile(r"compute capability (\d{1,2}\.\d)")
# The table of runs shows this many, the newest of each GPU first.
_MOST_RUNS = 300


def _described(capability: str) -> Gpu:
    card = described_card("16GiB", capability)
    return Gpu(name_of(card), "", card.compute_capability)


def _choices(observations: Iterable[Observation]) -> dict[str, Gpu]:
    """Return the GPUs on offer by name: the catalogue's, those with runs, this machine's."""
    found = {card.name: gpu_of(card) for card in (*CATALOGUE, *SLICES)}
    for one in observations:
        found.setdefault(one.model, Gpu(one.model, one.model, one.capability))
    for attached, _ in session.attached()[0]:
        card = attached.as_card()
        found.setdefault(card.model, Gpu(card.model, card.model, card.compute_capability))
    return found


def _of_the_plan() -> list[str]:
    """List the plan's GPUs by their names on this page."""
    names = list(plan().get(CARDS_KEY, DEFAULT_CARD_NAMES))
    if plan().get(ATTACHED_KEY):
        names += [attached.as_card().model for attached, _ in session.attached()[0]]
    if plan().get(MEMORY_KEY) and plan().get(CAPABILITY_KEY):
        names.append(f"compute capability {plan()[CAPABILITY_KEY]}")
    return names


def _taken(names: Iterable[str], choices: dict[str, Gpu]) -> list[str]:
    """Return the names that the control knows, and warn of the others."""
    found = []
    for name in names:
        try:
            if described := _DESCRIBED.fullmatch(name):
                gpu = _described(described[1])
                choices.setdefault(gpu.name, gpu)
                found.append(gpu.name)
            else:
                found.append(name if name in choices else card_named(name).name)
        except (UnknownCard, InvalidArgument) as error:
            text = str(error).partition("; ")[0]
            st.warning(f"Part of this link was ignored: {plain(text)}.", icon=":material/link_off:")
    return list(dict.fromkeys(found))


def _keep_in_address() -> None:
    st.query_params[CARDS_KEY] = st.session_state[_KEY]


def gpus_control(observations: Iterable[Observation]) -> list[Gpu]:
    """Draw the choice of GPUs: those of the address, else those of the plan."""
    choices = _choices(observations)
    in_address = [name for name in st.query_params.get_all(CARDS_KEY) if name]
    chosen = _taken(in_address or _of_the_plan(), choices)
    if _KEY not in st.session_state:
        st.session_state[_KEY] = chosen
    elif not choices.keys() >= set(st.session_state[_KEY]):
        # A GPU that was offered because of its runs goes with them.
        st.session_state[_KEY] = [name for name in st.session_state[_KEY] if name in choices]
    names = st.multiselect(
        "How wrong on which GPU?",
        list(choices),
        key=_KEY,
        on_change=_keep_in_address,
        placeholder="Choose GPUs",
        help="Any GPU of the catalogue, and every GPU that was measured. The GPUs of the plan stay as they are.",
    )
    return [choices[name] for name in names]


def link_to(one: Graded) -> str:
    """Give the address of a run's page on History."""
    published = "&reference=true" if one.observation.is_reference else ""
    return f"History?run={one.observation.run_id}{published}"


def runs_table(runs: Sequence[Graded], alt: str) -> None:
    """Draw a table of runs: what ran, its peak, how far off, its source and a link to it."""
    published = sources()
    rows = [
        {
            "GPU": one.observation.card_name,
            "Off by": 100 * one.error(GRADED_BASIS),
            "What ran": work_of(one),
            "Measured": gib_value(one.measured_bytes),
            "Predicted": gib_value(one.predicted[GRADED_BASIS]),
            "Peak": one.peak,
            "Inside": "yes" if one.is_covered else "no",
            "With": ", ".join([versions_words(one), *(note for note in circumstances(one) if note != "reserved")]),
            "Source": published.get(one.observation.run_id, "history"),
            "Open": link_to(one),
        }
        for one in runs[:_MOST_RUNS]
    ]
    if len(runs) > _MOST_RUNS:
        st.caption(f"The newest {_MOST_RUNS:,} of {len(runs):,} runs are listed; all of them are counted.")
    number = st.column_config.NumberColumn
    styler = with_signs(rows, ["Off by"])
    text = st.column_config.TextColumn
    draw_table(
        styler,
        # What fits a laptop's window; the eye above the table shows the others.
        column_order=["GPU", "Off by", "What ran", "Measured", "Inside", "Source", "Open"],
        hide_index=True,
        height="content" if len(rows) <= 20 else 740,
        alt=alt,
        column_config={
            "GPU": text("GPU", width=110),
            "What ran": text("What ran", width=190),
            "Source": text("Source", width=190),
            "Off by": number(
                "Off by", width=78, help="The error of the prediction from the other runs; negative is too low"
            ),
            "Measured": number("Measured", width=84, format="%.2f GiB", help="The measured peak"),
            "Predicted": number("Predicted", format="%.2f GiB", help="The dry run, calibrated with the other runs"),
            "Peak": text("Peak", help="reserved: only the reserved peak was published"),
            "Inside": text(
                "Inside", width=60, help="yes: the measured peak is inside the interval from the other runs"
            ),
            "Open": st.column_config.LinkColumn("Open", width=84, display_text="in History", help="The run in full"),
        },
    )
    st.caption("The eye above the table shows more columns: Predicted, Peak, With.")


def answers_view(graded: Sequence[Graded], gpus: Sequence[Gpu]) -> None:
    """Draw one sentence for each GPU, and below them the runs that they rest on."""
    answers = [by_gpu(graded, gpu) for gpu in gpus]
    with st.container(key="answers"):
        for answer in answers:
            _answer(answer)
    runs = list(dict.fromkeys(run for answer in answers for run in answer.runs_to_show))
    whole, halves = ([run for run in runs if run.is_whole == is_whole] for is_whole in (True, False))
    if whole:
        st.caption("The runs behind these sentences:")
        runs_table(whole, "The runs of whole pipelines behind these sentences, with their sources")
    if halves:
        with st.expander(f"Runs of one half of the VAE: {len(halves):,}"):
            runs_table(halves, "The runs of halves of the VAE on these GPUs, with their sources")


def _answer(answer: GpuAccuracy) -> None:
    with st.container(gap="xsmall"):
        st.markdown(f"## {typeset(plain(answer.sentence()))}")
        if further := answer.further_sentences():
            st.caption(typeset(" ".join(map(sentence, further))))
