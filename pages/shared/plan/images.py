"""Several images, one after another: what each needs on each card, and which one decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st
from pandas import DataFrame

from pages.shared.controls.image_size import TYPES, fitted, read_size
from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import IMAGES_KEY, plan, stays_open
from pages.shared.frame.uploads import upload_caption
from pages.shared.plan.verdicts import LOOKS
from planner.alternatives.images import MAX_IMAGES, ImageRow, Listed, answer_images, images_text, parse_images
from planner.answer import SIGNS, Answer
from planner.calibration.evidence import Evidence
from planner.cards.lookup import Card
from planner.errors import InvalidArgument
from planner.programs.library import Library
from planner.request import MAX_BATCH, MAX_SIDE, MIN_SIDE, GenerationRequest
from planner.units import gib

# What the table started from and how often it was, what was wrong with an upload or a link, and the uploads.
_BASE, _TURN, _TOLD, _UPLOADS = "images-base", "images-turn", "images-told", "images-uploads"
_COLUMNS = ("Width", "Height", "At once")
_ANCHOR = "several-images"


def _editor_key() -> str:
    return f"images-{st.session_state.get(_TURN, 0)}"


def _start(rows: Sequence[ImageRow], told: list[str]) -> None:
    """Start the table from these images, without what was typed into it before."""
    st.session_state[_BASE], st.session_state[_TOLD] = list(rows), told
    st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1


def _take_uploads() -> None:
    rows, told = [], []
    for uploaded in st.session_state[_UPLOADS]:
        try:
            size = fitted(*read_size(uploaded.getvalue(), uploaded.name))
        except InvalidArgument as error:
            told.append(sentence(str(error)))
            continue
        rows.append(ImageRow(size.width, size.height))
        if size.why:
            width, height = size.original
            changed = f"{width}×{height}, planned as {size.width}×{size.height}: {size.why}"
            told.append(f"{plain(uploaded.name)} is {changed}.")
    if rows or told:
        _start(rows, told)


def _enter() -> None:
    """Start from the plan's list where the page was opened just now: a table left behind forgot what was typed."""
    if _editor_key() in st.session_state:
        return
    if _BASE in st.session_state and st.session_state.get(_UPLOADS):
        # Just started from uploads, and not drawn yet.
        return
    # What a link lists wrongly was refused, and said, as the page was entered.
    _start(parse_images(plan().get(IMAGES_KEY, "")), [])


def _number(label: str, low: int, high: int, text: str) -> Any:
    return st.column_config.NumberColumn(label, min_value=low, max_value=high, step=1, format="%d", help=text)


def _table() -> DataFrame:
    """Draw the table that is typed into; its complete rows."""
    size_help = f"In pixels, {MIN_SIDE} to {MAX_SIDE}."
    edited = st.data_editor(
        DataFrame([tuple(row) for row in st.session_state[_BASE]], columns=list(_COLUMNS), dtype="Int64"),
        key=_editor_key(),
        num_rows="dynamic",
        hide_index=True,
        alt="Images that run one after another: width, height, and how many at once",
        column_config={
            "Width": _number("Width", MIN_SIDE, MAX_SIDE, size_help),
            "Height": _number("Height", MIN_SIDE, MAX_SIDE, size_help),
            "At once": _number("At once", 1, MAX_BATCH, "Images of this size in one call, its batch. Empty is 1."),
        },
    )
    return edited.dropna(subset=["Width", "Height"]).fillna({"At once": 1})


def _rows(request: GenerationRequest) -> list[ImageRow]:
    """The images of the table that this request's task takes; what is wrong with the others is said."""
    every = [ImageRow(*(int(value) for value in row)) for row in _table().itertuples(index=False)]
    if len(every) > MAX_IMAGES:
        st.warning(f"Only the first {MAX_IMAGES} images are looked at.", icon=":material/warning:")
    rows, kept = [], []
    for row in every[:MAX_IMAGES]:
        try:
            # Kept where any task takes it: what this one refuses is there again once the task is changed back.
            row.of(GenerationRequest())
            kept.append(row)
            row.of(request)
            rows.append(row)
        except InvalidArgument as error:
            st.error(f"{row.text}: {sentence(str(error))}", icon=":material/error:")
    _keep(images_text(kept))
    return rows


def _keep(text: str) -> None:
    plan()[IMAGES_KEY] = st.session_state[IMAGES_KEY] = text
    if text and st.query_params.get(IMAGES_KEY) != text:
        st.query_params[IMAGES_KEY] = text
    elif not text and IMAGES_KEY in st.query_params:
        del st.query_params[IMAGES_KEY]


def _cell(answer: Answer) -> str:
    needs = "" if answer.need_bytes is None else f", {gib(answer.need_bytes)}"
    return f"{SIGNS[answer.verdict]} {answer.verdict}{needs}"


def _lines(listed: Listed) -> str:
    return "\n".join(f"- **{plain(one.answer.card.name)}** {plain(one.words)}" for one in listed.worst)


def images_notice(request: GenerationRequest, listed: Listed | None) -> None:
    """What the list of images makes of the verdicts, where there is one: the worst image on each card, in sight."""
    if listed is None:
        return
    many = f"Of the {len(listed.rows)} images" if len(listed.rows) > 1 else "Of the one image"
    size = f"{request.effective_width}×{request.effective_height}, batch {request.batch}"
    said = {"fits": st.success, "tight": st.warning, "no": st.error, "unknown": st.info}[listed.verdict]
    said(
        f"**{many} in [the list](#{_ANCHOR})**, the worst on each card decides:\n{_lines(listed)}\n\n"
        f"The verdicts below are those of {size} alone.",
        icon=LOOKS[listed.verdict].icon,
    )


def batch_list_view(
    request: GenerationRequest,
    cards: Sequence[Card],
    basis: str,
    library: Library | None,
    evidence: Evidence | None,
) -> Listed | None:
    """Draw a list of images, each with this request's other settings: a verdict on each card, and the worst of all.

    Returned is what was answered, None where nothing is listed.
    """
    _enter()
    st.subheader("Several images", anchor=_ANCHOR)
    with st.expander(
        "The list of images", expanded=stays_open("images", (IMAGES_KEY,)), icon=":material/photo_library:"
    ):
        st.caption("One after another, each with the task, the guidance and the options of this plan.")
        st.file_uploader(
            "Sizes from images",
            TYPES,
            accept_multiple_files=True,
            key=_UPLOADS,
            on_change=_take_uploads,
            help="PNG, JPEG or WebP. Their headers are read for their sizes, which replace the list; no picture is "
            "decoded or stored.",
        )
        upload_caption("PNG, JPEG or WebP")
        for text in st.session_state[_TOLD]:
            st.caption(text)
        rows = _rows(request)
        if not rows or not cards:
            return None
        with st.spinner("Replaying each image on each card"):
            listed = answer_images(rows, request, cards, basis, library=library, evidence=evidence)
        _answers(listed)
        return listed


def _answers(listed: Listed) -> None:
    st.markdown("**The worst image decides**: they run one after another, so the largest need counts, not the sum.")
    st.markdown(_lines(listed))
    names = [one.answer.card.name for one in listed.worst]
    st.dataframe(
        [
            {"Image": row.text}
            | {name: _cell(of_card[place]) for name, of_card in zip(names, listed.answers, strict=True)}
            for place, row in enumerate(listed.rows)
        ],
        hide_index=True,
        alt="Each image's verdict and need on each card",
    )
    st.caption(
        "Each image is replayed alone. Where one process runs them all, the allocator may still hold segments of "
        "an earlier size: it gives them back before it fails, or earlier, by torch.cuda.empty_cache() between them."
    )
