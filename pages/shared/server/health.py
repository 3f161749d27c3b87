"""Tell whether app, history and measuring worker are well, each by itself: ``/healthz``.

``/_stcore/health`` is Streamlit's own and tells only that pages are served. The app is well if it has memory programs;
without them it plans by the formula. The worker is well if runs can be measured here, or if this machine is not for
measuring at all.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cache.machine.versions import missing
from pages.shared.frame import session
from pages.shared.guard.work import Stopped, Token, TooLate, Work, awaited
from pages.shared.server.metrics import FIGURES
from planner.errors import PlannerError

# A history on a disk that hangs must not hold up the answer that it hangs.
WITHIN_S = 5
# Looking opens the history once, however many ask at the same time.
LOOKS = Work(1, 4, "health")


def _part(is_well: bool, state: str, reason: object = None) -> dict[str, Any]:
    return {"ok": is_well, "state": state} | ({"reason": str(reason)} if reason else {})


def _database() -> dict[str, Any]:
    opened, problem = session.store()
    if opened is None:
        return _part(False, "unusable", problem)
    try:
        opened.revision()
    except PlannerError as error:
        return _part(False, "unusable", error)
    return _part(True, "open")


def _worker(has_database: bool) -> dict[str, Any]:
    if lacking := missing():
        return _part(True, "not installed", lacking)
    jobs, problem = session.queue() if has_database else (None, "there is no history to keep runs in")
    if jobs is None:
        return _part(False, "unusable", problem)
    waiting = len(jobs.active())
    return _part(True, "measuring" if waiting else "idle")


def _look(token: Token) -> dict[str, Any]:
    library, notice = session.library()
    app = _part(True, "ready", notice) if library else _part(False, "without memory programs", notice)
    database = _database()
    return {"app": app, "database": database, "worker": _worker(database["ok"])}


async def health(request: Request) -> Response:
    """Answer 200 if all parts are well, else 503, with each part's state as JSON."""
    try:
        with LOOKS.ask("health", _look) as ticket:
            coming = awaited(ticket.future)
            done, _ = await asyncio.wait([coming], timeout=WITHIN_S)
            if not done:
                raise TooLate(WITHIN_S)
            parts = coming.result()
    except TooLate:
        parts = {"app": _part(False, "slow", f"the parts did not answer within {WITHIN_S} s")}
    except Stopped as error:
        parts = {"app": _part(False, "stopping", error)}
    except PlannerError as error:
        parts = {"app": _part(False, "unusable", error)}
    is_well = all(part["ok"] for part in parts.values())
    body = {"status": "ok" if is_well else "failing"} | parts
    return JSONResponse(body, status_code=200 if is_well else 503, headers={"Cache-Control": "no-store"})


def metrics(work: Work) -> Response:
    """Answer with the figures of this server, in the text format that Prometheus reads."""
    return Response(FIGURES.text(work), headers={"Content-Type": FIGURES.content_type})
