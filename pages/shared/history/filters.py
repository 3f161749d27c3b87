"""Filter the runs of the History page. The key of a filter is also its name in the address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import streamlit as st
from pandas import DataFrame, Series

from pages.shared.frame.chrome import is_phone
from pages.shared.frame.escape import plain, typeset
from pages.shared.history.runs import BASES, off_column

# Columns of which several values can be chosen, with the width of the control in pixels: on a phone, the last two share
# a row.
_CHOICES = {"GPU": 250, "Task": 150, "Outcome": 180}
# Links made when the column was called Card must still work.
_KEYS = {"GPU": "filter-card", "Task": "filter-task", "Outcome": "filter-outcome", "Origin": "filter-origin"}
# Sides of squares in pixels. A size of any shape is compared with them by its number of pixels.
_SIDES = (64, 256, 512, 768, 1024, 1536, 2048, 4096, 8192)
_SIZES = {f"{side}×{side}": side**2 for side in _SIDES}
_ALL_SIZES = (next(iter(_SIZES)), list(_SIZES)[-1])
_EXPANDER = "filters"
_DEFAULTS: dict[str, Any] = {
    **{key: [] for key in _KEYS.values()},
    "filter-size": _ALL_SIZES,
    "filter-versions": None,
    "filter-off": None,
    "filter-basis": BASES[0],
}


def _choice(frame: DataFrame, name: str, width: int | Literal["stretch"] = "stretch") -> list[str]:
    """Draw the choice of this column's values, and return the chosen ones."""
    key = _KEYS[name]
    # A link may name a value that no run has. Then no run is shown, and not every run.
    linked = [*st.session_state.get(key, ()), *st.query_params.get_all(key)]
    options = sorted({*frame[name].unique(), *linked})
    return st.multiselect(name, options, key=key, placeholder="All", bind="query-params", width=width)


def _rarer(frame: DataFrame) -> dict[str, Series]:
    low, high = st.select_slider(
        "Size, by pixels",
        list(_SIZES),
        value=_ALL_SIZES,
        key="filter-size",
        bind="query-params",
        help="Compares numbers of pixels: 512×1024 has as many as 724×724.",
    )
    masks = {"size": None if (low, high) == _ALL_SIZES else frame["pixels"].between(_SIZES[low], _SIZES[high])}
    versions = st.segmented_control(
        "Versions",
        ("current", "stale"),
        key="filter-versions",
        bind="query-params",
        help="stale: measured with other library versions than those installed now.",
    )
    masks["versions"] = None if versions is None else (frame["Versions"] == "stale") == (versions == "stale")
    origins = _choice(frame, "Origin")
    masks["origin"] = frame["Origin"].isin(origins) if origins else None
    off = st.number_input(
        "Off by more than, %",
        min_value=0.0,
        value=None,
        step=1.0,
        key="filter-off",
        bind="query-params",
        placeholder="Any",
        help="Too low or too high. Runs without a prediction or a peak are hidden.",
    )
    bases = [basis for basis in ("calibrated", *BASES) if off_column(basis) in frame.columns]
    basis = st.segmented_control(
        "Prediction to filter by", bases, default=BASES[0], required=True, key="filter-basis", bind="query-params"
    )
    masks["error"] = None if off is None else frame[off_column(basis or BASES[0])].abs() > off
    return {name: mask for name, mask in masks.items() if mask is not None}


def _value(key: str) -> Any:
    """Return the value of a filter, from the session or the address, before it is drawn."""
    if key in st.session_state:
        return st.session_state[key]
    linked = st.query_params.get_all(key)
    return tuple(linked) if isinstance(_DEFAULTS[key], (list, tuple)) else (linked[-1] if linked else None)


def summary() -> str:
    """Say in one line what is filtered."""
    parts = []
    for name, key in _KEYS.items():
        if values := _value(key):
            parts.append(f"{name if name == 'GPU' else name.lower()} {' or '.join(values)}")
    sides = tuple(_value("filter-size") or _ALL_SIZES)
    if sides != _ALL_SIZES and len(sides) == 2:
        parts.append(f"size {sides[0]} to {sides[1]}")
    if versions := _value("filter-versions"):
        parts.append(f"{versions} versions")
    if (off := _value("filter-off")) is not None:
        parts.append(typeset(f"off by more than {float(off):g} %"))
    return f"Filters: {'; '.join(parts) or 'none'}"


def _clear() -> None:
    for key, default in _DEFAULTS.items():
        st.session_state[key] = default


def _chosen(frame: DataFrame, widths: Mapping[str, int | Literal["stretch"]]) -> dict[str, Series]:
    return {
        name if name == "GPU" else name.lower(): frame[name].isin(values)
        for name, width in widths.items()
        if (values := _choice(frame, name, width))
    }


def filtered(frame: DataFrame) -> tuple[DataFrame, list[str]]:
    """Draw the filters; return the runs that pass them all, and the names of the active filters."""
    if is_phone():
        # On a phone, the controls would push the runs out of sight. The browser sets an expander to `expanded` when its
        # label changes, as it does with every choice, so it is given the state that it has.
        is_open = bool(st.session_state.get(_EXPANDER))
        with st.expander(plain(summary()), is_open, key=_EXPANDER, on_change="rerun"):
            masks = _chosen(frame, {name: "stretch" for name in _CHOICES}) | _rarer(frame)
    else:
        masks = _chosen(frame, _CHOICES)
        with st.popover("More filters", icon=":material/tune:", key="more-filters"):
            masks |= _rarer(frame)
    shown = frame
    for mask in masks.values():
        shown = shown[mask[shown.index]]
    return shown, list(masks)


def count_line(shown: int, total: int, names: list[str]) -> None:
    """Draw how many runs are shown, which filters hide others, and a button to clear them."""
    runs = f"{shown:,} of {total:,} run{'' if total == 1 else 's'}."
    if names:
        by = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        runs += f" {total - shown:,} hidden by {by}." if total > shown else f" Nothing is hidden by {by}."
    how = " Tick the box of a run to see it in full, or of several to compare them." if shown else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption(runs + how, width="content")
        if names:
            st.button("Clear filters", icon=":material/filter_alt_off:", key="clear-filters", on_click=_clear)
