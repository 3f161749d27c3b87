"""Accuracy: every measured run against what each basis says of it."""

import streamlit as st

from pages.shared import calls
from pages.shared.chrome import history_notice, open_page, programs_notice
from pages.shared.inputs import published_control

open_page("Accuracy", "Every measured run against what each basis says of it. No run is graded on itself.")


def nothing_yet(with_published: bool) -> None:
    """What to do where there is no run to grade."""
    published = "" if with_published else " **Count published runs** shows what others measured."
    st.info(
        "No run on a GPU is in the history yet. **Verify** measures one where there is a card, and **History** imports "
        f"those of another planner; rehearsals on the CPU judge no GPU.{published}",
        icon=":material/query_stats:",
    )


programs_notice()
with_published = published_control()
bar = st.empty()


def report(done: float) -> None:
    """How far the grading is; nothing is drawn where it is there at once."""
    if done:
        bar.progress(min(done, 1.0), "Replaying measured requests, each time without the run that is graded")


with st.spinner("Looking for measured runs"):
    graded = calls.graded(with_published, report)
bar.empty()
if graded:
    from pages.shared.accuracy_view import groups_view, headline, one_run_view, scatter_view, worst_view
    from pages.shared.estimators_view import estimators_view

    headline(graded)
    scatter_view(graded)
    groups_view(graded)
    chosen = worst_view(graded)
    one_run_view(graded, chosen)
    estimators_view(graded, calls.evidence(with_published).evidence.observations)
else:
    nothing_yet(with_published)
history_notice()
