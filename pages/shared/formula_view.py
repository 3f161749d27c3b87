"""The published formula with this request's numbers, what it assumes, and how far measured runs are from it."""

from statistics import median

import streamlit as st

from pages.shared import calls
from planner.formula import ASSUMPTIONS, Breakdown, not_in_the_formula
from planner.request import GenerationRequest
from planner.units import gib

_MEANING = {
    "base": "weights of the UNet, VAE and text encoder",
    "encoder": "VAE encoder",
    "unet": "UNet, one step",
    "decoder": "VAE decoder",
    "total": "base and the largest stage, and 20 %",
}


def not_counted(request: GenerationRequest) -> None:
    """Say what this request asks for and the formula has no term for: it belongs beside the verdict."""
    missing = not_in_the_formula(request)
    if missing:
        items = "\n".join(f"- {note}" for note in missing)
        st.warning(
            f"The formula does not count all of this request, so it may need more:\n{items}", icon=":material/warning:"
        )


def formula_view(breakdown: Breakdown) -> None:
    """How the number on the cards came about."""
    st.subheader("How we know", anchor=False)
    st.markdown(
        "These verdicts rest on the **published formula**: a closed form that knows the weights well and the "
        "activations hardly. It is shown exactly as published, with this request's numbers put in."
    )
    with st.container(border=True, gap="small"):
        for name, expression, size_bytes in breakdown.terms():
            st.markdown(f"**{name} = {gib(size_bytes)}** :gray[{_MEANING[name]}]  \n`{expression}`")
    st.caption(f"Parameters: {breakdown.facts.source}. `//8` is already done: latents are an eighth of the image.")
    with st.expander("What the formula assumes"):
        st.markdown("\n".join(f"- {assumption}" for assumption in ASSUMPTIONS))
    _how_far_off()


def _how_far_off() -> None:
    from cache.compare import errors_on_gpus

    errors = errors_on_gpus(calls.measurements(), "formula")
    if not errors:
        st.caption(
            "How far off is it? No run on a GPU is in the history yet; Verify measures one and shows it here. "
            "Rehearsals on the CPU do not count."
        )
        return
    worst = max(errors, key=abs)
    runs = f"{len(errors)} measured run{'' if len(errors) == 1 else 's'}"
    st.caption(f"How far off is it? Over {runs} on GPUs: {median(errors):+.0%} in the median, {worst:+.0%} at worst.")
