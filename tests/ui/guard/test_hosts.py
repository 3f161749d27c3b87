"""Test under which names the app answers, to pages of whom, and what it tells browsers."""

import pytest
import streamlit
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from pages.shared.guard import settings
from pages.shared.guard.hosts import HostGuard, is_host_allowed, is_origin_allowed
from planner.errors import InvalidArgument


async def greet(request):
    return PlainTextResponse("hello")


async def stream(socket):
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


ROUTES = [WebSocketRoute("/_stcore/stream", stream), Route("/{rest:path}", greet, methods=["GET", "POST"])]


@pytest.fixture
def client():
    return TestClient(Starlette(routes=ROUTES, middleware=[Middleware(HostGuard)]), base_url="http://localhost:8501")


@pytest.fixture
def bound(monkeypatch):
    """Set the address that the server listens on."""
    before = streamlit.get_option("server.address")

    def bind(address: str | None) -> None:
        streamlit.config.set_option("server.address", address)

    bind("127.0.0.1")
    yield bind
    bind(before)


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        *[(host, True) for host in ("localhost", "localhost:8501", "LOCALHOST.", "127.0.0.1:9", "[::1]:8501", "[::1]")],
        *[(host, False) for host in ("evil.example", "evil.example:8501", "localhost.evil.example", "10.0.0.5:8501")],
        *[(host, False) for host in (None, "", ":8501", "a@localhost", "localhost/x", "localhost:port", "::1", "[::1")],
    ],
)
def test_by_default_only_this_machines_own_names_are_answered(bound, host, is_allowed):
    assert is_host_allowed(host) is is_allowed


def test_the_address_that_is_listened_on_is_a_name(bound):
    bound("192.168.1.20")
    assert is_host_allowed("192.168.1.20:8501") and not is_host_allowed("192.168.1.21:8501")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", None])
def test_where_all_addresses_are_listened_on_addresses_are_names_but_no_other_name_is(bound, address):
    bound(address)
    assert is_host_allowed("192.168.1.20:8501") and is_host_allowed("[fd00::1]:8501") and is_host_allowed("localhost")
    assert not is_host_allowed("evil.example:8501") and not is_host_allowed("1.2.3.4.evil.example")


def test_names_of_the_operator_are_answered(bound, monkeypatch):
    monkeypatch.setenv(settings.HOSTS, "fit.example.com, *.lab.example ,[fd00::7]")
    for host in ("fit.example.com", "FIT.example.com:443", "a.lab.example", "a.b.lab.example:80", "[fd00::7]:8501"):
        assert is_host_allowed(host)
    for host in ("example.com", "lab.example", "evil-lab.example", "fit.example.com.evil.example"):
        assert not is_host_allowed(host)
    monkeypatch.setenv(settings.HOSTS, "*")
    assert is_host_allowed("anything.example")


@pytest.mark.parametrize("name", ["https://fit.example.com", "fit.example.com:80", "fit/x", "a b", "*x.example", "**"])
def test_a_setting_that_is_no_name_is_refused(monkeypatch, name):
    monkeypatch.setenv(settings.HOSTS, name)
    with pytest.raises(InvalidArgument, match="PLANNER_HOSTS must be names without a scheme, a port or a path"):
        settings.checked()


@pytest.mark.parametrize("site", ["wiki.example.com", "https://a/b", "https://a b", "*", "'self'", "https://a;script"])
def test_a_setting_that_is_no_site_is_refused(monkeypatch, site):
    monkeypatch.setenv(settings.FRAMES, site)
    with pytest.raises(InvalidArgument, match="PLANNER_FRAMES must be sites with their scheme, without a path"):
        settings.checked()


@pytest.mark.parametrize(
    ("origin", "host", "is_allowed"),
    [
        (None, "localhost:8501", True),
        ("http://localhost:8501", "localhost:8501", True),
        ("https://localhost", "localhost:443", True),
        ("http://localhost:3000", "localhost:8501", False),
        ("http://127.0.0.1:8501", "localhost:8501", False),
        ("http://evil.example:8501", "localhost:8501", False),
        ("null", "localhost:8501", False),
        ("", "localhost:8501", False),
        ("file://", "localhost:8501", False),
        ("chrome-extension://localhost:8501", "localhost:8501", False),
    ],
)
def test_only_the_apps_own_pages_may_ask(bound, origin, host, is_allowed):
    assert is_origin_allowed(origin, host) is is_allowed


def test_pages_under_the_operators_names_may_ask(bound, monkeypatch):
    monkeypatch.setenv(settings.HOSTS, "fit.example.com,*")
    assert is_origin_allowed("https://fit.example.com", "127.0.0.1:8501")
    # Every name is answered, but that does not make every page one of the app's.
    assert not is_origin_allowed("https://evil.example", "127.0.0.1:8501")


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_header_is_answered_with_yes_or_no(host, origin):
    assert is_host_allowed(host) in (True, False)
    assert is_origin_allowed(origin, host) in (True, False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example:8501", "origin": "http://evil.example:8501"}, 400),
        ({"host": "evil.example:8501"}, 400),
        ({"origin": "https://evil.example"}, 403),
    ],
)
def test_a_strangers_name_gets_no_answer(client, bound, headers, status):
    for path in ("/", "/api/fit", "/_stcore/upload_file/a/b", "/Verify"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == status
        assert status == 200 or "PLANNER_HOSTS" in answer.json()["error"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    if status == 200:
        with client.websocket_connect("ws://localhost:8501/_stcore/stream", headers=headers) as socket:
            assert socket.receive_text() == "hello"
    else:
        with (
            pytest.raises(WebSocketDisconnect) as closed,
            client.websocket_connect("ws://localhost:8501/_stcore/stream", headers=headers),
        ):
            raise AssertionError("accepted")
        assert closed.value.code == 1008


def test_probes_ask_by_any_name(client, bound):
    for path in ("/_stcore/health", "/healthz", "/tools/healthz"):
        assert client.get(path, headers={"host": "10.1.2.3:8501"}).status_code == 200


def test_a_browser_is_told_who_may_frame_the_app(client, bound, monkeypatch):
    for path in ("/", "/?embed=true"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == "frame-ancestors 'self'"
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert headers["referrer-policy"] == "same-origin"
    monkeypatch.setenv(settings.FRAMES, "https://wiki.example.com, http://*.lab.example:8080")
    headers = client.get("/?width=512&embed=true").headers
    assert headers["content-security-policy"] == (
        "frame-ancestors 'self' https://wiki.example.com http://*.lab.example:8080"
    )
    assert "x-frame-options" not in headers
    # Pages with controls stay the app's own.
    assert client.get("/Verify").headers["content-security-policy"] == "frame-ancestors 'self'"
