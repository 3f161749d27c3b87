"""What ``make run`` serves: the app, the HTTP answers beside it, and its pages as people type them."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Route
from streamlit import App

from pages.shared.api import ROUTES

_PAGES = ("Plan", "Verify", "History", "Accuracy")


def _to(page: str) -> Route:
    """A page's name in small letters leads to its address, with what was asked; else it would open Plan."""

    def endpoint(request: Request) -> RedirectResponse:
        # Relative, so that it holds behind any proxy.
        there = "./" if page == "Plan" else page
        return RedirectResponse(f"{there}?{request.url.query}" if request.url.query else there)

    return Route(f"/{page.lower()}", endpoint, methods=["GET"])


app = App(Path(__file__).parents[2] / "streamlit_app.py", routes=[*ROUTES, *map(_to, _PAGES)])
