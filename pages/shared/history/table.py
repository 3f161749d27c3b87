"""The table of runs. What is ticked in it is in the address, so that a link shows the same runs."""

from __future__ import annotations

import zlib
from typing import Any

import streamlit as st
from pandas import DataFrame, Series

from pages.shared.history.runs import Runs

_KEY, _SEEN = "run", "seen-runs"
_OFF = " off by"
_HELP = {
    "Allocated": "The most that tensors and workspaces took at once, GiB",
    "Reserved": "What torch's caching allocator held at most, GiB",
    "Options": "What is not as in a plain call: unguided is a guidance scale of 1 or less",
    "Versions": "stale: measured with other versions than those installed now",
    "Origin": "own: measured here. imported: from a file. reference: published, and ships with the planner.",
}
# In lower case, columns are for filters and charts.
_HIDDEN = str.islower


def chosen_runs(runs: Runs) -> list[str]:
    """The ids in the address, each once and in full where a run has it."""
    found = ((text, runs.find(text)) for text in st.query_params.get_all(_KEY))
    return list(dict.fromkeys(run.measurement_id if run else text for text, run in found))


def choose_runs(ids: list[str]) -> None:
    """Put the chosen runs into the address."""
    if ids:
        st.query_params[_KEY] = ids
    else:
        st.query_params.pop(_KEY, None)


def _columns(frame: DataFrame) -> list[str]:
    # Columns that would say the same of every run.
    same = {"Origin": (frame["Origin"] == "own").all(), "Options": (frame["Options"] == "").all()}
    return [name for name in frame.columns if not _HIDDEN(name) and not same.get(name, False)]


def _width(texts: Series, most: int) -> int:
    """Pixels that the longest of these texts takes; Streamlit alone clips long ones."""
    return min(most, max(92, 7 * int(texts.str.len().max()) + 20))


def _config(frame: DataFrame, columns: list[str]) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {
        # Wide enough for those that are not among the first rows.
        "When, UTC": st.column_config.DatetimeColumn("When, UTC", format="YYYY-MM-DD HH:mm", width=128),
        "Outcome": st.column_config.TextColumn("Outcome", width=108),
        "Card": st.column_config.TextColumn("Card", width=_width(frame["Card"], 250)),
        "Options": st.column_config.TextColumn("Options", help=_HELP["Options"], width=_width(frame["Options"], 160)),
        "Allocated": number("Allocated", format="%.2f GiB", help=_HELP["Allocated"]),
        "Reserved": number("Reserved", format="%.2f GiB", help=_HELP["Reserved"]),
        "Versions": st.column_config.TextColumn("Versions", help=_HELP["Versions"]),
        "Origin": st.column_config.TextColumn("Origin", help=_HELP["Origin"]),
    }
    for name in columns:
        if name.endswith(_OFF):
            said = f"The {name.removesuffix(_OFF).lower()}'s allocated peak against the measured one"
            config[name] = number(name, format="%+.1f %%", help=f"{said}: negative was too low")
    return config


def table(runs: Runs, shown: DataFrame) -> list[str]:
    """Draw the runs; the ids of the chosen ones: those ticked, and those in the address that the filters hide."""
    ids, chosen = shown["id"].tolist(), chosen_runs(runs)
    places = {run: place for place, run in enumerate(ids)}
    # Rows are known by their places, so other rows are another table.
    key = f"runs-{zlib.crc32(' '.join(ids).encode())}"
    if key not in st.session_state or chosen != st.session_state.get(_SEEN):
        rows = [places[run] for run in chosen if run in places]
        st.session_state[key] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    columns = _columns(shown)
    event = st.dataframe(
        shown[columns],
        hide_index=True,
        placeholder="–",
        on_select="rerun",
        selection_mode="multi-row",
        key=key,
        alt="Measured runs, newest first",
        column_config=_config(shown, columns),
    )
    ticked = [ids[row] for row in event["selection"]["rows"] if row < len(ids)]
    kept = [run for run in chosen if run not in places or run in ticked]
    now = [*kept, *(run for run in ticked if run not in kept)]
    if now != chosen:
        choose_runs(now)
    st.session_state[_SEEN] = now
    return now


def selection_bar(chosen: int, unseen: int) -> None:
    """How many runs are chosen, where the table does not say it at a glance, and the way to choose none."""
    if chosen < 2 and not unseen:
        return
    apart = "" if not unseen else ", not in the table above" if chosen == 1 else f", {unseen} not in the table above"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(f"{chosen} run{'' if chosen == 1 else 's'} chosen{apart}.", width="content")
        st.button("Choose none", icon=":material/close:", key="choose-none", on_click=choose_runs, args=([],))
