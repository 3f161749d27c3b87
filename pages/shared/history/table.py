"""Draw the table of runs. The selected runs are in the address, so that a link shows them again."""

from __future__ import annotations

import zlib
from typing import Any

import streamlit as st
from pandas import DataFrame, Series, Timestamp
from pandas.io.formats.style import Styler

from pages.shared.frame.chrome import is_phone
from pages.shared.frame.escape import plain
from pages.shared.frame.tables import draw_table, with_signs
from pages.shared.history.runs import Runs

_KEY, _SEEN = "run", "seen-runs"
_OFF, _WHEN = " off by", "When, UTC"
_HELP = {
    _WHEN: "When it was measured; for reference runs the day on which they were recorded",
    "Size": "Width × height in pixels",
    "Allocated": "The peak of tensors and workspaces together, GiB",
    "Reserved": "The peak of what torch's caching allocator held, GiB",
    "Options": "Options that differ from a default call; unguided: a guidance scale of 1 or less",
    "Versions": "stale: measured with other library versions than those installed now",
    "Origin": "own: measured here. imported: from a file. reference: published by others, ships with the planner.",
}
# The columns from left to right. A phone shows four or so: the outcome, the GPU, the size and the result.
_ORDER = (
    _WHEN,
    "Outcome",
    "GPU",
    "Task",
    "Size",
    "Batch",
    "Steps",
    "Options",
    "Allocated",
    "Reserved",
    "Dry run off by",
    "Calibrated off by",
    "Formula off by",
    "Weights",
    "Versions",
    "Origin",
)
_PHONE_FIRST = ("Outcome", "GPU", "Size", "Allocated", "Dry run off by")
# The order in which columns get a place while there is room.
_BY_USE = ("Outcome", "GPU", "Size", "Allocated", "Dry run off by", _WHEN, "Task", "Batch", "Options", "Origin")
_BY_USE += ("Versions", "Calibrated off by", "Reserved", "Steps", "Formula off by", "Weights")
# The width of the page's content in a window of 1024 pixels, without the boxes to tick. The server does not know the
# window's width.
_ROOM = 820
# What is said of a column that is the same in every row; `{}` is its value.
_SAID = {
    "Task": "{}",
    "Batch": "batch {}",
    "Steps": "{} steps",
    "Options": "{}",
    "Weights": "{} weights",
    "Versions": "{} versions",
    "Origin": "{}",
}
# Widths in pixels. Streamlit chooses widths by the first rows only.
_WIDTHS = {
    _WHEN: 126,
    "Outcome": 110,
    "Size": 88,
    "Batch": 58,
    "Steps": 58,
    "Allocated": 84,
    "Reserved": 84,
    "Weights": 84,
    "Versions": 76,
    "Origin": 80,
}
_OFF_WIDTH, _LONG_OFF_WIDTH = 106, 124
_PHONE_WIDTHS = {"Outcome": 72, "GPU": 96, "Size": 80, "Allocated": 74}
# A phone has no room for the words that all names begin with.
_BRANDS = ("NVIDIA ", "GeForce ", "Tesla ")
_PHONE_OUTCOMES = {"out-of-memory": "no memory"}


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


def _is_empty(values: Series) -> bool:
    return bool(values.isna().all() or (values == "").all())


def columns_of(frame: DataFrame, *, phone: bool) -> tuple[list[str], list[str]]:
    """Return the columns of the table from left to right, and what is the same in every row.

    A column without a value is left out, and so is one with the same value in every row of several.
    """
    others = [name for name in frame.columns if name.endswith(_OFF) and name not in _ORDER]
    found, same = [], []
    for name in (*_ORDER, *others):
        if name not in frame.columns or _is_empty(frame[name]):
            continue
        is_same = len(frame) > 1 and frame[name].nunique(dropna=False) == 1
        if name == "Origin" and (frame[name] == "own").all():
            continue
        if is_same and name in _SAID:
            same.append(_SAID[name].format(frame[name].iloc[0]))
        else:
            found.append(name)
    if phone:
        found.sort(key=lambda name: _PHONE_FIRST.index(name) if name in _PHONE_FIRST else len(_PHONE_FIRST))
    return found, same


def _text_width(texts: Series, least: int, most: int) -> int:
    """Return the width of the longest text in pixels, within these bounds; Streamlit would clip it."""
    return min(most, max(least, 7 * int(texts.str.len().max()) + 18))


def _width(frame: DataFrame, name: str, *, phone: bool) -> int:
    if phone and name in _PHONE_WIDTHS:
        return _PHONE_WIDTHS[name]
    if name in _WIDTHS:
        return _WIDTHS[name]
    if name.endswith(_OFF):
        return _OFF_WIDTH if len(name) < 15 else _LONG_OFF_WIDTH
    least, most = {"GPU": (84, 200), "Task": (72, 92)}.get(name, (84, 130))
    return _text_width(frame[name], least, most)


def fitting(frame: DataFrame, columns: list[str]) -> list[str]:
    """Return the columns that fit into the page, the most useful first chosen, from left to right."""
    left, kept = _ROOM, set()
    for name in sorted(columns, key=lambda name: _BY_USE.index(name) if name in _BY_USE else len(_BY_USE)):
        width = _width(frame, name, phone=False)
        if width <= left:
            kept.add(name)
            left -= width
    return [name for name in columns if name in kept]


def _config(frame: DataFrame, columns: list[str], *, phone: bool) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name in columns:
        width, told = _width(frame, name, phone=phone), _HELP.get(name)
        if name == _WHEN:
            config[name] = st.column_config.DatetimeColumn(name, help=told, width=width)
        elif name in ("Allocated", "Reserved"):
            config[name] = st.column_config.NumberColumn(name, format="%.2f GiB", help=told, width=width)
        elif name.endswith(_OFF):
            basis = name.removesuffix(_OFF).lower()
            text = f"Error of the peak that the {basis} predicted; negative is too low. It is the allocated peak, or "
            text += "the reserved one of reference runs of which only that was published."
            config[name] = st.column_config.NumberColumn(name, help=text, width=width)
        elif name in ("Batch", "Steps"):
            config[name] = st.column_config.NumberColumn(name, width=width)
        else:
            config[name] = st.column_config.TextColumn(name, help=told, width=width)
    return config


def _when_text(at: Timestamp) -> str:
    """Write a time to the minute, and a time that is a whole day as a day."""
    return f"{at:%Y-%m-%d}" if at == at.normalize() else f"{at:%Y-%m-%d %H:%M}"


def _short_name(gpu: str) -> str:
    for brand in _BRANDS:
        gpu = gpu.removeprefix(brand)
    return gpu


def _styled(frame: DataFrame, *, phone: bool) -> Styler:
    styler = with_signs(frame, [name for name in frame.columns if name.endswith(_OFF)], digits=1)
    if _WHEN in frame.columns:
        styler.format(_when_text, subset=[_WHEN])
    if phone:
        styler.format(_short_name, subset=["GPU"])
        styler.format(lambda outcome: _PHONE_OUTCOMES.get(outcome, outcome), subset=["Outcome"])
    return styler


def table(runs: Runs, shown: DataFrame) -> list[str]:
    """Draw the runs; return the ids of the selected ones, with those that filters hide."""
    ids, chosen = shown["id"].tolist(), chosen_runs(runs)
    places = {run: place for place, run in enumerate(ids)}
    # Streamlit remembers selected rows by their positions, so other rows need another key.
    key = f"runs-{zlib.crc32(' '.join(ids).encode())}"
    if key not in st.session_state or chosen != st.session_state.get(_SEEN):
        rows = [places[run] for run in chosen if run in places]
        st.session_state[key] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    phone = is_phone()
    columns, same = columns_of(shown, phone=phone)
    in_sight = columns if phone else fitting(shown, columns)
    if same:
        st.caption(f"The same in every row: {plain(', '.join(same))}.")
    event = draw_table(
        _styled(shown[columns], phone=phone),
        column_order=in_sight,
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        key=key,
        alt="Measured runs, newest first",
        column_config=_config(shown, columns, phone=phone),
    )
    if hidden := [name for name in columns if name not in in_sight]:
        st.caption(f"The eye above the table shows more columns: {', '.join(hidden)}.")
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
