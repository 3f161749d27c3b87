"""Serve the HTTP answers, and the addresses of pages in small letters."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import streamlit as st
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from cache.jobs.ending import close_all
from cache.jobs.queue import tidy
from pages.shared.frame.plan_state import API_PATH
from pages.shared.server.api import ROUTES as ANSWERS
from planner.answer import SCHEMA


@asynccontextmanager
async def lifespan(_app: object) -> AsyncGenerator[None]:
    """Close what dead planners left as the server starts, and this server's own jobs before it ends."""
    await asyncio.to_thread(tidy)
    yield
    await asyncio.to_thread(close_all)


_PAGES = ("Plan", "Verify", "History", "Accuracy")


def _unknown(request: Request) -> Response:
    """Refuse an unknown address with status 404.

    Streamlit would send the Plan page with status 200.
    """
    error = f"{request.url.path} is no address of this app - the HTTP answers are at {API_PATH}"
    return JSONResponse({"schema": SCHEMA, "error": error}, status_code=404)


def _answers(base: str = "") -> list[Route]:
    known = [Route(f"{base}{route.path}", route.endpoint, methods=["GET"]) for route in ANSWERS]
    return [*known, Route(f"{base}/api", _unknown), Route(f"{base}/api/{{rest:path}}", _unknown)]


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


ROUTES = _routes()
