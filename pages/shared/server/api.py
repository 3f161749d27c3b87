"""Answer over HTTP beside the app: ``/api/fit`` with the JSON of ``fit --json``, ``/api/plan.svg`` with a picture.

The query is a plan's address. As on the command line, the default GPUs answer if no GPU is named, described or
attached; on Plan they may stand beside those, so the check that Plan shows names every GPU. If ``images`` are listed,
``images`` of the answer has the worst of them on each GPU, and the verdict in the headers is the worst of the whole
answer.

Answers are worked out in two threads, beside the pages and the event loop. A question that would take too much work is
refused with status 422, one too many with 429, and one that takes too long with 504. Equal questions at the same time
are worked out once, and a question whose asker has left is stopped before its next replay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cache.machine.attached import plannable
from pages.shared.frame import session
from pages.shared.frame.plan_state import API_PATH, PICTURE_PATH, VIEW_KEYS
from pages.shared.guard import settings
from pages.shared.guard.cost import TooMuch, check_cost
from pages.shared.guard.work import Busy, Stopped, Ticket, Token, TooLate, Work, awaited
from pages.shared.plan.report import Report
from pages.shared.plan.verdicts import beside
from pages.shared.server.metrics import FIGURES
from planner.answer import EXIT_CODES, SCHEMA, Verdict
from planner.errors import PlannerError
from planner.plan import Plan, PlanAnswer, answer_plan
from planner.programs.library import Library
from planner.report.text import plan_object

# Names that only change how a page is shown, ours and Streamlit's, do not change the answer.
_IGNORED = (*VIEW_KEYS, "embed", "embed_options")
# A second thread answers small questions while a large one is worked on. More would take time from the pages.
THREADS, MOST_WAITING = 2, 8
# The seconds between two looks whether the asker is still there.
_LOOK_S = 0.25
# Some clients close the connection, and their answer has no status of HTTP.
_LEFT = 499

WORK = Work(THREADS, MOST_WAITING, "answers")
_log = logging.getLogger("planner.http")


def _plan_of(query: QueryParams) -> Plan:
    return Plan.from_query(query.multi_items(), ignored=_IGNORED)


def _answered(plan: Plan, token: Token) -> tuple[PlanAnswer, Library | None]:
    token.check()
    cards = plan.cards(plannable)
    library, _ = session.library()
    check_cost(plan, cards, library, settings.most_events())
    evidence = session.evidence(plan.published).evidence if plan.uses_evidence else None
    token.expect(len(cards) * (1 + len(plan.image_rows)))
    return answer_plan(plan, cards, library=library, evidence=evidence, on_next=token.step), library


def _object(plan: Plan, token: Token) -> tuple[dict[str, Any], Verdict]:
    found, _ = _answered(plan, token)
    return plan_object(found), found.verdict


def _svg(plan: Plan, token: Token) -> tuple[str, Verdict]:
    found, library = _answered(plan, token)
    shown = []
    for answer in found.answers:
        token.check()
        shown.append(beside(answer, found.plan.request, library))
    token.check()
    return Report(found, shown, library).svg(), found.verdict


def _headers(verdict: Verdict) -> dict[str, str]:
    # What a shell would get as the exit code, for those who look at nothing else.
    return {"Planner-Verdict": verdict, "Planner-Exit-Code": str(EXIT_CODES[verdict]), "Cache-Control": "no-store"}


def refused(error: PlannerError) -> Response:
    """Answer an error with its status and its message as JSON."""
    statuses: dict[type[PlannerError], int] = {TooMuch: 422, Busy: 429, Stopped: 503, TooLate: 504}
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(error.retry_after_s)
    body = {"schema": SCHEMA, "error": str(error)}
    return JSONResponse(body, status_code=statuses.get(type(error), 400), headers=headers)


async def _wait(ticket: Ticket[Any], request: Request, seconds: float) -> Any:
    """Wait for an answer as long as its asker does; return None if the asker has left.

    Raises:
        TooLate: it did not come within these seconds.
        PlannerError: the query breaks a rule.
    """
    coming = awaited(ticket.future)
    ends = time.monotonic() + seconds
    while not coming.done():
        left = ends - time.monotonic()
        if left <= 0:
            raise TooLate(seconds)
        # Waiting does not cancel the future when it gives up: others may wait for the same answer.
        await asyncio.wait([coming], timeout=min(left, _LOOK_S))
        if not coming.done() and await request.is_disconnected():
            return None
    return coming.result()


async def _answer(
    request: Request, do: Callable[[Plan, Token], Any], respond: Callable[[Any, Verdict], Response]
) -> Response:
    try:
        plan = _plan_of(request.query_params)
        with WORK.ask((do, plan), lambda token: do(plan, token)) as ticket:
            answer = await _wait(ticket, request, settings.deadline_s())
    except PlannerError as error:
        return refused(error)
    if answer is None:
        return Response(status_code=_LEFT)
    return respond(*answer)


async def _fit(request: Request) -> Response:
    return await _answer(request, _object, lambda found, verdict: JSONResponse(found, headers=_headers(verdict)))


async def _picture(request: Request) -> Response:
    def respond(svg: str, verdict: Verdict) -> Response:
        return Response(svg, media_type="image/svg+xml", headers=_headers(verdict))

    return await _answer(request, _svg, respond)


def noted(endpoint: Callable[[Request], Awaitable[Response]], name: str) -> Callable[[Request], Awaitable[Response]]:
    """Write a line to the log for each request, and count it under `name`.

    A fault of the app is answered as JSON.
    """

    async def answer(request: Request) -> Response:
        began = time.monotonic()
        try:
            response = await endpoint(request)
        except Exception:
            _log.exception("a fault in %s", _shown(request))
            error = "the app has a fault, and its log has the details"
            response = JSONResponse({"schema": SCHEMA, "error": error}, status_code=500)
        seconds = time.monotonic() - began
        FIGURES.count(name, response.status_code, seconds)
        level = logging.INFO if response.status_code < 400 or response.status_code == _LEFT else logging.WARNING
        client = request.client.host if request.client else "-"
        _log.log(level, "%s %s %d %.3f s", client, _shown(request), response.status_code, seconds)
        return response

    return answer


def _shown(request: Request) -> str:
    """Write a request on one line of at most some 200 letters; a client must not be able to forge lines."""
    query = request.url.query
    target = f"{request.url.path}?{query}" if query else request.url.path
    return f"{request.method} {ascii(target if len(target) <= 200 else f'{target[:197]}...')[1:-1]}"


ROUTES = [
    Route(API_PATH, noted(_fit, "fit"), methods=["GET"]),
    Route(PICTURE_PATH, noted(_picture, "plan.svg"), methods=["GET"]),
]
