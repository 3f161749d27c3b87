"""Test ``/api/plan.svg``: the picture of a plan for a README, a wiki or a ticket."""

import xml.etree.ElementTree as ElementTree

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from pages.shared.server.api import ROUTES
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import gib


@pytest.fixture(scope="module")
def client():
    return TestClient(Starlette(routes=ROUTES))


def test_the_picture_names_request_gpus_and_needs(client):
    response = client.get("/api/plan.svg?width=2048&height=2048&gpu=T4&gpu=A10&basis=dry-run")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/svg+xml")
    assert response.headers["planner-verdict"] == "tight"
    root = ElementTree.fromstring(response.text)
    told = {text.strip() for text in root.itertext()}
    request = GenerationRequest(width=2048, height=2048)
    assert request.describe() in told
    for name in ("T4", "A10"):
        assert {name, gib(fit(request, card_named(name), "dry-run").need_bytes)} <= told


def test_the_picture_fetches_nothing(client):
    text = client.get("/api/plan.svg?gpu=T4").text
    assert "<script" not in text and "<image" not in text and "@import" not in text


@pytest.mark.parametrize("query", ["width=wide", "gpu=T5", "widht=512", "gpu=", "task=txt2img&width=500"])
def test_a_bad_query_is_refused_as_by_the_check(client, query):
    picture, check = (client.get(f"/api/{name}?{query}") for name in ("plan.svg", "fit"))
    assert picture.status_code == check.status_code == 400
    assert picture.json() == check.json()
