"""Draw changes that make the request fit a GPU: each tried by a dry run, with its cost and a button."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import CARDS_KEY, DEFAULT_CARD_NAMES, WORKERS_KEY, plan, take
from pages.shared.plan.verdicts import Answered, verdict_badge
from planner.alternatives.remedies import Remedies, Remedy, remedies
from planner.cards.lookup import Card
from planner.errors import NoProgram
from planner.programs.library import Library
from planner.request import GenerationRequest
from planner.units import gib, signed_gib

_KEY, _PICKED, _OPEN = "remedies-card", "remedies-card-picked", "remedies-open"


@st.cache_resource(show_spinner=False, max_entries=64)
def _tried(_library: Library, digest: str, request: GenerationRequest, card: Card) -> Remedies:
    return remedies(request, card, _library)


def _picked() -> None:
    st.session_state[_PICKED] = st.session_state[_KEY]


def _choose_card(shown: Sequence[Answered]) -> Card:
    """Draw the choice of GPU; its default is the first GPU that does not fit."""
    by_name = {one.answer.card.name: one.answer.card for one in shown}
    if len(by_name) == 1:
        return shown[0].answer.card
    first = next((one for one in shown if one.dry_run.verdict != "fits"), shown[0]).answer.card.name
    picked = st.session_state.get(_PICKED)
    st.session_state[_KEY] = picked if picked in by_name else first
    name = st.segmented_control(
        "GPU to fit",
        list(by_name),
        required=True,
        key=_KEY,
        on_change=_picked,
        wrap=True,
        help="The dry run replays each change on this GPU.",
    )
    return by_name[name or first]


def _changes_of(remedy: Remedy) -> dict[str, Any]:
    """Return the values of the plan's controls with this remedy, by key."""
    if remedy.changes:
        return dict(remedy.changes)
    card = remedy.answer.card
    if remedy.keys == ("workers",):
        return {WORKERS_KEY: card.workers}
    chosen = plan().get(CARDS_KEY, DEFAULT_CARD_NAMES)
    return {CARDS_KEY: list(dict.fromkeys([*chosen, card.whole.name]))}


def _remedy(remedy: Remedy) -> None:
    answer = remedy.answer
    with st.container(border=True, height="stretch", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{plain(remedy.title)}**", width="content")
            verdict_badge(answer.verdict)
        minimum = "" if answer.minimum_bytes is None else f", minimum {gib(answer.minimum_bytes)}"
        st.markdown(f"Needs {gib(answer.need_bytes or 0)} ({signed_gib(remedy.need_change_bytes)}){minimum}.")
        st.caption(f"{plain(remedy.remark)}  \n{plain(remedy.cost)}")
        if remedy.code:
            st.code("\n".join(remedy.code), language="python", wrap_lines=True)
        st.button(
            "Add this GPU" if remedy.keys == ("card",) else "Apply",
            key=f"remedy-{'-'.join(remedy.keys)}",
            icon=":material/check:",
            help="Sets the controls of the plan. The browser's back button undoes one control at a time.",
            on_click=take,
            args=(_changes_of(remedy),),
        )


def _grid(shown: Sequence[Remedy]) -> None:
    for start in range(0, len(shown), 2):
        for column, remedy in zip(st.columns(2), shown[start : start + 2], strict=False):
            with column:
                _remedy(remedy)


def _list(shown: Sequence[Remedy]) -> None:
    st.markdown("\n".join(f"- **{plain(remedy.title)}**: {plain(remedy.remark)}" for remedy in shown))


def _headline(found: Remedies, best: str | None) -> str:
    name, base = plain(found.base.card.name), found.base
    state = "is tight" if base.verdict == "tight" else "does not run"
    needs = f"{name} {state}: it needs {gib(base.need_bytes or 0)} of {gib(base.card.usable_bytes)} usable."
    if best is None:
        return f"{needs} No change that was tried helps."
    if best == "saves":
        return f"{needs} No change that was tried is enough on its own, but these help."
    makes = "make it fit" if best == "fits" else "make it run, but more slowly"
    return f"{needs} These changes {makes}. Each was tried by a dry run; the cheapest comes first."


def _all(found: Remedies) -> None:
    best = next((remedy.effect for remedy in found.useful), None)
    first = [remedy for remedy in found.useful if remedy.effect == best]
    others = found.useful[len(first) :]
    st.markdown(_headline(found, best))
    _grid(first)
    if others:
        with st.expander(f"Helps, but less ({len(others)})"):
            _grid(others)
    if found.useless:
        with st.expander(f"No help here ({len(found.useless)})"):
            _list(found.useless)


def _savings(found: Remedies) -> None:
    st.markdown(
        f"It fits {plain(found.base.card.name)} with {gib(found.base.headroom_bytes or 0)} to spare. "
        + ("These changes would leave more:" if found.useful else "No change that was tried would leave more.")
    )
    _grid(found.useful)
    if found.useless:
        st.markdown("No help here:")
        _list(found.useless)


def _draw(request: GenerationRequest, shown: Sequence[Answered], library: Library) -> None:
    card = _choose_card(shown)
    try:
        with st.spinner("Trying changes"):
            found = _tried(library, library.digest, request, card)
    except NoProgram as error:
        st.info(f"There is no dry run to try changes on: {sentence(str(error))}", icon=":material/info:")
        return
    (_savings if found.base.verdict == "fits" else _all)(found)


def remedies_view(request: GenerationRequest, shown: Sequence[Answered], library: Library | None) -> None:
    """Draw changes that make the request fit one GPU.

    If it fits all GPUs, changes that save memory are tried once the user opens them.
    """
    if library is None or not shown:
        return
    if all(one.dry_run.verdict == "fits" for one in shown):
        box = st.expander("What would save memory", key=_OPEN, on_change="rerun", icon=":material/compress:")
        if box.open:
            with box:
                _draw(request, shown, library)
        return
    st.subheader("What would make it fit, by the dry run", anchor=False)
    _draw(request, shown, library)
