"""``GET /api/fit`` beside the app: the JSON of ``python -m planner fit --json``, for checks that cannot run Python.

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
from pages.shared.frame.plan_state import API_PATH, VIEW_KEYS
from planner.answer import EXIT_CODES, SCHEMA, Verdict
from planner.errors import PlannerError
from planner.plan import Plan, answer_plan
from planner.report.text import plan_object

# Names that only change how a page is shown, ours and Streamlit's, do not change the answer.
_IGNORED = (*VIEW_KEYS, "embed", "embed_options")


def answer_to(query: QueryParams) -> tuple[dict[str, Any], Verdict]:
    """Return the JSON object of ``fit --json`` for a query, and its worst verdict.

    Raises:
        PlannerError: the query breaks a rule.
    """
    plan = Plan.from_query(query.multi_items(), ignored=_IGNORED)
    cards = plan.cards(plannable)
    evidence = session.evidence(plan.published).evidence if plan.uses_evidence else None
    library, _ = session.library()
    found = answer_plan(plan, cards, library=library, evidence=evidence)
    return plan_object(found), found.verdict


def _endpoint(request: Request) -> Response:
    try:
        found, verdict = answer_to(request.query_params)
    except PlannerError as error:
        return JSONResponse({"schema": SCHEMA, "error": str(error)}, status_code=400)
    # The headers have the exit code of the command line, for scripts that do not parse JSON.
    headers = {"Planner-Verdict": verdict, "Planner-Exit-Code": str(EXIT_CODES[verdict]), "Cache-Control": "no-store"}
    return JSONResponse(found, headers=headers)


ROUTES = [Route(API_PATH, _endpoint, methods=["GET"])]
