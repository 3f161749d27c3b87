"""The Accuracy page: how far off predictions were, by GPU, by group of runs, and by run."""

import streamlit as st

from pages.shared.controls.request import published_control
from pages.shared.frame import session
from pages.shared.frame.chrome import history_notice, open_page, programs_notice

open_page("Accuracy", "How far off predictions were on measured runs. Each run is left out of its own prediction.")


def nothing_yet(with_published: bool) -> None:
    """Say what to do while there is no run to grade."""
    published = "" if with_published else " **Count reference runs** adds runs that others published."
    st.info(
        "The history has no run on a GPU yet. **Verify** measures one on a machine with a GPU, and **History** imports "
        f"the runs of another planner. Rehearsals on the CPU say nothing about GPUs.{published}",
        icon=":material/query_stats:",
    )


programs_notice()
with_published = published_control()
with st.spinner("Looking for measured runs"):
    from pages.shared.accuracy.gpus import answers_view, gpus_control

    gpus = gpus_control(session.evidence(with_published).evidence.observations)
bar = st.empty()


def report(done: float) -> None:
    """Draw how much of the grading is done, 0 to 1; grading that was kept draws nothing."""
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
