"""The History page: measured runs, each with its predictions."""

import streamlit as st

from pages.shared.frame.chrome import history_notice, open_page
from pages.shared.guard.rights import login_control
from pages.shared.history.compare import comparison
from pages.shared.history.details import details
from pages.shared.history.filters import count_line, filtered
from pages.shared.history.recover import set_aside_notice
from pages.shared.history.runs import Runs, find, runs
from pages.shared.history.table import selection_bar

open_page("History", "Every measured run, and how far off each prediction was.")
login_control()
history_notice(with_set_aside=False)
set_aside_notice()


def nothing_yet() -> None:
    """Say what to do while there is no run to show."""
    st.info(
        "No run was measured yet. **Verify** measures one on a GPU of this machine, or rehearses one on the CPU; "
        "`python -m planner verify` does the same in a terminal. **Import** adds the runs of another planner, and "
        "**Reference runs** shows runs that others published.",
        icon=":material/history:",
    )


def chosen_view(found: Runs, ids: list[str], seen: set[str]) -> None:
    """Draw the chosen run in full, or compare the chosen runs."""
    chosen = [run for run in (find(found, text) for text in ids) if run]
    if missing := len(ids) - len(chosen):
        gone = "The run in this link is" if missing == 1 else f"{missing} runs in this link are"
        st.warning(f"{gone} not in the history.", icon=":material/link_off:")
    selection_bar(len(chosen), sum(run.measurement_id not in seen for run in chosen))
    if len(chosen) > 1:
        comparison(chosen)
    elif chosen:
        details(found, chosen[0])


# The frame is drawn before the runs are read: these containers are filled afterwards.
filters = st.container(horizontal=True, vertical_alignment="bottom")
bar = st.container(horizontal=True, vertical_alignment="center")
with bar:
    with_references = st.toggle(
        "Reference runs",
        key="reference",
        bind="query-params",
        help="Runs that others measured and published, each with its source. They ship with the planner and are "
        "not part of the history.",
    )
with st.spinner("Reading the history"):
    from pages.shared.history.files import downloads, import_control
    from pages.shared.history.repeats import repeats_view
    from pages.shared.history.table import chosen_runs, table

    found = runs(with_references)
    frame = found.frame
with bar:
    import_control()
if frame.empty:
    nothing_yet()
    ids, seen = chosen_runs(found), set()
else:
    with filters:
        shown, names = filtered(frame)
    with bar:
        downloads(found, shown)
    count_line(len(shown), len(frame), names)
    ids, seen = chosen_runs(found) if shown.empty else table(found, shown), set(shown["id"])
if ids:
    chosen_view(found, ids, seen)
if not frame.empty:
    repeats_view(found, shown)
