"""Draw the table of runs. The selected runs are in the address, so that a link shows them again."""

from __future__ import annotations

import zlib
from typing import Any

import streamlit as st
from pandas import DataFrame, Series

from pages.shared.history.runs import Runs

_KEY, _SEEN = "run", "seen-runs"
_OFF = " off by"
_HELP = {
    "Allocated": "The peak of tensors and workspaces together, GiB",
    "Reserved": "The peak of what torch's caching allocator held, GiB",
    "Options": "Options that differ from a default call; unguided: a guidance scale of 1 or less",
    "Versions": "stale: measured with other library versions than those installed now",
    "Origin": "own: measured here. imported: from a file. reference: published by others, ships with the planner.",
}
# Columns in lower case are only for filters and charts.
_HIDDEN = str.islower


def chosen_runs(runs: Runs) -> list[str]:
    """Return the ids in the address, each once, and in full if a run has it."""
    found = ((text, runs.find(text)) for text in st.query_params.get_all(_KEY))
    return list(dict.fromkeys(run.measurement_id if run else text for text, run in found))


def choose_runs(ids: list[str]) -> None:
    """Put the chosen runs into the address."""
    if ids:
        st.query_params[_KEY] = ids
    else:
        st.query_params.pop(_KEY, None)


def _columns(frame: DataFrame) -> list[str]:
    # Columns with the same value for every run are left out.
    same = {"Origin": (frame["Origin"] == "own").all(), "Options": (frame["Options"] == "").all()}
    return [name for name in frame.columns if not _HIDDEN(name) and not same.get(name, False)]


def _width(texts: Series, most: int) -> int:
    """Return the width of the longest text in pixels, at most `most`; Streamlit would clip it."""
    return min(most, max(92, 7 * int(texts.str.len().max()) + 20))


def _config(frame: DataFrame, columns: list[str]) -> dict[str, Any]:
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {
        # Streamlit chooses widths by the first rows only.
        "When, UTC": st.column_config.DatetimeColumn("When, UTC", format="YYYY-MM-DD HH:mm", width=128),
        "Outcome": st.column_config.TextColumn("Outcome", width=108),
        "GPU": st.column_config.TextColumn("GPU", width=_width(frame["GPU"], 250)),
        "Options": st.column_config.TextColumn("Options", help=_HELP["Options"], width=_width(frame["Options"], 160)),
        "Allocated": number("Allocated", format="%.2f GiB", help=_HELP["Allocated"]),
        "Reserved": number("Reserved", format="%.2f GiB", help=_HELP["Reserved"]),
        "Versions": st.column_config.TextColumn("Versions", help=_HELP["Versions"]),
        "Origin": st.column_config.TextColumn("Origin", help=_HELP["Origin"]),
    }
    for name in columns:
        if name.endswith(_OFF):
            basis = name.removesuffix(_OFF).lower()
            text = f"Error of the allocated peak that the {basis} predicted; negative is too low"
            config[name] = number(name, format="%+.1f %%", help=text)
    return config


def table(runs: Runs, shown: DataFrame) -> list[str]:
    """Draw the runs; return the ids of the selected ones, with those that filters hide."""
    ids, chosen = shown["id"].tolist(), chosen_runs(runs)
    places = {run: place for place, run in enumerate(ids)}
    # Streamlit remembers selected rows by their positions, so other rows need another key.
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
    """Draw how many runs are selected, unless the table shows it, and a button to clear."""
    if chosen < 2 and not unseen:
        return
    apart = "" if not unseen else ", not in the table above" if chosen == 1 else f", {unseen} not in the table above"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(f"{chosen} run{'' if chosen == 1 else 's'} selected{apart}.", width="content")
        st.button("Clear selection", icon=":material/close:", key="choose-none", on_click=choose_runs, args=([],))
