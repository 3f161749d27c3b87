"""Draw the list of images that run one after another: what each needs on each GPU, and which decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st
from pandas import DataFrame

from pages.shared.controls.image_size import TYPES, fitted, read_size
from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import IMAGES_KEY, plan
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

# Keys: the rows that the table started from, how often it started, notes on uploads, and the uploads.
_BASE, _TURN, _NOTES, _UPLOADS = "images-base", "images-turn", "images-notes", "images-uploads"
_COLUMNS = ("Width", "Height", "At once")


def _editor_key() -> str:
    return f"images-{st.session_state.get(_TURN, 0)}"


def _start(rows: Sequence[ImageRow], notes: list[str]) -> None:
    """Start the table from these images, and forget what was typed into it."""
    st.session_state[_BASE], st.session_state[_NOTES] = list(rows), notes
    st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1


def _take_uploads() -> None:
    rows, notes = [], []
    for uploaded in st.session_state[_UPLOADS]:
        try:
            size = fitted(*read_size(uploaded, uploaded.name))
        except InvalidArgument as error:
            notes.append(sentence(str(error)))
            continue
        rows.append(ImageRow(size.width, size.height))
        if size.why:
            width, height = size.original
            changed = f"{width}×{height}, planned as {size.width}×{size.height}: {size.why}"
            notes.append(f"{plain(uploaded.name)} is {changed}.")
    if rows or notes:
        _start(rows, notes)


def _enter() -> None:
    """Start from the plan's list when the page is opened.

    Streamlit forgets the table of a page that was left.
    """
    if _editor_key() in st.session_state:
        return
    if _BASE in st.session_state and st.session_state.get(_UPLOADS):
        # The table has just started from uploads and is not drawn yet.
        return
    # A wrong list in a link was already refused, with a message, when the page was opened.
    _start(parse_images(plan().get(IMAGES_KEY, "")), [])


def _number(label: str, low: int, high: int, text: str) -> Any:
    return st.column_config.NumberColumn(label, min_value=low, max_value=high, step=1, format="%d", help=text)


def _table() -> DataFrame:
    """Draw the table for typing, and return its complete rows."""
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
    """Return the images that this request's task accepts, and show the errors of the others."""
    every = [ImageRow(*(int(value) for value in row)) for row in _table().itertuples(index=False)]
    if len(every) > MAX_IMAGES:
        st.warning(f"Only the first {MAX_IMAGES} images are planned.", icon=":material/warning:")
    rows, kept = [], []
    for row in every[:MAX_IMAGES]:
        try:
            # A row is kept if any task accepts it, so that it is there again after the task is changed.
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
    """Draw the verdict of the list of images, if there is one: the worst image on each GPU."""
    if listed is None:
        return
    many = f"{len(listed.rows)} images" if len(listed.rows) > 1 else "One image"
    size = f"{request.effective_width}×{request.effective_height}, batch {request.batch}"
    draw = {"fits": st.success, "tight": st.warning, "no": st.error, "unknown": st.info}[listed.verdict]
    draw(
        f"**{many} listed under Several images**; the worst image on each GPU decides:\n{_lines(listed)}\n\n"
        f"{_left_out(request)}All other verdicts on this page are for {size} alone.",
        icon=LOOKS[listed.verdict].icon,
    )


def _left_out(request: GenerationRequest) -> str:
    count = len(parse_images(plan().get(IMAGES_KEY, ""))) - len(listed_rows(request))
    if not count:
        return ""
    images = "1 more image is" if count == 1 else f"{count} more images are"
    return f"{images} left out: {request.task} does not take their sizes. "


def listed_rows(request: GenerationRequest) -> list[ImageRow]:
    """Return the plan's images that this request's task takes, without drawing their table."""
    rows = []
    for row in parse_images(plan().get(IMAGES_KEY, "")):
        try:
            row.of(request)
        except InvalidArgument:
            continue
        rows.append(row)
    return rows


def images_view(request: GenerationRequest) -> list[ImageRow]:
    """Draw a table of images that run one after another; return those that this request's task takes."""
    _enter()
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
    for text in st.session_state[_NOTES]:
        st.caption(text)
    return _rows(request)


def answer_list(
    rows: Sequence[ImageRow],
    request: GenerationRequest,
    cards: Sequence[Card],
    basis: str,
    library: Library | None,
    evidence: Evidence | None,
    *,
    is_drawn: bool,
) -> Listed | None:
    """Answer the listed images, and draw the answers if their tab is open; None without images."""
    if not rows:
        return None
    with st.spinner("Replaying each image on each GPU"):
        listed = answer_images(rows, request, cards, basis, library=library, evidence=evidence)
    if is_drawn:
        _answers(listed)
    return listed


def _answers(listed: Listed) -> None:
    st.markdown("**The worst image decides**: images run one after another, so the largest need counts, not the sum.")
    st.markdown(_lines(listed))
    names = [one.answer.card.name for one in listed.worst]
    st.dataframe(
        [
            {"Image": row.text}
            | {name: _cell(of_card[place]) for name, of_card in zip(names, listed.answers, strict=True)}
            for place, row in enumerate(listed.rows)
        ],
        hide_index=True,
        alt="Verdict and need of each image on each GPU",
    )
    st.caption(
        "Each image is replayed alone. If one process runs them all, the allocator may still hold memory of an earlier "
        "size. It gives this back before it fails; torch.cuda.empty_cache() between images gives it back earlier."
    )
