"""Test that no question over HTTP costs more than it is worth, and that each gets an answer or an error."""

import asyncio
import logging
import threading
import time
from urllib.parse import quote, urlencode

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from pages.shared.guard.work import Work
from pages.shared.server import api
from planner.cards.catalogue import CATALOGUE
from planner.plan import PLAN_KEYS

APP = Starlette(routes=api.ROUTES)
CLIENT = TestClient(APP, raise_server_exceptions=False)
EVERY_GPU = [("gpu", row.name) for row in CATALOGUE]
LARGE = ",".join(f"8192x{side}" for side in range(8192, 8192 - 24 * 8, -8))
TOO_MUCH = urlencode([*EVERY_GPU, ("images", LARGE), ("vae_tiling", "true"), ("vae_slicing", "true"), ("batch", "8")])


@pytest.fixture
def work(monkeypatch):
    """Let one thread answer, and one question wait for it."""
    made = Work(1, 1)
    monkeypatch.setattr(api, "WORK", made)
    yield made
    made.close()


class Slow:
    """Replace the work of an answer: it takes steps until it is let through, and counts them."""

    def __init__(self):
        self.open, self.begun, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, plan, cards, *, on_next, **others):
        self.calls += 1
        self.begun.set()
        try:
            while not self.open.wait(0.005):
                on_next()
        finally:
            self.ended.set()
        return ANSWER(plan, cards, on_next=on_next, **others)


ANSWER = api.answer_plan


@pytest.fixture
def slow(monkeypatch):
    made = Slow()
    monkeypatch.setattr(api, "answer_plan", made)
    yield made
    made.open.set()


def asking(*queries: str, then=None):
    """Ask all queries at the same time, as separate clients, and return their answers in order."""

    async def ask():
        transport = httpx2.ASGITransport(APP)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = [asyncio.create_task(client.get(f"/api/fit?{query}")) for query in queries]
            if then:
                await asyncio.to_thread(then)
            return await asyncio.gather(*asked)

    return asyncio.run(ask())


@pytest.mark.parametrize("name", ["fit", "plan.svg"])
def test_too_large_a_question_is_refused_before_any_replay(name, slow):
    answer = CLIENT.get(f"/api/{name}?{TOO_MUCH}")
    assert answer.status_code == 422 and slow.calls == 0
    for way in ("fewer GPUs", "fewer images (24 are listed)", "fewer tiles"):
        assert way in answer.json()["error"]


def test_the_limit_is_a_setting(monkeypatch):
    monkeypatch.setenv("PLANNER_MOST_EVENTS", "1000")
    assert CLIENT.get("/api/fit?gpu=T4").status_code == 422
    monkeypatch.setenv("PLANNER_MOST_EVENTS", "100000000")
    assert CLIENT.get("/api/fit?gpu=T4").status_code == 200


def test_equal_questions_at_once_are_worked_out_once(work, slow):
    def then() -> None:
        ends = time.monotonic() + 10
        while sum(piece.waiting for piece in list(work._pieces.values())) < 10:
            assert time.monotonic() < ends
            time.sleep(0.005)
        slow.open.set()

    # The same plan, written in another way.
    answers = asking(*["gpu=T4&width=512"] * 9, "width=512&gpu=t4", then=then)
    assert [answer.status_code for answer in answers] == [200] * 10 and slow.calls == 1
    assert len({answer.text for answer in answers}) == 1


def test_one_question_too_many_is_told_when_to_come_back(work, slow):
    def then() -> None:
        assert slow.begun.wait(10)
        time.sleep(0.3)
        slow.open.set()

    answers = asking(*(f"gpu=T4&width={width}" for width in (512, 520, 528, 536)), then=then)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1 and "ask again in" in answer.json()["error"]


def test_an_answer_that_takes_too_long_is_given_up(work, slow, monkeypatch):
    monkeypatch.setenv("PLANNER_SECONDS", "1")
    answer = CLIENT.get("/api/fit?gpu=T4")
    assert answer.status_code == 504 and "took longer than 1 s - name fewer GPUs" in answer.json()["error"]
    assert slow.ended.wait(10)


def test_work_stops_when_its_asker_has_left(work, slow, caplog):
    async def leave():
        async def receive():
            if not slow.begun.is_set():
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/api/fit", "query_string": b"gpu=T4", "headers": []}
        scope |= {"http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "server": ("localhost", 80)}
        await asyncio.wait_for(APP(scope | {"root_path": "", "raw_path": b"/api/fit"}, receive, send), 10)
        return sent[0]["status"]

    with caplog.at_level(logging.ERROR, "asyncio"):
        assert asyncio.run(leave()) == 499
    assert caplog.records == []
    assert slow.ended.wait(10) and not slow.open.is_set()


def test_shutting_down_answers_those_who_wait(work, slow):
    def then() -> None:
        assert slow.begun.wait(10)
        work.close()

    answers = asking("gpu=T4", "gpu=T4&width=520", then=then)
    assert [answer.status_code for answer in answers] == [503, 503]
    assert slow.ended.wait(10)


def test_each_request_leaves_one_line_in_the_log(caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "planner.http"):
        CLIENT.get("/api/fit?gpu=T4")
        CLIENT.get("/api/fit?gpu=T5%0AFORGED")
        monkeypatch.setattr(api, "answer_plan", lambda *given, **named: 1 // 0)
        fault = CLIENT.get("/api/fit?gpu=T4")
    assert fault.status_code == 500 and set(fault.json()) == {"schema", "error"}
    assert [(record.levelname, "\n" in record.getMessage()) for record in caplog.records] == [
        ("INFO", False),
        ("WARNING", False),
        ("ERROR", False),
        ("WARNING", False),
    ]
    assert "GET /api/fit?gpu=T4 200" in caplog.records[0].getMessage()
    assert caplog.records[2].exc_info


NUMBERS = ("", "0", "1", "-1", "64", "512", "8192", "99999", "1e3", "nan", "inf", "9" * 5000, "１２")
CHOICES = ("true", "false", "none", "model", "txt2img", "img2img", "formula", "T4", "T5", "attached", "6GiB", "8.6")
LISTS = ("512x512", "512x512*128,64x64", "512x512," * 30, "%", "\0", "\ud800", "x" * 3000)
WORDS = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(CHOICES), st.sampled_from(LISTS), st.text(max_size=12))
NAMES = st.one_of(st.sampled_from(PLAN_KEYS), st.sampled_from(["tab", "embed", "job", ""]), st.text(max_size=8))


def answered(query: str) -> int:
    """Ask for both answers; check that each is one, or an error with its reason, and return the status."""
    answer = CLIENT.get(f"/api/fit?{query}")
    assert answer.status_code in (200, 400, 422), (query, answer.text)
    body = answer.json()
    if answer.status_code == 200:
        assert body["gpus"] and answer.headers["planner-verdict"] in ("fits", "tight", "no", "unknown")
    else:
        assert set(body) == {"schema", "error"} and body["error"].strip() and "\n" not in body["error"]
        assert "Traceback" not in body["error"]
    return answer.status_code


QUICK = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(st.lists(st.tuples(NAMES, WORDS), max_size=6))
def test_any_names_and_values_give_an_answer_or_an_error(no_driver, pairs):
    answered("&".join(f"{quote(name, errors='replace')}={quote(text, errors='replace')}" for name, text in pairs))


@QUICK
@given(st.binary(max_size=60))
def test_any_query_gives_an_answer_or_an_error(no_driver, query):
    answered(quote(query, safe="=&%+;"))


@settings(QUICK, max_examples=60)
@given(
    width=st.integers(8, 1024).map(lambda side: side * 8),
    height=st.integers(8, 1024).map(lambda side: side * 8),
    gpus=st.lists(st.sampled_from([row.name for row in CATALOGUE]), min_size=1, max_size=3),
    more=st.dictionaries(
        st.sampled_from(["vae_tiling", "vae_slicing", "safety_checker", "channels_last", "attention_slicing"]),
        st.sampled_from(["true", "false"]),
    ),
    batch=st.integers(1, 128),
    workers=st.integers(1, 64),
    basis=st.sampled_from(["dry-run", "formula", "calibrated"]),
)
def test_every_good_question_of_a_few_gpus_is_answered(width, height, gpus, more, batch, workers, basis):
    values = {"width": width, "height": height, "batch": batch, "workers": workers, "basis": basis} | more
    assert answered(urlencode([*values.items(), *(("gpu", gpu) for gpu in gpus)])) == 200
