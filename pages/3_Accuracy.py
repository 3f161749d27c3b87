"""Accuracy: how wrong on this GPU, then every measured run against what each basis says of it."""

import streamlit as st

from pages.shared.controls.request import published_control
from pages.shared.frame import session
from pages.shared.frame.chrome import history_notice, open_page, programs_notice

open_page("Accuracy", "How wrong predictions were, by measured runs. No run is graded on itself.")


def nothing_yet(with_published: bool) -> None:
    """What to do where there is no run to grade."""
    published = "" if with_published else " **Count reference runs** shows what others measured."
    st.info(
        "No run on a GPU is in the history yet. **Verify** measures one where there is a GPU, and **History** imports "
        f"those of another planner; rehearsals on the CPU judge no GPU.{published}",
        icon=":material/query_stats:",
    )


programs_notice()
with_published = published_control()
with st.spinner("Looking for measured runs"):
    from pages.shared.accuracy.gpus import answers_view, gpus_control

    gpus = gpus_control(session.evidence(with_published).evidence.observations)
bar = st.empty()


def report(done: float) -> None:
    """How far the grading is; nothing is drawn where it is there at once."""
    if done:
        bar.progress(min(done, 1.0), "Replaying measured requests, each time without the run that is graded")


with st.spinner("Looking for measured runs"):
    graded = session.graded(with_published, report)
bar.empty()
answers_view(graded, gpus)
if graded:
    from pages.shared.accuracy.estimators import estimators_view
    from pages.shared.accuracy.view import halves_view, whole_view

    whole_view(graded)
    halves_view(graded)
    estimators_view(graded, session.evidence(with_published).evidence.observations)
else:
    nothing_yet(with_published)
history_notice()
