"""Test who may act: by login where one is configured, else from this machine only."""

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from pages.shared.guard import rights, settings
from pages.shared.guard.rights import MayNot, Refusal, Right, of_user, of_visitor
from planner.errors import InvalidArgument

HERE = {"Host": "localhost:8501", "Upgrade": "websocket"}
ALLOWED = frozenset({"ada@example.com"})


@pytest.mark.parametrize(
    ("user", "why"),
    [
        ({}, "Log in to do this"),
        ({"is_logged_in": False, "email": "ada@example.com"}, "Log in to do this"),
        ({"is_logged_in": True}, "no e-mail address"),
        ({"is_logged_in": True, "email": "ada@example.com", "email_verified": False}, "Confirm the address"),
        ({"is_logged_in": True, "email": "eve@example.com"}, "add eve@example.com to PLANNER_USERS"),
        ({"is_logged_in": True, "email": "ada@example.com.evil"}, "PLANNER_USERS"),
    ],
)
def test_others_than_allowed_users_may_not_act(user, why):
    found = of_user(user, ALLOWED)
    assert isinstance(found, Refusal) and why in found.sentence
    assert found.sentence.endswith(".") and found.sentence.count(". ") == 0


@pytest.mark.parametrize("more", [{}, {"email_verified": True}])
def test_an_allowed_user_may_act(more):
    assert of_user({"is_logged_in": True, "email": "Ada@Example.com"} | more, ALLOWED) == Right("user ada@example.com")


def test_with_a_login_and_no_list_nobody_may_act():
    assert isinstance(of_user({"is_logged_in": True, "email": "ada@example.com"}, frozenset()), Refusal)


def test_users_are_read_from_their_setting():
    assert settings.users({"PLANNER_USERS": "Ada@example.com, bob@example.com,"}) == {
        "ada@example.com",
        "bob@example.com",
    }


@pytest.mark.parametrize("host", ["localhost:8501", "127.0.0.1:8501", "[::1]:8501"])
@pytest.mark.parametrize("address", [None, "127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_visitor_of_this_machine_may_act(host, address):
    assert of_visitor(HERE | {"Host": host}, address) == Right("this machine")


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        (HERE, "192.168.1.9"),
        (HERE, "not an address"),
        # A proxy on this machine, with and without its headers.
        *[(HERE | {name: "127.0.0.1"}, None) for name in ("X-Forwarded-For", "Forwarded", "x-real-ip", "Via")],
        ({"Host": "fit.example.com"}, None),
        ({"Upgrade": "websocket"}, None),
    ],
)
def test_other_visitors_may_not_act(headers, address, monkeypatch):
    found = of_visitor(headers, address)
    assert isinstance(found, Refusal) and "PLANNER_USERS" in found.sentence
    monkeypatch.setenv(settings.NETWORK, "1")
    assert isinstance(of_visitor(headers, address), Right)


def test_a_port_that_is_published_to_this_host_alone_counts_as_this_machine(monkeypatch):
    gateway = "172.18.0.1"
    assert isinstance(of_visitor(HERE, gateway), Refusal)
    monkeypatch.setenv(settings.PUBLISHED, "127.0.0.1")
    assert isinstance(of_visitor(HERE, gateway), Right)
    assert isinstance(of_visitor(HERE | {"X-Forwarded-For": "9.9.9.9"}, gateway), Refusal)
    assert isinstance(of_visitor(HERE | {"Host": "fit.example.com"}, gateway), Refusal)
    monkeypatch.setenv(settings.PUBLISHED, "0.0.0.0")
    assert isinstance(of_visitor(HERE, gateway), Refusal)


@pytest.mark.parametrize("value", ["yes", "true", "2", " on"])
def test_trust_is_said_in_so_many_words(monkeypatch, value):
    monkeypatch.setenv(settings.NETWORK, value)
    with pytest.raises(InvalidArgument, match="PLANNER_TRUST_NETWORK must be 1 or 0"):
        of_visitor(HERE, None)
    with pytest.raises(InvalidArgument):
        settings.checked()


def test_a_login_is_found_in_the_secrets(monkeypatch, tmp_path):
    assert not rights.is_login_configured()
    secrets = tmp_path / "secrets.toml"
    secrets.write_text('[auth]\nredirect_uri = "http://localhost:8501/oauth2callback"\ncookie_secret = "c"\n')
    monkeypatch.setattr(st.secrets, "_secrets", None)
    st.config.set_option("secrets.files", [str(secrets)])
    try:
        assert rights.is_login_configured()
        assert rights.may_act() == Refusal("Log in to do this; reading and planning need no login.")
        with pytest.raises(MayNot, match=r"^Log in to do this; reading and planning need no login$"):
            rights.demand()
    finally:
        st.config.set_option("secrets.files", [])
        monkeypatch.undo()


@pytest.fixture
def stranger(monkeypatch):
    """Every visitor comes from elsewhere."""
    monkeypatch.setattr(rights, "may_act", lambda: of_visitor(HERE, "192.168.1.9"))


def refusals(at: AppTest) -> list[str]:
    return [one.value for one in at.error if "own machine may do this" in one.value]


def test_a_stranger_starts_no_run(open_page, stranger, scripted, store):
    at = open_page("pages/1_Verify.py", width="64", height="64")
    at.button(key="verify").click().run()
    assert len(refusals(at)) == 1 and not at.exception
    assert "job" not in at.query_params and store.open_jobs() == []


def test_a_stranger_deletes_no_run(store, environment, stranger):
    from pages.shared.history.details import delete
    from tests.ui.accuracy.test_accuracy import keep
    from tests.unit.measured import REQUESTS

    keep(store, REQUESTS[0])
    [run] = store.measurements()
    assert "own machine may do this" in str(delete(run))
    assert store.measurements() == [run]


def test_a_stranger_imports_and_recovers_nothing(own_history, store, stranger, monkeypatch):
    from pages.shared.history import files, recover

    state: dict = {"import": type("Uploaded", (), {"file_id": "1"})()}
    monkeypatch.setattr(st, "session_state", state)
    files._take_in()
    assert state["imported"][1] is False and "own machine may do this" in state["imported"][2]
    damaged = own_history.with_name("damaged.db")
    damaged.write_bytes(b"not a history")
    monkeypatch.setattr(recover, "may_act", rights.may_act)
    for act in (recover._recover, recover._leave):
        act(damaged)
        assert state["recovered"][0] is False and "own machine may do this" in state["recovered"][1]
    assert damaged.read_bytes() == b"not a history" and store.measurements() == []
