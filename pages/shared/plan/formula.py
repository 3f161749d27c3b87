"""Draw the published formula beside the dry run, and how far off both were on measured runs."""

from __future__ import annotations

from statistics import median

import streamlit as st

from cache.predictions import errors_on_gpus
from pages.shared.frame import session
from pages.shared.frame.escape import typeset
from pages.shared.plan.memory import beside_rows, ratio_words
from pages.shared.plan.verdicts import Answered
from planner.components import STAGE_NAMES
from planner.formula import ASSUMPTIONS, Breakdown, estimate, not_in_the_formula
from planner.programs.library import Library
from planner.request import GenerationRequest
from planner.units import gib, gib_value

TERM_NAMES = STAGE_NAMES | {"weights": "Weights", "need": "Total"}
_MEANING = {
    "base": "weights of the UNet, VAE and text encoder",
    "encoder": "VAE encoder",
    "unet": "UNet, one step",
    "decoder": "VAE decoder",
    "total": "base and the largest stage, plus 20 %",
}


def not_counted(request: GenerationRequest) -> None:
    """Warn of parts of the request that the formula has no term for."""
    missing = not_in_the_formula(request)
    if missing:
        items = "\n".join(f"- {note}" for note in missing)
        st.warning(
            f"The formula does not count everything in this request, so the real need may be higher:\n{items}",
            icon=":material/warning:",
        )


def formula_view(request: GenerationRequest, one: Answered, library: Library | None) -> None:
    """Draw the formula beside the dry run on one GPU, and the errors of both on runs."""
    breakdown = estimate(request)
    st.header("Formula beside dry run", anchor=False)
    st.markdown(
        "The **published formula** is accurate for weights and counts almost no activations. It is shown exactly as "
        "published, with the numbers of this request. The **dry run** replays every allocation of the real modules on "
        f"a simulated {one.answer.card.name}."
    )
    left, right = st.columns([1, 1.4], gap="medium")
    with left:
        _terms(breakdown)
    with right:
        if library is None or one.dry_run.need_bytes is None:
            st.info("The dry run has no answer to compare with.", icon=":material/info:")
        else:
            _beside(request, one, library)
    with st.expander("What the formula assumes, and what it does not count"):
        st.markdown("Assumptions:\n" + "\n".join(f"- {assumption}" for assumption in ASSUMPTIONS))
        st.markdown(
            "Parts of this request that are not counted:\n"
            + "\n".join(f"- {note}" for note in not_in_the_formula(request))
        )
    _how_far_off()


def _terms(breakdown: Breakdown) -> None:
    with st.container(border=True, gap="small"):
        for name, expression, size_bytes in breakdown.terms():
            st.markdown(f"**{name} = {gib(size_bytes)}** :gray[{_MEANING[name]}]  \n`{expression}`")
    st.caption(f"Parameters: {breakdown.facts.source}. Latents have an eighth of the image's width and height.")


def _beside(request: GenerationRequest, one: Answered, library: Library) -> None:
    formula, dry_run = one.formula, one.dry_run
    rows = [
        {
            "Term": TERM_NAMES.get(row.term, row.term),
            "Formula": None if row.formula_bytes is None else gib_value(row.formula_bytes),
            "Dry run": None if row.dry_run_bytes is None else gib_value(row.dry_run_bytes),
            "Ratio": row.ratio,
        }
        for row in beside_rows(formula, dry_run, request, library)
    ]
    number = st.column_config.NumberColumn
    weights = "without the weights" if request.offload == "none" else "with the weights that are loaded"
    st.dataframe(
        rows,
        hide_index=True,
        placeholder="–",
        height="content",
        alt=f"Each stage by the formula and by the dry run, {weights}",
        column_config={
            "Term": st.column_config.TextColumn("Term", width=92),
            "Formula": number(
                "Formula", width=82, format="%.3f GiB", help=f"The formula's term for this stage, {weights}."
            ),
            "Dry run": number("Dry run", width=82, format="%.3f GiB", help=f"The dry run's allocated peak, {weights}."),
            "Ratio": number("Ratio", width=52, format="×%.1f", help="The dry run's value divided by the formula's."),
        },
    )
    st.caption(f"Stages are shown {weights}. A dash means that the formula has no term for the stage.")
    need, total = gib(dry_run.need_bytes or 0), gib(formula.need_bytes or 0)
    st.markdown(f"In total the dry run needs **{need}** and the formula **{total}**: {ratio_words(formula, dry_run)}.")


def _how_far_off() -> None:
    measurements = session.measurements()
    texts = []
    for basis, name in (("dry-run", "dry run"), ("formula", "formula")):
        errors = errors_on_gpus(measurements, basis)
        if errors:
            worst = max(errors, key=abs)
            runs = f"{len(errors)} run{'' if len(errors) == 1 else 's'}"
            texts.append(typeset(f"{name} ({runs}) {median(errors):+.0%} in the median, {worst:+.0%} at worst"))
    if texts:
        st.caption(f"Errors of the allocated peak on measured GPUs: {'; '.join(texts)}.")
    else:
        st.caption(
            "The history has no run on a GPU yet to check both with: **Verify** measures one. Rehearsals on the CPU "
            "do not count."
        )
