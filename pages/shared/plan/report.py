"""Export the plan as JSON, Markdown, a picture, the planned call in Python, and an address to check it.

A click makes the file; what draws the picture is not imported before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urljoin

import streamlit as st

from cache.machine.versions import planned_for
from pages.shared.frame.plan_state import API_PATH, PICTURE_PATH, check_query
from pages.shared.plan.memory import card_to_look_at, need_parts
from pages.shared.plan.picture import picture_png, picture_spec, picture_svg
from pages.shared.plan.verdicts import Answered
from planner.alternatives.images import ImageRow
from planner.cards.lookup import Card
from planner.errors import NoProgram
from planner.plan import PlanAnswer
from planner.programs.library import Library
from planner.replay.timeline import Timeline, timeline_of
from planner.report.markdown import fit_markdown, fit_notes
from planner.report.script import snippet
from planner.report.text import plan_object
from planner.request import GenerationRequest


class Report(NamedTuple):
    """A plan as it was shown, and the files of it; `shown` has the dry run beside each answer."""

    found: PlanAnswer
    shown: Sequence[Answered]
    library: Library | None

    def json(self) -> bytes:
        """Write what ``fit --json`` prints, with the worst listed image on each GPU as ``images``."""
        return f"{json.dumps(plan_object(self.found), indent=2, ensure_ascii=False)}\n".encode()

    def markdown(self) -> bytes:
        """Write what ``fit --format md`` prints, with the worst listed image on each GPU."""
        plan, answers, _, images = self.found
        commands = [plan.command(self.found.cards)]
        if images:
            # The command line takes one request, so each image that decides has a command for the GPUs where it does.
            by_row: dict[ImageRow, list[Card]] = {}
            for row, answer in images.worst:
                by_row.setdefault(row, []).append(answer.card)
            commands += [replace(plan, request=row.of(plan.request)).command(cards) for row, cards in by_row.items()]
        return f"{fit_markdown(plan.request, answers, planned_for(), *commands, images=images)}\n".encode()

    def png(self) -> bytes:
        """Draw one page as a PNG: verdicts, memory of each GPU, and the most telling one's memory over time."""
        return picture_png(self._picture())

    def svg(self) -> str:
        """Draw the same page as an SVG."""
        return picture_svg(self._picture())

    def _picture(self) -> dict[str, Any]:
        request, answers = self.found.plan.request, self.found.answers
        rows = [(answer, need_parts(answer, request, self.library)) for answer in answers]
        notes = fit_notes(request, answers)
        return picture_spec(request, rows, self._timeline(), notes, self.caption(), self.found.images)

    def caption(self, now: datetime | None = None) -> str:
        """Say when, with which versions and on what basis this was planned."""
        when = f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        versions = ", ".join(f"{name} {version}" for name, version in planned_for().items())
        bases = list(dict.fromkeys(one.basis for one in self.found.answers if one.need_bytes is not None))
        basis = f"Basis: {' and '.join(bases)}" if bases else "No basis has an answer"
        predicted = "; values that are not measured are predicted" if set(bases) - {"measured"} else ""
        return (
            f"Planned {when} with Will It Fit, for Stable Diffusion v1.5 with {versions}. {basis}{predicted}. "
            "GiB are 2^30 bytes."
        )

    def _timeline(self) -> tuple[str, Timeline, int] | None:
        if self.library is None:
            return None
        name = card_to_look_at(one.dry_run for one in self.shown)
        card = next(one.answer.card for one in self.shown if one.answer.card.name == name)
        try:
            drawn = timeline_of(self.found.plan.request, card, self.library)
        except NoProgram:
            return None
        return name, drawn, max(0, card.usable_bytes - card.context_bytes)


def file_name(request: GenerationRequest, ending: str, images: int = 0) -> str:
    """Name a file by its plan; `images` is the number of images listed beside the request."""
    size = f"{request.effective_width}x{request.effective_height}"
    more = f"-and-{images}-listed" if images else ""
    return f"will-it-fit-{request.task}-{size}-batch-{request.batch}{more}.{ending}"


def report_view(found: PlanAnswer, shown: Sequence[Answered], library: Library | None) -> None:
    """Draw three downloads of the plan, the script of its call, and the address that checks it."""
    if not shown:
        return
    report, request, images = Report(found, tuple(shown), library), found.plan.request, found.images
    st.markdown("**Files**")
    files = (
        ("JSON", "json", report.json, "application/json", "The output of `fit --json`, with sizes in bytes."),
        ("Markdown", "md", report.markdown, "text/markdown", "For a ticket: verdicts, notes, versions, the command."),
        ("Picture", "png", report.png, "image/png", "One page: verdicts, memory of each GPU, memory over time."),
    )
    with st.container(horizontal=True, gap="small"):
        for label, ending, make, mime, text in files:
            st.download_button(
                label,
                make,
                file_name(request, ending, len(images.rows) if images else 0),
                mime,
                key=f"report-{ending}",
                on_click="ignore",
                icon=":material/download:",
                help=text,
            )
    with st.expander("The planned call in Python"):
        st.caption(
            "Ready to run on a machine with a GPU. It prints the memory that torch reserved, to compare with the need."
        )
        st.code(snippet(request), language="python", wrap_lines=True)
    with st.expander("The same check over HTTP"):
        st.caption(
            "For scripts that cannot run Python: the JSON above, with the exit code of the worst verdict in the header "
            "`Planner-Exit-Code` (0 fits, 11 tight, 10 no, 12 unknown)."
        )
        query = check_query(found.plan)
        st.code(f"curl -si '{_address(API_PATH)}?{query}'", language=None, wrap_lines=True)
        st.caption("The picture above as an SVG, for a README or a wiki; it is drawn when somebody looks at it.")
        st.code(f"{_address(PICTURE_PATH)}?{query}", language=None, wrap_lines=True)


def _address(path: str) -> str:
    """Return the address of the HTTP answers, as the visitor of this page reaches it."""
    return urljoin(st.context.url or "http://127.0.0.1:8501/", path.lstrip("/"))
