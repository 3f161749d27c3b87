"""Test both ways to start the app: they serve the HTTP answers and the pages from the start."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.browser import MAKE_RUN, STREAMLIT_RUN, free_port, server, wait_until_healthy
from tests.conftest import ROOT


@pytest.fixture(scope="module", params=[MAKE_RUN, STREAMLIT_RUN], ids=["make run", "streamlit run"])
def app(request, history):
    with server(history.path, request.param) as address:
        yield address


def get(address: str, method: str = "GET") -> tuple[int, str, bytes]:
    """Return status, type and body of the answer, for any status."""
    asked = urllib.request.Request(address, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get_content_type(), error.read()


def check_answers(app: str) -> None:
    status, kind, body = get(f"{app}/api/fit?gpu=T4")
    assert (status, kind) == (200, "application/json")
    assert [row["name"] for row in json.loads(body)["gpus"]] == ["T4"]
    status, kind, body = get(f"{app}/api/fit?gpu=T5")
    assert (status, kind) == (400, "application/json")
    assert json.loads(body)["error"].startswith("unknown GPU 'T5'")


# First of all: no page was opened on this server yet.
def test_http_answers_before_and_after_a_page_is_opened(app, open_page):
    check_answers(app)
    expect(open_page("/").get_by_role("heading", name="Plan", exact=True)).to_be_visible()
    check_answers(app)


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/fit/", "/api/fits", "/api/fit/T4", "/api/v1/fit?gpu=T4"])
def test_unknown_addresses_are_not_found(app, path):
    status, kind, body = get(f"{app}{path}")
    assert (status, kind) == (404, "application/json")
    assert (
        json.loads(body)["error"]
        == f"{path.partition('?')[0]} is no address of this app - the HTTP answers are at /api/fit"
    )
    assert get(f"{app}/api/fit", "POST")[0] == 405


@pytest.mark.parametrize(
    ("path", "name"), [("/", "Plan"), ("/?gpu=T4", "Plan"), ("/Verify", "Verify"), ("/history", "History")]
)
def test_pages_are_served_beside_the_answers(open_page, path, name):
    expect(open_page(path).get_by_role("heading", name=name, exact=True)).to_be_visible()


def socket_status(app: str, name: str, origin: str) -> int:
    """Open a page's WebSocket under this name, as a browser does that was led here by it; return the status."""
    port = urlsplit(app).port
    try:
        with connect(
            f"ws://{name}:{port}/_stcore/stream",
            sock=socket.create_connection(("127.0.0.1", port), timeout=30),
            origin=f"http://{origin}:{port}",
            subprotocols=["streamlit"],
        ):
            return 101
    except InvalidStatus as error:
        return error.response.status_code


def test_a_strangers_name_opens_no_page(app):
    assert socket_status(app, "127.0.0.1", "127.0.0.1") == 101
    assert socket_status(app, "localhost", "localhost") == 101
    assert socket_status(app, "evil.example", "evil.example") == 403
    assert socket_status(app, "127.0.0.1", "evil.example") == 403
    # Streamlit itself takes every port of this machine for the app's own.
    assert socket_status(app, "127.0.0.1", "localhost") == 403


def test_a_strangers_name_gets_no_answer(app):
    asked = urllib.request.Request(f"{app}/api/fit?gpu=T4", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(asked, timeout=30):
        pass
    with refused.value as error:
        assert error.code == 400 and "PLANNER_HOSTS" in json.loads(error.read())["error"]


def test_answers_tell_browsers_what_they_may_do(app):
    for path in ("/", "/?embed=true", "/Verify", "/api/fit?gpu=T4", "/_stcore/health"):
        with urllib.request.urlopen(f"{app}{path}", timeout=30) as answer:
            assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'self'"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_health_tells_its_parts_apart(app):
    status, kind, body = get(f"{app}/healthz")
    assert (status, kind) == (200, "application/json")
    assert {name: part["ok"] for name, part in json.loads(body).items() if name != "status"} == {
        "app": True,
        "database": True,
        "worker": True,
    }


def drawn(page, message: BackMsg) -> list:
    """Send a page's message, and return the elements that it draws until its script has ended."""
    page.send(message.SerializeToString())
    elements = []
    while True:
        found = ForwardMsg()
        found.ParseFromString(page.recv(timeout=60))
        if found.HasField("delta"):
            elements.append(found.delta.new_element)
        if found.HasField("script_finished") and found.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
            return elements


@pytest.mark.parametrize(
    # The run that is started comes last, because Verify has no button while it is on.
    ("headers", "may_act"),
    [({"X-Forwarded-For": "127.0.0.1"}, False), ({"Via": "1.1 proxy"}, False), ({}, True)],
)
def test_only_a_visitor_of_this_machine_starts_a_run(app, headers, may_act):
    """Press Verify as a browser does, directly and through a proxy on this machine."""
    with connect(
        f"{app.replace('http', 'ws', 1)}/_stcore/stream",
        origin=app,
        subprotocols=["streamlit"],
        additional_headers=headers,
        max_size=None,
    ) as page:
        opened = BackMsg()
        opened.rerun_script.page_name = "Verify"
        opened.rerun_script.query_string = "width=64&height=64&steps=1"
        elements = drawn(page, opened)
        [button] = [one.button.id for one in elements if one.HasField("button") and one.button.label == "Verify"]
        pressed = BackMsg()
        pressed.rerun_script.CopyFrom(opened.rerun_script)
        state = pressed.rerun_script.widget_states.widgets.add()
        state.id, state.trigger_value = button, True
        elements = drawn(page, pressed)
        refusals = [one.alert.body for one in elements if "own machine may do this" in one.alert.body]
        assert len(refusals) == (0 if may_act else 1)
        cancel = [one.button.id for one in elements if one.HasField("button") and one.button.label == "Cancel"]
        assert len(cancel) == (1 if may_act else 0)
        if cancel:
            state.id = cancel[0]
            page.send(pressed.SerializeToString())
            page.recv(timeout=60)


def test_a_large_question_is_refused_and_the_server_ends_amid_others(tmp_path):
    port = free_port()
    app, log = f"http://127.0.0.1:{port}", tmp_path / "server.log"
    command = [sys.executable, "-m", *MAKE_RUN, "--server.headless", "true", "--server.port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PLANNER_DB": str(tmp_path / "planner.db")},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until_healthy(app, process, log)
        gpus = "&".join(f"gpu={name}" for name in ("T4", "A10", "V100-16GB", "H100-80GB"))
        options = "vae_tiling=true&vae_slicing=true&batch=8"
        images = ",".join(f"8192x{8192 - 8 * number}" for number in range(24))
        assert get(f"{app}/api/fit?images={images}&{options}&{gpus}")[0] == 422
        with ThreadPoolExecutor(40) as askers:
            asked = [
                askers.submit(get, f"{app}/api/fit?width=8192&height={8192 - 8 * number}&{options}&{gpus}")
                for number in range(40)
            ]
            # The first refusal says that all places are taken, so that answers are being worked out.
            while not any(one.done() and one.result()[0] == 429 for one in asked):
                assert not all(one.done() for one in asked)
            process.terminate()
            statuses = [one.result()[0] for one in asked]
        # It fails here after a minute and more if answers keep the server from ending.
        process.wait(timeout=30)
        assert {429, 503} <= set(statuses) <= {200, 429, 503}
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
