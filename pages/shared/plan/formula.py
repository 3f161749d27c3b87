"""The published formula with this request's numbers beside the dry run's, and how far measured runs are from each."""

from __future__ import annotations

from statistics import median

import streamlit as st

from cache.predictions import errors_on_gpus
from pages.shared.frame import session
from pages.shared.plan.memory import beside_rows, factor_words
from pages.shared.plan.verdicts import Answered
from planner.components import STAGE_NAMES
from planner.formula import ASSUMPTIONS, Breakdown, estimate, not_in_the_formula
from planner.programs.library import Library
from planner.request import GenerationRequest
from planner.units import gib, gib_value

TERM_NAMES = STAGE_NAMES | {"weights": "Weights", "need": "In all"}
_MEANING = {
    "base": "weights of the UNet, VAE and text encoder",
    "encoder": "VAE encoder",
    "unet": "UNet, one step",
    "decoder": "VAE decoder",
    "total": "base and the largest stage, and 20 %",
}


def not_counted(request: GenerationRequest) -> None:
    """Say what this request asks for and the formula has no term for: it belongs beside the formula's verdict."""
    missing = not_in_the_formula(request)
    if missing:
        items = "\n".join(f"- {note}" for note in missing)
        st.warning(
            f"The formula does not count all of this request, so it may need more:\n{items}", icon=":material/warning:"
        )


def formula_view(request: GenerationRequest, one: Answered, library: Library | None) -> None:
    """The formula as published beside the dry run on one card, and how far each was off where it was measured."""
    breakdown = estimate(request)
    st.subheader("Formula beside dry run", anchor=False)
    st.markdown(
        "The **published formula** is a closed form that knows the weights well and the activations hardly. It is "
        "shown exactly as published, with this request's numbers put in. The **dry run** plays every allocation of the "
        f"real modules on a virtual {one.answer.card.name}."
    )
    left, right = st.columns(2, gap="medium")
    with left:
        _terms(breakdown)
    with right:
        if library is None or one.dry_run.need_bytes is None:
            st.info("The dry run has no answer to set beside it.", icon=":material/info:")
        else:
            _beside(request, one, library)
    with st.expander("What the formula assumes, and what it does not count"):
        st.markdown("Assumed:\n" + "\n".join(f"- {assumption}" for assumption in ASSUMPTIONS))
        st.markdown("Not counted of this request:\n" + "\n".join(f"- {note}" for note in not_in_the_formula(request)))
    _how_far_off()


def _terms(breakdown: Breakdown) -> None:
    with st.container(border=True, gap="small"):
        for name, expression, size_bytes in breakdown.terms():
            st.markdown(f"**{name} = {gib(size_bytes)}** :gray[{_MEANING[name]}]  \n`{expression}`")
    st.caption(f"Parameters: {breakdown.facts.source}. `//8` is already done: latents are an eighth of the image.")


def _beside(request: GenerationRequest, one: Answered, library: Library) -> None:
    formula, dry_run = one.formula, one.dry_run
    rows = [
        {
            "Term": TERM_NAMES.get(row.term, row.term),
            "Formula": None if row.formula_bytes is None else gib_value(row.formula_bytes),
            "Dry run": None if row.dry_run_bytes is None else gib_value(row.dry_run_bytes),
            "Factor": row.factor,
        }
        for row in beside_rows(formula, dry_run, request, library)
    ]
    number = st.column_config.NumberColumn
    above = "above the weights" if request.offload == "none" else "with the weights that are there"
    st.dataframe(
        rows,
        hide_index=True,
        placeholder="–",
        height="content",
        alt=f"Each stage by the formula and by the dry run, {above}",
        column_config={
            "Formula": number("Formula", format="%.3f GiB", help=f"The formula's term of this stage, {above}."),
            "Dry run": number("Dry run", format="%.3f GiB", help=f"The dry run's allocated peak, {above}."),
            "Factor": number("Factor", format="×%.1f", help="How many times the formula's the dry run's is."),
        },
    )
    st.caption(f"Stages are told {above}. A dash: the formula has no term for it.")
    need, total = gib(dry_run.need_bytes or 0), gib(formula.need_bytes or 0)
    st.markdown(f"In all the dry run needs **{need}**, the formula **{total}**: {factor_words(formula, dry_run)}.")


def _how_far_off() -> None:
    measurements = session.measurements()
    told = []
    for basis, name in (("dry-run", "the dry run"), ("formula", "the formula")):
        errors = errors_on_gpus(measurements, basis)
        if errors:
            worst = max(errors, key=abs)
            runs = f"{len(errors)} measured run{'' if len(errors) == 1 else 's'}"
            told.append(f"{name} over {runs} on GPUs: {median(errors):+.0%} in the median, {worst:+.0%} at worst")
    if told:
        st.caption(f"How far off is it? Allocated peaks of {'; of '.join(told)}.")
    else:
        st.caption(
            "How far off is it? No run on a GPU is in the history yet; Verify measures one and shows it here. "
            "Rehearsals on the CPU do not count."
        )
