"""Serve the HTTP answers, the health and the addresses of pages in small letters, behind the guard."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncGenerator
from types import FrameType
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from cache.jobs.ending import close_all
from cache.jobs.queue import tidy
from pages.shared.frame.plan_state import API_PATH
from pages.shared.guard import settings
from pages.shared.guard.hosts import HostGuard
from pages.shared.server.api import ROUTES as ANSWERS
from pages.shared.server.api import WORK, noted
from pages.shared.server.health import LOOKS, health, metrics
from planner.answer import SCHEMA
from planner.replay.fast_replay import warm_up

_PAGES = ("Plan", "Verify", "History", "Accuracy")
HEALTH_PATH, METRICS_PATH = "/healthz", "/metrics"


async def _unknown(request: Request) -> Response:
    """Refuse an unknown address with status 404.

    Streamlit would send the Plan page with status 200.
    """
    error = f"{request.url.path} is no address of this app - the HTTP answers are at {API_PATH}"
    return JSONResponse({"schema": SCHEMA, "error": error}, status_code=404)


async def _metrics(request: Request) -> Response:
    return metrics(WORK) if settings.shows_metrics() else await _unknown(request)


def _answers(base: str = "") -> list[Route]:
    known = [Route(f"{base}{route.path}", route.endpoint, methods=["GET"]) for route in ANSWERS]
    others = [Route(f"{base}{HEALTH_PATH}", health), Route(f"{base}{METRICS_PATH}", _metrics)]
    unknown = noted(_unknown, "unknown")
    return [*known, Route(f"{base}/api", unknown), Route(f"{base}/api/{{rest:path}}", unknown), *others]


def _to(page: str, base: str) -> Route:
    """Redirect a page's name in small letters to its address, with its query.

    Streamlit would open Plan.
    """

    def endpoint(request: Request) -> RedirectResponse:
        # The address is relative, so that it also works behind a proxy.
        there = "./" if page == "Plan" else page
        return RedirectResponse(f"{there}?{request.url.query}" if request.url.query else there)

    return Route(f"{base}/{page.lower()}", endpoint, methods=["GET"])


def _routes() -> list[Route]:
    path = (st.get_option("server.baseUrlPath") or "").strip("/")
    base = f"/{path}" if path else ""
    pages = [_to(page, base) for page in _PAGES]
    # Streamlit puts its own addresses under the base path of a proxy, but not ours.
    return [*_answers(), *(_answers(base) if base else ()), *pages]


def _stop() -> None:
    WORK.close()
    LOOKS.close()


@contextlib.asynccontextmanager
async def lifespan(_app: Any) -> AsyncGenerator[None]:
    """Check the settings as the server starts, and close what is open before it ends.

    At the start also what dead planners left is closed, and the compiled replay is loaded in the background. As soon as
    the process is told to end, all questions are given up, for the server would wait for every answer; then this
    server's own jobs are closed.

    Raises:
        InvalidArgument: a setting is not understood.
    """
    settings.checked()
    await asyncio.to_thread(tidy)
    warm_up(in_background=True)
    WORK.open()
    LOOKS.open()
    before: dict[int, Any] = {}
    loop = asyncio.get_running_loop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(_stop)
        if callable(before[number]):
            before[number](number, frame)

    # Only the main thread receives signals; a test may serve the app from another.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.getsignal(number)
            if callable(before[number]):
                signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        _stop()
        await asyncio.to_thread(close_all)


ROUTES = _routes()
MIDDLEWARE = [Middleware(HostGuard)]
