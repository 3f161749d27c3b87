"""Answer over HTTP beside the app: ``/api/fit`` with the JSON of ``fit --json``, ``/api/plan.svg`` with a picture.

The query is a plan's address. As on the command line, the default GPUs answer if no GPU is named, described or
attached; on Plan they may stand beside those, so the check that Plan shows names every GPU. If ``images`` are listed,
``images`` of the answer has the worst of them on each GPU, and the verdict in the headers is the worst of the whole
answer.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cache.machine.attached import plannable
from pages.shared.frame import session
from pages.shared.frame.plan_state import API_PATH, PICTURE_PATH, VIEW_KEYS
from pages.shared.plan.report import Report
from pages.shared.plan.verdicts import beside
from planner.answer import EXIT_CODES, SCHEMA, Verdict
from planner.errors import PlannerError
from planner.plan import Plan, PlanAnswer, answer_plan
from planner.programs.library import Library
from planner.report.text import plan_object

# Names that only change how a page is shown, ours and Streamlit's, do not change the answer.
_IGNORED = (*VIEW_KEYS, "embed", "embed_options")


def _answered(query: QueryParams) -> tuple[PlanAnswer, Library | None]:
    plan = Plan.from_query(query.multi_items(), ignored=_IGNORED)
    cards = plan.cards(plannable)
    evidence = session.evidence(plan.published).evidence if plan.uses_evidence else None
    library, _ = session.library()
    return answer_plan(plan, cards, library=library, evidence=evidence), library


def answer_to(query: QueryParams) -> tuple[dict[str, Any], Verdict]:
    """Answer a query with the JSON object of ``fit --json`` and the verdict that decides over all of it.

    Raises:
        PlannerError: the query breaks a rule.
    """
    found, _ = _answered(query)
    return plan_object(found), found.verdict


def picture_of(query: QueryParams) -> tuple[str, Verdict]:
    """Answer a query with the picture that Plan exports, as an SVG, and the verdict that decides.

    Raises:
        PlannerError: the query breaks a rule.
    """
    found, library = _answered(query)
    shown = [beside(answer, found.plan.request, library) for answer in found.answers]
    return Report(found, shown, library).svg(), found.verdict


def _headers(verdict: Verdict) -> dict[str, str]:
    # What a shell would get as the exit code, for those who look at nothing else.
    return {"Planner-Verdict": verdict, "Planner-Exit-Code": str(EXIT_CODES[verdict]), "Cache-Control": "no-store"}


def _refused(error: PlannerError) -> Response:
    return JSONResponse({"schema": SCHEMA, "error": str(error)}, status_code=400)


def _fit(request: Request) -> Response:
    try:
        found, verdict = answer_to(request.query_params)
    except PlannerError as error:
        return _refused(error)
    return JSONResponse(found, headers=_headers(verdict))


def _picture(request: Request) -> Response:
    try:
        svg, verdict = picture_of(request.query_params)
    except PlannerError as error:
        return _refused(error)
    return Response(svg, media_type="image/svg+xml", headers=_headers(verdict))


ROUTES = [Route(API_PATH, _fit, methods=["GET"]), Route(PICTURE_PATH, _picture, methods=["GET"])]
