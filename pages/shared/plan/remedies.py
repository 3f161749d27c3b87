"""Draw changes that make the request fit a GPU: each tried by a dry run, with its cost and a button."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from pages.shared.frame.escape import plain, sentence, typeset
from pages.shared.frame.plan_state import CARDS_KEY, DEFAULT_CARD_NAMES, WORKERS_KEY, plan, planned, take
from pages.shared.plan.verdicts import Answered, verdict_badge
from planner.alternatives.remedies import Remedies, Remedy, remedies
from planner.answer import Verdict
from planner.cards.lookup import Card
from planner.errors import NoProgram
from planner.plan import Plan, default_of
from planner.programs.library import Library
from planner.report.summary import deciding_need
from planner.request import GenerationRequest
from planner.units import gib, signed_gib

_OPEN = "remedies-open"
# The remedy that was applied last, the values that it replaced, and the plan that it made.
APPLIED = "remedy-applied"


@st.cache_resource(show_spinner=False, max_entries=64)
def _tried(_library: Library, digest: str, request: GenerationRequest, card: Card) -> Remedies:
    return remedies(request, card, _library)


def _changes_of(remedy: Remedy) -> dict[str, Any]:
    """Return the values of the plan's controls with this remedy, by key."""
    if remedy.changes:
        return dict(remedy.changes)
    card = remedy.answer.card
    if remedy.keys == ("workers",):
        return {WORKERS_KEY: card.workers}
    chosen = plan().get(CARDS_KEY, DEFAULT_CARD_NAMES)
    return {CARDS_KEY: list(dict.fromkeys([*chosen, card.whole.name]))}


def _apply(remedy: Remedy) -> None:
    """Take a remedy into the plan, and remember how to undo it."""
    changes = _changes_of(remedy)
    before = {name: plan().get(name, default_of(name)) for name in changes}
    take(changes)
    st.session_state[APPLIED] = (remedy, before, planned(remedy.request))


def _undo() -> None:
    _, before, _ = st.session_state.pop(APPLIED)
    take(before)


def applied_view(now: Plan) -> None:
    """Say what the applied remedy came to, with a button that undoes it.

    Nothing is drawn once the plan has changed again.
    """
    if APPLIED not in st.session_state:
        return
    remedy, _, made = st.session_state[APPLIED]
    if now != made:
        del st.session_state[APPLIED]
        return
    answer, need = remedy.answer, deciding_need(remedy.answer)
    headroom = "" if need is None else f", {signed_gib(answer.card.usable_bytes - need)}"
    st.markdown(
        f":material/check: **{plain(remedy.title)}** is applied: by the dry run, {plain(answer.card.name)} "
        f"{_now(answer.verdict)}{headroom}.",
        width="content",
    )
    st.button("Undo", icon=":material/undo:", key="undo-remedy", on_click=_undo)


def _now(verdict: Verdict) -> str:
    return {"fits": "fits", "tight": "is tight", "no": "does not run", "unknown": "has no answer"}[verdict]


def _remedy(remedy: Remedy) -> None:
    answer = remedy.answer
    with st.container(border=True, height="stretch", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{plain(remedy.title)}**", width="content")
            verdict_badge(answer.verdict)
        minimum = "" if answer.minimum_bytes is None else f", minimum {gib(answer.minimum_bytes)}"
        st.markdown(f"Needs {gib(answer.need_bytes or 0)} ({signed_gib(remedy.need_change_bytes)}){minimum}.")
        st.caption(typeset(f"{plain(remedy.remark)}  \n{plain(remedy.cost)}"))
        if remedy.code:
            st.code("\n".join(remedy.code), language="python", wrap_lines=True)
        st.button(
            "Add this GPU" if remedy.keys == ("card",) else "Apply",
            key=f"remedy-{'-'.join(remedy.keys)}",
            icon=":material/check:",
            help="Sets the controls of the plan.",
            on_click=_apply,
            args=(remedy,),
        )


def _grid(shown: Sequence[Remedy]) -> None:
    for start in range(0, len(shown), 2):
        for column, remedy in zip(st.columns(2), shown[start : start + 2], strict=False):
            with column:
                _remedy(remedy)


def _list(shown: Sequence[Remedy]) -> None:
    st.markdown("\n".join(f"- **{plain(remedy.title)}**: {typeset(plain(remedy.remark))}" for remedy in shown))


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
    st.markdown("These changes would leave more:" if found.useful else "No change that was tried would leave more.")
    _grid(found.useful)
    if found.useless:
        st.markdown("No help here:")
        _list(found.useless)


def remedies_view(request: GenerationRequest, one: Answered, library: Library | None) -> None:
    """Draw the changes that make the request fit this GPU, or that save memory where it fits."""
    if library is None:
        st.info("Changes are tried by the dry run, whose memory programs are not there yet.", icon=":material/info:")
        return
    if one.dry_run.verdict != "fits":
        _draw(request, one, library)
        return
    spare = one.answer.card.usable_bytes - (deciding_need(one.dry_run) or 0)
    st.markdown(f"It fits {plain(one.answer.card.name)} with {gib(spare)} to spare at worst, by the dry run.")
    # Trying every change takes longer than all else on the page.
    box = st.expander("What would save memory", key=_OPEN, on_change="rerun")
    if box.open:
        with box:
            _draw(request, one, library)


def _draw(request: GenerationRequest, one: Answered, library: Library) -> None:
    try:
        with st.spinner("Trying changes"):
            found = _tried(library, library.digest, request, one.answer.card)
    except NoProgram as error:
        st.info(f"There is no dry run to try changes on: {sentence(str(error))}", icon=":material/info:")
        return
    (_savings if found.base.verdict == "fits" else _all)(found)
