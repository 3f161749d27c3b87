"""Answer only requests that name this app, from pages of this app; and tell browsers what they may do with it.

A page of a stranger can make a browser ask this app under the stranger's own name, once that name's address is changed
to this machine's (DNS rebinding). Its requests then count as the app's own for the browser, but `Host` and `Origin`
still have the stranger's name. The check covers pages, WebSockets and HTTP answers alike; Streamlit's
``server.allowedHosts`` covers WebSockets only.
"""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pages.shared.guard import settings
from planner.answer import SCHEMA

# Probes of an orchestrator ask by the address of the moment; the answers have nothing to steal.
HEALTH_PATHS = ("/_stcore/health", "/healthz")
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def host_parts(netloc: str, scheme: str = "http") -> tuple[str, int] | None:
    """Split ``name:port`` into the name in lower case and the port, or return None if it is malformed."""
    try:
        found = urlsplit(f"//{netloc}")
        name, port = found.hostname, found.port
    except ValueError:
        return None
    if not name or found.netloc != netloc or "@" in netloc:
        return None
    return name.rstrip("."), port or _DEFAULT_PORTS.get(scheme, 0)


def is_named(name: str, given: tuple[str, ...]) -> bool:
    """Tell whether a name is one of those given.

    ``*.example.com`` stands for every name below it, ``*`` for every name.
    """
    return any(one in ("*", name) or (one.startswith("*.") and name.endswith(one[1:])) for one in given)


def is_host_allowed(host: str | None) -> bool:
    """Tell whether the app answers under this `Host` header.

    Where the app listens on every address, any IP address will do: a page of a stranger has a name, never an address
    that leads here.
    """
    parts = host_parts(host or "")
    if parts is None:
        return False
    name, bound = parts[0], settings.bind_address()
    own = (*settings.LOOPBACK, *([bound] if bound else []), *settings.hosts())
    return is_named(name, own) or (not bound and settings.is_address(name))


def is_origin_allowed(origin: str | None, host: str | None) -> bool:
    """Tell whether a request with this `Origin` header comes from a page of this app.

    A request without the header comes from no page, such as that of a program.
    """
    if origin is None:
        return True
    scheme, _, netloc = origin.partition("://")
    asked, called = host_parts(netloc, scheme), host_parts(host or "", scheme)
    if asked is None or called is None or scheme not in ("http", "https"):
        return False
    # The proxy's own port may be missing in the Host that it hands on.
    return asked == called or is_named(asked[0], tuple(name for name in settings.hosts() if name != "*"))


def refusal(scope: Scope) -> tuple[int, str] | None:
    """Return status and reason if a request must not be answered, else None."""
    path, headers = scope["path"], Headers(scope=scope)
    if scope["type"] == "http" and any(path.endswith(health) for health in HEALTH_PATHS):
        return None
    host, origin = headers.get("host"), headers.get("origin")
    if not is_host_allowed(host) or len(headers.getlist("host")) != 1:
        return 400, (
            f"this app does not answer under the name {_shown(host)} - open it as localhost, or add the name to "
            f"{settings.HOSTS} where the app is started"
        )
    if not is_origin_allowed(origin, host):
        return 403, (
            f"a page of {_shown(origin)} may not ask this app - open the app itself, or add the name to "
            f"{settings.HOSTS} where the app is started"
        )
    return None


def _shown(text: str | None) -> str:
    return "''" if text is None else repr(text if len(text) <= 80 else f"{text[:77]}...")


def security_headers(scope: Scope) -> dict[str, str]:
    """Return the headers of every answer: how a browser may frame it, read it, and name it to others."""
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    # Only the answer without controls may stand in a frame of others: a click into it can do nothing.
    sites = settings.frames() if query.get("embed", [""])[-1].lower() == "true" else ()
    headers = {
        "Content-Security-Policy": " ".join(["frame-ancestors 'self'", *sites]),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
    }
    # The older header cannot name sites, so it is left out where some are allowed.
    return headers if sites else headers | {"X-Frame-Options": "SAMEORIGIN"}


class HostGuard:
    """Refuse requests under foreign names, and add the security headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request, as ASGI asks for it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = refusal(scope)
        if scope["type"] == "websocket":
            if refused:
                # Before it is accepted, closing a WebSocket answers its request with status 403.
                await send({"type": "websocket.close", "code": 1008, "reason": refused[1][:120]})
            else:
                await self.app(scope, receive, send)
            return
        own = security_headers(scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in own.items():
                    headers[name] = value
            await send(message)

        if refused is None:
            await self.app(scope, receive, with_headers)
            return
        body = json.dumps({"schema": SCHEMA, "error": refused[1]}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await with_headers({"type": "http.response.start", "status": refused[0], "headers": headers})
        await send({"type": "http.response.body", "body": body})
