"""Test ``/healthz``, which tells app, history and worker apart, and ``/metrics``."""

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from cache.machine.versions import NotInstalled
from pages.shared.frame import session
from pages.shared.guard.work import Work
from pages.shared.server import app, health


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(health, "LOOKS", Work(1, 4))
    return TestClient(Starlette(routes=app.ROUTES))


def parts(client, status: int) -> dict[str, str]:
    answer = client.get("/healthz")
    body = answer.json()
    assert answer.status_code == status and body.pop("status") == ("ok" if status == 200 else "failing")
    return {name: part["state"] for name, part in body.items()}


def test_all_is_well(client, own_history):
    assert parts(client, 200) == {"app": "ready", "database": "open", "worker": "idle"}


def test_a_machine_that_cannot_measure_is_well(client, monkeypatch):
    monkeypatch.setattr(health, "missing", lambda: NotInstalled(["torch"]))
    assert parts(client, 200)["worker"] == "not installed"


def test_a_history_that_cannot_be_opened_is_told(client, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLANNER_DB", str(tmp_path / "file" / "planner.db"))
    assert parts(client, 503) == {"app": "ready", "database": "unusable", "worker": "unusable"}
    assert client.get("/healthz").json()["database"]["reason"]


def test_missing_programs_are_told(client, monkeypatch):
    monkeypatch.setattr(session, "library", lambda: (None, "no programs were found"))
    assert parts(client, 503)["app"] == "without memory programs"


def test_a_part_that_hangs_is_told(client, monkeypatch):
    from threading import Event

    hangs = Event()
    monkeypatch.setattr(health, "WITHIN_S", 0.05)
    monkeypatch.setattr(health, "_database", lambda: {"ok": hangs.wait(10)})
    assert parts(client, 503) == {"app": "slow"}
    hangs.set()


def test_figures_are_shown_only_where_they_are_asked_for(client, monkeypatch):
    assert client.get("/metrics").status_code == 404
    monkeypatch.setenv("PLANNER_METRICS", "1")

    def count() -> float:
        lines = client.get("/metrics").text.splitlines()
        name = 'planner_http_answers_total{answer="fit",status="400"} '
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = count()
    for _ in range(3):
        client.get("/api/fit?gpu=T5")
    assert count() == before + 3
    client.get("/api/nowhere/at/all")
    text = client.get("/metrics").text
    assert "planner_work_waiting 0.0" in text and "planner_http_seconds_bucket" in text
    # A client cannot make up names of figures.
    assert "nowhere" not in text and 'answer="unknown"' in text
